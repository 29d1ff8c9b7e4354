"""From pictures to latents by place."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from dreambooth.data.buckets import Size
from dreambooth.data.captions import Captions
from dreambooth.data.image_files import load_image, load_mask
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import resize_and_crop, to_tensor
from dreambooth.data.latents import (
    EncodedImage,
    LatentDataset,
    Sample,
    by_shape,
    encode_image_files,
)
from dreambooth.families import Family
from dreambooth.randomness import Randomness


def said() -> Captions:
    return Captions(["a photo"] * 9, Randomness(0))


def encoded(
    family: Family, pictures: Path, num_crops: int = 1, flip: bool = False, buckets: Sequence[Size] = ((64, 64),)
) -> list[EncodedImage]:
    return encode_image_files(
        list_images(pictures),
        family.encode_images,
        buckets=buckets,
        num_crops=num_crops,
        flip=flip,
        randomness=Randomness(0),
    )


def around(mean_VCHW: torch.Tensor, std: float) -> EncodedImage:
    return EncodedImage(mean_VCHW, torch.full_like(mean_VCHW, std), torch.zeros(len(mean_VCHW), 6))


def test_a_picture_is_encoded_once_more_mirrored_when_flips_are_wished(family: Family, pictures: Path) -> None:
    views = encoded(family, pictures, flip=True)
    assert [tuple(picture.mean_VCHW.shape) for picture in views] == [(2, 4, 8, 8)] * 3
    mirrored = to_tensor(resize_and_crop(load_image(pictures / "0.png"), (64, 64))).flip(-1)
    torch.testing.assert_close(views[0].mean_VCHW[1], family.encode_images(mirrored[None])[0][0], atol=1e-5, rtol=1e-4)
    assert tuple(encoded(family, pictures)[0].mean_VCHW.shape) == (1, 4, 8, 8)


def test_random_crops_differ_where_there_is_room_and_are_the_same_in_every_run(family: Family, pictures: Path) -> None:
    square, _, tall = (picture.mean_VCHW for picture in encoded(family, pictures, num_crops=3))
    assert not torch.equal(tall[0], tall[1]), "the tall picture was cropped only one way"
    assert torch.equal(square[0], square[1]), "the square picture has only one crop"
    assert torch.equal(tall, encoded(family, pictures, num_crops=3)[2].mean_VCHW)


def test_with_buckets_each_picture_is_encoded_in_the_shape_nearest_to_its_own(family: Family, pictures: Path) -> None:
    """64x64, 64x80 and 64x96 pixels."""
    views = encoded(family, pictures, num_crops=2, flip=True, buckets=[(80, 48), (64, 64), (48, 80)])
    assert [tuple(picture.mean_VCHW.shape) for picture in views] == [(4, 4, 8, 8), (4, 4, 8, 8), (4, 4, 10, 6)]
    assert views[2].size_crop_V6[:, [0, 1, 4, 5]].tolist() == [[96, 64, 80, 48]] * 4
    upright = to_tensor(resize_and_crop(load_image(pictures / "2.png"), (48, 80)))
    alone = encoded(family, pictures, buckets=[(48, 80)])[2].mean_VCHW
    torch.testing.assert_close(alone, family.encode_images(upright[None])[0], atol=1e-5, rtol=1e-4)


def test_a_mask_is_cut_and_mirrored_as_its_picture_is(tmp_path: Path) -> None:
    """Each picture is its own mask, and the encoder an average over 8 x 8 pixels: both must come out the same."""

    def encode(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_BCHW = torch.nn.functional.avg_pool2d(pixels_BCHW, 8)
        return mean_BCHW, torch.zeros_like(mean_BCHW)

    for number, size in enumerate([(90, 60), (64, 70), (50, 101)]):
        levels = Randomness(0).generator("test", number).integers(0, 256, (size[1], size[0]), dtype="uint8")
        Image.fromarray(levels).convert("RGB").save(tmp_path / f"{number}.png")
    paths = list_images(tmp_path)
    masks = [load_mask(path) for path in paths]
    views = encode_image_files(
        paths, encode, buckets=[(80, 48), (64, 64), (48, 80)], num_crops=2, flip=True, randomness=Randomness(0),
        masks=masks,
    )  # fmt: skip
    assert [tuple(picture.mask_V1HW.shape) for picture in views] == [(4, 1, 6, 10), (4, 1, 8, 8), (4, 1, 10, 6)]
    for picture in views:
        torch.testing.assert_close(2 * picture.mask_V1HW - 1, picture.mean_VCHW[:, :1], atol=1e-5, rtol=0)


def test_every_pass_shows_every_picture_once_in_an_order_of_its_own() -> None:
    pictures = [around(torch.full((1, 1, 1, 1), float(number)), 0) for number in range(5)]
    dataset = LatentDataset(pictures, said(), Randomness(0), "subject")
    passes = [[int(dataset[place].latents_CHW) for place in range(5 * n, 5 * n + 5)] for n in range(8)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert len({tuple(order) for order in passes}) > 4, "the order is the same in every pass"


def test_latents_are_drawn_anew_at_every_place_around_the_mean() -> None:
    dataset = LatentDataset([around(torch.full((1, 2, 8, 8), 3.0), 0.5)], said(), Randomness(0), "subject")
    drawn = torch.stack([dataset[place].latents_CHW for place in range(40)])
    assert abs(float(drawn.mean()) - 3) < 0.05
    assert abs(float(drawn.std()) - 0.5) < 0.05
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[7], dataset[7].latents_CHW)


def test_samples_of_one_shape_come_together_in_their_order() -> None:
    samples = [Sample("subject", place, torch.zeros(4, height, 2), "") for place, height in enumerate([3, 2, 3, 4, 2])]
    assert [[sample.sample_index for sample in group] for group in by_shape(samples)] == [[0, 2], [1, 4], [3]]
