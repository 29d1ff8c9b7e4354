"""Larger images: tiles leave no seam and change nothing where there is one; a recipe makes the same image again."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.api import Model
from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.generation.images import make_requests, reproduce
from dreambooth.generation.inputs.canvas import finished_size, make_canvas
from dreambooth.generation.inputs.init_image import init_image
from dreambooth.generation.memory import decoding_of
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.options import ImageOptions, with_options
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.refining.refine import refine, without_prompt
from dreambooth.generation.refining.tiles import in_tiles, tile_starts, with_tiles
from dreambooth.generation.request import GeneratedImage
from dreambooth.subject_info import LearnedSubject


@pytest.mark.parametrize(("length", "starts"), [(8, [0]), (12, [0, 4]), (16, [0, 4, 8]), (17, [0, 3, 6, 9])])
def test_tiles_cover_a_side_and_overlap_by_half(length: int, starts: list[int]) -> None:
    found = tile_starts(length, 8)
    assert found == starts
    assert all(later - earlier <= 4 for earlier, later in itertools.pairwise(found))
    assert found[-1] + 8 >= length


def test_a_prediction_that_is_the_same_in_each_tile_comes_out_as_it_is() -> None:
    """The weights of the window do not matter: a sum of parts that add up to 1."""
    noisy = torch.randn(2, 4, 20, 12)
    torch.testing.assert_close(in_tiles(lambda part: 2 * part, noisy, 8), 2 * noisy)


@torch.no_grad()
def test_one_tile_is_the_whole_to_the_bit_and_the_family_itself_is_left_alone(family: Family) -> None:
    t, conditioning = torch.full((1,), 300), family.encode_prompts(["a dog"])
    small, large = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 16, 16)
    expected = family.predict(small, t, conditioning)
    tiled = with_tiles(family, 8)
    assert torch.equal(tiled.predict(small, t, conditioning), expected)
    assert tiled.denoiser is family.denoiser
    assert not torch.equal(tiled.predict(large, t, conditioning), family.predict(large, t, conditioning))


@torch.no_grad()
def test_there_is_no_seam_where_tiles_begin(family: Family) -> None:
    """The step from one latent to the next is no larger there than elsewhere."""
    t, conditioning = torch.full((1,), 300), family.encode_prompts(["a dog"])
    smooth = torch.linspace(-1, 1, 24).expand(1, 4, 24, 24).contiguous()
    made = with_tiles(family, 8).predict(smooth, t, conditioning)
    steps = (made.diff(dim=-1)).abs().mean((0, 1, 2))
    borders = [start - 1 for start in tile_starts(24, 8)[1:]]
    elsewhere = torch.tensor([step for at, step in enumerate(steps.tolist()) if at not in borders])
    assert float(steps[borders].max()) <= 1.5 * float(elsewhere.max())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"upscale": 0.5}, r"upscale=0\.5: must be from 1 to 8"),
        ({"upscale": 9}, "must be from 1 to 8"),
        ({"upscale": 2, "upscale_strength": 2}, r"upscale_strength=2\.0: must be from 0 to 1"),
        ({"upscale_strength": 0.2}, "needs upscale, the factor"),
        ({"detail": -1}, "detail=-1.0: must be from 0 to 1"),
    ],
)
def test_a_refinement_out_of_its_range_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_options(ImageOptions("a dog"), values)


def test_a_larger_image_has_detail_of_its_own_and_with_strength_zero_is_the_image_resampled(
    tiny_base: Path, tmp_path: Path
) -> None:
    model = Model(load_model(str(tiny_base), "cpu"), "cpu")

    def made(**options: float) -> GeneratedImage:
        return model.generate([{"prompt": "a dog", "steps": 2, **options}], num_images=1)[0]

    plain, resampled, larger = made(), made(upscale=2, upscale_strength=0), made(upscale=2)
    assert larger.size == resampled.size == (128, 128)
    assert resampled.tobytes() == plain.resize((128, 128), Image.Resampling.LANCZOS).tobytes()
    assert larger.tobytes() != resampled.tobytes()
    larger.save(tmp_path / "larger.png")
    assert main(["sample", "--from-image", str(tmp_path / "larger.png"), "--out", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert again.read_bytes() == (tmp_path / "larger.png").read_bytes()
    assert larger.recipe["refinement"] == {"factor": 2.0, "strength": 0.3, "detail": 0.0}
    assert "refinement" not in plain.recipe


def test_detail_redraws_the_subject_and_leaves_what_is_far_from_it(shipped_base: Path) -> None:
    """On the embedded base, with a colour in the place of an identifier."""
    robot = LearnedSubject("red", "robot", "a photo of {subject}", "a photo of a {class}")
    model = Model(replace(load_model(str(shipped_base), "cpu"), subjects=(robot,)), "cpu")
    prompt = {"prompt": "a photo of a {subject} in the snow", "steps": 4, "guidance_scale": 3.0}
    (plain,) = model.generate([prompt], num_images=1)
    (refined,) = model.generate([{**prompt, "detail": 0.5}], num_images=1)
    one, other = (np.asarray(image, int) for image in (plain, refined))
    is_changed = abs(one - other).max(-1) > 0
    assert 0.05 < is_changed.mean() < 0.95
    assert not is_changed[:4, :4].any(), "a corner of the sky"
    with pytest.raises(UserError, match="names no subject that this model knows"):
        model.generate([{"prompt": "a photo of a dog", "detail": 0.5}], num_images=1)


def test_a_larger_image_of_a_transformer_fits_its_patches(tiny_z_image_base: Path) -> None:
    """1.4 times 64 is near 88, which fits the VAE alone; resampling needs no more."""
    model = Model(load_model(str(tiny_z_image_base), "cpu"), "cpu")
    quick = {"prompt": "a dog", "steps": 1, "size": [64, 64], "upscale": 1.4}
    (larger,) = model.generate([quick], num_images=1)
    (resampled,) = model.generate([{**quick, "upscale_strength": 0}], num_images=1)
    assert (larger.size, resampled.size) == ((96, 96), (88, 88))


def test_a_size_that_is_too_large_in_the_end_is_refused_before_anything_is_sampled(
    flow_base: Callable[[str], Path],
) -> None:
    model = load_model(str(flow_base("sd3")), "cpu")
    options = ImageOptions("a dog", 1, steps=1, size=(64, 64), upscale=8.0)
    with pytest.raises(UserError, match=r"upscale=8\.0: an image side of 512 pixels is too large .*; use at most 256"):
        make_requests(model, [options], Wildcards(()))
    assert make_requests(model, [replace(options, upscale=4.0)], Wildcards(()))


def test_the_finished_size_is_that_of_the_whole_image_where_a_part_is_redrawn(tmp_path: Path) -> None:
    photo, mask = tmp_path / "photo.png", Image.new("L", (96, 80), 0)
    Image.new("RGB", (96, 80), "teal").save(photo)
    for is_white in (False, True):
        if is_white:
            mask.paste(255, (8, 8, 24, 24))
        for only_masked in (False, True):
            init = init_image(photo, mask=mask, expand=(0, 0, 8, 0) if is_white else None, only_masked=only_masked)
            assert init is not None
            finished = make_canvas(init, (64, 64)).finish(Image.new("RGB", (64, 64)))
            assert finished_size(init, (64, 64)) == finished.size
    assert finished_size(None, (64, 32)) == (64, 32)


def test_what_is_redrawn_is_decoded_as_its_own_size_needs_it_and_the_vae_is_as_before(tiny_base: Path) -> None:
    model = load_model(str(tiny_base), "cpu")
    (request,) = make_requests(model, [ImageOptions("a dog", 1, steps=1, upscale=2)], Wildcards(()))
    parts: list[torch.Size] = []
    handle = model.family.vae.decoder.register_forward_hook(lambda module, args, result: parts.append(result.shape))
    for decoding in ("whole", "tiles"):
        refine(model, request, Image.new("RGB", (64, 64)), {}, lambda step, num_steps: None, decoding)
        assert decoding_of(model.family.vae) == "whole"
    model.family.vae.enable_tiling()
    refine(model, request, Image.new("RGB", (64, 64)), {}, lambda step, num_steps: None, "auto")
    handle.remove()
    assert decoding_of(model.family.vae) == "tiles", "as before"
    whole, *tiles, by_what_is_free = parts
    assert whole[-2:] == by_what_is_free[-2:] == (128, 128)
    assert len(tiles) > 1
    assert all(max(tile[-2:]) < 128 for tile in tiles)


@pytest.mark.parametrize("name", ["z_image", "krea2", "sd3"])
def test_tiles_are_not_guided_however_a_family_counts(name: str, flow_base: Callable[[str], Path]) -> None:
    model = load_model(str(flow_base(name)), "cpu")
    options = ImageOptions("a dog", 1, steps=1, guidance_scale=3.0, size=(64, 64), upscale=2)
    (request,) = make_requests(model, [options], Wildcards(()))
    assert model.family.guidance.is_combined(request.settings.guidance_scale)
    assert not model.family.guidance.is_combined(without_prompt(model.family, request).settings.guidance_scale)


def test_detail_is_refused_by_its_own_name_where_nothing_shows_the_subject(tiny_z_image_base: Path) -> None:
    """In a recipe too, which another MODEL is to make again."""
    model = load_model(str(tiny_z_image_base), "cpu")
    options = ImageOptions("a dog", 1, steps=1, size=(64, 64))
    with pytest.raises(UserError, match=r"detail=0\.5: .* has no cross-attention to find the subject by"):
        make_requests(model, [replace(options, detail=0.5)], Wildcards(()))
    (image,) = Model(model, "cpu").generate([{"prompt": "a dog", "steps": 1, "size": [64, 64]}], num_images=1)
    recipe = image.recipe | {"refinement": {"factor": 1.0, "strength": 0.3, "detail": 0.5}}
    with pytest.raises(UserError, match=r"detail=0\.5: .* has no cross-attention"):
        reproduce(recipe, model)
