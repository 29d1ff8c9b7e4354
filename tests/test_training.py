"""Properties of training, on real runs of a few steps: two ways to the same thing agree, and nothing else moves."""

import csv
import platform
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from PIL import Image
from safetensors.torch import load_file
from warm import Warm

from dreambooth.checkpointing import find_state
from dreambooth.config import load_config
from dreambooth.devices import keep_freed_memory
from dreambooth.engine import train
from dreambooth.errors import NonFiniteError, UserError
from dreambooth.families import Family, load_family
from dreambooth.methods import find_method
from dreambooth.methods.base import MethodSettings
from dreambooth.run.folder import RunFolder
from dreambooth.training.module import DreamBoothModule
from dreambooth.training.progress import TrainProgress

ROOT = Path(__file__).parent.parent


Trained = tuple[dict[str, torch.Tensor], list[dict[str, float]]]


def quick(name: str, *overrides: str) -> list[str]:
    """The settings of `trained`: a state is saved at the end alone, which is a third of what so small a run costs."""
    short = ["train.max_steps=4", "validate.every_steps=0", "prior.num_images=4", "train.save_every_steps=1000"]
    return [*short, f"run.name={name}", *overrides]


def trained(config_file: Path, name: str, *overrides: str) -> Trained:
    """Run to the end; return the trained weights and the lines of metrics.csv."""
    config = load_config(config_file, quick(name, *overrides))
    assert train(config) == 0
    return weights(RunFolder(config)), lines(RunFolder(config))


def in_own_process(warm: Warm, config_file: Path, name: str, *overrides: str) -> Trained:
    """Do as `trained` in a new process, which may start loader workers: they import its main module, not pytest's."""
    log = config_file.with_name(f"{name}.log")
    assert warm.run(["train", str(config_file), *quick(name, *overrides)], log) == 0, log.read_text()
    run = RunFolder(load_config(config_file, quick(name, *overrides)))
    return weights(run), lines(run)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Trained:
    """The run without any override, which many compare theirs with."""
    config_file = tmp_path_factory.mktemp("plain") / "config.yaml"
    config_file.write_text(CONFIG.format(runs=config_file.parent / "runs", base=tiny_base, pictures=pictures))
    return trained(config_file, "plain")


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    state = torch.load(run.state, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("trained.")}


def lines(run: RunFolder) -> list[dict[str, float]]:
    with open(run.logs / "metrics.csv") as file:
        return [{name: float(value) for name, value in line.items() if value} for line in csv.DictReader(file)]


ONE_STEP = ("train.max_steps=1", "optim.warmup_steps=0")


@pytest.fixture(scope="module")
def first_line(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> dict[str, float]:
    """The metrics of the first step, of samples that no setting of the loss or of masks changes."""
    config_file = tmp_path_factory.mktemp("first") / "config.yaml"
    config_file.write_text(CONFIG.format(runs=config_file.parent / "runs", base=tiny_base, pictures=pictures))
    return trained(config_file, "first", *ONE_STEP)[1][0]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Compare every bit, as what runs the same kernels has to agree."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=lambda text, name=name: f"{name}: {text}", atol=0, rtol=0)


def assert_same_but_for_rounding(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Compare two ways to the same gradients, at rates of 1e-3 and less: a tensor differs by 1e-5 in the mean.

    Adam makes steps of up to the rate of a gradient that is rounding alone. So are those of `k_proj.bias`, which moves
    no attention, and of single elements elsewhere.
    """
    assert first.keys() == second.keys()
    for name, value in first.items():
        difference = (value - second[name]).abs()
        assert float(difference.max()) <= 1e-3, f"{name} differs by {difference.max():.1e}"
        if not name.endswith("k_proj.bias"):
            assert float(difference.mean()) <= 1e-5, f"{name} differs by {difference.mean():.1e} in the mean"


def test_two_runs_of_one_seed_are_equal_bit_for_bit(plain: Trained, config_file: Path) -> None:
    again = trained(config_file, "again")
    assert_same(plain[0], again[0])
    assert plain[1] == again[1]
    assert trained(config_file, "other", "run.seed=1")[1] != plain[1]


def test_prior_weight_zero_equals_plain_training(config_file: Path) -> None:
    alone, alone_lines = trained(config_file, "alone", "prior.source=none")
    weightless, weightless_lines = trained(config_file, "weightless", "prior.weight=0")
    assert_same_but_for_rounding(alone, weightless)
    for one, other in zip(alone_lines, weightless_lines, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss_instance"], rel=1e-4)
        assert "train/loss_prior" not in one


def test_four_accumulated_batches_equal_one_batch_of_four(config_file: Path) -> None:
    one, one_lines = trained(config_file, "one", "train.batch_size=4", "train.max_steps=3")
    four, four_lines = trained(config_file, "four", "train.batch_size=1", "train.accumulate=4", "train.max_steps=3")
    assert_same_but_for_rounding(one, four)
    for a, b in zip(one_lines, four_lines, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-3)
        assert a["optim/grad_norm"] == pytest.approx(b["optim/grad_norm"], rel=1e-2)


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_in_turn_equal_the_whole_batch(config_file: Path, size: int) -> None:
    batch = ("train.batch_size=2", "train.accumulate=2", "prior.weight=0.5", "train.max_steps=3")
    whole, whole_lines = trained(config_file, "whole", *batch)
    parts, parts_lines = trained(config_file, "parts", *batch, f"train.micro_batch_size={size}")
    assert_same_but_for_rounding(whole, parts)
    for a, b in zip(whole_lines, parts_lines, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_gradients_that_the_optimizer_scales_down_train_as_those_scaled_before_it(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = ("optim.max_grad_norm=0.1", "optim.warmup_steps=0")
    fused, fused_lines = trained(config_file, "fused", *clip)
    whole, _ = trained(config_file, "whole", "optim.max_grad_norm=0", *clip[1:])
    with monkeypatch.context() as patch:
        patch.setattr(DreamBoothModule, "is_fused", False)
        before, before_lines = trained(config_file, "before", *clip)
    assert min(line["optim/grad_norm"] for line in fused_lines) > 0.1
    assert_same_but_for_rounding(fused, before)
    assert [line["optim/grad_norm"] for line in fused_lines] == pytest.approx(
        [line["optim/grad_norm"] for line in before_lines], rel=1e-3
    )
    assert max(float((whole[name] - value).abs().max()) for name, value in fused.items()) > 1e-4


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc is told to")
def test_freed_memory_is_there_for_the_next_tensor() -> None:
    """Its pages are not mapped anew: each would be a fault."""
    keep_freed_memory()
    size = 2**27
    faults = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size // 4)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults[1:]) < 0.1 * size / resource.getpagesize(), "other threads cause some, not in every round"


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adamw8bit", marks=pytest.mark.slow)])
def test_a_weights_step_within_backward_is_the_step_behind_it(config_file: Path, optimizer: str) -> None:
    unclipped = ("optim.max_grad_norm=0", f"optim.name={optimizer}", "optim.schedule=constant", "optim.warmup_steps=0")
    behind, behind_lines = trained(config_file, "behind", *unclipped)
    within, within_lines = trained(config_file, "within", *unclipped, "optim.in_backward=true")
    trained(config_file, "longer", *unclipped, "optim.in_backward=true", "train.max_steps=2")
    longer, _ = trained(config_file, "longer", *unclipped, "optim.in_backward=true")
    assert_same(within, longer)
    assert_same(behind, within)
    for a, b in zip(behind_lines, within_lines, strict=True):
        assert a == pytest.approx(b, rel=1e-5), "the norm's sum is taken in another order"


def test_within_backward_nothing_that_is_not_finite_reaches_a_saved_state(config_file: Path) -> None:
    wild = ("optim.lr=1e18", "optim.weight_decay=0", "train.max_steps=8", "train.save_every_steps=1")
    with pytest.raises(NonFiniteError, match="nothing of it was kept"):
        trained(config_file, "wild", "optim.max_grad_norm=0", "optim.in_backward=true", *wild)
    run = RunFolder(load_config(config_file, ["run.name=wild"]))
    assert all(bool(weight.isfinite().all()) for weight in weights(run).values())


@pytest.mark.slow
def test_loader_workers_change_nothing(plain: Trained, config_file: Path, warm: Warm) -> None:
    assert_same(plain[0], in_own_process(warm, config_file, "workers", "data.num_workers=2")[0])


def test_making_class_pictures_changes_nothing_in_what_follows(plain: Trained, config_file: Path) -> None:
    """They are made on the way by default."""
    ahead = trained(config_file, "ahead", "prior.source=ahead")
    assert_same(plain[0], ahead[0])
    assert plain[1] == ahead[1]


def test_the_subjects_samples_do_not_depend_on_the_prior(config_file: Path) -> None:
    with_prior = trained(config_file, "with", "train.max_steps=3")[1]
    without = trained(config_file, "without", "train.max_steps=3", "prior.source=none")[1]
    assert with_prior[0]["train/loss_instance"] == pytest.approx(without[0]["train/loss_instance"], rel=1e-4)


@pytest.mark.parametrize("method", [["method.name=full"], ["method.name=lora", "method.train_text_encoder=false"]])
def test_validation_changes_nothing(config_file: Path, method: list[str]) -> None:
    """A LoRA's run without it lets go of the VAE."""
    silent = trained(config_file, "silent", *method)
    shown = trained(config_file, "shown", "validate.every_steps=2", "validate.scheduler=euler-a", *method)
    assert_same(silent[0], shown[0])
    steps = [{name: line[name] for name in silent[1][0]} for line in shown[1] if line["step"] > 0]
    assert silent[1] == steps


@pytest.mark.parametrize("latents", ["subject", "class"])
def test_the_teachers_loss_is_0_but_for_rounding_before_anything_has_been_learned(
    config_file: Path, latents: str
) -> None:
    """The teacher computes in evaluation mode, in which some CPUs' kernels round otherwise."""
    teacher = ("prior.source=teacher", f"prior.teacher_latents={latents}")
    first, *later = trained(config_file, latents, *teacher, "optim.warmup_steps=1", "train.max_steps=3")[1]
    assert first["train/loss_prior"] < 1e-10
    assert first["train/loss"] == pytest.approx(first["train/loss_instance"], rel=1e-6)
    assert all(line["train/loss_prior"] > 1e-10 for line in later)


def test_the_teacher_changes_nothing_in_what_the_subject_draws(plain: Trained, config_file: Path) -> None:
    taught = trained(config_file, "taught", "prior.source=teacher", "train.max_steps=3")[1][0]
    assert taught["train/loss_instance"] == pytest.approx(plain[1][0]["train/loss_instance"], rel=1e-6)


def test_a_teacher_that_is_asked_about_the_subjects_latents_has_no_class_picture_made(config_file: Path) -> None:
    trained(config_file, "taught", "prior.source=teacher", "train.max_steps=3")
    assert not list(RunFolder(load_config(config_file, ["run.name=taught"])).prior.glob("*"))


def test_the_loss_is_instance_plus_weight_times_prior_in_every_line(config_file: Path) -> None:
    for line in trained(config_file, "parts", "prior.weight=0.5", "train.accumulate=2", "train.max_steps=3")[1]:
        assert line["train/loss"] == pytest.approx(
            line["train/loss_instance"] + 0.5 * line["train/loss_prior"], rel=1e-5
        )


def test_the_priors_loss_is_on_the_class_prompt_and_the_subjects_on_its_own(config_file: Path, pictures: Path) -> None:
    """With the same class pictures, each prompt moves its own loss and not the other's."""
    short = ("prior.source=folder", f"prior.folder={pictures}", "train.max_steps=1", "optim.warmup_steps=0")
    first = trained(config_file, "first", *short)[1][0]
    other_subject = trained(config_file, "subject", *short, "subject.prompt=an image of one {subject}")[1][0]
    other_class = trained(config_file, "class", *short, "subject.class_prompt=an image of one {class}")[1][0]
    assert other_subject["train/loss_prior"] == pytest.approx(first["train/loss_prior"], rel=1e-6)
    assert other_subject["train/loss_instance"] != pytest.approx(first["train/loss_instance"], rel=1e-6)
    assert other_class["train/loss_instance"] == pytest.approx(first["train/loss_instance"], rel=1e-6)
    assert other_class["train/loss_prior"] != pytest.approx(first["train/loss_prior"], rel=1e-6)


def test_what_is_frozen_gets_no_gradient(family: Family) -> None:
    find_method("full").attach(family, MethodSettings(train_text_encoder=False))
    condition = family.encode_prompts(["a photo of a dog"])
    family.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), condition).sum().backward()
    frozen = [*family.vae.parameters(), *family.text_encoders[0].parameters()]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    assert all(parameter.grad is not None for parameter in family.denoiser.parameters())


def exported(part: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a part of an export, by the names that this transformers writes."""
    weights = load_file(next(part.glob("*.safetensors")))
    return {name.removeprefix("text_model."): weight for name, weight in weights.items()}


def test_what_is_frozen_does_not_move(config_file: Path, tiny_base: Path) -> None:
    trained(config_file, "unet-only", "method.train_text_encoder=false", "model.export_dtype=float32")
    model = config_file.parent / "runs" / "unet-only" / "model"
    for part, moves in (("vae", False), ("text_encoder", False), ("unet", True)):
        before = load_file(next((tiny_base / part).glob("*.safetensors")))
        after = exported(model / part)
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        assert bool(moved) == moves, f"{part}: {len(moved)} weights moved"


def test_unet_and_text_encoder_both_train_each_with_its_own_learning_rate(config_file: Path, tiny_base: Path) -> None:
    _, told = trained(config_file, "both", "optim.text_encoder_lr=1.0e-4")
    assert told[3]["optim/lr"] == pytest.approx(10 * told[3]["optim/lr_text_encoder_0"])
    model = config_file.parent / "runs" / "both" / "model"
    for part in ("text_encoder", "unet"):
        before = load_file(next((tiny_base / part).glob("*.safetensors")))
        after = exported(model / part)
        stayed = [name for name in before if torch.equal(before[name], after[name]) and "position_ids" not in name]
        assert not stayed, f"{part}: {stayed[:3]} did not train"


def test_with_a_rate_of_its_own_the_identifier_alone_moves_in_the_embedding(config_file: Path, tiny_base: Path) -> None:
    _, told = trained(config_file, "own", "optim.identifier_lr=5.0e-3")
    assert told[3]["optim/lr_text_encoder_0_embedding"] == pytest.approx(5 * told[3]["optim/lr"])
    before, after = (
        load_family(str(folder)).text_encoders[0].get_input_embeddings().weight
        for folder in (tiny_base, config_file.parent / "runs" / "own" / "model")
    )
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == load_family(str(tiny_base)).tokenize("sks")


def test_from_its_stop_step_on_the_text_encoder_stays_and_the_denoiser_goes_on(config_file: Path) -> None:
    settings = ("optim.schedule=constant", "optim.warmup_steps=0", "optim.text_encoder_stop_step=2")
    at_stop = trained(config_file, "two", *settings, "train.max_steps=2")[0]
    later = trained(config_file, "later", *settings)[0]
    for name, weight in at_stop.items():
        stays = "text_encoder" in name
        assert torch.equal(later[name], weight) == stays, f"{name} {'moved' if stays else 'did not train on'}"


@pytest.mark.parametrize(
    ("limit", "usual"),
    [
        (("loss.weighting=min_snr", "loss.gamma=1.0e9"), ("loss.weighting=min_snr", "loss.gamma=0.01")),
        (("loss.weighting=soft_min_snr", "loss.gamma=1.0e9"), ("loss.weighting=soft_min_snr",)),
        (("loss.huber_c=1.0e4",), ("loss.huber_c=0.1",)),
        (("loss.noise_offset=1.0e-7",), ("loss.noise_offset=0.1",)),
        (("loss.input_perturbation=1.0e-7",), ("loss.input_perturbation=0.1",)),
    ],
)
def test_a_loss_at_its_limit_is_the_plain_one_and_at_its_usual_value_is_not(
    first_line: dict[str, float], config_file: Path, limit: tuple[str, ...], usual: tuple[str, ...]
) -> None:
    near, far = (
        trained(config_file, name, *ONE_STEP, *changes)[1][0] for name, changes in (("near", limit), ("far", usual))
    )
    for name in ("train/loss_instance", "train/loss_prior"):
        assert near[name] == pytest.approx(first_line[name], rel=1e-3)
        assert far[name] != pytest.approx(first_line[name], rel=1e-3)


def with_masks(pictures: Path, folder: Path, level: int) -> Path:
    """White in the left half, `level` in the right one."""
    folder.mkdir()
    for path in pictures.iterdir():
        mask = Image.new("L", Image.open(path).size, level)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        mask.save(folder / path.name)
    return folder


def test_a_white_mask_is_none_and_a_black_half_has_no_say(
    first_line: dict[str, float], config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    one_step = (*ONE_STEP, "data.unmasked_weight=0")
    white = trained(config_file, "white", *one_step, f"data.mask={with_masks(pictures, tmp_path / 'w', 255)}")[1][0]
    half = trained(config_file, "half", *one_step, f"data.mask={with_masks(pictures, tmp_path / 'h', 0)}")[1][0]
    assert white["train/loss"] == pytest.approx(first_line["train/loss"], rel=1e-5)
    assert half["train/loss_instance"] != pytest.approx(first_line["train/loss_instance"], rel=1e-3)
    assert half["train/loss_prior"] == pytest.approx(first_line["train/loss_prior"], rel=1e-5), (
        "the class counts as a whole"
    )


def test_a_cut_out_is_its_own_mask(config_file: Path, pictures: Path, tmp_path: Path) -> None:
    masks, cut_outs = with_masks(pictures, tmp_path / "masks", 0), tmp_path / "cut-outs"
    cut_outs.mkdir()
    for path in pictures.iterdir():
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.open(masks / path.name))
        image.save(cut_outs / path.name)
    one_step = (*ONE_STEP, f"subject.images={cut_outs}")
    by_alpha = trained(config_file, "alpha", *one_step, "data.mask=alpha")[1][0]
    by_folder = trained(config_file, "folder", *one_step, f"data.mask={masks}")[1][0]
    assert by_alpha["train/loss"] == by_folder["train/loss"]


def test_masks_that_do_not_fit_are_told(config_file: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.png: has no transparency"):
        trained(config_file, "alpha", "data.mask=alpha")
    masks = with_masks(pictures, tmp_path / "masks", 0)
    (masks / "1.png").unlink()
    with pytest.raises(UserError, match=r"holds 0 masks named 1\.\*, and 1\.png needs one"):
        trained(config_file, "missing", f"data.mask={masks}")
    Image.new("L", (5, 6)).save(masks / "1.png")
    with pytest.raises(UserError, match=r"5x6 pixels; 1\.png has 64x80"):
        trained(config_file, "size", f"data.mask={masks}")
    Image.new("L", (64, 80)).save(masks / "1.png")
    with pytest.raises(UserError, match="leaves nothing"):
        trained(config_file, "black", f"data.mask={masks}")
    top = Image.new("L", (64, 80))  # of which the crop, the middle, has nothing
    top.paste(255, (0, 0, 64, 7))
    top.save(masks / "1.png")
    with pytest.raises(UserError, match=r"data\.unmasked_weight=0: nothing counts in a crop of .*1\.png"):
        trained(config_file, "outside", f"data.mask={masks}", "data.unmasked_weight=0")


def test_zero_terminal_snr_ends_in_noise_alone_and_says_so_in_the_model(config_file: Path, tiny_base_v: Path) -> None:
    trained(config_file, "zero", f"model.base={tiny_base_v}", "loss.zero_terminal_snr=true")
    model = config_file.parent / "runs" / "zero" / "model"
    assert float(load_family(str(tiny_base_v)).schedule.alpha_T[-1]) > 1e-3
    assert float(load_family(str(model)).schedule.alpha_T[-1]) < 1e-6
    with pytest.raises(UserError, match=r"loss\.zero_terminal_snr=true: this base predicts the noise"):
        trained(config_file, "refused", "loss.zero_terminal_snr=true")


def test_the_average_of_the_weights_is_what_comes_out_and_changes_nothing_in_training(config_file: Path) -> None:
    """Recomputed here from the saved states of every step, by the formula in the docstring."""
    flat = ("train.save_every_steps=1", "train.max_steps=3", "optim.schedule=constant", "optim.warmup_steps=0")
    steps: list[dict[str, torch.Tensor]] = []
    config = load_config(config_file, quick("plain", *flat))
    run = RunFolder(config)

    def read_the_step_before(progress: TrainProgress) -> None:
        if progress.step > 1:
            steps.append(weights(run))

    assert train(config, on_progress=read_the_step_before) == 0
    steps.append(weights(run))
    averaged, also_told = trained(config_file, "three", *flat, "train.ema_decay=0.3")
    assert_same(steps[2], averaged)
    assert lines(run) == also_told
    base = load_family(str(load_config(config_file).model.base)).denoiser.state_dict()
    model = load_family(str(config_file.parent / "runs" / "three" / "model")).denoiser.state_dict()
    for name, weight in base.items():
        average = weight.clone()
        for step, weights_then in enumerate(steps, start=1):
            decay = 0.0 if step == 1 else min(0.3, (1 + step - 1) / (10 + step - 1))
            average = decay * average + (1 - decay) * weights_then[f"trained.denoiser.{name}"]
        torch.testing.assert_close(model[name], average, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_an_averaged_run_that_was_interrupted_exports_the_same_bits(config_file: Path) -> None:
    settings = ("train.ema_decay=0.9", "optim.schedule=constant", "optim.warmup_steps=0")
    trained(config_file, "straight", *settings)
    trained(config_file, "resumed", *settings, "train.max_steps=2")
    trained(config_file, "resumed", *settings)
    runs = config_file.parent / "runs"
    straight, resumed = (
        load_family(str(runs / name / "model")).denoiser.state_dict() for name in ("straight", "resumed")
    )
    assert_same(straight, resumed)


@pytest.mark.slow
def test_moments_of_8_bits_train_resume_and_stop_as_whole_ones_do(config_file: Path) -> None:
    settings = ("optim.name=adamw8bit", "optim.schedule=constant", "optim.warmup_steps=0", "prior.source=none")
    straight, figures = trained(config_file, "straight", *settings)
    trained(config_file, "resumed", *settings, "train.max_steps=2")
    assert_same(straight, trained(config_file, "resumed", *settings)[0])

    whole = trained(config_file, "whole", *settings, "optim.name=adamw")[1]
    assert [line["train/loss"] for line in figures] == pytest.approx([line["train/loss"] for line in whole], rel=0.05)
    runs = config_file.parent / "runs"
    state = torch.load(runs / "straight" / "state" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    moments = [own["__bnb_optimizer_quant_state__"]["state1"] for own in state.values()]
    assert {moment.dtype for moment in moments if moment.numel() >= 4096} == {torch.uint8}

    with pytest.raises(NonFiniteError, match=r"step \d+: optim/grad_norm is (nan|inf)"):
        trained(config_file, "explodes", *settings, "optim.lr=1e18", "optim.weight_decay=0")


def test_a_frozen_text_encoder_trains_the_unet_as_one_that_is_run_every_step(config_file: Path) -> None:
    """Its condition is computed once; that shortcut must not change the result."""
    frozen = trained(config_file, "frozen", "method.train_text_encoder=false")[0]
    still = trained(config_file, "still", "optim.text_encoder_lr=1.0e-30")[0]
    still = {name: value for name, value in still.items() if name in frozen}
    # Both are clipped to one gradient norm, which in the second run includes the text encoder's: not quite equal.
    for name, value in frozen.items():
        torch.testing.assert_close(value, still[name], atol=2e-3, rtol=1e-1)


def test_gradient_checkpointing_changes_only_memory(plain: Trained, config_file: Path) -> None:
    assert_same_but_for_rounding(plain[0], trained(config_file, "c", "train.gradient_checkpointing=true")[0])


def test_bfloat16_stays_near_float32_and_keeps_float32_weights(plain: Trained, config_file: Path) -> None:
    mixed = trained(config_file, "mixed", "train.precision=bf16-mixed")
    assert all(value.dtype == torch.float32 for value in mixed[0].values())
    for one, other in zip(plain[1], mixed[1], strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.1)


def test_auto_is_float32_for_a_small_model(plain: Trained, config_file: Path) -> None:
    assert load_config(config_file).train.precision == "32-true"
    assert_same(plain[0], trained(config_file, "auto", "train.precision=auto")[0])


def test_v_prediction_trains(plain: Trained, config_file: Path, tiny_base_v: Path) -> None:
    told = trained(config_file, "v", f"model.base={tiny_base_v}")[1]
    assert told != plain[1]
    assert len(told) == 4


def test_own_class_pictures_serve_as_the_prior(config_file: Path, pictures: Path) -> None:
    told = trained(config_file, "folder", "prior.source=folder", f"prior.folder={pictures}")[1]
    assert all(line["train/loss_prior"] > 0 for line in told)


def test_more_steps_on_the_same_pictures_lower_their_loss(config_file: Path) -> None:
    told = trained(config_file, "longer", "train.max_steps=60", "optim.schedule=constant", "prior.source=none")[1]
    first, last = (sum(line["train/loss"] for line in part) / 15 for part in (told[:15], told[-15:]))
    assert last < 0.8 * first, f"the loss went from {first:.3f} to {last:.3f}"


def test_the_learning_rate_warms_up_and_falls_to_zero(config_file: Path) -> None:
    rates = [line["optim/lr"] for line in trained(config_file, "rates", "train.max_steps=8")[1]]
    assert rates[:2] == pytest.approx([0.0005, 0.001])
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_last_state(config_file: Path) -> None:
    explosive = ("optim.lr=1e18", "optim.warmup_steps=3", "optim.weight_decay=0", "train.max_steps=8",
                 "train.save_every_steps=1")  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"step \d+: .* is (nan|inf)") as caught:
        trained(config_file, "explodes", *explosive)
    run = RunFolder(load_config(config_file, ["run.name=explodes"]))
    failed_step = int(re.findall(r"step (\d+)", str(caught.value))[0])
    assert find_state(run.state).step == failed_step - 1 > 0
    assert all(torch.isfinite(value).all() for value in weights(run).values())
    assert not run.model.exists()
    # Without a save the figures are read a step later: it is told of the same step, whose line is not written.
    with pytest.raises(NonFiniteError, match=f"step {failed_step}: "):
        trained(config_file, "later", *explosive[:-1])
    assert [line["step"] for line in lines(RunFolder(load_config(config_file, ["run.name=later"])))][-1] < failed_step


def test_golden_losses_of_four_steps_on_the_toy_world(tmp_path: Path, shipped_base: Path) -> None:
    """Pinned: a refactoring that changes the arithmetic shows here. Renewed with the base: `pytest -k golden -s`."""
    config = load_config(
        ROOT / "configs" / "toyworld.yaml",
        [
            f"run.dir={tmp_path}",
            f"model.base={shipped_base}",
            f"subject.images={ROOT / 'data' / 'robot'}",
            "train.max_steps=4",
            "train.precision=32-true",
            "prior.num_inference_steps=5",
            "prior.source=stream",
            "prior.scheduler=ddim",
            "prior.guidance_scale=2",
            "optim.identifier_lr=null",
            "method.start_word=null",
            "data.mask=null",
            "prior.weight=1",
            "validate.every_steps=0",
            "log.tensorboard=false",
        ],
    )
    assert train(config) == 0
    found = [(line["train/loss_instance"], line["train/loss_prior"]) for line in lines(RunFolder(config))]
    print(found)
    assert found == [pytest.approx(pair, rel=2e-3) for pair in GOLDEN]


GOLDEN = [  # instance and prior loss of each step
    (0.3022270202636719, 0.4073231816291809),
    (0.29868876934051514, 0.3632793724536896),
    (0.3637949228286743, 0.327331006526947),
    (0.41383278369903564, 0.562092661857605),
]
