"""Full fine-tuning: every weight of the denoiser, and the text encoders if wished (arXiv 2208.12242, section 3.2)."""

from torch import nn

from dreambooth.families import Family
from dreambooth.methods.base import MethodSettings


def attach(family: Family, settings: MethodSettings) -> dict[str, nn.Module]:
    """Make them trainable, all in float32."""
    trained: dict[str, nn.Module] = {"denoiser": family.denoiser}
    for number, text_encoder in enumerate(family.text_encoders):
        text_encoder.requires_grad_(settings.train_text_encoder).train(settings.train_text_encoder)
        if settings.train_text_encoder:
            trained[f"text_encoder_{number}"] = text_encoder
    family.denoiser.requires_grad_(True).train()
    return trained
