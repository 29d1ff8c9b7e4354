"""The VAE of a base's folder, or another one in its place (`model.vae`, `--vae`).

The other one is a folder, a hub id or a single `.safetensors`, of the original layout or diffusers'. A single file has
no config: it is read by that of the base.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import SingleFileComponentError

from dreambooth.errors import ModelError, first_line
from dreambooth.families.builtin_configs import BUILTIN_CONFIGS, config_folder
from dreambooth.families.flow_configs import FLOW_CONFIGS
from dreambooth.families.inspection import LOADING_ERRORS, read_json
from dreambooth.families.loading import load_part
from dreambooth.families.location import find_vae
from dreambooth.families.source import ModelSource

USUAL_SCALE = 0.18215  # of configs that name none

logger = logging.getLogger(__name__)


def load_vae(folder: Path, source: ModelSource, builtin: str) -> AutoencoderKL:
    """Load the VAE of a pipeline's folder or, where the source names one, another, in float32. Raises ModelError.

    builtin: the built-in config for a single file where the folder has no vae/.
    """
    if source.vae is None:
        if not (folder / "vae").exists():
            raise ModelError(
                f"{folder}: has no vae/; name a VAE with model.vae (--vae): folder, hub id or single .safetensors"
            )
        return load_part(AutoencoderKL, folder, "vae", source, torch.float32)
    with vae_configs(folder, builtin) as configs:
        return load_other_vae(source.vae, str(configs))


@contextlib.contextmanager
def vae_configs(folder: Path, builtin: str) -> Iterator[Path]:
    if (folder / "vae" / "config.json").is_file():
        yield folder
        return
    with config_folder(builtin, BUILTIN_CONFIGS | FLOW_CONFIGS) as built_in:
        yield built_in


def load_other_vae(vae: str, configs: str) -> AutoencoderKL:
    """Load a VAE by itself, in float32. configs: folder or hub id with the base's own vae/config.json.

    Raises ModelError for one that is missing, incomplete or of another class; warns where its latents are scaled
    otherwise than the base's.
    """
    path = Path(os.path.expanduser(vae))
    if path.is_file():
        return _load_file(path, configs)
    try:
        folder = find_vae(vae).absolute()
    except ModelError as error:
        raise ModelError(f"model.vae (--vae): {error}") from error
    name = read_json(folder / "config.json").get("_class_name", "AutoencoderKL")
    if name != "AutoencoderKL":
        raise ModelError(f"{folder / 'config.json'}: is of an {name}; use an AutoencoderKL")
    found: AutoencoderKL = load_part(AutoencoderKL, folder.parent, folder.name, ModelSource(vae), torch.float32)
    _warn_of_another_scale(vae, float(found.config.scaling_factor), Path(configs) / "vae" / "config.json")
    return found


def _load_file(path: Path, configs: str) -> AutoencoderKL:
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: a VAE's file must be .safetensors (other formats can run code when they are read)")
    try:
        found: AutoencoderKL = AutoencoderKL.from_single_file(
            str(path), config=configs, subfolder="vae", dtype=torch.float32
        )
    except (*LOADING_ERRORS, SingleFileComponentError) as error:
        raise ModelError(f"{path}: cannot be read as a VAE of this base: {first_line(error)}") from error
    if missing := [name for name, weight in found.named_parameters() if weight.is_meta]:
        raise ModelError(f"{path}: no VAE of this base: it lacks {len(missing)} weights, e.g. {missing[0]}")
    found.register_to_config(_name_or_path="")  # else a folder of this machine comes into every file that is made of it
    return found


def _warn_of_another_scale(vae: str, scale: float, base_config: Path) -> None:
    if not base_config.is_file():
        return
    usual = read_json(base_config).get("scaling_factor", USUAL_SCALE)
    if scale != usual:
        logger.warning(
            f"model.vae={vae}: its scaling_factor is {scale}, the base's own VAE has {usual}: is it another family's?"
        )
