"""Where words acted, and scores of single images: limits, agreement with the layers' own numbers, what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from torch import Tensor

from dreambooth.api import Model
from dreambooth.cli import main
from dreambooth.cli.results import show_scores
from dreambooth.data.overlays import overlay
from dreambooth.errors import UserError
from dreambooth.evaluation.image_scores import ImageScore, ImageScorer, ranked
from dreambooth.families import Family
from dreambooth.generation.attention_maps import AttentionRecorder, word_maps
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.request import GeneratedImage, ImageRequest
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.metrics.subject import SubjectScorer, load_encoders
from dreambooth.subject_info import LearnedSubject
from toyworld.attention import measure
from toyworld.editions import FIRST, SECOND, Edition

ROOT = Path(__file__).parents[1]
DOG = LearnedSubject("sks", "dog", "a photo of {subject}", "a photo of a {class}")
SETTINGS = SamplerSettings(2, 3.0)


class Kept(AttnProcessor):
    """Compute attention as usual, and keep the numbers of the guided half."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Tensor] = []

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **other: Any) -> Tensor:
        query, key = (
            attn.head_to_batch_dim(project(each))
            for project, each in ((attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states))
        )
        own = attn.get_attention_scores(query, key).unflatten(0, (len(hidden_states), -1)).mean(1)
        self.parts.append(own[len(own) // 2 :])
        return super().__call__(attn, hidden_states, encoder_hidden_states, **other)


def record(family: Family, prompts: list[str], size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    """Return latents and maps of a batch."""
    start = noise_from_seeds(range(len(prompts)), (4, *size))
    with AttentionRecorder(family.denoiser, len(prompts), size) as recorder:
        latents = sample_latents(family, prompts, start, SETTINGS)
    return latents, recorder.maps


def test_recording_changes_no_bit_and_each_position_looks_at_all_tokens_together(family: Family) -> None:
    start = noise_from_seeds([0, 1], (4, 8, 8))
    expected = sample_latents(family, ["a dog", "a cat"], start, SETTINGS)
    latents, maps = record(family, ["a dog", "a cat"])
    assert torch.equal(latents, expected)
    assert maps.shape == (2, family.max_tokens, 8, 8)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 8, 8), atol=0.02, rtol=0)  # but for upscaling


def test_the_maps_are_the_attention_of_the_layers_themselves(family: Family) -> None:
    kept = {name: Kept() for name, layer in family.denoiser.named_modules() if name.endswith("attn2") and layer}
    _, maps = record(family, ["a red dog"])
    processors = {
        name: kept.get(name.removesuffix(".processor"), processor)
        for name, processor in family.denoiser.attn_processors.items()
    }
    family.denoiser.set_attn_processor(processors)
    record(family, ["a red dog"])
    means = [torch.stack(each.parts).mean(0).mean(1) for each in kept.values()]  # over steps and positions
    torch.testing.assert_close(maps.mean((2, 3)), torch.stack(means).mean(0), atol=2e-3, rtol=0.02)


def test_an_image_of_another_shape_has_maps_of_its_shape(family: Family) -> None:
    assert record(family, ["a dog"], (6, 10))[1].shape[-2:] == (6, 10)


def test_every_word_has_a_map_also_of_a_later_part(family: Family) -> None:
    request = ImageRequest(ModelRef("x"), "a photo of a (red:1.3) dog, asleep.", 0, 64, 64, SETTINGS, "weighted")
    maps_NHW = torch.arange(20 * family.max_tokens).float()[:, None, None].expand(-1, 8, 8)
    found = word_maps(family, request, maps_NHW)
    assert list(found) == ["a", "photo", "of", "red", "dog", "asleep"]
    first = 1 + len(family.tokenize("a photo of a"))
    num_red = len(family.tokenize("red"))
    assert float(found["red"][0, 0]) == first + (num_red - 1) / 2
    long = "very " * family.max_tokens + "cat"
    later = word_maps(family, ImageRequest(ModelRef("x"), long, 0, 64, 64, SETTINGS, "weighted"), maps_NHW)
    assert float(later["cat"][0, 0]) > family.max_tokens
    plain = word_maps(family, ImageRequest(ModelRef("x"), long, 0, 64, 64, SETTINGS), maps_NHW)
    assert "cat" not in plain, "which is cut off"


def test_a_denoiser_without_cross_attention_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="--attention-maps: Linear has no cross-attention to the prompt"):
        AttentionRecorder(torch.nn.Linear(1, 1), 1, (8, 8))


def test_the_brightest_point_of_an_overlay_is_where_the_map_is() -> None:
    map_HW = torch.zeros(8, 8)
    map_HW[2, 5] = 1
    shown = overlay(Image.new("RGB", (64, 64), "gray"), map_HW, 1.0).convert("L")
    brightest = max(((x, y) for x in range(64) for y in range(64)), key=lambda at: int(shown.getpixel(at) or 0))
    assert 40 <= brightest[0] < 48
    assert 16 <= brightest[1] < 24


def test_a_sheet_is_written_beside_each_image(tiny_base: Path, tmp_path: Path) -> None:
    command = ["sample", str(tiny_base), "a red dog", "--steps", "1", "--num-images", "2", "--attention-maps"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("00000-a-red-dog.png", "00001-a-red-dog.png", "attention-00000.png", "attention-00001.png"),
        "grid-00000.png",
    ]
    assert Image.open(tmp_path / "attention-00000.png").width >= 4 * 64
    model = Model(load_model(str(tiny_base), "cpu"), "cpu")
    (image,) = model.generate("a red dog", 1, steps=1, attention_maps=True)
    assert image.attention is not None
    assert image.attention.size == Image.open(tmp_path / "attention-00000.png").size


@pytest.mark.parametrize(("base", "edition"), [("toyworld", FIRST), ("toyworld-second", SECOND)])
def test_a_word_acts_where_its_object_is(base: str, edition: Edition) -> None:
    """By the renderer's mask, on the embedded bases, which know robots."""
    robot = LearnedSubject("a", "robot", "a photo of {subject}", "a photo of a {class}")
    model = replace(load_model(str(ROOT / "checkpoints" / base), "cpu"), subjects=(robot,))
    found = measure(model, edition.subject("robot", 21), edition, num_images=8)
    assert found.by_word["robot"] > found.whole_image + 0.1


# ------------------------------------------------------------------------------------------------ scores


@pytest.fixture(scope="module")
def scorer() -> ImageScorer:
    encoders = load_encoders(*(str(ROOT / "checkpoints" / "toyworld-encoders" / part) for part in ("vit", "clip")))
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "data" / "robot").glob("*.png"))]
    robot = LearnedSubject("sks", "robot", "a photo of {subject}", "a photo of a {class}")
    return ImageScorer(encoders, [(robot, SubjectScorer(encoders, photos))])


def test_a_photo_of_the_subject_is_more_like_it_than_another_and_fits_its_prompt(scorer: ImageScorer) -> None:
    robot, dog = (Image.open(ROOT / "data" / name / "00.png").convert("RGB") for name in ("robot", "dog"))
    recipe = {"prompt": "a photo of (sks robot:1.2)", "text_encoding": "weighted"}
    scores = scorer([dog, robot], [recipe, recipe])
    assert ranked(scores) == [1, 0]
    other = scorer([robot], [{"prompt": "a photo of robot"}])[0]
    assert other.likeness is None, "no photos count for a prompt without the subject"
    assert other.prompt == pytest.approx(scores[1].prompt, abs=1e-5), "CLIP reads no identifier and no weights"


def test_the_best_are_listed_first_and_kept(
    scorer: ImageScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for number, name in enumerate(("dog", "robot", "robot")):
        image = Image.open(ROOT / "data" / name / f"0{number}.png").convert("RGB")
        paths.append(tmp_path / f"0000{number}-a.png")
        GeneratedImage.from_image(image, {"prompt": "a photo of sks robot"}).save(paths[-1])
    show_scores(scorer, [*paths, tmp_path / "grid-00000.png"], [3], best=2)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "likeness" in told[0]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["00001-a.png", "00002-a.png"]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert lines[0]["score"] >= lines[1]["score"]
    assert {line["file"] for line in lines} == {"00001-a.png", "00002-a.png"}


def test_what_was_not_measured_does_not_count() -> None:
    assert ImageScore(0.5, None).value == 0.5
    assert ImageScore(0.5, 0.5).value == 0.25
    assert str(ImageScore(0.5, None)) == "likeness 0.500"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--best", "2"], "--best 2: needs --score"),
        (["--score", "--best", "0"], "--best 0: must be at least 1"),
        (["--score", "./nowhere"], "--score ./nowhere: there is no such folder of photos"),
        (["--attention-maps", "--grid", "seed=1"], "--grid: not together with"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tiny_base), "a dog", *options]) == 2
    assert message in capsys.readouterr().err
