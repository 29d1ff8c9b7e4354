"""The metadata of a .safetensors file: the card as JSON, and the keys that other tools show and choose by.

`modelspec.`: Stability AI's Model Metadata Standard 1.0.0 (github.com/Stability-AI/ModelSpec). `ss_`: those of kohya's
that AUTOMATIC1111 tells XL and 2.x by; a file with metadata but without them it takes for one of 1.x.
"""

from typing import Any

from dreambooth.families import Family, components
from dreambooth.prompts import subject_phrase
from dreambooth.subject_info import SubjectInfo, card_metadata


def file_metadata(family: Family, card: SubjectInfo, implementation: str, kind: str = "") -> dict[str, str]:
    """Return the metadata of a .safetensors file.

    implementation: whose names the tensors have. kind: "lora", "textual-inversion"; empty for a whole model.
    """
    subject = ", ".join(map(subject_phrase, card.subjects))
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{architecture(family)}{kind and '-'}{kind}",
        "implementation": implementation,
        "title": subject,
        "resolution": f"{card.resolution}x{card.resolution}",
        "trigger_phrase": subject,
        "prediction_type": "v" if family.schedule.prediction == "v_prediction" else family.schedule.prediction,
    }
    return {"format": "pt", **{f"modelspec.{key}": value for key, value in spec.items()}, **card_metadata(card)}


def architecture(family: Family) -> str:
    """Return the architecture's name in the standard.

    2.x has an OpenCLIP encoder, with plain GELU; its 768 pixel models predict v.
    """
    parts: dict[str, Any] = components(family)
    if "text_encoder_2" in parts:
        return "stable-diffusion-xl-v1-base"
    if parts["text_encoder"].config.hidden_act == "quick_gelu":
        return "stable-diffusion-v1"
    return "stable-diffusion-v2-768-v" if family.schedule.prediction == "v_prediction" else "stable-diffusion-v2-512"


def kohya_version(family: Family) -> dict[str, str]:
    """Return which model generation a LoRA is for, as kohya's scripts write it."""
    name = architecture(family)
    if "-xl-" in name:
        return {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
    return {"ss_base_model_version": "sd_v2" if "-v2-" in name else "sd_v1", "ss_v2": str("-v2-" in name)}
