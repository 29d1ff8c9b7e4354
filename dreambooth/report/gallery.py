"""Choose the images of a run that the report shows, with their scores: the best, before and after, over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL.Image import Image

from dreambooth.metrics.estimates import bounds_of, estimate
from dreambooth.metrics.log_names import find_metric
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.report.samples import Samples

Kind = Literal["subject", "class", "other"]
# What is shown beside the images of a prompt of each kind.
SHOWN_SCORES: dict[Kind, tuple[str, ...]] = {
    "subject": ("dino", "clip_i", "clip_t", "match"),
    "class": ("drift", "pres"),
    "other": ("drift_other",),
}


@dataclass(frozen=True)
class ShownPrompt:
    """Hold a validation prompt as it was sampled, its kind, and the numbers of its subjects.

    questions: the measures of those that are asked of its images.
    """

    text: str
    kind: Kind
    subjects: tuple[int, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Return what is shown beside its images."""
        return SHOWN_SCORES[self.kind] + self.questions


@dataclass(frozen=True)
class Strip:
    """Hold the images of one prompt at one step, an image a seed, and their scores."""

    step: int
    images: Sequence[Image]
    scores: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Hold one prompt at a few steps, at the same seeds."""

    prompt: ShownPrompt
    strips: Sequence[Strip]


@dataclass(frozen=True)
class Frame:
    """Hold one image of the filmstrip."""

    step: int
    image: Image
    quality: float | None


@dataclass(frozen=True)
class Highlight:
    """Hold an image of a subject, chosen for its similarity to the photos where that was measured."""

    image: Image
    prompt: str
    step: int
    chosen: str  # by what, in words; empty: it is the first one


def highlight(
    samples: Samples, prompts: Sequence[ShownPrompt], validation_log: ValidationLog, step: int, subject: int
) -> Highlight | None:
    """Return the image of a step that is most like the photos of a subject; None where there is none of it.

    Images of the subject alone go before those of several.
    """
    if step not in samples.steps():
        return None
    rows = [number for number, prompt in enumerate(prompts) if prompt.kind == "subject"]  # scored in this order
    of_it = [position for position, row in enumerate(rows) if subject in prompts[row].subjects]
    alone = [position for position in of_it if len(prompts[rows[position]].subjects) == 1] or of_it
    images = [position * samples.num_images + seed for position in alone for seed in range(samples.num_images)]
    if not images:
        return None
    scores = next((entry.scores for entry in validation_log.entries if entry.step == step), {})
    num_scores = len(rows) * samples.num_images
    similarity = next((scores[name] for name in ("dino", "clip_i") if len(scores.get(name, ())) == num_scores), None)
    best = images[0] if similarity is None else max(images, key=lambda number: similarity[number])
    position, seed = divmod(best, samples.num_images)
    chosen = "" if similarity is None else f"the most like the photos, of {len(images)}"
    return Highlight(samples.rows(step)[rows[position]][seed], prompts[rows[position]].text, step, chosen)


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
                Strip(step, images[number], _scores(entries.get(step), prompts, number, samples.num_images))
                for step, images in rows.items()
            ],
        )
        for number, prompt in enumerate(prompts)
    ]


def _scores(entry: ValidationRecord | None, prompts: Sequence[ShownPrompt], number: int, num_images: int) -> list[str]:
    """Return the measures of prompt `number` alone.

    An entry has those of all prompts that have the measure, one after the other.
    """
    scores, found = entry.scores if entry is not None else {}, []
    for name in prompts[number].measures:
        first = num_images * sum(name in prompt.measures for prompt in prompts[:number])
        if own := scores.get(name, [])[first : first + num_images]:
            found.append(f"{find_metric(f'eval/{name}').title} {estimate(own, bounds=bounds_of(name))}")
    return found


def film(samples: Samples, prompts: Sequence[ShownPrompt], validation_log: ValidationLog) -> tuple[str, list[Frame]]:
    """Return the first subject prompt, and its first seed's image at every step with a grid; both empty without one."""
    number = next((number for number, prompt in enumerate(prompts) if prompt.kind == "subject"), None)
    if number is None:
        return "", []
    qualities = validation_log.qualities
    frames = [Frame(step, samples.rows(step)[number][0], qualities.get(step)) for step in samples.steps()]
    return prompts[number].text, frames
