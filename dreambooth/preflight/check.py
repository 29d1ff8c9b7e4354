"""Check a run before it starts: `python -m dreambooth check CONFIG`.

Each check is the one that training itself makes, in its one place; here all are asked, and none ends the others.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from dreambooth import build
from dreambooth.config import Config
from dreambooth.data.image_folder import list_images
from dreambooth.data.near_duplicates import inspect_image
from dreambooth.disk import GIB
from dreambooth.errors import DreamBoothError, ModelError
from dreambooth.families.quantization import num_weights
from dreambooth.methods import find_method
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.preflight.fitting import fit_to_memory
from dreambooth.preflight.memory_plan import Planner, device_memory, is_enough
from dreambooth.preflight.time_plan import time_in_words
from dreambooth.run.folder import RunFolder, check_folders, check_writable
from dreambooth.run.lock import RunLock
from dreambooth.run.resume import check_goes_on, found_state, is_finished


@dataclass(frozen=True)
class Finding:
    """Hold what a check has found, with the remedy in the text; exit_code: of an error."""

    level: Literal["ok", "warning", "error"]
    about: str
    text: str
    exit_code: int = 0


class Findings(list[Finding]):
    """Collect findings; an error among them ends only what is asked together with it."""

    @contextlib.contextmanager
    def of(self, about: str) -> Iterator[Callable[[str], None]]:
        """Yield a function that reports success; an error within the block becomes a finding."""
        try:
            yield lambda text: self.append(Finding("ok", about, text))
        except DreamBoothError as error:
            if str(error) not in {finding.text for finding in self}:
                self.append(Finding("error", about, str(error), error.exit_code))

    def warn(self, about: str, warnings: Iterator[str]) -> None:
        for text in warnings:
            self.append(Finding("warning", about, text))

    @property
    def exit_code(self) -> int:
        """Return 0, or the exit code of the worst finding."""
        return max((finding.exit_code for finding in self), default=0)


def check(config: Config) -> Findings:
    """Return all findings on a valid config. Loads the base, on the CPU; writes nothing that stays."""
    findings = Findings()
    for ask in (
        find_method_of,
        build.prior_sampler,
        build.validation_sampler,
        build.pick_device,
        build.check_optimizer,
        build.check_quantization,
    ):
        with findings.of("config"):
            ask(config)
    is_sound = not findings.exit_code
    if is_sound:
        findings.append(Finding("ok", "config", f"{config.train.max_steps} steps, method {config.method.name}"))
        config = fitted(config, findings)
    check_folder(config, findings)
    subject_data = check_images(config, findings)
    if is_sound and (planner := check_base(config, findings)) is not None:
        check_with_base(planner, subject_data, config, findings)
    return findings


def fitted(config: Config, findings: Findings) -> Config:
    """Return the config as training would begin or go on with it (train.memory=auto)."""
    with findings.of("memory"), contextlib.suppress(ModelError):  # `check_base` tells of a base that cannot be had
        config = fit_to_memory(config)
    return config


def find_method_of(config: Config) -> None:
    find_method(config.method.name)


def check_folder(config: Config, findings: Findings) -> None:
    """Check the run's folder: who uses it, which state it has, and whether it can be written to."""
    run = RunFolder(config)
    with findings.of("run folder") as good:
        check_folders(run)
        report_state(run, config, good)


def report_state(run: RunFolder, config: Config, good: Callable[[str], None]) -> None:
    """Report the state that the run would start from. Raises UserError where it could not go on, or not write."""
    with RunLock(run):
        state = found_state(run, config)
        check_writable(run)
        if state is None:
            good(f"{run.path}: can be written to; the run starts at step 0")
            return
        is_done = is_finished(run, state, config, ValidationLog(run.scores, last_step=state.step))
        check_goes_on(run, state, is_done)
        if is_done:
            good(f"{run.path}: finished at step {state.step}")
        else:
            good(f"{run.path}: can be written to; the run goes on at step {state.step}")


def check_images(config: Config, findings: Findings) -> build.SubjectData | None:
    """Return what the run is given beside its base; None where it cannot be had."""
    subject_data = None
    with findings.of("images") as good:
        subject_data = build.load_subject_data(config)
        numbers = [
            f"{len(own)} of {each.class_noun or f'a {each.kind}'}"
            for own, each in zip(subject_data.photos, config.subjects, strict=True)
        ]
        good(", ".join([*numbers, f"{len(subject_data.pairs)} of two subjects"] if subject_data.pairs else numbers))
    for key, folder in (("prior.folder", config.prior.folder), ("validate.images", config.validate.images)):
        if folder is not None:
            with findings.of(key) as good:
                good(f"{len(list_images(folder))} images")
    return subject_data


def check_base(config: Config, findings: Findings) -> Planner | None:
    """Load the base with what trains in it; None where it cannot be loaded."""
    planner = None
    with findings.of("base model") as good:
        planner = Planner(config)
        build.apply_schedule(planner.family, config)
        build.check_samplers(planner.family, config)
        weights = sum(map(num_weights, planner.networks)) / 1e6
        if planner.note is None:
            good(f"{config.model.base}: {weights:.1f} million finite weights, of parts that fit each other")
        else:
            text = f"{config.model.base}: {planner.note}, {weights:.1f} million weights; training downloads it"
            findings.append(Finding("warning", "base model", text))
    return planner


def check_with_base(
    planner: Planner, subject_data: build.SubjectData | None, config: Config, findings: Findings
) -> None:
    """Check what depends on the base: sizes, identifiers, prompts, disk; of a run that could start, memory."""
    family, run = planner.family, RunFolder(config)
    if subject_data is not None:
        with findings.of("images"):
            findings.warn("images", iter(subject_data.notes))
            images = [inspect_image(path) for path in chain(*subject_data.photos)]
            findings.warn(
                "images", build.image_warnings(images, build.buckets_of(family, config), config.data.resolution)
            )
    with findings.of("prompts") as good:
        captions = [[] for _ in config.subjects] if subject_data is None else subject_data.all_captions
        warnings = list(build.wording_warnings(family, captions, config))
        findings.warn("prompts", iter(warnings))
        if not warnings:
            good("each identifier is one rare token, and every prompt is read to its end")
    with findings.of("disk") as good:
        good(build.check_disk(run, family, config))
    if findings.exit_code:
        return
    with findings.of("time") as good:
        good(time_in_words(planner, config))
    with findings.of("memory") as good:
        need, (device, memory) = planner.need(config).total, device_memory(config)
        text = f"{need / GIB:.2f} GiB are needed, {device} has {memory / GIB:.1f} GiB"
        if is_enough(need, memory):
            good(text)
        else:
            findings.append(Finding("warning", "memory", f"{text}; `python -m dreambooth plan` lists what takes less"))
