"""Tell what is known of a base without loading it: its family and the resolution it was trained at."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.home_folder import with_home

TOY_RESOLUTION = 128  # pixels; bases up to here are tiny, and learn at other rates than Stable Diffusion
TOYS = {"sd": "toy", "z_image": "toy_flow"}  # what tiny bases of these families are called
FAMILIES = {  # by the pipeline that a folder's model_index.json names
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "ZImagePipeline": "z_image",
    "QwenImagePipeline": "qwen_image",
    "Flux2KleinPipeline": "flux2_klein",
    "Krea2Pipeline": "krea2",
    "FluxPipeline": "flux1",
    "StableDiffusion3Pipeline": "sd3",
}
NAMES = (  # of hub ids and files, in small letters, the first that fits; resolution in pixels
    (re.compile(r"z[-_]?image"), "z_image", 1024),
    (re.compile(r"qwen[-_]?image"), "qwen_image", 1024),
    (re.compile(r"flux\.?2|klein"), "flux2_klein", 1024),
    (re.compile(r"flux"), "flux1", 1024),
    (re.compile(r"krea"), "krea2", 1024),
    (re.compile(r"stable-diffusion-3|sd-?3"), "sd3", 1024),
    (re.compile(r"xl"), "sdxl", 1024),
    (re.compile(r"stable-diffusion-2(-1)?$|v2-1_768"), "sd", 768),
)


@dataclass(frozen=True)
class BaseFacts:
    """Hold a base's family and the side in pixels of the images that it was trained on."""

    family: str
    resolution: int

    @property
    def kind(self) -> str:
        """Return the family; of a base as small as an embedded one "toy" or "toy_flow"."""
        return TOYS.get(self.family, self.family) if self.resolution <= TOY_RESOLUTION else self.family

    @property
    def is_tiny(self) -> bool:
        """Return whether it is as small as an embedded base."""
        return self.kind in TOYS.values()

    @property
    def is_toy(self) -> bool:
        """Return whether it is as small as the embedded Stable Diffusion."""
        return self.kind == TOYS["sd"]

    @property
    def is_toy_flow(self) -> bool:
        """Return whether it is as small as the embedded flow base."""
        return self.kind == TOYS["z_image"]


def base_facts(base: str, family: str = "auto") -> BaseFacts:
    """Return the facts of a base by its folder's configs, else by its name. family: as model.family names it."""
    named = next(((own, side) for name, own, side in NAMES if name.search(base.lower())), ("sd", 512))
    folder = Path(with_home(base))
    pipeline = str(_json(folder / "model_index.json").get("_class_name"))
    found = FAMILIES.get(pipeline, named[0]) if family == "auto" else family
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    if unet.get("addition_embed_type") == "text_time" and family == "auto":
        found = "sdxl"
    default = 1024 if found not in ("sd", named[0]) else named[1]
    if "sample_size" in unet:
        return BaseFacts(found, 8 * int(unet["sample_size"]))
    # The VAEs of other families name 32 or nothing, whatever their resolution.
    vae_tells = found in ("z_image", "flux2_klein", "flux1", "sd3") and isinstance(vae.get("sample_size"), int)
    return BaseFacts(found, int(vae["sample_size"]) if vae_tells else default)


def vocabulary(tokenizer: Path) -> dict[str, int]:
    """Return the tokens of the tokenizer in a folder, with their numbers; none where it cannot be read."""
    model = _json(tokenizer / "tokenizer.json").get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; an empty one where it cannot be read: loading the base says why."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
