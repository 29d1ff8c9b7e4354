"""Junk in every file that a user feeds in: a share of `benchmarks/fuzz.py`, always the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import Kind, TooLong, bounded, damaged, fuzz, lora_file, make_kinds, picture_files, try_picture
from safetensors.torch import load, save_file
from torch import Tensor

from dreambooth.errors import ModelError
from dreambooth.families import load_family
from dreambooth.methods import adapter_files

EXAMPLES = {
    "config: settings": 30,
    "config: overrides": 20,
    "config: trees": 40,
    "config: damaged": 20,
    "config: bytes": 50,
    "pictures": 300,
    "states": 300,
    "manifests": 150,
    "manifests: trees": 60,
    "LoRA: headers": 150,
    "LoRA: loaded": 25,
}


@pytest.fixture(scope="module")
def kinds(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return make_kinds(tiny_base, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_junk_is_refused_in_our_own_words_or_taken_for_what_it_is(kinds: dict[str, Kind], name: str) -> None:
    tried, taken = fuzz(kinds[name], EXAMPLES[name])
    assert tried >= 0.9 * EXAMPLES[name]
    assert taken < tried, "nothing of it was refused: that was no junk"


def test_every_kind_has_its_share(kinds: dict[str, Kind]) -> None:
    assert kinds.keys() == EXAMPLES.keys()
    assert abs(sum(kind.share for kind in kinds.values()) - 1) < 1e-6


def test_the_pictures_that_are_damaged_are_pictures() -> None:
    files = picture_files()
    assert len(files) >= 25
    refused = [name for name, content in files.items() if not try_picture(content)]
    assert not refused


def test_damage_is_damage() -> None:
    content, other = bytes(range(200)), b"other"
    hows = [
        ("flip", [(0.5, 1)]), ("header", [(0.5, 1)]), ("cut", 0.5), ("splice", (0.5, 0.0, 0.9)),
        ("insert", (0.5, b"x")), ("zero", (0.5, 3)),
    ]  # fmt: skip
    assert len({damaged(content, how, other) for how in hows} | {content}) == len(hows) + 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda weights, key: weights.update({key + "x": weights.pop(key)}),
            "is not in it|cannot be loaded|is of no LoRA",
        ),
        (lambda weights, key: weights[key].view(-1)[:1].fill_(float("nan")), "numbers that are not finite"),
    ],
    ids=["renamed", "nan"],
)
def test_a_lora_with_a_tensor_missing_or_not_finite_is_no_start(
    tiny_base: Path, tmp_path: Path, spoil: Callable[[dict[str, Tensor], str], object], said: str
) -> None:
    path, family = tmp_path / "start.safetensors", load_family(str(tiny_base))
    weights = load(lora_file(tiny_base, tmp_path))
    spoil(weights, next(key for key in weights if "lora_B" in key))
    save_file(weights, path)
    with pytest.raises(ModelError, match=said):
        adapter_files.load_lora(family, path)


def test_a_hang_is_noticed() -> None:
    with pytest.raises(TooLong), bounded(seconds=0.2):
        all(iter(lambda: True, False))
