"""Plan how much disk a run takes: at most at a time, and once it has finished. Nothing is written for it.

A state has what trains in float32 and, of each weight, the optimizer's moments: for Adam 4 + 8 bytes. There are two
(`last.ckpt`, `previous.ckpt`), and a third while one is written, before it takes the place of the last.
"""

import shutil
from dataclasses import dataclass

from torch import nn

from dreambooth.build.prior import num_class_images
from dreambooth.build.prompts import validation_prompts
from dreambooth.build.validation_inputs import num_validations
from dreambooth.config import Config
from dreambooth.disk import size_in_words
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.methods import HAVE_KOHYA_NAMES, find_facts
from dreambooth.run.folder import RunFolder
from dreambooth.training.optimizers import OPTIMIZERS

EXPORT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TENSOR_BYTES = 300  # a tensor's name and place in a file
FILE_BYTES = 2**14  # what a file has beside its tensors
LOG_BYTES = 2**26  # metrics, TensorBoard's files, configs, report


@dataclass(frozen=True)
class DiskNeed:
    """Hold the bytes of a run's files, by what they are for. state: one of them. steps: the weights of all validations.

    num_states: between two saves; there is one more while a state is written. num_kept: once the run has finished.
    """

    state: int
    best: int
    model: int
    latents: int
    samples: int
    steps: int = 0
    logs: int = LOG_BYTES
    num_states: int = 2
    num_kept: int = 1

    @property
    def largest(self) -> dict[str, int]:
        """Return what lies there at the moment when it is most: a state, the best step or the model is written."""
        moments = (
            {"states": (self.num_states + 1) * self.state, "the best step": self.best},
            {"states": self.num_states * self.state, "the best step": 2 * self.best},
            {"states": self.num_states * self.state, "the best step": self.best, "the model": self.model},
        )
        return self._with_others(max(moments, key=lambda sizes: sum(sizes.values())))

    @property
    def finished(self) -> dict[str, int]:
        """Return what stays; the best step's weights only where that is not the last step."""
        kept = {"states": self.num_kept * self.state, "the best step": self.best, "the model": self.model}
        return self._with_others(kept)

    def _with_others(self, sizes: dict[str, int]) -> dict[str, int]:
        named = {**sizes, "class latents": self.latents, "images": self.samples}
        named |= {"weights of validations": self.steps, "logs": self.logs}
        return {name: size for name, size in named.items() if size}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size_in_words(size)}" for name, size in self.largest.items())
        least = sum(self.finished.values()) - self.best
        best = f", {size_in_words(least + self.best)} where the kept step is not the last" if self.best else ""
        return (
            f"{size_in_words(sum(self.largest.values()))} at most at a time ({parts}), {size_in_words(least)} once "
            f"finished{best}"
        )


def disk_need(family: Family, config: Config) -> DiskNeed:
    """Return the bytes of a run's files. family: with the method attached."""
    networks: list[nn.Module] = [family.denoiser, *family.text_encoders, family.vae]
    weights = [weight for network in networks for weight in network.parameters()]
    trained = [weight for weight in weights if weight.requires_grad]
    num_trained, names = sum(weight.numel() for weight in trained), len(trained) * TENSOR_BYTES
    num_averages = 1 if config.train.ema_decay or config.optim.name == "schedulefree" else 0
    is_adapter, is_twice = find_facts(config.method.name).is_adapter, config.method.name in HAVE_KOHYA_NAMES
    exported = sum(weight.numel() for weight in (trained if is_adapter else weights))
    keeps_best = bool(config.validate.every_steps and config.validate.keep_best)
    num_states = 1 + config.train.keep_previous
    return DiskNeed(
        # Adam has three tensors for each weight: two moments, and the number of its steps.
        state=num_trained * (4 + 4 * num_averages)
        + sum(map(OPTIMIZERS[config.optim.name].state_bytes, trained))
        + (4 + num_averages) * names
        + FILE_BYTES,
        best=num_trained * 4 + names + FILE_BYTES if keeps_best else 0,
        model=(exported * EXPORT_BYTES[config.model.export_dtype] + names + FILE_BYTES) * (1 + is_twice),
        latents=latent_bytes(family, config),
        samples=grid_bytes(config),
        num_states=num_states,
        num_kept=num_states if config.train.keep_states else 1,
        steps=num_validations(config) * (num_trained * 4 + names + FILE_BYTES) if config.validate.keep_weights else 0,
    )


def latent_bytes(family: Family, config: Config) -> int:
    """Return the bytes of the class images that the base makes."""
    channels, height, width = family.latent_shape(config.data.resolution, config.data.resolution)
    return num_class_images(config) * channels * height * width * 4


def grid_bytes(config: Config) -> int:
    """Return the bytes of the validations' grids, as large as PNG can make them: three bytes a pixel."""
    validate, side = config.validate, config.data.resolution
    num_images = num_validations(config) * len(validation_prompts(config)) * validate.num_images
    return num_images * (side + 2) ** 2 * 3


def check_disk(run: RunFolder, family: Family, config: Config) -> str:
    """Return what the run will write and what is free, in words, once the method is attached.

    Raises UserError where that does not fit beside what others have; what the run itself has written counts as free,
    but for its model, which stays until the next one is there.
    """
    need = disk_need(family, config)
    stays = run.path.rglob("*") if config.run.resume == "auto" and run.path.is_dir() else []
    own = sum(path.stat().st_size for path in stays if path.is_file() and run.model not in path.parents)
    there = next(path for path in (run.path, *run.path.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free + own
    if sum(need.largest.values()) > free:
        raise UserError(
            f"{run.path}: the run will take {need}, and {size_in_words(free)} are free on this disk; free some "
            "(`python -m dreambooth clean RUN` frees what other runs do not need), or choose a folder on another one "
            "(run.dir)"
        )
    return f"{need}; {size_in_words(free)} are free"
