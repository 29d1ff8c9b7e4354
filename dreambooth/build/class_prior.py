"""The class prior: pictures of the class, found or made, and the teacher of their targets."""

from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dreambooth.build.networks import compute_dtype, pick_device, untouched_base
from dreambooth.build.prompts import class_prompts_of
from dreambooth.build.subjects import encode
from dreambooth.config import Config
from dreambooth.data.captions import Captions
from dreambooth.data.images import list_images
from dreambooth.data.latents import EncodedPicture, LatentDataset
from dreambooth.families import Family
from dreambooth.generation import sampler
from dreambooth.generation.class_prior import (
    GeneratedPrior,
    PicturePrior,
    Predict,
    Prior,
    make_teacher,
    prior_fingerprint,
)
from dreambooth.generation.settings import SamplerSettings
from dreambooth.randomness import Randomness

Shape = tuple[int, int, int]  # of latents: (C, H, W)


def make_prior(
    family: Family,
    subject: list[EncodedPicture],
    captions: list[list[str]],
    folder: Path,
    config: Config,
    randomness: Randomness,
    base: str,
) -> tuple[Prior | None, Predict | None]:
    """Where class latents come from (None: no prior), and the teacher of their targets (None: the true noise).

    captions: of each subject's pictures. folder: for class latents that are made here. base: fingerprint of the base
    model, which is taken from `family`: call this before anything trains.
    """
    prior, class_prompts = config.prior, class_prompts_of(captions, config)
    if prior.source == "none":
        return None, None
    if prior.source == "folder":
        pictures = encode(family, list_images(str(prior.folder)), config, randomness)
        named = Captions([class_prompts[0][0]] * len(pictures), randomness)
        return PicturePrior(LatentDataset(pictures, named, randomness, "prior")), None
    shapes = shapes_of(subject)
    if prior.source != "teacher":
        return make_generated_prior(
            family, None, in_turn(class_prompts), shapes, folder, config, randomness, base
        ), None
    frozen = untouched_base(family, config)
    teacher = make_teacher(frozen)
    if prior.teacher_latents == "subject":
        named = Captions([*chain(*class_prompts)], randomness)
        return PicturePrior(LatentDataset(subject, named, randomness, "prior")), teacher
    return make_generated_prior(
        family, frozen, in_turn(class_prompts), shapes, folder, config, randomness, base
    ), teacher


def shapes_of(pictures: list[EncodedPicture]) -> list[Shape]:
    """Shapes of latents that class pictures are made in, in turn: those of the subject's; one, where they agree."""
    shapes = [cast(Shape, tuple(picture.mean_VCHW.shape[1:])) for picture in pictures]
    return shapes[:1] if len(set(shapes)) == 1 else shapes


def in_turn(prompts: list[list[str]]) -> list[str]:
    """The prompts of each class, each once, such that all classes come equally often: a, b, a, b ..."""
    by_class = list(dict.fromkeys(tuple(dict.fromkeys(own)) for own in prompts))
    longest = max(map(len, by_class))
    return [own[turn % len(own)] for turn in range(longest) for own in by_class]


def make_generated_prior(
    family: Family,
    frozen: Family | None,
    prompts: list[str],
    shapes: list[Shape],
    folder: Path,
    config: Config,
    randomness: Randomness,
    base: str,
) -> GeneratedPrior:
    """A prior that the frozen base makes while training runs; with prior.source=ahead before the first step.

    frozen: a copy of the base, if there is one already. prompts: what to make, in turn. shapes: of the latents, a block
    in each in turn.
    """
    prior = config.prior
    settings = prior_sampler(config)
    dtype = compute_dtype(config, family)
    name = prior_fingerprint(
        base=base, prompt=prompts[0] if len(prompts) == 1 else prompts, sampler=str(settings),
        shape=shapes[0] if len(shapes) == 1 else shapes, seed=config.run.seed, dtype=str(dtype),
        num_images=prior.num_images, block_size=prior.batch_size,
    )  # fmt: skip
    num_places = places_of_run(config)
    made = GeneratedPrior(None, prior.num_images, prior.batch_size, folder / name, prompts, num_places)
    if made.is_complete:
        return made
    sampled_with = frozen or untouched_base(family, config)

    def make(indices: list[int]) -> Tensor:
        shape = shapes[indices[0] // prior.batch_size % len(shapes)]  # one a block
        start = sampler.initial_noise(randomness, "class picture", indices, shape)
        with torch.autocast(pick_device(config).type, enabled=False):  # called within a training step
            return sampler.sample_latents(sampled_with, [prompts[i % len(prompts)] for i in indices], start, settings)

    return GeneratedPrior(make, prior.num_images, prior.batch_size, folder / name, prompts, num_places)


def places_of_run(config: Config) -> int:
    """How many samples of the subject all steps of the run see together."""
    train = config.train
    return train.max_steps * train.batch_size * train.accumulate * train.devices * train.num_nodes


def prior_sampler(config: Config) -> SamplerSettings:
    """Raises UserError for an unknown scheduler."""
    prior = config.prior
    return SamplerSettings(
        prior.num_inference_steps, prior.guidance_scale, prior.scheduler, guidance_min_noise=prior.guidance_min_noise
    )
