"""From pictures to latents by place."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dreambooth.captions import Captions
from dreambooth.data import EncodedPictures, LatentDataset, PlaceSampler, encode_pictures
from dreambooth.families import Family
from dreambooth.images import list_images, load_image, resize_and_crop, to_tensor
from dreambooth.randomness import Randomness


def said() -> Captions:
    return Captions(["a photo"] * 9, Randomness(0))


def frames(means_PVCHW: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*means_PVCHW.shape[:2], 6)


def encoded(family: Family, pictures: Path, num_crops: int = 1, flip: bool = False) -> EncodedPictures:
    return encode_pictures(
        list_images(pictures),
        family.encode_images,
        resolution=64,
        num_crops=num_crops,
        flip=flip,
        randomness=Randomness(0),
    )


def test_a_picture_is_encoded_once_more_mirrored_when_flips_are_wished(family: Family, pictures: Path) -> None:
    views = encoded(family, pictures, flip=True)
    assert tuple(views.mean_PVCHW.shape) == (3, 2, 4, 8, 8)
    mirrored = to_tensor(resize_and_crop(load_image(pictures / "0.png"), 64)).flip(-1)
    torch.testing.assert_close(views.mean_PVCHW[0, 1], family.encode_images(mirrored[None])[0][0], atol=1e-5, rtol=1e-4)
    assert tuple(encoded(family, pictures).mean_PVCHW.shape) == (3, 1, 4, 8, 8)


def test_random_crops_differ_where_there_is_room_and_are_the_same_in_every_run(family: Family, pictures: Path) -> None:
    views = encoded(family, pictures, num_crops=3)
    assert not torch.equal(views.mean_PVCHW[2, 0], views.mean_PVCHW[2, 1]), "the tall picture was cropped only one way"
    assert torch.equal(views.mean_PVCHW[0, 0], views.mean_PVCHW[0, 1]), "the square picture has only one crop"
    assert torch.equal(views.mean_PVCHW, encoded(family, pictures, num_crops=3).mean_PVCHW)


def test_every_pass_shows_every_picture_once_in_an_order_of_its_own() -> None:
    means = torch.arange(5.0).view(5, 1, 1, 1, 1)
    dataset = LatentDataset(
        EncodedPictures(means, torch.zeros_like(means), frames(means)), said(), Randomness(0), "subject"
    )
    passes = [[int(dataset[place]["latents"]) for place in range(5 * n, 5 * n + 5)] for n in range(8)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert len({tuple(order) for order in passes}) > 4, "the order is the same in every pass"


def test_latents_are_drawn_anew_at_every_place_around_the_mean() -> None:
    pictures = EncodedPictures(torch.full((1, 1, 2, 8, 8), 3.0), torch.full((1, 1, 2, 8, 8), 0.5), torch.zeros(1, 1, 6))
    dataset = LatentDataset(pictures, said(), Randomness(0), "subject")
    drawn = torch.stack([dataset[place]["latents"] for place in range(40)])
    assert abs(float(drawn.mean()) - 3) < 0.05
    assert abs(float(drawn.std()) - 0.5) < 0.05
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[7], dataset[7]["latents"])


def test_loader_workers_change_nothing() -> None:
    pictures = EncodedPictures(torch.randn(3, 2, 4, 2, 2), torch.ones(3, 2, 4, 2, 2), torch.zeros(3, 2, 6))
    dataset = LatentDataset(pictures, said(), Randomness(0), "subject")
    loaders = [iter(DataLoader(dataset, batch_sampler=PlaceSampler(2), num_workers=n)) for n in (0, 2)]
    for _ in range(5):
        alone, with_workers = (next(loader) for loader in loaders)
        assert torch.equal(alone["latents"], with_workers["latents"])
        assert torch.equal(alone["place"], with_workers["place"])
