"""Make requests of what is asked of a model, and generate their images."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreambooth.data.images import to_images
from dreambooth.errors import UserError
from dreambooth.families import fingerprint
from dreambooth.families.runtimes import Graph
from dreambooth.generation.attention_maps import AttentionRecorder, draw_attention, word_maps
from dreambooth.generation.inputs.canvas import natural_size
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.image_inputs import ChangeLatents, Prepared, attached, prepare
from dreambooth.generation.inputs.init_image import InitImage
from dreambooth.generation.inputs.line_options import merged
from dreambooth.generation.memory import prepare_decoding
from dreambooth.generation.models.loading import Model
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.prompt_reading import as_typed, cut_warning, encoder, find_encoding, num_parts
from dreambooth.generation.prompting.wildcards import Wildcards, draw
from dreambooth.generation.refining.refine import check_refinement, refine
from dreambooth.generation.refining.refinement import refinement_of
from dreambooth.generation.request import (
    PLAIN,
    GeneratedImage,
    ImageRequest,
    has_weights,
    make_recipe,
    request_of,
)
from dreambooth.generation.sampler import OnStep, sample_pixels
from dreambooth.generation.schedulers import check_negative_prompt, check_sampler
from dreambooth.generation.settings import SamplerSettings, check_size, sampler_settings
from dreambooth.generation.variation import NoiseSeed, Variation
from dreambooth.plugins import active
from dreambooth.prompt_words import foreign_syntax_warning, has_words

NO_IMAGES = FromImages()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Hold how far a task is: `images` of num_images are done; of the current batch `step` of num_steps."""

    images: int
    num_images: int
    step: int = 0
    num_steps: int = 0
    batch_size: int = 0
    task: str = "sampling"

    @property
    def fraction(self) -> float:
        """Return the part of all sampler steps that is done, 0 to 1."""
        under_way = self.batch_size * self.step / self.num_steps if self.num_steps else 0.0
        return min(1.0, (self.images + under_way) / max(1, self.num_images))


OnProgress = Callable[[Progress], None]


def make_requests(
    model: Model, wanted: Iterable[ImageOptions], wildcards: Wildcards, images: FromImages = NO_IMAGES
) -> list[ImageRequest]:
    """Return the requests of the images of these prompts, with wildcards drawn and {subject} filled in.

    images: what those take from others that name none of their own. Without a size an image is as large as the one that
    it starts from. Warns of a prompt that is longer than the model reads. Raises UserError where that cuts off an
    identifier, for weights that the model cannot read, for a size or a number of steps that it cannot do, and for
    images that cannot be read.
    """
    wanted = list(wanted)
    taken = {own: attached(model, merged(images, own)) for own in dict.fromkeys(options.images for options in wanted)}
    requests = []
    for options in wanted:
        used = taken[options.images]
        size = default_size(model, used.init)
        seeds = range(options.seed, options.seed + options.num_images)
        requests += [replace(_request(model, options, seed, wildcards, size), images=used) for seed in seeds]
    requests = [active().change("change_request", request=request) for request in requests]
    sampled = [(replace(each.settings, negative_prompt=""), (each.height, each.width)) for each in requests]
    for settings, size in dict.fromkeys(sampled):
        check_can_sample(model, size, settings)
    for request in requests:
        check_refinement(model, request)
    _warn_of_prompts(model, requests)
    return requests


def _request(
    model: Model, options: ImageOptions, seed: int, wildcards: Wildcards, usual_size: tuple[int, int]
) -> ImageRequest:
    """Return the request of one image. What the options leave open is as the run sampled its own images."""
    templates = (options.prompt, _negative_prompt(model, options))
    prompt, negative = (as_typed(model.family, model.fill(draw(each, seed, wildcards))) for each in templates)
    settings = sampler_settings(model.card, options.steps, options.guidance_scale, options.scheduler, negative)
    check_negative_prompt(model.family, settings)
    size = options.size or usual_size
    encoding = find_encoding(model.family, (prompt, negative))
    refinement = refinement_of(options.upscale, options.upscale_strength, options.detail)
    return ImageRequest(model.ref, prompt, seed, *size, settings, encoding, refinement=refinement)


def _negative_prompt(model: Model, options: ImageOptions) -> str:
    """Return the negative prompt; without the words of styles for a base that reads none."""
    if not model.family.guidance.is_input:
        return options.negative_prompt
    return options.negative_prompt.removesuffix(options.style_negative).removesuffix(", ")


def _warn_of_prompts(model: Model, requests: Sequence[ImageRequest]) -> None:
    """Warn of what a model does not read of its prompts. Raises UserError where that is an identifier."""
    encodings = {text: each.text_encoding for each in requests for text in (each.prompt, each.settings.negative_prompt)}
    identifiers = [subject.identifier for subject in model.subjects]
    for embedding in model.ref.embeddings:
        if not any(has_words(prompt, str(embedding.word)) for prompt in encodings):
            logger.warning(f"{embedding.file}: no prompt has its word, {embedding.word!r}")
    for prompt, encoding in encodings.items():
        name = f"prompt {prompt!r}"
        if encoding == PLAIN and (warning := cut_warning(model.family, name, prompt, identifiers)) is not None:
            logger.warning(warning)
        if (warning := foreign_syntax_warning(name, prompt, reads_weights=True)) is not None:
            logger.warning(warning)


def default_size(model: Model, init: InitImage | None) -> tuple[int, int]:
    """Return the (height, width) to generate at where none is asked for, pixels."""
    if init is None:
        return model.resolution, model.resolution
    width, height = natural_size(init, model.resolution, model.family.size_multiple)
    return height, width


def check_can_sample(model: Model, size: tuple[int, int], settings: SamplerSettings) -> None:
    """Raise UserError for a size or a number of sampler steps that the model cannot do."""
    check_size(model.family.size_step, size)
    check_sampler(model.family, settings)


def generate(
    model: Model,
    requests: Sequence[ImageRequest],
    batch_size: int,
    on_progress: OnProgress | None = None,
    attention_maps: bool = False,
    decoding: str = "auto",
) -> Iterator[GeneratedImage]:
    """Yield one image for each request, in order. Neighbours of one size and settings are sampled in one batch.

    attention_maps: also draw where each word of the prompt acted. decoding: whole, slices, tiles, or auto by what is
    free.
    """
    weights, done = fingerprint(model.family), 0
    before: ImageRequest | None = None
    for batch in _batches(model, requests, batch_size):
        if before is None or _images_of(before) != _images_of(batch[0]):
            prepared = prepare(model, batch[0])
        before = batch[0]

        def report(step: int, num_steps: int, done: int = done, size: int = len(batch)) -> None:
            if on_progress is not None:
                on_progress(Progress(done, len(requests), step, num_steps, size))

        has_detail = batch[0].refinement is not None and batch[0].refinement.detail > 0
        with _recorder(model, batch) if attention_maps or has_detail else contextlib.nullcontext() as recorder:
            prepare_decoding(model.family, decoding, batch[0].height * batch[0].width, len(batch))
            images = _sample_in_parts(model, batch, prepared, report, can_halve=recorder is None)
        for row, (request, image) in enumerate(zip(batch, images, strict=True)):
            maps = {} if recorder is None else word_maps(model.family, request, recorder.maps[row])
            done += 1
            refined = refine(model, request, image, maps, report, decoding)
            image = active().change("change_image", image=refined, request=request)
            made = GeneratedImage.from_image(image, make_recipe(request, weights))
            if attention_maps:
                made.attention = draw_attention(made, maps)
            active().tell("after_image", image=made, recipe=made.recipe)
            yield made


def _recorder(model: Model, batch: Sequence[ImageRequest]) -> AttentionRecorder:
    if isinstance(model.family.denoiser, Graph):
        raise UserError(f"--attention-maps: {model.name} holds graphs, whose attention nobody sees; leave it out")
    _, height, width = model.family.latent_shape(batch[0].height, batch[0].width)
    return AttentionRecorder(model.family.denoiser, len(batch), (height, width))


def _images_of(request: ImageRequest) -> tuple[Hashable, ...]:
    """Return what images that are taken are prepared for."""
    return request.height, request.width, request.images


def _sample(model: Model, batch: Sequence[ImageRequest], prepared: Prepared, on_step: OnStep) -> list[Image.Image]:
    """Return the images of requests that may go into one batch."""
    first, prompts = batch[0], [each.prompt for each in batch]
    seeds = [NoiseSeed(each.seed, each.variations) for each in batch]
    size, inputs = (first.height, first.width), replace(prepared.inputs, change=_change_of_plugins(batch))
    encode = encoder(model.family, first.text_encoding)
    pixels = sample_pixels(model.family, prompts, seeds, size, first.settings, len(batch), on_step, encode, inputs)
    return prepared.finish(to_images(next(pixels)))


def _change_of_plugins(batch: Sequence[ImageRequest]) -> ChangeLatents | None:
    """Return what plug-ins do to the latents of a batch after each sampler step; None where they do nothing."""
    if not active().has("change_latents"):
        return None

    def change(latents_BCHW: Tensor, step: int, num_steps: int) -> Tensor:
        changed: Tensor = active().change(
            "change_latents", latents_BCHW=latents_BCHW, step=step, num_steps=num_steps, requests=batch
        )
        return changed

    return change


def _sample_in_parts(
    model: Model, batch: Sequence[ImageRequest], prepared: Prepared, on_step: OnStep, can_halve: bool
) -> list[Image.Image]:
    """Return the images of a batch, in halves where the device has no memory for all of it: the same but for rounding.

    can_halve: False where something counts on the whole batch; then torch.OutOfMemoryError is raised.
    """
    try:
        return _sample(model, batch, prepared, on_step)
    except torch.OutOfMemoryError:
        if len(batch) == 1 or not can_halve:
            raise
    torch.cuda.empty_cache()  # behind the handler, which still held what had been computed
    half = (len(batch) + 1) // 2
    logger.info(f"out of memory with {len(batch)} images at a time; going on with {half} (--batch-size {half})")
    return [
        image
        for part in (batch[:half], batch[half:])
        for image in _sample_in_parts(model, part, prepared, on_step, can_halve)
    ]


def _batches(model: Model, requests: Sequence[ImageRequest], batch_size: int) -> Iterator[list[ImageRequest]]:
    """Yield the requests in batches of one size, settings and length of prompts each."""
    for _, alike in itertools.groupby(requests, key=lambda request: _kind(model, request)):
        while batch := list(itertools.islice(alike, batch_size)):
            yield batch


def _kind(model: Model, request: ImageRequest) -> tuple[Hashable, ...]:
    """Return what the images of one batch have in common."""
    own = (request.settings, request.text_encoding, request.refinement)
    return *_images_of(request), *own, num_parts(model.family, request)


def vary(request: ImageRequest, num_images: int, seed: int, strength: float) -> list[ImageRequest]:
    """Return requests of variations of an image; that of image i is drawn from seed + i.

    strength: how far its noise is turned towards other noise, from 0, the image itself, to 1. Raises UserError.
    """
    turned = [Variation(seed + number, strength) for number in range(num_images)]
    return [replace(request, variations=(*request.variations, variation)) for variation in turned]


def reproduce(recipe: Mapping[str, Any], model: Model, images: FromImages | None = None) -> ImageRequest:
    """Return the request of a recipe for a model, which gives the same image but for rounding: one level of 255.

    images: the recipe's own, where their files lie now; None: where they lay.

    A model that has other weights now than when the image was made gets a warning.
    """
    if not has_weights(recipe, fingerprint(model.family)):
        logger.warning(f"{model.name} has other weights now; this will be another image")
    active().warn_of_missing(recipe.get("plugins", ()))
    request = request_of(recipe)
    request = replace(request, model=model.ref, images=attached(model, images or request.images))
    check_can_sample(model, (request.height, request.width), request.settings)
    check_refinement(model, request)
    return request
