"""A training run from its config to its exported model. `train` reads like a table of contents.

Here and in `build/`, settings become arguments: below this layer nothing sees the config.
"""

import contextlib
import logging
import signal
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch

from dreambooth import build
from dreambooth.checkpointing import AtomicCheckpointIO, FoundState, InputFingerprints, find_state
from dreambooth.config import Config, with_brackets
from dreambooth.data.captions import Captions
from dreambooth.data.latents import LatentDataset
from dreambooth.devices import keep_freed_memory
from dreambooth.distributed import is_first, join_run
from dreambooth.errors import UserError
from dreambooth.exporting.result import export_model
from dreambooth.families import Family, move
from dreambooth.hints import activation_hint, command_line
from dreambooth.methods import find_method
from dreambooth.methods.base import StartWords
from dreambooth.metrics.validation_log import ValidationLog, ValidationRecord
from dreambooth.metrics.validation_scores import ValidationScorer
from dreambooth.prompts import examples
from dreambooth.randomness import Randomness
from dreambooth.run.cleaning import remove_idle_states, restore_best_file
from dreambooth.run.failures import translate_errors
from dreambooth.run.fingerprints import input_fingerprints
from dreambooth.run.folder import (
    RunFolder,
    check_folders,
    check_writable,
    drop_later_than,
    remove_half_written,
    set_aside,
    write_config,
)
from dreambooth.run.lock import RunLock
from dreambooth.run.resume import (
    changed_inputs,
    changed_settings,
    check_fingerprints,
    check_goes_on,
    found_state,
    is_finished,
    moved_paths,
    report_changes,
    started_config,
)
from dreambooth.training import callbacks
from dreambooth.training.loggers import Loggers, RunResult
from dreambooth.training.module import DreamBoothModule
from dreambooth.training.optimizer import rate_note
from dreambooth.training.profiling import StepProfiler
from dreambooth.training.progress import OnTrainProgress
from dreambooth.training.session import record_session
from dreambooth.training.validation import ValidationInputs, restore_best

logger = logging.getLogger(__name__)


def train(
    config: Config,
    profile: bool = False,
    accepted_changes: Collection[str] = (),
    on_progress: OnTrainProgress | None = None,
    shared: build.SharedInputs | None = None,
) -> int:
    """Train, or go on training, and export. Returns the exit code: 0, or 128 + signal when told to stop.

    profile: print at the end where the time of a step went. accepted_changes: config keys whose changed values are
    accepted on resume. on_progress: called after each step; False stops as SIGINT does.
    shared: inputs that other runs of this process have as well; None: there are none.

    Raises UserError, ModelError or NonFiniteError; nothing that was there before is lost.
    """
    join_run(config.train.devices, config.train.num_nodes)
    accepted_changes = [with_brackets(key) for key in accepted_changes]
    run = RunFolder(config)
    check_names(config)
    check_folders(run)
    with translate_errors(run, config), RunLock(run) as run_lock:
        state = found_state(run, config, accepted_changes)
        validation_log = ValidationLog(run.scores, last_step=-1 if state is None else state.step)
        session = Session(
            run, config, run_lock, validation_log, state, accepted_changes, shared or build.SharedInputs()
        )
        if state is not None and session.is_finished and not moved_paths(started_config(run), config, state):
            return report_finished(session, state)
        check_goes_on(run, state, session.is_finished)
        check_writable(run)
        return resume_or_start(session, profile, on_progress)


def check_names(config: Config) -> None:
    """Fail early: raise UserError if the method, sampler, optimizer or device is unknown or unavailable."""
    find_method(config.method.name)
    build.prior_sampler(config)
    build.validation_sampler(config)
    build.pick_device(config)
    build.check_optimizer(config)
    build.check_quantization(config)


@dataclass(frozen=True)
class Session:
    """Hold one session of a run: its folder and settings, and the state that it goes on from (None: from step 0).

    accepted_changes: config keys whose changed values are accepted on resume. shared: inputs that other runs have too.
    """

    run: RunFolder
    config: Config
    run_lock: RunLock
    validation_log: ValidationLog
    state: FoundState | None
    accepted_changes: Collection[str]
    shared: build.SharedInputs

    @property
    def is_finished(self) -> bool:
        """Return whether the state is of the last step, and the model is written."""
        return self.state is not None and is_finished(self.run, self.state, self.config, self.validation_log)


def resume_or_start(session: Session, profile: bool, on_progress: OnTrainProgress | None) -> int:
    """Train from the state found, or from step 0, and export the model; returns the exit code."""
    run, config, state = session.run, session.config, session.state
    set_up_process(config)
    inputs = load_inputs(config, session.validation_log, session.shared)
    check_fingerprints(state, inputs.fingerprints, config, session.accepted_changes)
    if state is not None and session.is_finished:
        return report_finished(session, state)  # only its paths have changed

    randomness = Randomness(config.run.seed)
    module, latents, validation_inputs = prepare(session, inputs, randomness)
    saving = callbacks.SaveState(run.state, (config.train.save_every_steps, config.validate.every_steps))
    loggers = build.make_loggers(run, config, state)
    run_callbacks = build.make_callbacks(
        run, config, saving, validation_inputs, session.validation_log, loggers, on_progress
    )
    max_steps = build.steps_to_take(config, state, session.validation_log)
    trainer = build.make_trainer(run, config, module, run_callbacks, inputs.fingerprints, state, max_steps, profile)
    loader = build.make_loader(latents, config, trainer)

    announce(run, config, state)
    with closing_loggers(loggers):
        with (
            record_session(run.sessions, trainer, 0 if state is None else state.step),
            without_launcher_kill(trainer),
            prefer_nonfinite_error(module),
        ):
            trainer.fit(module, loader, ckpt_path=None if state is None else str(state.path))
        log_profile(trainer)
        if saving.signal_number:
            return report_stopped(trainer, saving.signal_number)
        if trainer.is_global_zero:
            whole = load_sharded_result(run, config) if module.is_sharded else module
            result = finish(run, config, whole, session.validation_log, trainer.global_step, inputs.base_fingerprint)
            loggers.conclude(result)
    return 0


@dataclass(frozen=True)
class Inputs:
    """Hold the photos, scorer and base of a run, and their fingerprints, which a resumed run compares."""

    subject_data: build.SubjectData
    scorer: ValidationScorer | None
    family: Family
    fingerprints: InputFingerprints

    @property
    def base_fingerprint(self) -> str:
        return str(self.fingerprints["base model"])


def load_inputs(config: Config, validation_log: ValidationLog, shared: build.SharedInputs) -> Inputs:
    """Load photos and captions, the encoders that score, and the base model."""
    subject_data = build.load_subject_data(config)
    scorer = build.make_scorer(config, validation_log, subject_data.photos, shared.load_encoders)
    family = shared.load_base(config)
    encoders = None if scorer is None else scorer.encoders
    base = shared.base_fingerprints(family, config)
    fingerprints = input_fingerprints(
        base, subject_data.photos, subject_data.captions, subject_data.masks, subject_data.start, encoders, config
    )
    build.check_samplers(family, config)
    return Inputs(subject_data, scorer, family, fingerprints)


def prepare(
    session: Session, inputs: Inputs, randomness: Randomness
) -> tuple[DreamBoothModule, LatentDataset, ValidationInputs]:
    """Choose what trains, encode prompts and photos, open the run folder and build the module.

    Returns the module, the latents with their captions, and what validation measures.
    """
    run, config, family, data = session.run, session.config, inputs.family, inputs.subject_data
    captions = data.all_captions
    build.warn_of_other_base(data.start, inputs.base_fingerprint, config)
    start_words = None
    if session.state is None:  # else the identifiers' embeddings are in the state
        clip = None if inputs.scorer is None else inputs.scorer.encoders.clip
        start_words = build.choose_start_words(config, family, data.photos, clip)
    settings = build.method_settings(config, family, randomness, start_words)
    trained = find_method(config.method.name).attach(family, settings)
    if is_first():
        build.check_disk(run, family, config)
    build.keep_off_device(family, config)
    move(family, build.pick_device(config))  # after attach, which casts frozen weights: less to move
    text_trains = any(name.startswith("text_encoder") for name in trained)
    shared, fingerprints = session.shared, inputs.fingerprints
    build.check_wording(family, captions, config)
    encoder = shared.image_encoder(family, fingerprints)
    photos = build.encode_subjects(family, data, config, randomness, encoder)
    unseen_images = build.encode_validation_images(family, config, randomness, encoder) or photos
    images = photos + build.encode_pairs(family, data, config, randomness, encoder)
    open_run(session, fingerprints, start_words)
    if is_first():
        build.show_pairs(run.cut_mix, data.pairs, build.size_of_pairs(family, config), randomness)
    encode = shared.prompt_encoder(family, config, fingerprints)
    build.cache_prompts(family, captions, config, text_trains, encode, shared.prompts(run.prompts))
    latents = shared.class_latents(run.prior)
    prior, teacher = build.make_prior(
        family, images, captions, latents, config, randomness, inputs.base_fingerprint, shared.folder is not None
    )
    build.save_memory(family, config, text_trains)
    module = DreamBoothModule(
        family, trained, build.loss_settings(config), prior, build.optim_settings(config), randomness,
        config.optim.max_grad_norm, teacher, config.train.ema_decay, config.train.micro_batch_size,
    )  # fmt: skip
    validation_inputs = build.build_validation_inputs(family, unseen_images, inputs.scorer, config, randomness)
    shuffled = Captions([*chain(*captions)], randomness, config.data.caption_dropout, config.data.shuffle_captions)
    return module, LatentDataset(images, shuffled, randomness, "subject"), validation_inputs


def report_stopped(trainer: pl.Trainer, signal_number: int) -> int:
    """Say where a run that was told to stop goes on from; returns the exit code."""
    logger.info(f"saved at step {trainer.global_step}; the same command goes on from there")
    # Lightning kills the first process where another one, which it has started, ends with anything but 0.
    return 128 + signal_number if trainer.is_global_zero else 0


def report_finished(session: Session, state: FoundState) -> int:
    """Say that there is nothing left to do; returns the exit code."""
    run = session.run
    remove_half_written(run)
    remove_idle_states(run, session.config, state.step, session.validation_log)
    print(f"{run.path}: finished at step {state.step}, the model is in {run.model}")
    written_as, wanted = started_config(run).model.export_dtype, session.config.model.export_dtype
    if wanted != written_as:
        logger.warning(f"model.export_dtype={wanted}: has no effect, the model of this run is written in {written_as}")
    return 0


def open_run(session: Session, fingerprints: InputFingerprints, start_words: StartWords | None) -> None:
    """Make the folder ready to go on from the state: drop what came after it, and write the config.

    start_words: that were chosen for a run that begins. With run.resume=never an old run of this name is set aside.
    """
    if not is_first():
        return
    run, config, state = session.run, session.config, session.state
    if config.run.resume == "never" and run.config.is_file():
        session.run_lock.release()
        set_aside(run)
    for folder in run.folders:
        folder.mkdir(parents=True, exist_ok=True)
    session.run_lock.take()
    session.run_lock.sign()
    drop_later_than(run, state)
    session.validation_log.cut()
    accepted: list[str] = []
    if state is not None:
        restore_best_file(run, state, session.validation_log)
        before = started_config(run)
        report_changes(before, config, state)
        warn_of_rate(before, config, state.step)
        changes = [
            *changed_settings(before, config, state),
            *(text for _, text in changed_inputs(state, fingerprints, config)),
        ]
        accepted = [f"step {state.step}: {change}" for change in changes]
    write_config(run, config, accepted, None if state is not None else build.told_start_words(config, start_words))


def warn_of_rate(before: Config, config: Config, step: int) -> None:
    """Warn where another train.max_steps makes the learning rate jump at the step that the run goes on from."""
    if note := rate_note(build.optim_settings(before), build.optim_settings(config), step):
        logger.warning(note)


def set_up_process(config: Config) -> None:
    """Apply the settings that hold for the whole process: its threads, and on a CPU its memory."""
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if build.pick_device(config).type == "cpu":
        keep_freed_memory()


def finish(
    run: RunFolder, config: Config, module: DreamBoothModule, validation_log: ValidationLog, last_step: int, base: str
) -> RunResult:
    """Export the weights to keep, say where they are, and return them. base: fingerprint of the base model."""
    module.average.replace_weights()
    step = take_best(run, config, module, validation_log, last_step)
    scores = next((entry.metrics() for entry in validation_log.entries if entry.step == step), None)
    card = build.subject_card(config, step, last_step, base, scores)
    export_model(module.family, card, run.model, config.model.export_dtype)
    remove_idle_states(run, config, last_step, validation_log)
    print(f"model: {run.model}")
    print(f"verdict: {validation_log.verdict_on(step)}")
    if (activation := activation_hint()) is not None:
        print(f"activate the environment once: {activation}")
    print(f"try: {command_line('sample', str(run.path))} {examples(len(config.subjects))}")
    return RunResult(step, scores or {}, run.model, run.config, run.samples)


def load_sharded_result(run: RunFolder, config: Config) -> DreamBoothModule:
    """Load the sharded weights of the last checkpoint into a module that is not sharded."""
    randomness, family = Randomness(config.run.seed), build.load_base(config)
    trained = find_method(config.method.name).attach(family, build.method_settings(config, family, randomness))
    module = DreamBoothModule(
        family, trained, build.loss_settings(config), None, build.optim_settings(config), randomness
    )
    saved = AtomicCheckpointIO().load_checkpoint(run.state)["state_dict"]
    module.load_trained({name.removeprefix("trained."): weight for name, weight in saved.items()})
    return module


def take_best(
    run: RunFolder, config: Config, module: DreamBoothModule, validation_log: ValidationLog, last_step: int
) -> int:
    """Put the weights of the step to keep into the networks, and say which and why; returns that step."""
    best = validation_log.best
    if best is None or best.quality is None or not config.validate.keep_best:
        return last_step
    if not holds(run.best, best.step):
        logger.warning(f"{run.best} does not hold the best step, {best.step}; the model gets the last step's weights")
        return last_step
    step = restore_best(module, run.best)
    print(f"kept: step {step} of {last_step}, the last not clearly worse than the best (docs/measuring.md)")
    report_qualities({"kept": best, "highest": validation_log.highest, "last": validation_log.entries[-1]})
    return step


def report_qualities(entries: Mapping[str, ValidationRecord | None]) -> None:
    """Print the quality of validations with its factors, a line a step. entries: by what each is."""
    names: dict[int, list[str]] = {}
    qualities = {}
    for name, entry in entries.items():
        if entry is not None and entry.quality is not None:
            names.setdefault(entry.step, []).append(name)
            qualities[entry.step] = entry.quality
    for step, quality in qualities.items():
        factors = ", ".join(f"{factor.replace('_', ' ')} {value:.3f}" for factor, value in asdict(quality).items())
        print(f"  step {step} ({', '.join(names[step])}): quality {quality.value:.3f} ({factors})")


def holds(path: Path, step: int) -> bool:
    """Return whether a file has the whole weights of this step."""
    try:
        return find_state(path).step == step
    except FileNotFoundError:
        return False
    except UserError as error:
        logger.warning(str(error))
        return False


# -------------------------------------------------------------------------------- what happened


def announce(run: RunFolder, config: Config, state: FoundState | None) -> None:
    if state is None:
        logger.info(f"training {run.path}: {config.train.max_steps} steps")
    else:
        logger.info(f"resuming {run.path} at step {state.step} of {config.train.max_steps}")


@contextlib.contextmanager
def without_launcher_kill(trainer: pl.Trainer) -> Iterator[None]:
    """Keep Lightning's launcher from killing this process on shutdown, so that it reports its error and exit code."""
    try:
        yield
    except SystemExit as error:  # Lightning makes exit code 1 of Ctrl-C before the first step
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    finally:
        processes = getattr(trainer.strategy.launcher, "procs", None)
        if processes:
            processes.clear()


@contextlib.contextmanager
def prefer_nonfinite_error(module: DreamBoothModule) -> Iterator[None]:
    """Raise NonFiniteError in the place of a lost connection, if this process has metrics that are not finite.

    All processes get the same means, but read them late: another one may have ended before this one has.
    """
    try:
        yield
    except RuntimeError:
        if module.last_step is not None:
            module.last_step.read()
        raise


@contextlib.contextmanager
def closing_loggers(loggers: Loggers) -> Iterator[None]:
    """Open the loggers, and close them at the end of the block, telling whether it ended without an error."""
    loggers.open()
    is_done = False
    try:
        yield
        is_done = True
    finally:
        loggers.close(is_done)


def log_profile(trainer: pl.Trainer) -> None:
    profiler = cast(Any, trainer).profiler
    if isinstance(profiler, StepProfiler):
        logger.info(profiler.table())
