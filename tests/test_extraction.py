"""A LoRA out of fully trained weights: the best of its rank, and all of them where the rank is full."""

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from torch import Tensor

from dreambooth.cli import main
from dreambooth.config import load_config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.extraction import extract, load_base, low_rank
from dreambooth.families import Family, components, fingerprint, load_family
from dreambooth.families.unet import TARGET_GROUPS
from dreambooth.generation.models.loading import load_model
from dreambooth.methods import textual_inversion
from dreambooth.methods.adapter_files import LORA_FILE
from dreambooth.methods.adapters import adaptable
from dreambooth.methods.textual_inversion import WORD_FILE
from dreambooth.run.folder import RunFolder
from dreambooth.subject_info import ExportCard, LearnedSubject

DOG = LearnedSubject("sks", "dog", "a photo of {subject}", "a photo of a {class}")
ENDS = tuple(end for group in TARGET_GROUPS.values() for end in group)


@functools.cache
def card_of(base: Path) -> ExportCard:
    card = ExportCard((DOG,), 64, 2, 3.0, 8)
    return ExportCard(**{**vars(card), "base": str(base), "base_fingerprint": fingerprint(load_family(str(base)))})


def prediction(family: Family, prompt: str) -> Tensor:
    noisy_BCHW = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(noisy_BCHW, torch.tensor([500]), family.encode_prompts([prompt]))


def change_matrices(family: Family) -> None:
    """Stands for training: of all that a LoRA can hold."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in components(family).values():
            for name in adaptable(part, ENDS):
                weight = part.get_parameter(f"{name}.weight")
                weight += 0.1 * torch.randn(weight.shape, generator=generator)


def change_identifier(family: Family) -> None:
    with torch.no_grad():
        for part in family.text_encoders:
            part.get_input_embeddings().weight[family.tokenize("sks")] += 1.0  # type: ignore[operator]


@pytest.fixture(params=["tiny_base", "tiny_xl_base"], ids=["sd", "sdxl"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("rows", "columns"), [(12, 20), (20, 12)])
def test_no_matrix_of_that_rank_is_nearer_and_the_error_is_what_the_theorem_says(rows: int, columns: int) -> None:
    """Eckart & Young: the squares of the singular values that are left out."""
    change_OI = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    up_OR, down_RI = low_rank(change_OI, 5)
    assert (up_OR.shape, down_RI.shape) == ((rows, 5), (5, columns))
    error = (change_OI - up_OR @ down_RI).square().sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(change_OI)[5:].square().sum())
    for seed in range(20):
        nudges = [
            0.1 * torch.randn(m.shape, dtype=m.dtype, generator=torch.Generator().manual_seed(seed))
            for m in (up_OR, down_RI)
        ]
        assert (change_OI - (up_OR + nudges[0]) @ (down_RI + nudges[1])).square().sum() > error


def test_both_matrices_are_of_one_size_so_that_half_precision_holds_them() -> None:
    up_OR, down_RI = low_rank(1e-4 * torch.randn(64, 256, generator=torch.Generator().manual_seed(0)), 8)
    torch.testing.assert_close(up_OR.square().sum(0), down_RI.square().sum(1))


def test_at_full_rank_nothing_of_what_it_can_hold_is_lost(base: Path) -> None:
    tuned, untouched = load_family(str(base)), load_family(str(base))
    change_matrices(tuned)
    change_identifier(tuned)
    wanted = prediction(tuned, "a photo of sks dog")
    before = prediction(untouched, "a photo of sks dog")
    card, kept = extract(tuned, untouched, card_of(base), rank=1000)
    assert (card.method, card.subjects[0].identifier, card.extracted_rank) == ("pivotal", "<sks>", 1000)
    torch.testing.assert_close(prediction(untouched, "a photo of <sks> dog"), wanted, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(before, wanted, atol=1e-2)
    assert kept.everything == pytest.approx(kept.lora + kept.word)


def test_of_two_subjects_both_words_are_kept_where_one_has_changed(tiny_base: Path, tmp_path: Path) -> None:
    tuned, untouched = load_family(str(tiny_base)), load_family(str(tiny_base))
    change_identifier(tuned)
    two = replace(card_of(tiny_base), subjects=(replace(DOG, identifier="olis"), DOG))
    wanted = prediction(tuned, "a photo of sks dog and olis dog")
    card, _ = extract(tuned, untouched, two, rank=4)
    assert [subject.identifier for subject in card.subjects] == ["<olis>", "<sks>"]
    torch.testing.assert_close(prediction(untouched, "a photo of <sks> dog and <olis> dog"), wanted)
    textual_inversion.save(untouched, tmp_path, ["<olis>", "<sks>"])
    again = load_family(str(tiny_base))
    textual_inversion.load(again, tmp_path)
    torch.testing.assert_close(prediction(again, "a photo of <sks> dog and <olis> dog"), wanted)


@pytest.mark.parametrize(
    "base", ["tiny_base", pytest.param("tiny_xl_base", marks=pytest.mark.slow)], ids=["sd", "sdxl"], indirect=True
)
def test_the_error_falls_with_the_rank_and_is_told(base: Path) -> None:
    errors = []
    for rank in (1, 4, 1000):
        tuned, untouched = load_family(str(base)), load_family(str(base))
        change_matrices(tuned)
        wanted = prediction(tuned, "a photo of a dog")
        card, kept = extract(tuned, untouched, card_of(base), rank)
        assert (card.method, card.subjects) == ("lora", (DOG,)), "its row has not changed"
        errors.append(
            (float((prediction(untouched, "a photo of a dog") - wanted).square().sum()), kept.adaptable - kept.lora)
        )
    assert errors == sorted(errors, reverse=True)
    assert [told for _, told in errors] == sorted((told for _, told in errors), reverse=True)
    assert errors[-1] == pytest.approx((0, 0), abs=1e-3)


def test_what_no_lora_holds_is_told(tiny_base: Path) -> None:
    tuned, untouched = load_family(str(tiny_base)), load_family(str(tiny_base))
    with torch.no_grad():
        tuned.denoiser.get_parameter("conv_in.weight").add_(1.0)
        tuned.denoiser.get_parameter("mid_block.attentions.0.proj_in.weight").add_(1.0)
    _, kept = extract(tuned, untouched, card_of(tiny_base), rank=4)
    outside, inside = (
        tuned.denoiser.get_parameter(f"{name}.weight").numel() for name in ("conv_in", "mid_block.attentions.0.proj_in")
    )
    assert f"{inside / (inside + outside):.1%} in the LoRA" in str(kept)
    assert f"{outside / (inside + outside):.1%} in norms, biases" in str(kept)


def test_a_base_with_nothing_learned_has_no_lora(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="no LoRA in them"):
        extract(load_family(str(tiny_base)), load_family(str(tiny_base)), card_of(tiny_base), 4)


def test_another_base_is_refused(tiny_base: Path, shipped_base: Path) -> None:
    with pytest.raises(ModelError, match=f"{shipped_base}: not the base that this was trained on"):
        load_base(card_of(tiny_base), tiny_base, str(shipped_base))
    assert fingerprint(load_base(card_of(tiny_base), tiny_base, None)) == card_of(tiny_base).base_fingerprint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    """Return a run with all weights trained for two steps in which everything moves."""
    config_file = tmp_path_factory.mktemp("full") / "config.yaml"
    config_file.write_text(CONFIG.format(runs=config_file.parent, base=tiny_base, pictures=pictures))
    quick = ["train.max_steps=2", "optim.warmup_steps=0", "optim.lr=1.0e-2", "optim.identifier_lr=0.1"]
    config = load_config(config_file, [*quick, "validate.every_steps=0", "prior.source=none"])
    assert train(config) == 0
    return RunFolder(config).path


def test_a_run_becomes_a_lora_that_is_sampled_like_any_other(
    run: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In half precision, as it is by default; from its own folder; on a base that lies elsewhere by now."""
    folder = tmp_path / "lora"
    assert main(["export", str(run), "--format", "lora", "--rank", "8", "--out", str(folder)]) == 0
    told = capsys.readouterr().err
    assert "rank 8: of the squared change" in told
    assert "'sks' is the word '<sks>'" in told
    assert {LORA_FILE, WORD_FILE, "dreambooth.json", "README.md"} <= {path.name for path in folder.iterdir()}
    elsewhere = shutil.copytree(tiny_base, tmp_path / "base")
    sampled = [
        "sample",
        str(folder),
        "a photo of {subject}",
        "--steps",
        "2",
        "--num-images",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert main([*sampled, "--base", str(elsewhere)]) == 0
    assert list(tmp_path.glob("00000-*.png"))
    lora, full, untouched = (load_model(str(path), "cpu") for path in (folder, run, tiny_base))
    wanted = prediction(full.family, full.fill("a photo of {subject}"))
    near = prediction(lora.family, lora.fill("a photo of {subject}")) - wanted
    far = prediction(untouched.family, "a photo of sks dog") - wanted
    assert near.square().sum() < 0.5 * far.square().sum()


def test_without_a_rank_nothing_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "kohya"]) == 2
    assert "--rank: required" in capsys.readouterr().err
    assert not (run / "exports").exists()
