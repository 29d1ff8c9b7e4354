"""From labs to cells: which runs there are to make, in which order, and what each depends on.

A cell's fingerprint says everything that its figures depend on but subject and seed: settings, weights of the base, the
encoders and the judge. Figures with another fingerprint are of another experiment and are not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from dreambooth.config import Config, config_fields, load_config, to_dict
from dreambooth.errors import ModelError
from dreambooth.files import write_text
from toyworld.lab.experiments import LABS, NO_NOUN, SUBJECTS, Subject, Variant

VERSION = 1  # one more when runs or figures change in a way that no setting tells
FIXED_STEPS = 150  # what drawing and measuring a cell costs, in training steps
# Bases whose files were written anew with the very same tensors, and what cells were first measured with.
SAME_BASES = {
    "e1e3b287d5ae7608": "7123fb60ec1ed19b"
}  # the text encoder's names and dtype, as older libraries read them
# What has no say in the figures, or is told apart by something else.
LEFT_OUT = ("run.", "log.", "subject.images", "subject.class_noun", "model.base", "train.save_every_steps")


@dataclass(frozen=True)
class Workspace:
    """Where a laboratory lies. work: what may be deleted at any time: photos, runs, drawn pictures, logs."""

    config: Path = Path("configs/toyworld.yaml")
    encoders: Path = Path("checkpoints/toyworld-encoders")
    judge: Path = Path("checkpoints/toyworld/judge")
    results: Path = Path("benchmarks/lab/results.csv")
    work: Path = Path("checkpoints/lab.work")
    more: tuple[str, ...] = ()  # overrides of every row

    @cached_property
    def base(self) -> Path:
        """The base model's folder."""
        return Path(load_config(self.config, self.more).model.base)

    def frozen(self) -> Workspace:
        """The same with a copy of the config in the work folder: editing the file leaves a laboratory at work alone."""
        text = self.config.read_text(encoding="utf-8")
        copy = self.work / f"config-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        write_text(copy, text)
        return replace(self, config=copy)

    @cached_property
    def base_digest(self) -> str:
        digest = digest_of(path for path in weights_in(self.base) if self.judge.name not in path.parts)
        return SAME_BASES.get(digest, digest)

    @cached_property
    def measure_digest(self) -> str:
        folders = (self.encoders / "vit", self.encoders / "clip", self.judge)
        return digest_of(path for folder in folders for path in weights_in(folder))


@dataclass(frozen=True)
class Trial:
    """One run: a row on one subject with one seed. training: fingerprint without what it is measured with."""

    lab: str
    row: Variant
    subject: Subject
    seed: int
    training: str
    fingerprint: str
    num_steps: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.fingerprint, str(self.subject), self.seed

    @property
    def folder_name(self) -> str:
        return f"{self.training}-{self.subject.class_noun}-{self.subject.seed}-{self.seed}"

    @property
    def cost(self) -> float:
        """In training steps; only for telling how long the rest takes."""
        return self.num_steps + FIXED_STEPS

    def __str__(self) -> str:
        return f"{self.lab} / {self.row.name} / {self.subject} / seed {self.seed}"


def weights_in(folder: Path) -> list[Path]:
    """Raises ModelError where there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    if not any(path.suffix == ".safetensors" for path in found):
        raise ModelError(f"{folder}: no weights here; run from the repository's folder, where the models lie")
    return found


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def overrides_of(row: Variant, bench: Workspace) -> list[str]:
    """A row's overrides; the last step is measured unless the row validates."""
    return [*bench.more, *row.overrides, *([] if row.validates else ["validate.every_steps=0"])]


def settings_of(config: Config) -> dict[str, Any]:
    """Return what differs from the defaults and has a say in the figures: a new key changes no fingerprint."""
    flat = {f"{section}.{key}": value for section, keys in to_dict(config).items() for key, value in keys.items()}
    ignored = [*LEFT_OUT]
    ignored += [] if config.validate.every_steps else ["validate."]
    ignored += ["prior."] if config.prior.source == "none" else []
    ignored += ["prior.teacher_latents"] if config.prior.source != "teacher" else []
    kept = {key: value for key, value in flat.items() if not key.startswith(tuple(ignored)) and value != _default(key)}
    return {**kept, "prior.source": config.prior.source}


@cache
def _settings(path: Path, overrides: tuple[str, ...]) -> tuple[dict[str, Any], int]:
    """Return what the fingerprint is made of, and how many steps are trained; reading a config takes .3 s."""
    config = load_config(path, overrides)
    return settings_of(config), config.train.max_steps


# Defaults of `config/schema.py` that have changed since cells were first measured: what differs is told from these.
FORMER_DEFAULTS: dict[str, Any] = {"prior.scheduler": "ddim", "prior.num_inference_steps": 25}


def _default(key: str) -> Any:
    """As it was when cells were first measured."""
    if key in FORMER_DEFAULTS:
        return FORMER_DEFAULTS[key]
    item = config_fields()[key]
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if callable(item.default_factory) else MISSING


def fingerprint(*depends_on: Any) -> str:
    text = json.dumps(depends_on, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cells_of_row(lab: str, row: Variant, bench: Workspace) -> list[Trial]:
    """All cells of a row. Raises UserError where its settings are not allowed."""
    settings, num_steps = _settings(bench.config, tuple(overrides_of(row, bench)))
    training = fingerprint(VERSION, settings, row.num_photos, row.noun, bench.base_digest)
    measured = fingerprint(training, bench.measure_digest)
    return [
        Trial(lab, row, subject, seed, training, measured, num_steps)
        for subject in SUBJECTS[: row.grid[0]]
        for seed in range(row.grid[1])
    ]


def plan(
    names: Sequence[str], bench: Workspace, only: Sequence[str] = (), num_subjects: int = 99, num_seeds: int = 99
) -> list[Trial]:
    """The cells of these labs, each once. First seeds first, so that a run that is cut short has a bit of everything.

    only: names of rows. num_subjects, num_seeds: at most so many.
    """
    ordered: dict[tuple[str, str, int], tuple[tuple[Any, ...], Trial]] = {}
    for number, name in enumerate(names):
        for place, row in enumerate(LABS[name].rows):
            if only and row.name not in only:
                continue
            for cell in cells_of_row(name, row, bench):
                subject = SUBJECTS.index(cell.subject)
                if subject < num_subjects and cell.seed < num_seeds:
                    order = (LABS[name].late, cell.seed, number, subject, place)
                    ordered.setdefault(cell.key, (order, cell))
    return [cell for _, cell in sorted(ordered.values(), key=lambda pair: pair[0])]


def noun_of(cell: Trial) -> str:
    """Return what the subject is called in training."""
    subject = cell.subject
    return {"right": subject.class_noun, "none": NO_NOUN, "wrong": subject.wrong_noun}[cell.row.noun]
