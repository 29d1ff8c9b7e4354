"""A training run from its config to its exported model. `train` reads like a table of contents.

Here and in `build/`, settings become arguments: below this layer nothing sees the config.
"""

import contextlib
import ctypes
import json
import signal
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch

from dreambooth import build
from dreambooth.config import Config
from dreambooth.data.captions import Captions
from dreambooth.data.latents import LatentDataset
from dreambooth.distributed import end_with_first, is_first, tell
from dreambooth.errors import UserError
from dreambooth.export.result import export_model
from dreambooth.families import move
from dreambooth.methods import find_method
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.preflight.check import check_disk
from dreambooth.prompts import examples
from dreambooth.randomness import Randomness
from dreambooth.run.failures import translate_errors
from dreambooth.run.folder import (
    RunFolder,
    RunLock,
    check_fingerprints,
    check_places,
    clean,
    found_state,
    input_fingerprints,
    is_finished,
    open_run,
    probe,
)
from dreambooth.training import callbacks
from dreambooth.training.checkpointing import AtomicCheckpointIO, FoundState, find_state
from dreambooth.training.loggers import Loggers
from dreambooth.training.module import DreamBoothModule
from dreambooth.training.profiling import StepProfiler
from dreambooth.training.validation import Validate, restore_best


def train(config: Config, profile: bool = False, accepted_changes: Collection[str] = ()) -> int:
    """Train, or go on training, and export. Returns the exit code: 0, or 128 + signal when told to stop.

    profile: print at the end where the time of a step went. accepted_changes: config keys whose changed values are
    accepted on resume.

    Raises UserError, ModelError or NonFiniteError; nothing that was there before is lost.
    """
    end_with_first()
    run = RunFolder(config)
    # What is not known or not there of methods, samplers, optimizers and devices is told before all else.
    find_method(config.method.name), build.prior_sampler(config), build.validation_sampler(config)
    build.pick_device(config)
    build.check_optimizer(config)
    check_places(run)
    with translate_errors(run, config), RunLock(run) as run_lock:
        state = found_state(run, config, accepted_changes)
        validation_log = ValidationLog(run.scores, last_step=-1 if state is None else state.step)
        if state is not None and is_finished(run, state, config, validation_log):
            clean(run)
            print(f"{run.path}: finished at step {state.step}, the model is in {run.model}")
            return 0
        probe(run)
        return resume_or_start(run, config, run_lock, validation_log, state, accepted_changes, profile)


def resume_or_start(
    run: RunFolder,
    config: Config,
    run_lock: RunLock,
    validation_log: ValidationLog,
    state: FoundState | None,
    accepted_changes: Collection[str],
    profile: bool,
) -> int:
    """From a state, or from nothing, to the exported model."""
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if build.pick_device(config).type == "cpu":
        keep_freed_memory()
    given = build.load_subject_data(config)
    scorer = build.make_scorer(config, validation_log, given.photos)
    family = build.load_base(config)
    identity = input_fingerprints(family, given.photos, given.captions, given.start, config)
    check_fingerprints(state, identity, config, accepted_changes)
    base = str(identity["base model"])
    build.tell_other_base(given.start, base)
    randomness = Randomness(config.run.seed)
    trained = find_method(config.method.name).attach(family, build.method_settings(config, family, randomness))
    if is_first():
        check_disk(run, family, config)
    move(family, build.pick_device(config))  # not before: what an adapter leaves alone is smaller now
    text_trains = any(name.startswith("text_encoder") for name in trained)
    build.cache_prompts(family, given.captions, config, text_trains)

    pictures = build.encode_subjects(family, given, config, randomness)
    unseen = build.unseen_pictures(family, config, randomness) or pictures
    open_run(run, config, run_lock, validation_log, state, identity)
    prior, teacher = build.make_prior(family, pictures, given.captions, run.prior, config, randomness, base)
    build.save_memory(family, config, text_trains)
    module = DreamBoothModule(
        family, trained, build.loss_settings(config), prior, build.optim_settings(config), randomness,
        config.optim.max_grad_norm, teacher, config.train.ema_decay, config.train.micro_batch_size,
    )  # fmt: skip
    saving = callbacks.SaveState(run.state, (config.train.save_every_steps, config.validate.every_steps))
    looks = build.build_validation_inputs(family, unseen, scorer, config, randomness)
    loggers = build.make_loggers(run, config, state)
    around = build.make_callbacks(run, config, saving, looks, validation_log, loggers)
    max_steps = build.steps_to_take(config, state, validation_log)
    trainer = build.make_trainer(run, config, module, around, identity, state, max_steps, profile)
    said = Captions([*chain(*given.captions)], randomness, config.data.caption_dropout, config.data.shuffle_captions)
    loader = build.make_loader(LatentDataset(pictures, said, randomness, "subject"), config, trainer)

    announce(run, config, state)
    with record_session(run, trainer, state), closing_loggers(loggers), unguarded_end(trainer):
        trainer.fit(module, loader, ckpt_path=None if state is None else str(state.path))
    tell_profile(trainer)
    if saving.signal_number:
        tell(f"saved at step {trainer.global_step}; the same command goes on from there")
        # Lightning kills the first process where another one, which it has started, ends with anything but 0.
        return 128 + saving.signal_number if trainer.is_global_zero else 0
    if trainer.is_global_zero:
        whole = put_together(run, config) if module.is_sharded else module
        finish(run, config, whole, validation_log, trainer.global_step, base)
    return 0


def keep_freed_memory() -> None:
    """Let glibc keep what tensors let go of for the next ones, instead of giving it back to the system.

    Which else maps and clears every large tensor's pages anew in every step, a tenth of its time where weights and
    activations have gigabytes. The most that it has at a time stays the same, but for some MiB in gaps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation is a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap is not cut at its end


def finish(
    run: RunFolder, config: Config, module: DreamBoothModule, validation_log: ValidationLog, last_step: int, base: str
) -> None:
    """Export the weights to keep, and say where they are. base: fingerprint of the base model."""
    module.average.replace_weights()
    step = take_best(run, config, module, validation_log, last_step)
    scores = next((entry.figures() for entry in validation_log.entries if entry.step == step), None)
    card = build.subject_card(config, step, last_step, base, scores)
    export_model(module.family, card, run.model, config.model.export_dtype)
    print(f"model: {run.model}")
    print(f"try: python sample.py {run.path} {examples(len(config.subjects))}")


def put_together(run: RunFolder, config: Config) -> DreamBoothModule:
    """The last state's weights, which were divided among processes, in networks of their own."""
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
    """Put the best step's weights into the networks, and say which and why; returns the step that they are of."""
    best = validation_log.best
    if best is None or best.quality is None or not config.validate.keep_best:
        return last_step
    if not holds(run.best, best.step):
        tell(f"warning: {run.best} does not hold the best step, {best.step}; the model gets the last step's weights")
        return last_step
    step = restore_best(module, run.best)
    print(f"best step: {step} of {last_step}, by fidelity * obedience * kept (dreambooth/metrics/selection.py)")
    for name, entry in (("best", best), ("last", validation_log.entries[-1])):
        if entry.quality is not None:
            parts_of = ", ".join(f"{factor} {value:.3f}" for factor, value in asdict(entry.quality).items())
            print(f"  {name}: step {entry.step}: quality {entry.quality.value:.3f} ({parts_of})")
    return step


def holds(path: Path, step: int) -> bool:
    """Whether there are the whole weights of this step."""
    try:
        return find_state(path).step == step
    except FileNotFoundError:
        return False
    except UserError as error:
        tell(f"warning: {error}")
        return False


# -------------------------------------------------------------------------------- what happened


def announce(run: RunFolder, config: Config, state: FoundState | None) -> None:
    if state is None:
        tell(f"training {run.path}: {config.train.max_steps} steps")
    else:
        tell(f"resuming {run.path} at step {state.step} of {config.train.max_steps}")


@contextlib.contextmanager
def record_session(run: RunFolder, trainer: pl.Trainer, state: FoundState | None) -> Iterator[None]:
    """Add a line to logs/sessions.jsonl: when this process trained, how long, which steps, in how much memory."""
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        yield
    finally:
        session = {
            "started": started.isoformat(timespec="seconds"),
            "first_step": 0 if state is None else state.step,
            "last_step": trainer.global_step,
            "seconds": round(time.monotonic() - clock, 1),
            **costs(trainer),
        }
        if is_first():
            run.logs.mkdir(parents=True, exist_ok=True)
            with open(run.sessions, "a", encoding="utf-8") as file:
                file.write(json.dumps(session) + "\n")


def costs(trainer: pl.Trainer) -> dict[str, Any]:
    """Of this process so far, and how many there are."""
    validations = [each for each in trainer.callbacks if isinstance(each, Validate)]  # type: ignore[attr-defined]
    on_gpu = torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda"
    return {
        "validation_seconds": round(sum(each.seconds for each in validations), 1),
        "peak_memory_mib": (torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()) // 2**20,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processes": trainer.world_size,
    }


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def unguarded_end(trainer: pl.Trainer) -> Iterator[None]:
    """Lightning looks after the processes it has started, and kills this one if another ends with an error.

    Not once this one is ending by itself: it is to tell why, and to give its exit code.
    """
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
def closing_loggers(loggers: Loggers) -> Iterator[None]:
    loggers.open()
    is_done = False
    try:
        yield
        is_done = True
    finally:
        loggers.close(is_done)


def tell_profile(trainer: pl.Trainer) -> None:
    profiler = cast(Any, trainer).profiler
    if isinstance(profiler, StepProfiler):
        tell(profiler.table())
