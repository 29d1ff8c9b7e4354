"""Cuts around the subject: whole in every shape, and padding that does not count."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.config import load_config
from dreambooth.data.buckets import make_buckets, nearest_bucket
from dreambooth.data.cuts import Cut, Window, around_subject, centered, subject_box
from dreambooth.data.latents import Batch, LatentDataset, encode_image_files, loss_weight
from dreambooth.errors import UserError
from dreambooth.randomness import Randomness

BUCKETS = make_buckets(512, 64)


def boxes(number: int) -> list[tuple[tuple[int, int], tuple[int, int, int, int]]]:
    """Sizes of photos and boxes in them, of all shapes."""
    rng = random.Random(0)
    found = []
    for _ in range(number):
        size = rng.randint(100, 3000), rng.randint(100, 3000)
        left, top = rng.randrange(size[0] - 8), rng.randrange(size[1] - 8)
        found.append((size, (left, top, rng.randint(left + 8, size[0]), rng.randint(top + 8, size[1]))))
    return found


@pytest.mark.parametrize("buckets", [BUCKETS, [(512, 512)], [(384, 640)]], ids=["buckets", "square", "upright"])
def test_no_cut_takes_a_part_of_the_subject_away(buckets):
    for size, box in boxes(400):
        cut = around_subject(size, box, buckets)
        window = cut.window
        assert cut.size in buckets
        assert window.left <= box[0] + 1e-6
        assert window.top <= box[1] + 1e-6
        assert window.left + window.width >= box[2] - 1e-6
        assert window.top + window.height >= box[3] - 1e-6
        assert window.width / window.height == pytest.approx(cut.size[0] / cut.size[1])


def test_the_subject_is_seen_whole_in_the_pixels_too():
    for size, box in boxes(25):
        mask = Image.new("L", size)
        mask.paste(255, box)
        cut = around_subject(size, box, BUCKETS)
        seen = np.asarray(cut.apply(mask), np.float32).sum() / 255
        scale = cut.size[0] * cut.size[1] / (cut.window.width * cut.window.height)
        assert seen == pytest.approx((box[2] - box[0]) * (box[3] - box[1]) * scale, rel=0.02, abs=12)


def test_a_cut_is_padded_only_where_the_photo_has_no_such_part():
    wide = around_subject((1000, 400), (0, 0, 1000, 400), BUCKETS)
    assert wide.size == (640, 384)
    assert wide.window.fraction_inside((1000, 400)) == pytest.approx(400 / 600)
    square = around_subject((1000, 400), (0, 0, 1000, 400), [(512, 512)])
    assert square.window == Window(0, -300, 1000, 1000)
    assert square.window.fraction_inside((1000, 400)) == pytest.approx(0.4)
    for size, box in boxes(200):
        sides = box[2] - box[0], box[3] - box[1]
        if max(sides) < 0.9 * min(size):
            assert around_subject(size, box, [(512, 512)]).window.fraction_inside(size) == pytest.approx(1)


def test_a_subject_that_is_where_the_middle_is_large_is_cut_as_without_a_mask():
    size, box = (1000, 800), (150, 100, 850, 700)
    assert around_subject(size, box, BUCKETS).size == nearest_bucket(size, BUCKETS)
    around, middle = around_subject((800, 600), (150, 50, 650, 550), [(512, 512)]), centered((800, 600), (512, 512))
    assert around == middle


def test_a_small_subject_is_cut_closer_but_never_enlarged():
    far = around_subject((4000, 3000), (1900, 1400, 2300, 1800), [(512, 512)]).window
    assert 0.45 < 400 / far.width < 0.55
    assert far.left < 1900 < 2300 < far.left + far.width
    tiny = around_subject((4000, 3000), (1900, 1400, 1950, 1450), [(512, 512)]).window
    assert tiny.width == 512
    little = around_subject((300, 300), (100, 100, 120, 120), [(512, 512)]).window
    assert little == Window(0, 0, 300, 300)


def test_padding_repeats_the_last_pixels_and_is_black_in_masks():
    image = Image.new("RGB", (100, 40), "red")
    cut = around_subject(image.size, (0, 0, 100, 40), [(64, 64)])
    assert set(cut.apply(image).get_flattened_data()) == {(255, 0, 0)}
    inside = cut.inside(image.size)
    assert inside is not None
    assert inside.getpixel((32, 4)) == 0
    assert inside.getpixel((32, 32)) == 255
    assert Cut(Window(0, 0, 40, 40), (64, 64)).inside(image.size) is None
    assert subject_box(Image.new("L", (8, 8))) is None


def encode(pixels_BCHW):
    mean_BCHW = torch.nn.functional.avg_pool2d(pixels_BCHW, 8)
    return mean_BCHW, torch.zeros_like(mean_BCHW)


def encoded(path, mask, flip=False):
    return encode_image_files(
        [path], encode, buckets=[(64, 64)], num_crops=1, flip=flip, randomness=Randomness(0), masks=[mask],
        around_subject=True,
    )[0]  # fmt: skip


def test_training_sees_the_subject_and_the_padding_counts_nothing(tmp_path):
    image, mask = Image.new("RGB", (128, 64), "blue"), Image.new("L", (128, 64))
    image.paste("red", (0, 0, 128, 32))
    mask.paste(255, (0, 0, 128, 32))
    image.save(tmp_path / "a.png")
    view = encoded(tmp_path / "a.png", mask)
    weight_1HW = loss_weight(view.mask_V1HW[0], view.inside_V1HW[0], 0.25)
    expected = [0, 0, 1, 1, 0.25, 0.25, 0, 0]  # at its edges a resized mask rings a little
    assert weight_1HW[0, :, 0].tolist() == pytest.approx(expected, abs=0.03)
    assert view.size_crop_V6.tolist() == [[64, 128, 0, 0, 64, 64]]
    mirrored = encoded(tmp_path / "a.png", mask, flip=True)
    assert torch.equal(mirrored.inside_V1HW[1], view.inside_V1HW[0].flip(-1))
    dataset = LatentDataset([view], lambda image, index: "", Randomness(0), "subject")
    batch = Batch.stack([dataset[0]], 8, 0.25)
    assert torch.equal(batch.weight_B1HW[0], weight_1HW)


def test_the_cut_is_described_as_sdxl_reads_it(tmp_path):
    image, mask = Image.new("RGB", (256, 128)), Image.new("L", (256, 128))
    mask.paste(255, (160, 10, 250, 120))
    image.save(tmp_path / "a.png")
    view = encoded(tmp_path / "a.png", mask)
    assert view.size_crop_V6.tolist() == [[128, 256, 0, 64, 64, 64]]
    assert view.inside_V1HW is None
    mirrored = encoded(tmp_path / "a.png", mask, flip=True)
    assert mirrored.size_crop_V6.tolist() == [[128, 256, 0, 64, 64, 64], [128, 256, 0, 0, 64, 64]]


def test_without_a_mask_there_is_no_subject_to_cut_around(config_file):
    with pytest.raises(UserError, match=r"data.crop: subject is where data.mask is white, and data.mask is null"):
        load_config(config_file, ["data.crop=subject"])
    assert load_config(config_file, ["data.crop=subject", "data.mask=alpha"]).data.crop == "subject"
