"""Which of a run's pictures the report shows, with which figures: before and after, and one prompt over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL.Image import Image

from dreambooth.metrics.estimates import BOUNDS, estimate
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.report.samples import Samples
from dreambooth.report.tables import MEASURES

Kind = Literal["subject", "class", "other"]
# What is told beside the pictures of a prompt of each kind.
FIGURES: dict[Kind, tuple[str, ...]] = {
    "subject": ("dino", "clip_i", "clip_t"),
    "class": ("drift", "pres"),
    "other": ("drift_other",),
}


@dataclass(frozen=True)
class ShownPrompt:
    """A validation prompt as it was sampled, and what its pictures are measured for."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Strip:
    """The pictures of one prompt at one step, a picture a seed, and what they measure."""

    step: int
    pictures: Sequence[Image]
    figures: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """One prompt at a few steps, at the same seeds."""

    prompt: ShownPrompt
    strips: Sequence[Strip]


@dataclass(frozen=True)
class Frame:
    """One picture of the filmstrip."""

    step: int
    picture: Image
    quality: float | None


def comparisons(
    samples: Samples, prompts: Sequence[ShownPrompt], steps: Sequence[int], validation_log: ValidationLog
) -> list[Comparison]:
    """Return every prompt's images at those of `steps` that have a grid."""
    there = set(samples.steps())
    rows = {step: samples.rows(step) for step in dict.fromkeys(steps) if step in there}
    entries = {entry.step: entry for entry in validation_log.entries}
    return [
        Comparison(
            prompt,
            [
                Strip(step, pictures[number], _figures(entries.get(step), prompts, number, samples.num_images))
                for step, pictures in rows.items()
            ],
        )
        for number, prompt in enumerate(prompts)
    ]


def _figures(entry: ValidationRecord | None, prompts: Sequence[ShownPrompt], number: int, num_images: int) -> list[str]:
    """Return the measures of prompt `number` alone.

    An entry has those of all prompts of a kind, one after the other.
    """
    kind = prompts[number].kind
    first = num_images * [prompt.kind for prompt in prompts[:number]].count(kind)
    scores = entry.scores if entry is not None else {}
    return [
        f"{MEASURES[name].title} {estimate(own, bounds=BOUNDS[name])}"
        for name in FIGURES[kind]
        if (own := scores.get(name, [])[first : first + num_images])
    ]


def film(samples: Samples, prompts: Sequence[ShownPrompt], validation_log: ValidationLog) -> tuple[str, list[Frame]]:
    """Return the first subject prompt, and its first seed's image at every step with a grid; both empty without one."""
    number = next((number for number, prompt in enumerate(prompts) if prompt.kind == "subject"), None)
    if number is None:
        return "", []
    qualities = validation_log.qualities
    frames = [Frame(step, samples.rows(step)[number][0], qualities.get(step)) for step in samples.steps()]
    return prompts[number].text, frames
