"""Lightning's trainer with its callbacks, the loader of its batches, and the loggers."""

import logging
import uuid
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import yaml
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from dreambooth.build.networks import pick_device, pick_precision
from dreambooth.checkpointing import AtomicCheckpointIO, FoundState, InputFingerprints
from dreambooth.config import Config, deciding_settings, to_dict
from dreambooth.data.latents import LatentDataset, ResumableBatchSampler
from dreambooth.data.loader import BatchLoader
from dreambooth.distributed import this_process
from dreambooth.files import write_text
from dreambooth.home_folder import hide_home
from dreambooth.methods import HAVE_FACTORS, default_lr
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.plugins import active
from dreambooth.run.folder import RunFolder
from dreambooth.training import callbacks
from dreambooth.training.loggers import Loggers, RunLogger, RunSettings
from dreambooth.training.module import DreamBoothModule
from dreambooth.training.plugin_logger import HOOKS, PluginLogger
from dreambooth.training.processes import cluster_environment
from dreambooth.training.profiling import StepProfiler
from dreambooth.training.progress import OnTrainProgress, ReportProgress
from dreambooth.training.sample_now import SampleNow
from dreambooth.training.validation import Validate, ValidationInputs


def make_loader(subject: LatentDataset, config: Config, trainer: pl.Trainer) -> BatchLoader:
    """Make a loader of endless batches, lists of samples, that starts at the sample index of the (restored) run."""

    def position() -> tuple[int, int, int]:
        return trainer.global_step * config.train.accumulate, trainer.global_rank, trainer.world_size

    return BatchLoader(subject, ResumableBatchSampler(config.train.batch_size, position), config.data.num_workers)


def make_callbacks(
    run: RunFolder,
    config: Config,
    saving: callbacks.SaveState,
    inputs: ValidationInputs,
    validation_log: ValidationLog,
    loggers: Loggers,
    on_progress: OnTrainProgress | None = None,
) -> list[pl.Callback]:
    """Make the callbacks, in this order: the average before it is saved, saving before validation."""
    metrics, validate = callbacks.MetricsFile(run.metrics), config.validate
    run_callbacks: list[pl.Callback] = [
        callbacks.DivideClassImages(ahead=config.prior.source == "ahead"),
        callbacks.TakeSettings(),
        callbacks.AverageWeights(),
        callbacks.LogMetrics(metrics, loggers, config.log.every_steps),
        callbacks.Progress(),
        saving,
    ]
    if validate.every_steps:
        best = run.best if validate.keep_best else None
        run_callbacks.append(
            Validate(
                inputs, validate.every_steps, run.samples, validation_log, metrics, loggers, best, validate.patience,
                config.optim.text_encoder_stop_drift, run.steps if validate.keep_weights else None,
            )
        )  # fmt: skip
    run_callbacks.append(SampleNow(run.sample_now, run.samples, inputs.prompts, inputs.sample))
    if on_progress is not None:
        run_callbacks.insert(run_callbacks.index(saving), ReportProgress(on_progress, saving))
    return run_callbacks


def make_trainer(
    run: RunFolder,
    config: Config,
    module: DreamBoothModule,
    run_callbacks: list[pl.Callback],
    fingerprints: InputFingerprints,
    state: FoundState | None,
    max_steps: int,
    profile: bool,
) -> pl.Trainer:
    """Make Lightning's trainer, which runs the loop and nothing else. profile: time the steps."""
    quiet_lightning()
    return pl.Trainer(
        default_root_dir=run.path,
        accelerator=pick_device(config).type,
        devices=config.train.devices,
        num_nodes=config.train.num_nodes,
        strategy=make_strategy(config, module),
        precision=cast(Any, pick_precision(config, module.family)),
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.train.accumulate,
        plugins=[
            AtomicCheckpointIO(fingerprints, state, run.previous if config.train.keep_previous else None),
            cluster_environment(this_process()),
        ],
        callbacks=run_callbacks,
        logger=False,
        profiler=StepProfiler(config.train.accumulate) if profile else None,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def steps_to_take(config: Config, state: FoundState | None, validation_log: ValidationLog) -> int:
    """Return the step to end at: a run that its patience had ended stays where it is."""
    if state is not None and validation_log.is_exhausted(config.validate.patience):
        return state.step
    return config.train.max_steps


def make_strategy(config: Config, module: DreamBoothModule) -> Strategy | str:
    """Choose how processes share the work. With ddp each has the whole model; gradients are averaged in backward.

    DDP must look for weights without a gradient where there are some: XL does not read the last layer of its first
    text encoder, and LoHa and LoKr drop whole modules.
    """
    world_size = config.train.devices * config.train.num_nodes
    if world_size == 1:
        return "auto"
    if config.train.strategy == "fsdp":
        return ModelParallelStrategy(world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)
    drops_modules = config.method.name in HAVE_FACTORS and config.method.dropout > 0
    return DDPStrategy(
        find_unused_parameters=module.family.has_idle_weights or "text_encoder_1" in module.trained or drops_modules,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # none of them changes, and those of quantized layers have gigabytes
    )


def make_loggers(run: RunFolder, config: Config, state: FoundState | None) -> Loggers:
    """Make the requested loggers. A resumed run hides TensorBoard's later steps, and goes on in the same W&B run."""
    settings = RunSettings(hide_home(yaml.safe_dump(to_dict(config), sort_keys=False)), logged_settings(config))

    def tensorboard() -> RunLogger:
        from dreambooth.training.tensorboard import TensorBoard

        return TensorBoard(run.logs, None if state is None else state.step, settings)

    def wandb() -> RunLogger:
        from dreambooth.training.weights_and_biases import WeightsAndBiases

        number, project = wandb_id(run, state), config.log.wandb_project
        return WeightsAndBiases(config.run.name, run.logs, project, number, settings, config.log.wandb_model)

    requested = {"log.tensorboard": config.log.tensorboard, "log.wandb": config.log.wandb}
    makers: dict[str, Callable[[], RunLogger]] = {"log.tensorboard": tensorboard, "log.wandb": wandb}
    requested["plug-ins"] = active().has(*HOOKS)
    makers["plug-ins"] = partial(PluginLogger, active(), run.path)
    return Loggers({key: make for key, make in makers.items() if requested[key]})


def logged_settings(config: Config) -> dict[str, Any]:
    """Return the settings that distinguish runs, by key, as loggers show them."""
    lr = default_lr(config.method.name, config.optim.name)
    deciding = {"model.base": config.model.base, **deciding_settings(to_dict(config), lr)}
    return {key: hide_home(value) if isinstance(value, str) else value for key, value in deciding.items()}


def wandb_id(run: RunFolder, state: FoundState | None) -> str:
    """Return the W&B run to log to: a new one or, when resuming, the one that the run began."""
    path = run.logs / "wandb_id"
    if state is None or not path.is_file():
        write_text(path, uuid.uuid4().hex[:8])
    return path.read_text()


def quiet_lightning() -> None:
    """Silence Lightning's notes on hardware and data loading, which repeat our own messages or are misleading."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.strategies.launchers").setLevel(logging.INFO)  # of a process that has died
    for message in (
        ".*does not have many workers.*",
        ".*Consider setting `persistent_workers=True`.*",
        ".*`isinstance.treespec, LeafSpec.`.*",
        ".*exists and is not empty.*",
        ".*`srun` command is available.*",  # a run or a cell of one process needs no srun
    ):
        warnings.filterwarnings("ignore", message)
