"""Plan the trials of experiments: which runs to make, in which order, and what each depends on.

A trial's fingerprint covers everything that its results depend on but subject and seed: settings, weights of the
base, the encoders and the judge; that of its training the CLIP too where it chooses start words, a mask finder that is
another than `FORMER_WEIGHTS`, and such encoders where it validates. Stored results with another fingerprint are not
used.
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
from toyworld.lab.experiments import EXPERIMENTS, FIRST_BASE, NO_NOUN, SUBJECTS, Base, Subject, Variant

VERSION = 1  # increase it when results change in a way that no setting shows
FIXED_STEPS = 150  # what sampling and measuring a trial costs, in training steps
# Digests of bases whose files were rewritten with the same tensors, and the digest that trials were measured with.
SAME_BASES = {
    "e1e3b287d5ae7608": "7123fb60ec1ed19b"
}  # the text encoder's names and dtype, as older libraries read them
# Digests of mask finder, ViTs and CLIPs that fingerprints of trainings leave out, as trials were stored without them.
FORMER_WEIGHTS = (
    "69d01f96a24e6ec0",  # toyworld-segmenter
    "57193f2c2586b86c",  # toyworld-encoders: vit, clip
    "454c075e2076b2bb",
    "a9872ea11ee87c7b",  # toyworld-second-encoders: vit, clip
    "aea2d720481ff69f",
)
# Keys that do not change the results, or that other parts of the fingerprint cover.
IGNORED_KEYS = ("run.", "log.", "subject.images", "subject.class_noun", "model.base", "train.save_every_steps")


@dataclass(frozen=True)
class Workspace:
    """Hold a laboratory's paths. work: may be deleted at any time: photos, runs, samples, logs."""

    config: Path = Path("configs/toyworld.yaml")
    encoders: Path = Path("checkpoints/toyworld-second-encoders")
    judge: Path = Path("checkpoints/toyworld-second/judge")
    results: Path = Path("benchmarks/lab/results.csv")
    work: Path = Path("checkpoints/lab.work")
    more: tuple[str, ...] = ()  # overrides of every variant
    # In place of the above for experiments on the first edition's base, and on the flow base, which is of it too.
    first_encoders: Path = Path("checkpoints/toyworld-encoders")
    first_judge: Path = Path("checkpoints/toyworld/judge")
    flow_config: Path = Path("configs/toyworld-flow.yaml")

    def of(self, experiment: str) -> Workspace:
        """Return the workspace of an experiment, with what belongs to its base."""
        return _on_base(self, EXPERIMENTS[experiment].base)

    @cached_property
    def base(self) -> Path:
        """Return the base model's folder."""
        return Path(load_config(self.config, self.more).model.base)

    def frozen(self) -> Workspace:
        """Return the same with copies of the configs in the work folder.

        Editing a config then does not affect a laboratory that is running.
        """
        return replace(self, config=self._copy(self.config), flow_config=self._copy(self.flow_config))

    def _copy(self, config: Path) -> Path:
        text = config.read_text(encoding="utf-8")
        copy = self.work / f"config-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        write_text(copy, text)
        return copy

    @cached_property
    def base_digest(self) -> str:
        digest = digest_of(path for path in weights_in(self.base) if self.judge.name not in path.parts)
        return SAME_BASES.get(digest, digest)

    @cached_property
    def clip_digest(self) -> str:
        return digest_of(weights_in(self.encoders / "clip"))

    @cached_property
    def measure_digest(self) -> str:
        folders = (self.encoders / "vit", self.encoders / "clip", self.judge)
        return digest_of(path for folder in folders for path in weights_in(folder))


@cache  # with the digests of its weights
def _on_base(workspace: Workspace, base: Base) -> Workspace:
    if base == "second":
        return workspace
    first = replace(workspace, encoders=workspace.first_encoders, judge=workspace.first_judge)
    if base == "flow":
        return replace(first, config=workspace.flow_config)
    return replace(first, more=(*FIRST_BASE, *workspace.more))


@dataclass(frozen=True)
class Trial:
    """Hold one run: a variant on one subject with one seed. training: fingerprint without what measures it."""

    experiment: str
    variant: Variant
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
        """Return the estimated cost in training steps, from which the remaining time is estimated."""
        return self.num_steps + FIXED_STEPS

    def __str__(self) -> str:
        return f"{self.experiment} / {self.variant.name} / {self.subject} / seed {self.seed}"


def weights_in(folder: Path) -> list[Path]:
    """Return the weight and config files in a folder. Raises ModelError where there are no weights."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    if not any(path.suffix == ".safetensors" for path in found):
        raise ModelError(f"{folder}: no weights here; run from the repository's folder, where the models lie")
    return found


def digest_of(paths: Iterable[Path]) -> str:
    """Return SHA-256 over names and contents, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def overrides_of(variant: Variant, workspace: Workspace) -> list[str]:
    """Return a variant's overrides; the last step is measured unless the variant validates."""
    last_step = [] if variant.validates else ["validate.every_steps=0"]
    return [*workspace.more, *variant.overrides, *last_step]


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that change the results and differ from their defaults: a new key changes no fingerprint."""
    flat = {f"{section}.{key}": value for section, keys in to_dict(config).items() for key, value in keys.items()}
    ignored = [*IGNORED_KEYS]
    ignored += [] if config.validate.every_steps else ["validate."]
    ignored += ["prior."] if config.prior.source == "none" else []
    ignored += ["prior.teacher_latents"] if config.prior.source != "teacher" else []
    kept = {key: value for key, value in flat.items() if not key.startswith(tuple(ignored)) and value != _default(key)}
    return {**kept, "prior.source": config.prior.source}


@cache
def _config(path: Path, overrides: tuple[str, ...]) -> Config:
    """Return a config, which is not to be changed; reading one takes .3 s."""
    return load_config(path, overrides)


def other_weights(config: Config, workspace: Workspace) -> list[str]:
    """Return the digests of the weights that a training uses beside its base, but for `FORMER_WEIGHTS`."""
    names = [config.data.mask_model] if config.data.mask == "auto" else []
    if config.validate.every_steps:
        names += [config.validate.dino, str(workspace.encoders / "clip")]
    # A hub id is no folder; the settings name it.
    folders = [Path(name).resolve() for name in names if name is not None and Path(name).is_dir()]
    digests = [_digest_in(folder) for folder in folders]
    return [digest for digest in digests if digest not in FORMER_WEIGHTS]


@cache
def _digest_in(folder: Path) -> str:
    return digest_of(weights_in(folder))


# Defaults of `config/fields.py` as they were when trials were first measured, where they have changed since.
FORMER_DEFAULTS: dict[str, Any] = {"prior.scheduler": "ddim", "prior.num_inference_steps": 25}


def _default(key: str) -> Any:
    """Return the key's default as it was when trials were first measured."""
    if key in FORMER_DEFAULTS:
        return FORMER_DEFAULTS[key]
    item = config_fields()[key]
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if callable(item.default_factory) else MISSING


def fingerprint(*depends_on: Any) -> str:
    text = json.dumps(depends_on, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def trials_of(experiment: str, variant: Variant, workspace: Workspace) -> list[Trial]:
    """Return all trials of a variant. Raises UserError where its settings are not allowed."""
    workspace = workspace.of(experiment)
    config = _config(workspace.config, tuple(overrides_of(variant, workspace)))
    used = [workspace.clip_digest] if config.method.start_word == "auto" else []
    used += other_weights(config, workspace)
    training = fingerprint(VERSION, settings_of(config), variant.num_photos, variant.noun, workspace.base_digest, *used)
    measured = fingerprint(training, workspace.measure_digest)
    return [
        Trial(experiment, variant, subject, seed, training, measured, config.train.max_steps)
        for subject in SUBJECTS[: variant.grid[0]]
        for seed in range(variant.grid[1])
    ]


def plan(
    names: Sequence[str], workspace: Workspace, only: Sequence[str] = (), num_subjects: int = 99, num_seeds: int = 99
) -> list[Trial]:
    """Return the trials of these experiments, each once, ordered by seed.

    So a run that is cut short has some results of everything. only: names of variants. num_subjects, num_seeds: at most
    so many.
    """
    ordered: dict[tuple[str, str, int], tuple[tuple[Any, ...], Trial]] = {}
    for number, name in enumerate(names):
        for index, variant in enumerate(EXPERIMENTS[name].variants):
            if only and variant.name not in only:
                continue
            for trial in trials_of(name, variant, workspace):
                subject = SUBJECTS.index(trial.subject)
                if subject < num_subjects and trial.seed < num_seeds:
                    order = (EXPERIMENTS[name].late, trial.seed, number, subject, index)
                    ordered.setdefault(trial.key, (order, trial))
    return [trial for _, trial in sorted(ordered.values(), key=lambda pair: pair[0])]


def noun_of(trial: Trial) -> str:
    """Return what the subject is called in training."""
    subject = trial.subject
    return {"right": subject.class_noun, "none": NO_NOUN, "wrong": subject.wrong_noun}[trial.variant.noun]
