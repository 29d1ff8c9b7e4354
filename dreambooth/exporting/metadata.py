"""The metadata of a .safetensors file: the card as JSON, and the keys that other tools show and choose by.

`modelspec.`: Stability AI's Model Metadata Standard 1.0.0 (github.com/Stability-AI/ModelSpec). `ss_`: those of kohya's
that AUTOMATIC1111 tells XL and 2.x by; a file with metadata but without them it takes for one of 1.x.
"""

from dreambooth.families import Family
from dreambooth.prompts import subject_phrase
from dreambooth.subject_info import SubjectInfo, card_metadata


def file_metadata(family: Family, card: SubjectInfo, implementation: str, kind: str = "") -> dict[str, str]:
    """Return the metadata of a .safetensors file.

    implementation: whose names the tensors have. kind: "lora", "textual-inversion"; empty for a whole model.
    """
    subject = ", ".join(map(subject_phrase, card.subjects))
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{family.architecture}{kind and '-'}{kind}",
        "implementation": implementation,
        "title": subject,
        "resolution": f"{card.resolution}x{card.resolution}",
        "trigger_phrase": subject,
        "prediction_type": "v" if family.schedule.prediction == "v_prediction" else family.schedule.prediction,
    }
    return {"format": "pt", **{f"modelspec.{key}": value for key, value in spec.items()}, **card_metadata(card)}


def kohya_version(family: Family) -> dict[str, str]:
    """Return which model generation a LoRA is for, as kohya's scripts write it; empty for what they do not name."""
    name = family.architecture
    if not name.startswith("stable-diffusion") or name.startswith("stable-diffusion-3"):
        return {}
    if "-xl-" in name:
        return {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
    return {"ss_base_model_version": "sd_v2" if "-v2-" in name else "sd_v1", "ss_v2": str("-v2-" in name)}
