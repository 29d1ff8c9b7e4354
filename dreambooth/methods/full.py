"""Full fine-tuning: every weight of the denoiser, and the text encoders on request (arXiv 2208.12242, section 3.2)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dreambooth.families import Family
from dreambooth.methods.base import MethodSettings


def attach(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Make the networks trainable; with `trains_identifier_rows_only` of the token embedding only the words' rows."""
    trained: dict[str, nn.Module] = {"denoiser": family.denoiser}
    for number, text_encoder in enumerate(family.text_encoders):
        text_encoder.requires_grad_(settings.train_text_encoder).train(settings.train_text_encoder)
        if settings.train_text_encoder:
            trained[f"text_encoder_{number}"] = text_encoder
            if settings.trains_identifier_rows_only:
                rows = [row for word in settings.words for row in family.tokenize(word)]
                train_rows_only(cast(Any, text_encoder).get_input_embeddings().weight, rows)
    family.denoiser.requires_grad_(True).train()
    return trained


def train_rows_only(weight_VD: Tensor, rows: list[int]) -> None:
    """Zero the gradient of all other rows from now on. [V, D]: vocabulary and width."""
    trains_V1 = torch.zeros(len(weight_VD), 1)
    trains_V1[rows] = 1
    weight_VD.register_hook(lambda gradient_VD: gradient_VD * trains_V1.to(gradient_VD.device, non_blocking=True))
