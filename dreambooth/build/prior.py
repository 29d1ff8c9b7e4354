"""The class prior: images of the class, found or generated, and the teacher of their targets."""

from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dreambooth.build.networks import compute_dtype, pick_device, untouched_base
from dreambooth.build.prompts import class_prompt, class_prompts_of
from dreambooth.build.samplers import prior_sampler
from dreambooth.build.subjects import encode
from dreambooth.config import Config
from dreambooth.data.captions import Captions
from dreambooth.data.image_folder import list_images
from dreambooth.data.latents import EncodedImage, LatentDataset
from dreambooth.families import Family, digest_weights
from dreambooth.generation import sampler
from dreambooth.generation.class_prior import (
    GeneratedPrior,
    ImagePrior,
    Predict,
    Prior,
    make_teacher,
    prior_fingerprint,
)
from dreambooth.randomness import Randomness

Shape = tuple[int, int, int]  # of latents: (C, H, W)


def make_prior(
    family: Family,
    subject: list[EncodedImage],
    captions: list[list[str]],
    folder: Path,
    config: Config,
    randomness: Randomness,
    base: str,
    is_shared: bool = False,
) -> tuple[Prior | None, Predict | None]:
    """Return the source of class latents (None: no prior) and the teacher of their targets (None: the true noise).

    captions: of each subject's images, and of data.cut_mix. folder: for class latents that are generated. base:
    fingerprint of the base, which is taken from `family`: call this before anything trains. is_shared: whether other
    runs make class latents in `folder` as well.
    """
    prior = config.prior
    if prior.source == "none":
        return None, None
    if prior.source == "folder":
        images = encode(family, list_images(str(prior.folder)), config, randomness)
        captioned = Captions([class_prompt(config, 0)] * len(images), randomness)
        return ImagePrior(LatentDataset(images, captioned, randomness, "prior")), None
    photos = [image for image in subject if image.subject < len(config.subjects)]
    shapes, prompts = shapes_of(photos), prompts_of_class_images(captions, config)
    if prior.source != "teacher":
        return make_generated_prior(family, None, prompts, shapes, folder, config, randomness, base, is_shared), None
    frozen = untouched_base(family, config)
    teacher = make_teacher(frozen)
    if prior.teacher_latents == "subject":
        captioned = Captions([*chain(*class_prompts_of(captions, config))], randomness)
        return ImagePrior(LatentDataset(subject, captioned, randomness, "prior")), teacher
    return make_generated_prior(family, frozen, prompts, shapes, folder, config, randomness, base, is_shared), teacher


def shapes_of(images: list[EncodedImage]) -> list[Shape]:
    """Return the shapes of latents to generate class images in, in turn: the subject images' own; one if they agree."""
    shapes = [cast(Shape, tuple(image.mean_VCHW.shape[1:])) for image in images]
    return shapes[:1] if len(set(shapes)) == 1 else shapes


def prompts_of_class_images(captions: list[list[str]], config: Config) -> list[str]:
    """Return the prompts that class images are made from, in turn: the images' class prompts, and the plain one.

    captions: of each subject's images, and of data.cut_mix. Captions alone would keep the class only in their own
    places: a backpack's class then kept .59 of its diversity, with the plain prompt among them .95
    (benchmarks/RESULTS.md, "Captions").
    """
    own, num_subjects = class_prompts_of(captions, config), len(config.subjects)
    of_subjects = [[*prompts, class_prompt(config, number)] for number, prompts in enumerate(own[:num_subjects])]
    return in_turn(of_subjects + own[num_subjects:])


def in_turn(prompts: list[list[str]]) -> list[str]:
    """Return each class's different prompts such that all classes come equally often: a, b, a, b ..."""
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
    is_shared: bool = False,
) -> GeneratedPrior:
    """Make a prior that the frozen base generates while training runs; with prior.source=ahead before the first step.

    frozen: a copy of the base, if there is one already. prompts: of the images, in turn. shapes: of the latents, one
    for each block, in turn.
    """
    prior = config.prior
    settings = prior_sampler(config)
    dtype = compute_dtype(config, family)
    name = prior_fingerprint(
        base=base, prompt=prompts[0] if len(prompts) == 1 else prompts, sampler=str(settings),
        shape=shapes[0] if len(shapes) == 1 else shapes, seed=config.run.seed, dtype=str(dtype),
        num_images=prior.num_images, block_size=prior.batch_size, **vae_fingerprint(family, config),
        **schedule_fingerprint(family, config),
    )  # fmt: skip
    num_samples = num_samples_of_run(config)
    common = (prior.num_images, prior.batch_size, folder / name, prompts, num_samples, is_shared)
    made = GeneratedPrior(None, *common)
    if made.is_complete:
        return made
    sampled_with = frozen or untouched_base(family, config)

    def make(indices: list[int]) -> Tensor:
        shape = shapes[indices[0] // prior.batch_size % len(shapes)]  # the same within a block
        start = sampler.initial_noise(randomness, "class picture", indices, shape)
        with torch.autocast(pick_device(config).type, enabled=False):  # called within a training step
            return sampler.sample_latents(sampled_with, [prompts[i % len(prompts)] for i in indices], start, settings)

    return GeneratedPrior(make, *common)


def vae_fingerprint(family: Family, config: Config) -> dict[str, str]:
    """Return what model.vae adds to the fingerprint of class latents: nothing where it is not set, as ever."""
    return {} if config.model.vae is None else {"vae": digest_weights([family.vae.state_dict()])}


def schedule_fingerprint(family: Family, config: Config) -> dict[str, Any]:
    """Return what the settings that change the base's noise schedule add to it: nothing without them, as ever."""
    if not config.loss.zero_terminal_snr and config.model.config is None:
        return {}
    return {"schedule": {key: value for key, value in family.scheduler_config.items() if not key.startswith("_")}}


def num_class_images(config: Config) -> int:
    """Return how many class images the base makes for the run, by prior.source."""
    prior = config.prior
    if prior.source in ("stream", "ahead") or (prior.source == "teacher" and prior.teacher_latents == "class"):
        return min(prior.num_images, num_samples_of_run(config))
    return 0


def num_samples_of_run(config: Config) -> int:
    """Return how many samples of the subject all steps of the run see together."""
    return config.train.max_steps * config.train.samples_per_step
