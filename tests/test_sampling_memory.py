"""Sampling in the memory that there is: the same images wherever weights wait, and in batches of any size."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.families import fingerprint, load_family
from dreambooth.families.quantization import is_quantized
from dreambooth.generation.images import generate, make_requests
from dreambooth.generation.memory import (
    BYTES_A_PIXEL,
    choose_decoding,
    choose_offload,
    compile_denoiser,
    slice_attention,
)
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.wildcards import Wildcards

BASES = ["tiny_base", "tiny_z_image_base"]


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def images_of(model: Model, decoding: str = "auto", batch_size: int = 3) -> list[np.ndarray[Any, Any]]:
    wanted = [ImageOptions("a photo of a dog", num_images=3, steps=2, guidance_scale=2.0, size=(64, 64))]
    made = generate(model, make_requests(model, wanted, Wildcards([])), batch_size, decoding=decoding)
    return [np.asarray(image.convert("RGB"), dtype=int) for image in made]


@pytest.mark.parametrize(
    ("sizes", "free", "chosen"),
    [
        ([4, 1, 1], None, "none"),
        ([4, 1, 1], 10, "none"),
        ([4, 1, 1], 8, "parts"),
        ([4, 1, 1], 5, "blocks"),
    ],
)
def test_weights_wait_as_what_is_free_needs_it(sizes: list[int], free: int | None, chosen: str) -> None:
    assert choose_offload(sizes, free) == chosen


@pytest.mark.parametrize(
    ("num_images", "free", "chosen"), [(4, None, "whole"), (4, 5, "whole"), (4, 2, "slices"), (1, 0.5, "tiles")]
)
def test_images_are_decoded_as_what_is_free_needs_it(num_images: int, free: float | None, chosen: str) -> None:
    has = None if free is None else int(free * 64 * 64 * BYTES_A_PIXEL)
    assert choose_decoding(64 * 64, num_images, has) == chosen


def test_images_are_the_same_bits_wherever_weights_wait(base: str) -> None:
    plain = load_model(base, "cpu")
    expected = images_of(plain)
    for offload in ("parts", "blocks"):
        model = load_model(base, "cpu", offload)
        assert fingerprint(model.family) == fingerprint(plain.family), "a recipe names the same weights"
        for one, other in zip(expected, images_of(model), strict=True):
            assert (one == other).all()


@pytest.fixture
def narrow(tiny_base: Path) -> Iterator[Model]:
    """A model whose UNet runs out of memory with more than two images at a time, with guidance four samples."""
    model = load_model(str(tiny_base), "cpu")

    def refuse(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.family.denoiser.register_forward_pre_hook(refuse)
    yield model
    handle.remove()


def test_a_batch_that_is_too_large_is_halved_and_gives_the_same_images(
    narrow: Model, tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = images_of(load_model(str(tiny_base), "cpu"))
    for one, other in zip(expected, images_of(narrow), strict=True):
        assert np.abs(one - other).max() <= 1
    assert "out of memory with 3 images at a time; going on with 2 (--batch-size 2)" in caplog.text


def test_slices_decode_the_same_images(base: str) -> None:
    model = load_model(base, "cpu")
    for one, other in zip(images_of(model), images_of(model, "slices"), strict=True):
        assert np.abs(one - other).max() <= 1


def test_slices_of_attention_give_the_same_images_where_a_network_has_them(
    tiny_base: Path, tiny_z_image_base: Path
) -> None:
    model = load_model(str(tiny_base), "cpu")
    expected = images_of(model)
    slice_attention(model.family)
    for one, other in zip(expected, images_of(model), strict=True):
        assert np.abs(one - other).max() <= 1
    with pytest.raises(UserError, match="--attention-slices: this model's attention keeps no large matrices"):
        slice_attention(load_family(str(tiny_z_image_base)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_denoiser_gives_the_same_images(tiny_base: Path) -> None:
    model = load_model(str(tiny_base), "cpu")
    expected = images_of(model)
    compile_denoiser(model.family)
    for one, other in zip(expected, images_of(model), strict=True):
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--offload", "blocks"], "leave --offload blocks out"), (["--grid", "seed=1,2"], "not for a grid")],
)
def test_what_cannot_be_compiled_is_told(
    more: list[str], said: str, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tiny_base), "a dog", "--compile", *more]) == 2
    assert said in capsys.readouterr().err


def test_quantized_models_are_sampled_and_their_recipe_says_so(base: str) -> None:
    plain, model = load_model(base, "cpu"), load_model(ModelRef(base, quantize="int8"), "cpu")
    assert is_quantized(model.family.denoiser)
    for one, other in zip(images_of(plain), images_of(model), strict=True):
        assert 0 < np.abs(one - other).mean() < 8
    wanted = [ImageOptions("a dog", num_images=1, steps=1, size=(64, 64))]
    recipes = [next(generate(each, make_requests(each, wanted, Wildcards([])), 1)).recipe for each in (plain, model)]
    assert [recipe.get("quantize") for recipe in recipes] == [None, "int8"]
    assert "quantize" not in recipes[0]
