"""Refine an image once it is made: redraw it larger, in tiles, and redraw its subject at the model's own resolution.

The subject is found by where its words acted (`attention_maps`). Both are image to image with the image's own seed and
settings; tiles have no prompt.
Shapes: H/W latent height and width.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.images import to_images
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.families.protocols import InpaintingDenoiser
from dreambooth.generation.attention_maps import cross_attention_of
from dreambooth.generation.inputs.canvas import Canvas, box_around, cut_out, feathered, finished_size
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.inputs.init_image import fitted_size
from dreambooth.generation.inputs.init_latents import encode_canvas
from dreambooth.generation.memory import decoding_for
from dreambooth.generation.models.loading import Model
from dreambooth.generation.prompting.prompt_reading import encoder
from dreambooth.generation.refining.refinement import Refinement
from dreambooth.generation.refining.tiles import with_tiles
from dreambooth.generation.request import PLAIN, ImageRequest
from dreambooth.generation.sampler import OnStep, sample_pixels
from dreambooth.generation.variation import NoiseSeed
from dreambooth.prompt_words import has_words

SUBJECT_PART = 0.4  # of a map's highest value: above it is the subject
FEATHER_PART = 32  # the border of what is redrawn fades over this part of the image's shorter side


def check_refinement(model: Model, request: ImageRequest) -> None:
    """Raise UserError for a refinement or its size that a model cannot do, or a prompt without a subject to find."""
    refinement = request.refinement
    if refinement is None:
        return
    if isinstance(model.family, InpaintingDenoiser) and model.family.is_inpainting:
        name = f"upscale={refinement.factor}" if refinement.factor > 1 else f"detail={refinement.detail}"
        raise UserError(f"{name}: not with an inpainting base; refine with its plain sibling")
    _check_larger_size(model, request, refinement)
    if refinement.detail == 0:
        return
    if not cross_attention_of(model.family.denoiser):
        raise UserError(
            f"detail={refinement.detail}: {model.name} has no cross-attention to find the subject by; it is for "
            "families with a UNet"
        )
    if not _subject_words(model, request):
        raise UserError(f"detail={refinement.detail}: prompt {request.prompt!r} names no subject that this model knows")


def _check_larger_size(model: Model, request: ImageRequest, refinement: Refinement) -> None:
    """Raise UserError for an upscale to a size that the model has no latents for."""
    if refinement.factor == 1 or refinement.strength == 0:
        return
    size = finished_size(request.images.init, (request.width, request.height))
    width, height = _larger_size(model.family, refinement, size)
    try:
        model.family.latent_shape(height, width)
    except UserError as error:
        raise UserError(f"upscale={refinement.factor}: {error}") from error


def _larger_size(family: Family, refinement: Refinement, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of an upscale; of strength 0 no latents are made, and finer steps fit."""
    return refinement.size(size, family.size_step if refinement.strength > 0 else family.vae_scale_factor)


def refine(
    model: Model,
    request: ImageRequest,
    image: Image.Image,
    maps: Mapping[str, Tensor],
    on_step: OnStep,
    decoding: str,
) -> Image.Image:
    """Return an image larger, and with its subject redrawn, as its request asks.

    maps: [H, W] by word of the prompt. decoding: as of `generate`, for the size of what is redrawn.
    """
    refinement = request.refinement
    if refinement is None:
        return image
    if refinement.factor > 1:
        size = _larger_size(model.family, refinement, image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
        tiled = with_tiles(model.family, model.resolution // model.family.vae_scale_factor)
        plain = without_prompt(model.family, request)
        image = _redrawn(tiled, model, plain, Canvas(image), refinement.strength, on_step, decoding)
    own = [map_HW for word, map_HW in maps.items() if word.lower() in _subject_words(model, request)]
    if refinement.detail > 0 and own:
        canvas = _subject_canvas(model, image, torch.stack(own).mean(0))
        image = _redrawn(model.family, model, request, canvas, refinement.detail, on_step, decoding)
    return image


def without_prompt(family: Family, request: ImageRequest) -> ImageRequest:
    """Return a request without a prompt and guidance: a tile shows a part, and would draw all that the prompt names.

    With its prompt the toy world's robot, twice as large, came out as nine robots at a strength of .3.
    """
    settings = replace(request.settings, guidance_scale=family.guidance.none, negative_prompt="")
    return replace(request, prompt="", settings=settings, text_encoding=PLAIN)


def _redrawn(
    family: Family,
    model: Model,
    request: ImageRequest,
    canvas: Canvas,
    strength: float,
    on_step: OnStep,
    decoding: str,
) -> Image.Image:
    """Return what a canvas is part of, with so much of it redrawn; nothing of it for strength 0."""
    if strength == 0:
        return canvas.image if canvas.whole is None else canvas.whole
    width, height = canvas.image.size
    seeds = [NoiseSeed(request.seed, request.variations)]
    encode = encoder(model.family, request.text_encoding)
    prompts, size = [request.prompt], (height, width)
    with decoding_for(model.family, decoding, height * width, 1):
        inputs = ImageInputs(encode_canvas(model.family, canvas, strength))
        (pixels_BCHW,) = sample_pixels(family, prompts, seeds, size, request.settings, 1, on_step, encode, inputs)
    return canvas.finish(to_images(pixels_BCHW)[0])


def _subject_words(model: Model, request: ImageRequest) -> list[str]:
    """Return the words that name the model's subjects in a prompt, in small letters."""
    found: list[str] = []
    for subject in model.subjects:
        if has_words(request.prompt, subject.identifier):
            found += f"{subject.identifier} {subject.class_noun}".lower().split()
    return found


def _subject_canvas(model: Model, image: Image.Image, map_HW: Tensor) -> Canvas:
    """Return the part of an image where a map is high, at the resolution that the model was trained at."""
    values = Image.fromarray(map_HW.numpy().astype(np.float32), mode="F")
    is_subject = np.asarray(values.resize(image.size, Image.Resampling.BICUBIC)) > SUBJECT_PART * float(map_HW.max())
    mask = feathered(Image.fromarray((is_subject * 255).astype(np.uint8)), max(1, min(image.size) // FEATHER_PART))
    box = box_around(mask) or (0, 0, *image.size)
    size = fitted_size((box[2] - box[0], box[3] - box[1]), model.resolution, model.family.size_multiple)
    return cut_out(image, mask, box, size)
