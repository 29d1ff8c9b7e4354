"""Mistakes in names and paths, found in a moment: before torch and diffusers are loaded, which takes seconds."""

import os

from dreambooth.config import Config, subject_key
from dreambooth.data.image_folder import list_images, sort_files
from dreambooth.data.masks import AUTO, is_folder
from dreambooth.errors import UserError, escaped
from dreambooth.generation.models.location import check_path
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods import find_facts


def check_inputs(config: Config) -> None:
    """Raise UserError for an unknown method or sampler, a folder that is not there and images that cannot be read.

    ModelError for a base, a VAE or a model that reads validation images that is not there.
    """
    find_facts(config.method.name)
    for section in (config.prior, config.validate):
        SamplerSettings(section.num_inference_steps, section.guidance_scale, section.scheduler)
    check_folders(config)
    for key, model in (
        ("model.base", config.model.base),
        ("model.vae", config.model.vae),
        ("data.mask_model", config.data.mask_model if config.data.mask == AUTO else None),
        ("validate.matcher", config.validate.matcher),
        ("validate.reader", config.validate.reader),
    ):
        if model is not None:
            check_path(model, f"{key}:")


def check_folders(config: Config, decode: bool = True) -> None:
    """Raise UserError for a folder that is not there or has no images, and for images that cannot be read.

    decode: False: take files for images by their names alone.
    """
    for key, folder in _folders(config):
        if not os.path.isdir(folder):
            what = "is a file, not a folder" if os.path.exists(folder) else "there is no such folder"
            raise UserError(f"{key}: {escaped(folder)}: {what}")
        if key != "data.mask":
            (list_images if decode else sort_files)(folder)


def _folders(config: Config) -> list[tuple[str, str]]:
    """Return the folders of images that a config names, each with its key."""
    named: list[tuple[str, str | None]] = [
        (f"{subject_key(config, number)}.images", each.images) for number, each in enumerate(config.subjects)
    ]
    named.append(("prior.folder", config.prior.folder))
    named.append(("validate.images", config.validate.images))
    named.append(("data.mask", config.data.mask if is_folder(config.data.mask) else None))
    return [(key, folder) for key, folder in named if folder is not None]
