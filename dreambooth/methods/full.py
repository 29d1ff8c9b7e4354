"""Full fine-tuning: every weight of the denoiser, and the text encoders if wished (arXiv 2208.12242, section 3.2)."""

from torch import nn

from dreambooth.families import Family


def attach(family: Family, train_text_encoder: bool) -> dict[str, nn.Module]:
    """Make them trainable and return them: "denoiser", "text_encoder_0" ..."""
    trained: dict[str, nn.Module] = {"denoiser": family.denoiser}
    for number, text_encoder in enumerate(family.text_encoders):
        text_encoder.requires_grad_(train_text_encoder).train(train_text_encoder)
        if train_text_encoder:
            trained[f"text_encoder_{number}"] = text_encoder
    family.denoiser.requires_grad_(True).train()
    return trained
