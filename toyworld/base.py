"""The embedded base's text encoder and denoiser, trained together from scratch.

Latent diffusion (Rombach et al. 2022, arXiv 2112.10752) with v-prediction (Salimans and Ho 2022, arXiv 2202.00512) and
a schedule that ends in pure noise (Lin et al. 2024, arXiv 2305.08891). What made a tiny model learn well in minutes:
captions that say much, calm scenes, the loss weighted up where the object is (it covers a fifth of the image but has
nearly all of its information), timesteps drawn around the middle.

Shapes: B batch, C latent channels, h/w latent height and width, L tokens, T text width.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.errors import UserError
from toyworld.canvas import SIZE
from toyworld.dataset import Dataset, load_or_make_dataset
from toyworld.editions import SECOND, Edition
from toyworld.tokenizer import MAX_LENGTH, build_tokenizer
from toyworld.training import Budget, Plan, fit, load_average, rank_and_world, run_in_processes

TEXT_WIDTH = 128
CAPTION_DROPOUT = 0.1
LATER_STAGES = SECOND.stages[SECOND.stages.index("base") + 1 :]  # each trains on what the one before has made
TIMESTEP_SHIFT = -0.2  # t / 1000 = sigmoid(normal + shift): mid-noise, slightly to the clean side
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class BaseSettings:
    """Hold the settings of one training of the base."""

    folder: Path  # working folder: data set and state
    edition: Edition
    budget: Budget = Budget()
    num_samples: int = 100_000  # in the training set
    batch_size: int = 64  # over all processes
    peak_lr: float = 1.5e-3
    muon_lr: float = 0.02
    device: str = "cpu"
    num_processes: int = 2  # on the CPU, one thread each
    init_from: Path | None = None  # a pipeline folder to start from instead of noise
    seed: int = 0


def build_unet(edition: Edition) -> UNet2DConditionModel:
    """Return an untrained denoiser whose residual branches start at zero (it then trains much faster)."""
    unet = UNet2DConditionModel(
        sample_size=SIZE // edition.latent_patch,
        in_channels=edition.latent_channels,
        out_channels=edition.latent_channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=edition.unet_widths,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(4, 4),  # in effect the number of heads
        norm_num_groups=16,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("conv2.weight") or "proj_out.weight" in name or name == "conv_out.weight":
                parameter.zero_()
    # Plain matrix products: the flash kernel's backward is far slower at this size on a CPU.
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer, num_layers: int) -> CLIPTextModel:
    """Return an untrained causal CLIP text transformer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config)


def sampling_scheduler() -> DDIMScheduler:
    """Return the scheduler that ships with the base."""
    return DDIMScheduler(set_alpha_to_one=True, **SCHEDULE)


class DenoiserTask(ABC):
    """Compute the loss of one training step; everything random follows from (seed, rank, step) and the device.

    The subclass says what is noised how, and what is predicted. A GPU gets the whole data set, and draws for itself.
    no_caption_L: the tokens of an empty caption.
    """

    def __init__(self, dataset: Dataset, settings: BaseSettings, no_caption_L: Tensor) -> None:
        self.dataset, self.settings = dataset.to(settings.device), settings
        self.no_caption_L = no_caption_L.to(settings.device)
        self.mask_weights_M11 = torch.tensor(settings.edition.mask_weights, device=settings.device)[:, None, None]
        self.autocast = autocast_on(settings.device)

    @abstractmethod
    def error(self, latents_BChw: Tensor, noise_BChw: Tensor, normal_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """Return the squared error of each number of the prediction, [B, C, h, w].

        All are on the training's device. normal_B: of a normal distribution, from which the timesteps follow.
        """

    def __call__(self, step: int) -> Tensor:
        """Return the mean squared error over one batch, weighted up where the object is."""
        rank, num_processes = rank_and_world()
        size = self.settings.batch_size // num_processes
        device = self.settings.device
        generator = torch.Generator(device).manual_seed(self.settings.seed + 7919 * (step * num_processes + rank))
        indices = torch.randint(len(self.dataset), (size,), generator=generator, device=device)
        which = None
        if self.dataset.tokens.ndim == 3:  # a set made when there was one caption an image has no such dimension
            which = torch.randint(self.dataset.tokens.shape[1], (size,), generator=generator, device=device)
        latents, masks, tokens = self.dataset.batch(indices, which)
        is_dropped_B = torch.rand(size, generator=generator, device=device) < CAPTION_DROPOUT
        tokens = torch.where(is_dropped_B[:, None], self.no_caption_L, tokens)
        normal = torch.randn(size, generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        weight = 1 + (self.mask_weights_M11 * masks).sum(1, keepdim=True)
        error = self.error(latents, noise, normal, tokens)
        return (error * (weight / weight.mean())).mean()


class BaseTask(DenoiserTask):
    """Train a UNet that predicts v."""

    def __init__(self, modules: nn.ModuleDict, dataset: Dataset, settings: BaseSettings) -> None:
        tokenizer = build_tokenizer(settings.edition.vocabulary())
        super().__init__(dataset, settings, torch.tensor(tokenizer("", padding="max_length").input_ids))
        self.noise_schedule = DDPMScheduler(**SCHEDULE)
        self.predict = CaptionedUNet(modules, self.autocast)
        if settings.device != "cpu":
            self.predict = self._recorded(self.predict)

    def error(self, latents_BChw: Tensor, noise_BChw: Tensor, normal_B: Tensor, tokens_BL: Tensor) -> Tensor:
        t_over_T = torch.sigmoid(normal_B + TIMESTEP_SHIFT)
        t_B = (t_over_T * SCHEDULE["num_train_timesteps"]).long()  # type: ignore[operator]
        noisy_BChw = self.noise_schedule.add_noise(latents_BChw, noise_BChw, t_B)
        target_BChw = self.noise_schedule.get_velocity(latents_BChw, noise_BChw, t_B)
        return (self.predict(noisy_BChw, t_B, tokens_BL).float() - target_BChw) ** 2

    def _recorded(self, predict: CaptionedUNet) -> CaptionedUNet:
        """Return the same as a CUDA graph, forward and backward: the kernels of a model so small start too slowly."""
        size, device, edition = self.settings.batch_size, self.settings.device, self.settings.edition
        side = SIZE // edition.latent_patch
        noisy_BChw = torch.zeros(size, edition.latent_channels, side, side, device=device)
        t_B = torch.zeros(size, dtype=torch.long, device=device)
        samples = (noisy_BChw, t_B, self.no_caption_L.repeat(size, 1))
        return cast(CaptionedUNet, torch.cuda.make_graphed_callables(predict, samples))


class CaptionedUNet(nn.Module):
    """Predict v from noised latents and captions: text encoder and UNet as one."""

    def __init__(self, modules: nn.ModuleDict, autocast: torch.autocast) -> None:
        super().__init__()
        self.unet, self.text_encoder = modules["unet"], modules["text_encoder"]
        self.autocast = autocast

    def forward(self, noisy_BChw: Tensor, t_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """Return v, [B, C, h, w]. Takes timesteps [B] and tokens [B, L]."""
        with self.autocast:
            text_BLT = self.text_encoder(tokens_BL).last_hidden_state
            predicted_BChw: Tensor = self.unet(noisy_BChw, t_B, text_BLT).sample
        return predicted_BChw


def autocast_on(device: str) -> torch.autocast:
    """Return what runs a forward in bfloat16 where that is faster, else in float32."""
    enabled = bfloat16_is_faster(device)
    # Weights are used once a step, so there is nothing to cache, and a CUDA graph could not be recorded.
    return torch.autocast(device, torch.bfloat16, enabled=enabled, cache_enabled=False)


def bfloat16_is_faster(device: str) -> bool:
    """Return whether to train in bfloat16: always on a GPU, on a CPU by measuring once.

    Some CPUs run bfloat16 twice as fast as float32, some at half its speed.
    """
    if device != "cpu":
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        convolution = nn.Conv2d(128, 128, 3, padding=1).to(dtype)
        x = torch.randn(32, 128, 8, 8, dtype=dtype)
        tries = []
        for _ in range(6):
            start = time.perf_counter()
            with torch.no_grad():
                convolution(x)
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    return seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]


def build_modules(settings: BaseSettings) -> nn.ModuleDict:
    """Return text encoder and denoiser, with random weights or with those in `settings.init_from`."""
    torch.manual_seed(settings.seed)
    if settings.init_from is None:
        tokenizer = build_tokenizer(settings.edition.vocabulary())
        text_encoder = build_text_encoder(tokenizer, settings.edition.text_layers)
        return nn.ModuleDict({"text_encoder": text_encoder, "unet": build_unet(settings.edition)})
    unet = UNet2DConditionModel.from_pretrained(settings.init_from, subfolder="unet").float()
    unet.set_attn_processor(AttnProcessor())
    text_encoder = CLIPTextModel.from_pretrained(settings.init_from, subfolder="text_encoder").float()
    return nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})


def load_trained(modules: nn.ModuleDict, folder: Path, later_stages: Sequence[str] = LATER_STAGES) -> None:
    """Fill `modules` with the averaged weights of the base or, where later stages have begun, of the last of them.

    later_stages: in order; each counts only if it has begun with the weights that are loaded so far. Raises UserError
    where there is no base.pt.
    """
    check_has_base(folder)
    load_average(modules, folder / "base.pt")
    for stage in later_stages:
        load_average(modules, later_path(folder, stage, modules))


def check_has_base(folder: Path) -> None:
    """Raise UserError where a working folder has no state of the base."""
    if not (folder / "base.pt").is_file():
        raise UserError(f"no base in {folder}: base.pt is missing; `toyworld train` makes it")


def later_path(folder: Path, stage: str, begun: nn.Module) -> Path:
    """Return the file of a later stage's state in a working folder.

    begun: the weights that the stage begins with. The file is named after them, so that another base is a new
    beginning.
    """
    digest = hashlib.sha256()
    for parameter in begun.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return folder / f"{stage}-{digest.hexdigest()[:8]}.pt"


@dataclass(frozen=True)
class Recipe:
    """Hold what is trained and how: of a kind of base.

    name: of its state's file. task: (modules, dataset, settings) -> what computes the loss. muon_prefix: of the
    denoiser's parameters. decay_fraction: of the budget, over which the learning rate falls.
    """

    name: str
    build_modules: Callable[[BaseSettings], nn.ModuleDict]
    task: Callable[[nn.ModuleDict, Dataset, BaseSettings], DenoiserTask]
    muon_prefix: str
    decay_fraction: float = 0.3


UNET = Recipe("base", build_modules, BaseTask, "unet.")


def train_base(settings: BaseSettings, recipe: Recipe = UNET) -> None:
    """Train, or resume training, a base; its state is in `settings.folder`, named after the recipe."""
    num_processes = settings.num_processes if settings.device == "cpu" else 1
    num_renderers = settings.num_processes if settings.device == "cpu" else os.cpu_count() or 1
    load_or_make_dataset(settings.folder, settings.edition, settings.num_samples, num_renderers)
    run_in_processes(num_processes, _train, settings, recipe)


def _train(settings: BaseSettings, recipe: Recipe) -> None:
    modules = recipe.build_modules(settings).to(settings.device)
    if settings.device != "cpu":
        cast(Any, modules).to(memory_format=torch.channels_last)  # a quarter faster on a GPU
    dataset = load_or_make_dataset(settings.folder, settings.edition, settings.num_samples)
    task = recipe.task(modules, dataset, settings)
    rates = settings.peak_lr, settings.muon_lr, recipe.muon_prefix, recipe.decay_fraction
    plan = Plan(recipe.name, settings.budget, *rates)
    fit(modules, task, plan, settings.folder / f"{recipe.name}.pt")
