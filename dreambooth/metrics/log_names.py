"""The names in a run's logs and what they mean: one table for TensorBoard, the report and the model card."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dreambooth.plugins import Table
from dreambooth.questions import question_of

DIRECTIONS = {"↑": "More is better.", "↓": "Less is better.", "": ""}


@dataclass(frozen=True)
class Metric:
    """Name a logged number for readers, and say what it means and which way is better."""

    title: str
    meaning: str
    better: str = ""  # ↑ or ↓; empty: neither


@dataclass(frozen=True)
class Score:
    """Hold a plug-in's score of validation images: what it means, and how it is measured.

    measure: images of one prompt with the subject, the prompt without identifiers, the subject's photos -> a number for
    each image.
    """

    metric: Metric
    measure: Callable[[list[Any], str, list[Any]], list[float]]


SCORES: Table[Score] = Table("scores", {})  # none of its own: `metrics.subject` measures those
METRICS = {
    "eval/dino": Metric("DINO", "subject prompts: similarity to the photos", "↑"),
    "eval/clip_i": Metric("CLIP-I", "subject prompts: similarity to the photos", "↑"),
    "eval/clip_t": Metric("CLIP-T", "subject prompts: agreement with the prompt", "↑"),
    "eval/match": Metric("Match", "subject prompts: probability that image and prompt belong together", "↑"),
    "eval/pres": Metric("PRES", "class prompts: similarity to the photos, that is what leaked", "↓"),
    "eval/div": Metric("DIV", "class prompts: distance between images", "↑"),
    "eval/drift": Metric("Drift", "class prompts: distance to the base's images", "↓"),
    "eval/drift_other": Metric("Other drift", "other prompts: distance to the base's images", "↓"),
    "eval/quality": Metric(
        "Quality", "fidelity × prompt fidelity × prior preservation, by which the step to keep is chosen", "↑"
    ),
    "eval/loss": Metric("Loss", "of the subject, at noise and timesteps that are always the same", "↓"),
    "train/loss": Metric("Training loss", "loss of the subject + prior.weight × loss of the class", "↓"),
    "train/loss_instance": Metric("Subject's loss", "of the step's subject images; noisy from step to step", "↓"),
    "train/loss_prior": Metric("Class loss", "of the step's class images; it rises where the class is forgotten", "↓"),
    "optim/lr": Metric("Learning rate", "of the first group of weights"),
    "optim/grad_norm": Metric("Gradient norm", "of all weights, before it is clipped at optim.max_grad_norm"),
}
DECILE = re.compile(r"train/loss_t(\d)")
GROUP_LR = re.compile(r"optim/lr_(.+)")
LIKENESS = {"subject": "to_{}", "class": "class_to_{}"}  # to a subject's photos, by the kind of prompt; 1 is the first
LIKENESS_LOG = re.compile(r"eval/(class_)?to_(\d+)")


def is_read(measure: str) -> bool:
    """Return whether a measure is by a model that reads images."""
    return measure == "match" or question_of(measure) is not None


def find_metric(name: str) -> Metric:
    """Return what a log name means; a name that nothing is known of means itself."""
    if (decile := DECILE.fullmatch(name)) is not None:
        return Metric("Loss by timestep", f"in tenth {decile[1]} of the timesteps, 0 has least noise", "↓")
    if (group := GROUP_LR.fullmatch(name)) is not None:
        return Metric("Learning rate", f"of the weights of {group[1]}")
    if (likeness := LIKENESS_LOG.fullmatch(name)) is not None:
        prompts = "class prompts" if likeness[1] else "subject prompts"
        return Metric(f"Likeness to subject {likeness[2]}", f"{prompts} of all subjects: similarity to its photos")
    if name == "best/step":
        return Metric("Kept step", "the step whose weights are in model/")
    if name.startswith("best/"):
        known = find_metric(name.replace("best/", "eval/"))
        return Metric(f"{known.title} of the kept step", known.meaning, known.better)
    if (question := question_of(name.removeprefix("eval/"))) is not None:
        return Metric(f"“{question}”", "subject prompts: probability of the right answer", "↑")
    if name not in METRICS and (score := SCORES.get(name.removeprefix("eval/"))) is not None:
        return score.metric
    return METRICS.get(name, Metric(name, ""))


def describe(name: str) -> str:
    """Return a log name's meaning in a few words: 'DIV. Class prompts: distance between images. More is better.'"""
    metric = find_metric(name)
    meaning = f"{metric.meaning[:1].upper()}{metric.meaning[1:]}." if metric.meaning else ""
    return " ".join(filter(None, [f"{metric.title}.", meaning, DIRECTIONS[metric.better]]))
