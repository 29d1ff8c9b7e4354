"""Aspect-ratio buckets: which there are, which one a picture gets, and runs on pictures of several shapes."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from test_training import assert_same, in_own_process, trained
from torch.utils.data import DataLoader
from warm import Warm

from dreambooth.build import prior_sampler
from dreambooth.config import load_config
from dreambooth.data.buckets import Size, kept_fraction, largest_part, make_buckets, nearest_bucket
from dreambooth.data.captions import Captions
from dreambooth.data.images import resize_and_crop
from dreambooth.data.latents import EncodedImage, LatentDataset, Sample
from dreambooth.errors import UserError
from dreambooth.families import Family, fingerprint, load_family
from dreambooth.generation.class_prior import ImagePrior, prior_fingerprint
from dreambooth.generation.grids.grid import cut
from dreambooth.losses import mean_over_image, squared_error
from dreambooth.randomness import Randomness
from dreambooth.run.folder import RunFolder
from dreambooth.training.module import DreamBoothModule
from dreambooth.training.objective import LossSettings, fixed_loss
from dreambooth.training.optimizer import OptimSettings

BUCKETED = ("data.buckets=true", "data.bucket_step=16")  # at 64 pixels: 48x80, 64x64, 80x48
FAMILIAR = [(64, 8), (512, 64), (512, 32), (768, 64), (1024, 64), (1024, 128), (64, 64)]


def sizes(number: int) -> list[Size]:
    """Sizes of pictures from 1:3 to 3:1, always the same."""
    draw = random.Random(0)
    return [(draw.randint(300, 900), draw.randint(300, 900)) for _ in range(number)]


@pytest.mark.parametrize(("resolution", "step"), FAMILIAR)
def test_buckets_are_as_large_as_step_and_area_allow_and_the_same_upright_as_lying(resolution: int, step: int) -> None:
    buckets = make_buckets(resolution, step)
    assert (resolution, resolution) in buckets
    assert sorted(buckets) == sorted((height, width) for width, height in buckets)
    assert len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % step == height % step == 0
        assert width * height <= resolution**2 < min((width + step) * height, width * (height + step))
        assert 0.5 <= width / height <= 2


def test_the_buckets_of_stable_diffusion_by_name() -> None:
    assert make_buckets(512, 64) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert {(832, 1216), (896, 1152), (1024, 1024)} < set(make_buckets(1024, 64)), "known from SDXL's own list"


@pytest.mark.parametrize(("resolution", "step"), FAMILIAR)
def test_a_picture_gets_the_bucket_nearest_in_log_scale_whichever_way_it_is_held(resolution: int, step: int) -> None:
    buckets = make_buckets(resolution, step)
    for width, height in sizes(300):
        nearest = nearest_bucket((width, height), buckets)
        distances = {(w, h): abs(math.log(width / height) - math.log(w / h)) for w, h in buckets}
        assert distances[nearest] <= min(distances.values()) + 1e-12
        assert kept_fraction((width, height), nearest) == pytest.approx(math.exp(-distances[nearest]))
        assert nearest_bucket((height, width), buckets) == nearest[::-1]


def test_nearest_by_the_difference_of_ratios_would_be_another_bucket_lying_than_upright() -> None:
    """4:3 lies, by its logarithm, nearer to 5:3 than to a square; 3:4 is the same picture held upright."""
    buckets = [(48, 80), (64, 64), (80, 48)]

    def by_difference(size: Size) -> Size:
        return min(buckets, key=lambda bucket: abs(size[0] / size[1] - bucket[0] / bucket[1]))

    assert by_difference((400, 300)) == (64, 64)
    assert by_difference((300, 400)) == (48, 80)
    assert (nearest_bucket((400, 300), buckets), nearest_bucket((300, 400), buckets)) == ((80, 48), (48, 80))


def test_whatever_lies_within_the_buckets_range_loses_at_most_half_a_gap() -> None:
    """At 512 pixels in steps of 64 that is 12 %, and 17 % of a picture of 2:1."""
    buckets = make_buckets(512, 64)
    ratios = sorted(width / height for width, height in buckets)
    worst = min(math.sqrt(low / high) for low, high in itertools.pairwise(ratios))
    shares = [
        kept_fraction(size, nearest_bucket(size, buckets))
        for size in sizes(2000)
        if ratios[0] <= size[0] / size[1] <= ratios[-1]
    ]
    assert worst <= min(shares) < worst + 0.01
    assert worst > 0.87


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("size", "bucket"), [((300, 200), (80, 48)), ((201, 333), (48, 80)), ((250, 260), (64, 64))])
def test_only_the_stated_share_of_one_side_is_cut_off_and_nothing_is_squashed(
    size: Size, bucket: Size, position: float
) -> None:
    """Red rises from left to right, green from top to bottom: the corners say what was kept, in source pixels."""
    width, height = size
    ramps_HW3 = np.zeros((height, width, 3), dtype=np.float32)
    ramps_HW3[..., 0] = np.linspace(0, 255, width)[None, :]
    ramps_HW3[..., 1] = np.linspace(0, 255, height)[:, None]
    cut = resize_and_crop(Image.fromarray(ramps_HW3.round().astype(np.uint8)), bucket, (position, position))
    assert cut.size == bucket
    levels_HW3 = np.asarray(cut).astype(float)
    part, scale = largest_part(size, bucket), bucket[0] / largest_part(size, bucket)[0]
    assert part[0] * part[1] == pytest.approx(kept_fraction(size, bucket) * width * height)
    for channel, length, kept in ((0, width, part[0]), (1, height, part[1])):
        first, last = levels_HW3[0, 0, channel], levels_HW3[-1, -1, channel]
        start = position * (length - kept)
        tolerance = 255 / length * (1 + 1 / scale)  # a source pixel of rounding, and a target pixel's width
        assert first == pytest.approx(255 * start / length, abs=tolerance)
        assert last == pytest.approx(255 * (start + kept) / length, abs=tolerance)


# -------------------------------------------------------------------------------- runs


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Four pictures: two upright, a square, one lying down."""
    return picture_folder(tmp_path / "shapes", [(60, 100), (64, 64), (66, 110), (100, 66)])


def picture_folder(folder: Path, sizes: list[Size]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).ellipse((8, 8 + 4 * number, 40, 48), fill=("red", "green", "blue", "black")[number])
        image.save(folder / f"{number}.png")
    return folder


def run_of(config_file: Path, name: str) -> RunFolder:
    return RunFolder(load_config(config_file, [f"run.name={name}"]))


def test_buckets_change_nothing_where_every_picture_is_a_square(config_file: Path, tmp_path: Path) -> None:
    """Nor the name under which its class pictures are kept: a prior made without buckets is found."""
    squares = f"subject.images={picture_folder(tmp_path / 'squares', [(64, 64), (80, 80), (90, 90)])}"
    plain, plain_lines = trained(config_file, "plain", squares)
    bucketed, bucketed_lines = trained(config_file, "bucketed", squares, *BUCKETED)
    assert_same(plain, bucketed)
    assert plain_lines == bucketed_lines
    priors = [
        {path.relative_to(run.prior): path.read_bytes() for path in run.prior.rglob("*.safetensors")}
        for run in (run_of(config_file, "plain"), run_of(config_file, "bucketed"))
    ]
    assert priors[0] == priors[1] != {}
    config = load_config(config_file)
    name = prior_fingerprint(
        base=fingerprint(load_family(config.model.base)), prompt="a photo of a dog", seed=0, dtype="torch.float32",
        sampler=str(prior_sampler(config)), shape=[4, 8, 8], num_images=4, block_size=2,
    )  # fmt: skip
    assert {path.parts[0] for path in priors[0]} == {name}


def drawn(place: int, height: int, width: int) -> torch.Tensor:
    return Randomness(0).normal("test", [place], (4, height, width))[0]


def module_on(family: Family, objective: LossSettings) -> DreamBoothModule:
    """With class pictures of several shapes as well."""
    shapes = [(8, 8), (6, 10), (10, 6)]
    means = [drawn(100 + number, *shape)[None] for number, shape in enumerate(shapes)]
    pictures = [EncodedImage(mean_VCHW, 0.1 * mean_VCHW.abs(), torch.zeros(1, 6)) for mean_VCHW in means]
    randomness = Randomness(0)
    prior = ImagePrior(LatentDataset(pictures, Captions(["a photo of a dog"] * 3, randomness), randomness, "prior"))
    optim = OptimSettings(lr=1e-3, text_encoder_lr=1e-3)
    return DreamBoothModule(family, {"denoiser": family.denoiser}, objective, prior, optim, randomness, max_grad_norm=0)


class KeepGradients(pl.Callback):
    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: object) -> None:
        self.gradients = {name: weight.grad.clone() for name, weight in module.named_parameters()}


def gradients(
    module: DreamBoothModule, samples: list[Sample], batch_size: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the gradients of one step over these samples in batches, and its loss."""
    kept = KeepGradients()
    trainer = pl.Trainer(
        max_steps=1, accumulate_grad_batches=len(samples) // batch_size, callbacks=[kept], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples, batch_size, collate_fn=list))
    return kept.gradients, module.close_step().by_name["train/loss"]


@pytest.mark.parametrize(
    "objective",
    [
        LossSettings(),
        LossSettings(
            0.5, huber_c=0.1, weighting="min_snr", noise_offset=0.1, input_perturbation=0.1, unmasked_weight=0.2
        ),
    ],
    ids=["plain", "everything"],
)
def test_a_batch_of_several_shapes_has_the_mean_loss_and_gradient_of_its_samples(
    tiny_base: Path, objective: LossSettings
) -> None:
    """The groups differ in size, so a mean over groups would be another."""
    samples = [
        Sample(
            "subject",
            place,
            drawn(place, height, width),
            "sks dog",
            mask_1HW=drawn(50 + place, height, width)[:1].sigmoid(),
        )
        for place, (height, width) in enumerate([(8, 8), (10, 6), (8, 8), (8, 8), (6, 10)])
    ]
    together, loss = gradients(module_on(load_family(str(tiny_base)), objective), samples, len(samples))
    alone, loss_alone = gradients(module_on(load_family(str(tiny_base)), objective), samples, 1)
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-6, rtol=1e-3)


def test_a_run_in_batches_of_several_shapes_logs_what_one_of_single_samples_logs(
    config_file: Path, shapes: Path
) -> None:
    settings = (f"subject.images={shapes}", *BUCKETED, "train.max_steps=3")
    together = trained(config_file, "together", *settings, "train.batch_size=4")[1]
    alone = trained(config_file, "alone", *settings, "train.batch_size=1", "train.accumulate=4")[1]
    for one, other in zip(together, alone, strict=True):
        for name in ("train/loss", "train/loss_instance", "train/loss_prior", "optim/grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name


def test_class_pictures_are_made_in_the_subjects_shapes_in_turn_a_block_in_each(
    config_file: Path, shapes: Path
) -> None:
    prior = ("prior.source=ahead", "prior.num_images=9", "train.max_steps=8")
    trained(config_file, "run", f"subject.images={shapes}", *BUCKETED, *prior)
    blocks = sorted(run_of(config_file, "run").prior.rglob("*.safetensors"))
    made = [tuple(load_file(path)["latents"].shape) for path in blocks]
    assert made == [(2, 4, 10, 6), (2, 4, 8, 8), (2, 4, 10, 6), (2, 4, 6, 10), (1, 4, 10, 6)]


@pytest.mark.parametrize("source", ["folder", "teacher"])
def test_other_priors_keep_their_shapes_too(config_file: Path, shapes: Path, tmp_path: Path, source: str) -> None:
    own = picture_folder(tmp_path / "class", [(110, 64), (64, 110)])
    prior = (f"prior.source={source}", *([f"prior.folder={own}"] if source == "folder" else []))
    settings = (f"subject.images={shapes}", *BUCKETED, "train.max_steps=2", "optim.warmup_steps=0", *prior)
    together = trained(config_file, "together", *settings, "train.batch_size=4")[1]
    alone = trained(config_file, "alone", *settings, "train.batch_size=1", "train.accumulate=4")[1]
    for one, other in zip(together, alone, strict=True):
        assert one["train/loss_prior"] == pytest.approx(other["train/loss_prior"], rel=1e-3, abs=1e-9)


def test_xl_is_told_each_class_pictures_own_size(config_file: Path, shapes: Path, tiny_xl_base: Path) -> None:
    """The teacher takes a picture for a whole one of its own size; were the model told another, the loss were not 0."""
    xl = (f"model.base={tiny_xl_base}", f"subject.images={shapes}", *BUCKETED, "train.batch_size=4")
    taught = trained(config_file, "taught", *xl, "prior.source=teacher", "optim.warmup_steps=1")[1]
    # Alone, a picture's numbers may round otherwise than beside another of its shape.
    assert taught[0]["train/loss_prior"] < 1e-10 < 1e-6 < taught[-1]["train/loss_prior"]


def test_masks_count_in_every_shape(config_file: Path, shapes: Path, tmp_path: Path) -> None:
    white, half = tmp_path / "white", tmp_path / "half"
    for folder, level in ((white, 255), (half, 0)):
        folder.mkdir()
        for path in shapes.iterdir():
            mask = Image.new("L", Image.open(path).size, level)
            mask.paste(255, (0, 0, mask.width // 2, mask.height))
            mask.save(folder / path.name)
    settings = (f"subject.images={shapes}", *BUCKETED, "train.batch_size=4", "train.max_steps=1")
    settings = (*settings, "optim.warmup_steps=0", "data.unmasked_weight=0")
    plain = trained(config_file, "plain", *settings)[1][0]
    everything = trained(config_file, "white", *settings, f"data.mask={white}")[1][0]
    left = trained(config_file, "half", *settings, f"data.mask={half}")[1][0]
    assert everything["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-5)
    assert left["train/loss_instance"] != pytest.approx(plain["train/loss_instance"], rel=1e-3)
    assert left["train/loss_prior"] == pytest.approx(plain["train/loss_prior"], rel=1e-5)


def test_the_fixed_loss_of_several_shapes_is_the_mean_of_every_sample_by_itself(family: Family) -> None:
    heights = (8, 10, 8, 6, 8, 8, 8, 10)
    samples = [
        Sample("validation", place, drawn(place, height, 8), "a photo of a dog") for place, height in enumerate(heights)
    ]
    losses = []
    for sample in samples:
        x0, t = sample.latents_CHW[None], torch.tensor([(2 * sample.sample_index + 1) * 1000 // 16])
        noise = Randomness(0).normal("validation/noise", [sample.sample_index], tuple(x0.shape[1:]))
        with torch.no_grad():
            noisy = family.schedule.add_noise(x0, noise, t)
            prediction = family.predict(noisy, t, family.encode_prompts([sample.prompt]))
        losses.append(float(mean_over_image(squared_error(prediction, noise))))
    found = fixed_loss(family, samples, Randomness(0), torch.device("cpu"))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_run_on_several_shapes_looks_at_squares_and_tells_its_buckets(
    config_file: Path, shapes: Path, warm: Warm
) -> None:
    """With an adapter, crops and pictures that are not trained on."""
    settings = (*BUCKETED, f"subject.images={shapes}", f"validate.images={shapes}", "validate.every_steps=4")
    more = ("train.max_steps=8", "method.name=lora", "data.crop=random", "data.flip=true")
    told = in_own_process(warm, config_file, "run", *settings, *more)[1]
    said = config_file.with_name("run.log").read_text()
    assert "buckets (and images in each): 80x48 (1), 64x64 (1), 48x80 (2)" in said
    assert "smaller than data.resolution (64), so enlarged" not in said
    assert {line["step"] for line in told if line.get("eval/loss", 0) > 0} == {0, 4, 8}
    run = run_of(config_file, "run")
    assert len(cut(Image.open(run.samples / "step-000008.png"), side=64)) == 4


def test_pictures_with_fewer_pixels_than_their_bucket_are_told(
    config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both would be too small for a square."""
    folder = picture_folder(tmp_path / "small", [(96, 50), (78, 50)])
    trained(config_file, "run", f"subject.images={folder}", *BUCKETED, "train.max_steps=3")
    assert "so enlarged: 1.png\n" in caplog.text


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (24, r"data\.bucket_step: 24 must divide data\.resolution \(64\)"),
        (8, r"data\.bucket_step=8: this base's denoiser halves.* use a multiple of 16"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(
    config_file: Path, step: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        trained(config_file, "refused", "data.buckets=true", f"data.bucket_step={step}")
    assert not (config_file.parent / "runs").exists()


def test_sides_are_even_that_the_unet_halves_without_a_remainder(tiny_xl_base: Path, family: Family) -> None:
    """BatchRecord in the sizes at which the UNet's middle works."""
    for model in (family, load_family(str(tiny_xl_base))):
        seen: list[torch.Size] = []
        model.denoiser.mid_block.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].shape))
        for side, is_even in (
            (model.size_multiple * 3, True),
            (model.size_multiple * 3 + model.vae_scale_factor, False),
        ):
            channels, height, width = model.latent_shape(side, side)
            latents, t = torch.zeros(1, channels, height, width), torch.tensor([1])
            model.predict(latents, t, model.encode_prompts(["a dog"]))
            halvings = model.size_multiple // model.vae_scale_factor
            assert (seen[-1][-1] * halvings == width) == is_even
