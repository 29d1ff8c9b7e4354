"""Plan how long a run takes, by its arithmetic: steps, class images, validations.

A small model's step is taken here and timed. A model of Stable Diffusion's size is not, as one step on a CPU takes
half a minute: for it stand the rates of runs that were measured,

    seconds of a run = its FLOP / (FLOP of a measured step / seconds of that step)

which holds where the run is limited by arithmetic, as these are. Where nothing was measured, nothing is said.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from dreambooth import build
from dreambooth.build.validation_inputs import NUM_FIXED_LOSSES
from dreambooth.config import Config
from dreambooth.devices import device_name
from dreambooth.families import evaluation_mode, is_small
from dreambooth.families.guidance import Guidance
from dreambooth.preflight.memory_plan import Planner

TERA = 1e12


@dataclass(frozen=True)
class MeasuredStep:
    """Hold a step that somebody has timed. flops: of one of the same settings, by `Planner.step`."""

    device: str
    flops: float
    seconds: float
    source: str


# Of Stable Diffusion 1.5, all weights with the text encoder, subject and class: one step.
MEASURED = (
    MeasuredStep(
        "an NVIDIA A100", 4.99 * TERA, 0.3, "1000 steps of Stable Diffusion in 5 minutes: the paper, arXiv 2208.12242"
    ),
    MeasuredStep("one CPU core", 1.13 * TERA, 19.35, "256 pixels, float32: benchmarks/RESULTS.md, 22 November 2026"),
)


@dataclass(frozen=True)
class Duration:
    """Hold how long a run takes on a device, seconds, and by what that is known."""

    device: str
    seconds: float
    source: str

    def __str__(self) -> str:
        return f"about {in_words(self.seconds)} on {self.device} ({self.source})"


@dataclass(frozen=True)
class Cost:
    """Hold what parts of a run cost, in seconds or FLOP.

    prediction: for one image. decoding, scoring: of one image of a validation.
    """

    step: float
    prediction: float
    decoding: float
    scoring: float = 0.0

    def of_run(self, config: Config, guidance: Guidance) -> float:
        """Return what all steps, class images and validations cost together. guidance: the base's."""
        prior, validate = config.prior, config.validate
        step = self.step
        if prior.source == "teacher":  # it predicts the target of each class sample
            step += config.train.batch_size * config.train.accumulate * self.prediction
        num_passes = 2.0 - min(1.0, prior.guidance_min_noise) if guidance.is_combined(prior.guidance_scale) else 1.0
        class_image = prior.num_inference_steps * num_passes * self.prediction
        num_passes = 2.0 if guidance.is_combined(validate.guidance_scale) else 1.0
        image = validate.num_inference_steps * num_passes * self.prediction + self.decoding + self.scoring
        num_images = len(build.validation_prompts(config)) * validate.num_images
        validation = num_images * image + NUM_FIXED_LOSSES * self.prediction
        return (
            config.train.max_steps * step
            + build.num_class_images(config) * class_image
            + build.num_validations(config) * validation
        )


def durations(planner: Planner, config: Config) -> list[Duration]:
    """Return how long a run takes, where that can be known: here, or on the devices that were measured.

    A small model is timed on this CPU, and with its weights; without those there is none.
    """
    if not is_small(planner.family.denoiser):
        flops = flops_of(planner, config).of_run(config, planner.family.guidance)
        return [Duration(each.device, flops / (each.flops / each.seconds), each.source) for each in MEASURED]
    if build.pick_device(config).type != "cpu" or planner.shapes is not None:
        return []
    cost = timed_cost(planner, config)
    return [Duration("this CPU", cost.of_run(config, planner.family.guidance), f"a step was timed: {cost.step:.2g} s")]


def time_in_words(planner: Planner, config: Config) -> str:
    """Return how long a run takes, in words; unknown where nothing is known of the device to train on."""
    known = [str(each) for each in durations(planner, config)]
    device = build.pick_device(config)
    if device.type != "cpu":
        name = device_name(device)
        is_measured = any(each.device.removeprefix("an ") in name for each in MEASURED)
        known = known if known and is_measured else [f"unknown on {name}", *known]
    return "; ".join(known) or "unknown: a step is not timed without the base's weights"


def flops_of(planner: Planner, config: Config) -> Cost:
    """Return the arithmetic of a run's parts, FLOP; that of scoring is too small to count."""
    step, validation = planner.step(config), planner.validation(config)
    num_parts = planner.num_micro_batches(config)
    return Cost(
        step=step.flops * num_parts / min(2, num_parts) * config.train.accumulate,
        prediction=(validation.flops - validation.decoding_flops) / planner.num_predictions(config),
        decoding=validation.decoding_flops / config.prior.batch_size,
    )


def timed_cost(planner: Planner, config: Config) -> Cost:
    """Return the seconds of a run's parts, by doing each twice on the CPU. The weights stay as they are."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(config.train.num_threads or num_threads)
    step, update = timed(lambda: planner.take_step(config)), timed(unmoving_optimizer(planner).step)
    for network in planner.networks:
        network.zero_grad()
    with evaluation_mode(planner.family), torch.no_grad(), planner.autocast(config):
        conditioning = planner.encode_validation(config)
        latents_BCHW = planner.predict_once(config, conditioning)
        predicting = timed(lambda: planner.predict_once(config, conditioning))
        decoding = timed(lambda: planner.family.decode_latents(latents_BCHW))
    blank = [Image.new("RGB", (config.data.resolution,) * 2)] * config.prior.batch_size
    scoring = sum(timed(functools.partial(encoder.images, blank)) for encoder in planner.encoders)
    torch.set_num_threads(num_threads)
    num_parts = planner.num_micro_batches(config)
    return Cost(
        step=step * num_parts / min(2, num_parts) * config.train.accumulate + update,
        prediction=predicting / planner.num_predictions(config),
        decoding=decoding / config.prior.batch_size,
        scoring=scoring / config.prior.batch_size,
    )


def unmoving_optimizer(planner: Planner) -> torch.optim.Optimizer:
    """Return an optimizer that does all its arithmetic at a rate of 0, which moves no weight."""
    weights = [weight for network in planner.networks for weight in network.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=0.0, fused=True)


def timed(do: Callable[[], Any]) -> float:
    """Return the seconds of a second time: in the first, kernels are loaded and memory is made."""
    do()
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def in_words(seconds: float) -> str:
    """Return a duration as people say it: "40 s", "12 min", "9 h", "3 days"."""
    for limit, unit, word in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(1, round(seconds / unit))} {word}"
    return f"{round(seconds / 86400)} days"
