"""A training run from its config to its exported model. `train` reads like a table of contents.

Here settings become arguments: below this layer nothing sees the config.
"""

import functools
import logging
import platform
import subprocess
import sys
import uuid
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from PIL.Image import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader

from dreambooth import callbacks, sampling
from dreambooth.checkpointing import AtomicCheckpointIO, StateEntry, find_state
from dreambooth.config import PROVENANCE, Config, differences, fill_prompt, load_config, to_dict
from dreambooth.data import EncodedPictures, LatentDataset, PlaceSampler, encode_pictures
from dreambooth.errors import UserError
from dreambooth.export import SubjectCard, export_model, read_card
from dreambooth.families import Family, fingerprint, frozen_copy, load_family, move
from dreambooth.files import write_text
from dreambooth.images import digest_files, grid, is_upscaled, list_images, load_image, to_images
from dreambooth.methods import find_method
from dreambooth.module import DreamBoothModule, Objective
from dreambooth.optim import OptimSettings
from dreambooth.prior import FolderPrior, GeneratedPrior, Prior, prior_fingerprint
from dreambooth.randomness import Randomness


class RunFolder:
    """Where everything of a run lies: <run.dir>/<run.name>."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.dir) / config.run.name
        self.config = self.path / "config.yaml"
        self.state = self.path / "state" / "last.ckpt"
        self.model = self.path / "model"
        self.samples = self.path / "samples"
        self.logs = self.path / "logs"
        self.prior = self.path / "prior"


def train(config: Config) -> int:
    """Train, or go on training, and export. Returns the exit code: 0, or 128 + signal when told to stop.

    Raises UserError, ModelError or NonFiniteError; nothing that was there before is lost.
    """
    run = RunFolder(config)
    attach = find_method(config.method.name)
    prior_sampler(config), validation_sampler(config)  # a sampler's name that is not known is told before all else
    state = found_state(run, config)
    if state is not None and is_finished(run, state, config):
        print(f"{run.path}: finished at step {state.step}, the model is in {run.model}")
        return 0

    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    picture_paths = list_images(config.subject.images)
    family = load_family(config.model.base, config.model.family, config.model.config)
    move(family, pick_device(config))
    check_texts(family, config)
    tell_small_pictures(picture_paths, config.data.resolution)
    identity = identify(family, picture_paths, config)
    check_identity(state, identity)

    randomness = Randomness(config.run.seed)
    subject = LatentDataset(encode(family, picture_paths, config, randomness), randomness, "subject")
    open_run(run, config)
    prior = make_prior(family, run, config, randomness, identity["base model"])
    trained = attach(family, config.method.train_text_encoder)
    apply_memory_settings(family, config)
    module = DreamBoothModule(
        family, trained, make_objective(config), prior, optim_settings(config), randomness, config.optim.max_grad_norm
    )
    saving = callbacks.SaveState(run.state, config.train.save_every_steps)
    trainer = make_trainer(run, config, family, saving, identity, state)
    loader = make_loader(subject, config, trainer)

    announce(run, config, state)
    trainer.fit(module, loader, ckpt_path=str(run.state) if state is not None else None)
    finish_loggers(trainer)
    if saving.signal_number:
        print(f"saved at step {trainer.global_step}; the same command goes on from there", file=sys.stderr)
        return 128 + saving.signal_number
    export_model(family, subject_card(config, trainer.global_step), run.model, config.model.export_dtype)
    print(f"model: {run.model}")
    print(f'try: python sample.py {run.path} "a photo of {{subject}} on the beach"')
    return 0


# -------------------------------------------------------------------------------- the run folder


def found_state(run: RunFolder, config: Config) -> StateEntry | None:
    """The state to go on from, None to start at step 0. Raises UserError if it is damaged or the config differs."""
    if config.run.resume == "never" or not run.state.is_file():
        return None
    state = find_state(run.state)
    if changes := differences(to_dict(load_config(run.config)), to_dict(config)):
        listed = "\n  ".join(changes)
        raise UserError(
            f"{run.path}: this run was started with other settings; set them back, choose another run.name, "
            f"or start again with run.resume=never:\n  {listed}"
        )
    return state


def is_finished(run: RunFolder, state: StateEntry, config: Config) -> bool:
    card = read_card(run.model)
    return card is not None and card.step >= config.train.max_steps and state.step >= config.train.max_steps


def identify(family: Family, picture_paths: list[Path], config: Config) -> dict[str, str]:
    """Fingerprints of what the run depends on beside its config."""
    identity = {"base model": fingerprint(family), "subject pictures": digest_files(picture_paths)}
    if config.prior.folder is not None:
        identity["class pictures"] = digest_files(list_images(config.prior.folder))
    return identity


def check_identity(state: StateEntry | None, identity: dict[str, str]) -> None:
    """Raises UserError if what the run depends on beside its config is no longer what it was."""
    for name, value in identity.items():
        if state is not None and state.identity.get(name, value) != value:
            raise UserError(
                f"{name}: changed since this run was started; restore what was there, choose another run.name, "
                "or start again with run.resume=never"
            )


def open_run(run: RunFolder, config: Config) -> None:
    """Write the config with what it runs on. With run.resume=never an old run of this name is set aside."""
    if config.run.resume == "never" and run.config.is_file():
        number = next(n for n in range(1, 10**6) if not run.path.with_name(f"{run.path.name}.old-{n}").exists())
        run.path.rename(run.path.with_name(f"{run.path.name}.old-{number}"))
    write_text(run.config, yaml.safe_dump({**to_dict(config), PROVENANCE: provenance()}, sort_keys=False))


def provenance() -> dict[str, str]:
    """Versions and the git commit of this code."""
    packages = ("torch", "pytorch-lightning", "diffusers", "transformers", "omegaconf", "numpy", "pillow")
    here = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "git_commit": described.stdout.strip() or "unknown",
    }


def announce(run: RunFolder, config: Config, state: StateEntry | None) -> None:
    if state is None:
        print(f"training {run.path}: {config.train.max_steps} steps", file=sys.stderr)
    else:
        print(f"resuming {run.path} at step {state.step} of {config.train.max_steps}", file=sys.stderr)


# -------------------------------------------------------------------------------- parts of a run


def pick_device(config: Config) -> torch.device:
    """Raises UserError where the wished device, or the precision on it, is not there."""
    has_cuda = torch.cuda.is_available()
    if config.train.device == "cuda" and not has_cuda:
        raise UserError("train.device: 'cuda' is wished, but torch sees no GPU; use cpu or auto")
    device = torch.device("cuda" if has_cuda and config.train.device != "cpu" else "cpu")
    if config.train.precision == "16-mixed" and device.type == "cpu":
        raise UserError("train.precision: '16-mixed' needs a GPU; on a CPU use bf16-mixed or 32-true")
    return device


def check_texts(family: Family, config: Config) -> None:
    """Raises UserError for a prompt that is too long; warns of an identifier that is not one token."""
    with torch.no_grad():
        family.condition([fill(config, text) for text in texts_of(config)])
    if (num_tokens := family.num_tokens(config.subject.identifier)) != 1:
        print(
            f"warning: subject.identifier {config.subject.identifier!r} is {num_tokens} tokens to this tokenizer, each "
            "with a meaning of its own; a rare word that is one token (sks, olis) is learned more cleanly",
            file=sys.stderr,
        )


def tell_small_pictures(paths: list[Path], resolution: int) -> None:
    """Enlarging a picture blurs it, and blur is learned with the subject: worth a word, but no reason to refuse."""
    small = [path.name for path in paths if is_upscaled(load_image(path), resolution)]
    if small:
        print(f"warning: smaller than data.resolution ({resolution}), so enlarged: {', '.join(small)}", file=sys.stderr)


def texts_of(config: Config) -> list[str]:
    return [config.subject.prompt, config.subject.class_prompt, *config.validate.prompts]


def fill(config: Config, template: str) -> str:
    return fill_prompt(template, config.subject.identifier, config.subject.class_noun)


def encode(family: Family, paths: list[Path], config: Config, randomness: Randomness) -> EncodedPictures:
    data = config.data
    family.latent_shape(data.resolution, data.resolution)  # raises UserError for a resolution that does not fit
    return encode_pictures(
        paths,
        family.encode_images,
        resolution=data.resolution,
        num_crops=data.num_crops if data.crop == "random" else 1,
        flip=data.flip,
        randomness=randomness,
    )


def make_prior(family: Family, run: RunFolder, config: Config, randomness: Randomness, base: str) -> Prior | None:
    """Where class latents come from, or None for no prior."""
    if config.prior.source == "none":
        return None
    if config.prior.source == "folder":
        pictures = encode(family, list_images(str(config.prior.folder)), config, randomness)
        return FolderPrior(LatentDataset(pictures, randomness, "prior"))
    return make_generated_prior(family, run, config, randomness, base)


def make_generated_prior(
    family: Family, run: RunFolder, config: Config, randomness: Randomness, base: str
) -> GeneratedPrior:
    """A prior that the frozen base makes while training runs; with prior.source=ahead, now."""
    prior, prompt = config.prior, fill(config, config.subject.class_prompt)
    settings = prior_sampler(config)
    shape = family.latent_shape(config.data.resolution, config.data.resolution)
    dtype = compute_dtype(config)
    name = prior_fingerprint(
        base=base, prompt=prompt, sampler=str(settings), shape=shape, seed=config.run.seed, dtype=str(dtype),
        num_images=prior.num_images, block_size=prior.batch_size,
    )  # fmt: skip
    made = GeneratedPrior(None, prior.num_images, prior.batch_size, run.prior / name)
    if made.is_complete:
        return made
    frozen = frozen_copy(family, dtype)

    def make(indices: list[int]) -> torch.Tensor:
        start = sampling.start_from(randomness, "class picture", indices, shape)
        with torch.autocast(pick_device(config).type, enabled=False):  # called within a training step
            return sampling.sample_latents(frozen, [prompt] * len(indices), start, settings)

    streamed = GeneratedPrior(make, prior.num_images, prior.batch_size, run.prior / name)
    if prior.source == "ahead":
        streamed.make_all(lambda block, of: print(f"class pictures: {block}/{of} batches", file=sys.stderr))
    return streamed


def prior_sampler(config: Config) -> sampling.SamplerSettings:
    """Raises UserError for an unknown scheduler."""
    prior = config.prior
    return sampling.SamplerSettings(prior.num_inference_steps, prior.guidance_scale, prior.scheduler)


def validation_sampler(config: Config) -> sampling.SamplerSettings:
    """Raises UserError for an unknown scheduler."""
    validate = config.validate
    return sampling.SamplerSettings(validate.num_inference_steps, validate.guidance_scale, validate.scheduler)


def make_objective(config: Config) -> Objective:
    return Objective(
        fill(config, config.subject.prompt), fill(config, config.subject.class_prompt), config.prior.weight
    )


def optim_settings(config: Config) -> OptimSettings:
    optim = config.optim
    return OptimSettings(
        lr=optim.lr,
        text_encoder_lr=optim.lr if optim.text_encoder_lr is None else optim.text_encoder_lr,
        schedule=optim.schedule,
        warmup_steps=optim.warmup_steps,
        max_steps=config.train.max_steps,
        weight_decay=optim.weight_decay,
        betas=(optim.beta1, optim.beta2),
    )


def apply_memory_settings(family: Family, config: Config) -> None:
    denoiser: Any = family.denoiser
    if config.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
        for text_encoder in family.text_encoders:
            if text_encoder.training:
                checkpoint_activations(text_encoder)
    if config.train.compile:
        denoiser.compile()


def checkpoint_activations(text_encoder: Any) -> None:
    """transformers renamed the method within its version 5."""
    if hasattr(text_encoder, "activation_checkpointing_enable"):
        text_encoder.activation_checkpointing_enable()
    else:
        text_encoder.gradient_checkpointing_enable()


def compute_dtype(config: Config) -> torch.dtype:
    """Of networks that do not train."""
    return {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[config.train.precision]


def make_loader(subject: LatentDataset, config: Config, trainer: pl.Trainer) -> DataLoader[Any]:
    """Endless batches, from the place where the (restored) run stands."""
    places = PlaceSampler(
        config.train.batch_size,
        lambda: trainer.global_step * config.train.accumulate,
        trainer.global_rank,
        trainer.world_size,
    )
    return DataLoader(
        subject, batch_sampler=places, num_workers=config.data.num_workers, worker_init_fn=callbacks.ignore_interrupts
    )


def make_trainer(
    run: RunFolder,
    config: Config,
    family: Family,
    saving: callbacks.SaveState,
    identity: dict[str, str],
    state: StateEntry | None,
) -> pl.Trainer:
    """Lightning runs the loop; saving, logging and grids are ours. Figures are logged before a state is saved."""
    quiet_lightning()
    around: list[pl.Callback] = [
        callbacks.LogFigures(run.logs / "metrics.csv", config.log.every_steps),
        callbacks.Progress(),
        saving,
    ]
    if config.validate.every_steps:
        sample = functools.partial(validation_grid, family, config)
        around.append(callbacks.SampleGrids(sample, config.validate.every_steps, run.samples))
    return pl.Trainer(
        default_root_dir=run.path,
        accelerator=pick_device(config).type,
        devices=1,
        precision=config.train.precision,
        max_steps=config.train.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.train.accumulate,
        plugins=[AtomicCheckpointIO(identity, state)],
        callbacks=around,
        logger=make_loggers(run, config, state),
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def make_loggers(run: RunFolder, config: Config, state: StateEntry | None) -> list[Logger]:
    """A resumed run hides what TensorBoard saw of steps that are now taken again, and goes on in the same W&B run."""
    run.logs.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = []
    if config.log.tensorboard:
        purge_step = 0 if state is None else state.step + 1
        loggers.append(TensorBoardLogger(run.path, name="logs", version="", purge_step=purge_step))
    if config.log.wandb:
        number = wandb_id(run, state)
        loggers.append(
            WandbLogger(config.run.name, run.logs, project=config.log.wandb_project, id=number, resume="allow")
        )
    return loggers


def wandb_id(run: RunFolder, state: StateEntry | None) -> str:
    """The W&B run to log to: a new one, or for a resumed run the one that it began."""
    path = run.logs / "wandb_id"
    if state is None or not path.is_file():
        write_text(path, uuid.uuid4().hex[:8])
    return path.read_text()


def finish_loggers(trainer: pl.Trainer) -> None:
    """W&B writes what it still holds only when told that the run is over."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def quiet_lightning() -> None:
    """Our callbacks say what happens; Lightning's notes on hardware and data loading only repeat or mislead."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec, LeafSpec.`.*",
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)


def validation_grid(family: Family, config: Config) -> Image:
    """A row a prompt, a column a seed: always the same noise, so two grids can be compared by eye."""
    validate, settings = config.validate, validation_sampler(config)
    prompts = [fill(config, prompt) for prompt in validate.prompts for _ in range(validate.num_images)]
    seeds = list(range(validate.num_images)) * len(validate.prompts)
    size = (config.data.resolution, config.data.resolution)
    dtype = compute_dtype(config)
    with (
        sampling.evaluation_mode(family),
        torch.autocast(pick_device(config).type, dtype, enabled=dtype != torch.float32),
    ):
        batches = sampling.sample_pixels(family, prompts, seeds, size, settings, config.prior.batch_size)
        pictures = [picture for pixels_BCHW in batches for picture in to_images(pixels_BCHW)]
    return grid(pictures, columns=validate.num_images)


def subject_card(config: Config, step: int) -> SubjectCard:
    subject = config.subject
    return SubjectCard(
        identifier=subject.identifier,
        class_noun=subject.class_noun,
        prompt=subject.prompt,
        class_prompt=subject.class_prompt,
        resolution=config.data.resolution,
        num_inference_steps=config.validate.num_inference_steps,
        guidance_scale=config.validate.guidance_scale,
        step=step,
    )
