"""Images of two subjects, cut out of their photos: what is in them, what their prompts say, runs that train on them."""

import re
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from test_interruptions import assert_equal_runs

from dreambooth import build
from dreambooth.build.pairs import draw_pairs
from dreambooth.config import Config, load_config
from dreambooth.data.captions import Captions
from dreambooth.data.cut_mix import HEIGHT, Cutting, cut_mix
from dreambooth.data.latents import LatentDataset, by_subject
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.families import Family
from dreambooth.prompts import fill_prompt
from dreambooth.randomness import Randomness
from dreambooth.report.content import read
from dreambooth.report.page import render
from dreambooth.run.folder import RunFolder

RANDOMNESS = Randomness(0)
DOG, CAT, SIZE = "sks dog", "olis cat", (64, 64)
RED, BLUE, GRASS, PINK, SPECK = (255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 192, 203), (255, 255, 0)
MASKED = ("data.mask=alpha", "data.cut_mix=6")


Colour = tuple[int, int, int]


def photo(subject: Colour, place: Colour, box: tuple[int, int, int, int], speck: Colour = SPECK) -> Cutting:
    """A rectangle in a place, 96 x 64 pixels, with a speck in another colour that its mask has, too."""
    image, mask = Image.new("RGB", (96, 64), place), Image.new("L", (96, 64))
    for each, colour in ((box, subject), ((92, 0, 93, 1), speck)):
        ImageDraw.Draw(image).rectangle(each, fill=colour)
        ImageDraw.Draw(mask).rectangle(each, fill=255)
    return Cutting.of(image, mask, SIZE)


def where(image: Image.Image, colour: Colour) -> np.ndarray:
    """Return where an image has a colour, but for blurred edges: bool [H, W]."""
    found: np.ndarray = np.abs(np.asarray(image).astype(int) - colour).max(-1) < 40
    return found


@pytest.fixture
def two_file(config_file: Path, tmp_path: Path) -> Path:
    """The quick run of `config_file`, of a red dog on grass and a blue cat, each cut out of its photos."""
    settings = yaml.safe_load(config_file.read_text())
    dog, cat = {**settings.pop("subject"), "identifier": "sks"}, {"identifier": "olis", "class_noun": "cat"}
    for subject, name, colour, count in ((dog, "dogs", RED, 3), (cat, "cats", BLUE, 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            one = photo(colour, GRASS, (10, 10 + 6 * number, 50, 50))
            one.image.putalpha(one.mask)  # where it is transparent, a photo is white
            one.image.save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text(f"a photo of {{subject}} in place {number}")
        subject["images"] = str(tmp_path / name)
    settings["subjects"] = [dog, cat]
    config_file.write_text(yaml.safe_dump(settings))
    return config_file


def config_of(two_file: Path, *overrides: str) -> Config:
    return load_config(two_file, [*MASKED, "train.max_steps=4", "optim.warmup_steps=0", *overrides])


# -------------------------------------------------------------------------------- the image


@pytest.mark.parametrize("is_left_behind", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_both_stand_whole_beside_each_other_in_the_place_of_one(number: int, is_left_behind: bool) -> None:
    wide, tall = photo(RED, GRASS, (10, 30, 80, 55)), photo(BLUE, PINK, (60, 4, 70, 60))
    made = cut_mix(wide, tall, SIZE, RANDOMNESS.generator("test", number), is_left_behind)
    assert made.image.size == made.mask.size == made.inside.size == SIZE
    left, right = where(made.image, RED), where(made.image, BLUE)
    assert not left[:, 33:].any()
    assert not right[:, :31].any()
    for each, width, height in ((left, 71, 26), (right, 11, 57)):  # neither is squashed, nor cut off
        zoom = min(32 / width, 64 * HEIGHT[1] / height)
        rows, columns = np.flatnonzero(each.any(1)), np.flatnonzero(each.any(0))
        assert zoom * width - 3 <= columns[-1] - columns[0] + 1 <= zoom * width + 1 or each is right
        assert (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1) == pytest.approx(width / height, abs=0.35)
        assert 64 * 0.75 < rows[-1] < 64 * 0.85
    assert 64 * HEIGHT[0] - 3 < np.ptp(np.flatnonzero(right.any(1))) < 64 * HEIGHT[1] + 1
    behind, other = (GRASS, PINK) if is_left_behind else (PINK, GRASS)
    assert where(made.image, behind).sum() > 64 * 64 / 3
    assert not where(made.image, other).any()
    white = np.asarray(made.mask) > 128
    assert white[left | right].all()
    assert not white[where(made.image, behind)].any()


@pytest.mark.parametrize("is_left_behind", [True, False])
def test_what_no_photo_shows_is_told_but_for_the_subject_before_it(is_left_behind: bool) -> None:
    one, other = photo(RED, GRASS, (2, 2, 60, 62)), photo(BLUE, PINK, (2, 2, 60, 62))
    made = cut_mix(one, other, SIZE, RANDOMNESS.generator("test", 0), is_left_behind)
    inside, white = np.asarray(made.inside) > 128, np.asarray(made.mask) > 128
    assert not inside[:16].any()  # the photo ends right above its subject
    assert inside[white].all()
    assert 0.3 < inside.mean() < 0.95


def test_specks_of_a_mask_do_not_count_and_are_not_pasted() -> None:
    one, other = photo(RED, GRASS, (10, 30, 80, 55), speck=GRASS), photo(BLUE, PINK, (60, 4, 70, 60))
    assert where(other.image, SPECK).any()
    made = cut_mix(one, other, SIZE, RANDOMNESS.generator("test", 0), True)
    assert not where(made.image, SPECK).any()
    subjects = where(made.image, RED) | where(made.image, BLUE)
    assert (np.asarray(made.mask) > 128).sum() == pytest.approx(subjects.sum(), rel=0.2)


def test_a_large_photo_gives_the_image_of_a_small_one() -> None:
    def large(each: Cutting) -> Cutting:
        width, height = (8 * side for side in each.image.size)
        return Cutting.of(*(part.resize((width, height), 0) for part in (each.image, each.mask)), SIZE)

    small = photo(RED, GRASS, (10, 30, 80, 55)), photo(BLUE, PINK, (60, 4, 70, 60))
    made, of_large = (
        cut_mix(*pair, SIZE, RANDOMNESS.generator("test", 1), True) for pair in (small, tuple(map(large, small)))
    )
    assert large(small[0]).image.width < 400
    difference = np.abs(np.asarray(made.image).astype(int) - np.asarray(of_large.image))
    assert difference.mean() < 4


# -------------------------------------------------------------------------------- the plan


def test_each_is_on_the_left_as_often_and_the_prompt_says_who_is_where_and_in_which_place(two_file: Path) -> None:
    config = config_of(two_file, "data.captions=true", "data.cut_mix=12")
    data = build.load_subject_data(config)
    captions = data.all_captions[2]
    for relation in (" to the left of ", " to the right of ", " and "):
        related = [caption for caption in captions if relation in caption]
        assert len(related) == 4
        for caption in related:
            first, _, second = caption.partition(relation)
            assert sorted((first.removeprefix("a photo of "), second.partition(" in place ")[0])) == [CAT, DOG]
    assert Counter(pair.left.path.parent.name for pair in data.pairs) == {"dogs": 6, "cats": 6}
    for pair, mixed in zip(data.pairs, draw_pairs(data.pairs, SIZE, RANDOMNESS), strict=True):
        is_dog_left = pair.left.path.parent.name == "dogs"
        assert {pair.left.path.parent.name, pair.right.path.parent.name} == {"dogs", "cats"}
        image = mixed.image
        left, right = (RED, BLUE) if is_dog_left else (BLUE, RED)
        assert where(image, left)[:, :32].sum() > where(image, left)[:, 32:].sum()
        assert where(image, right)[:, 32:].sum() > where(image, right)[:, :32].sum()
        behind = pair.left if pair.is_left_behind else pair.right
        assert pair.caption.endswith(f" in place {behind.path.stem}")
        one, other = (DOG, CAT) if is_dog_left else (CAT, DOG)
        true = (f"{one} to the left of {other}", f"{other} to the right of {one}", f"{one} and {other}")
        assert any(words in pair.caption for words in true)


def test_they_are_drawn_at_random_by_the_runs_seed_alone(two_file: Path) -> None:
    plans = [build.load_subject_data(config_of(two_file, f"run.seed={seed}")).pairs for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert len({(pair.left.path, pair.right.path) for pair in plans[0]}) > 3


def test_a_caption_that_names_the_identifier_alone_names_both_too(two_file: Path, tmp_path: Path) -> None:
    for folder, identifier in (("dogs", "sks"), ("cats", "olis")):
        for path in (tmp_path / folder).glob("*.txt"):
            path.write_text(f"cafe\u0301 {identifier}, asleep")  # an accent of its own, as some systems write it
    captions = build.load_subject_data(config_of(two_file, "data.captions=true")).all_captions[2]
    assert all(caption.count(DOG) == caption.count(CAT) == 1 for caption in captions)
    assert all(caption.endswith(", asleep") for caption in captions)


def test_captions_that_name_another_subject_are_of_no_pair(two_file: Path, tmp_path: Path) -> None:
    cats = sorted((tmp_path / "cats").glob("*.txt"))
    cats[0].write_text("{subject_2} beside {subject_1}")
    data = build.load_subject_data(config_of(two_file, "data.captions=true"))
    assert {pair.left.path.stem for pair in data.pairs if pair.left.path.parent.name == "cats"} == {"1"}
    cats[1].write_text("{subject_1} and {subject_2}")
    with pytest.raises(UserError, match=r"subjects\[1\]: each prompt of its photos names another subject.*sks dog"):
        build.load_subject_data(config_of(two_file, "data.captions=true"))


@pytest.mark.parametrize("captions", ["true", "false"])
def test_class_images_show_both_classes_in_turn_with_each(two_file: Path, captions: str) -> None:
    config = config_of(two_file, f"data.captions={captions}")
    data = build.load_subject_data(config)
    own = build.class_prompts_of(data.all_captions, config)
    assert [len(each) for each in own] == [3, 2, 6]
    assert all(("dog" in prompt) and ("cat" in prompt) and "sks" not in prompt for prompt in own[2])
    made = build.prompts_of_class_images(data.all_captions, config)
    assert set(made[2::3]) == set(own[2])
    for number in (0, 1):
        assert fill_prompt(config.subjects[number].class_prompt, config.subjects, number) in made[number::3]


def test_what_cannot_be_joined_is_told(two_file: Path) -> None:
    for override, message in (
        ("data.mask=null", "data.cut_mix: subjects are cut out by data.mask, which is null; set it to auto or alpha"),
        ("data.cut_mix=1", "data.cut_mix: 1 is too small; 2 show each of 2 subjects beside each other one"),
        ("prior.num_images=2", "prior.num_images: 2 is too small for 2 classes: dog, cat, and two in an image"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            config_of(two_file, override)
    settings = yaml.safe_load(two_file.read_text())
    settings["subject"] = settings.pop("subjects")[0]
    two_file.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"data.cut_mix: 6, but there is one subject to show with none; set it to 0"):
        config_of(two_file)


# -------------------------------------------------------------------------------- runs


def test_they_take_turns_with_the_subjects_and_are_not_mirrored(two_file: Path, family: Family) -> None:
    config = config_of(two_file, "data.flip=true", "data.crop=random", "data.num_crops=2")
    data = build.load_subject_data(config)
    photos = build.encode_subjects(family, data, config, RANDOMNESS)
    pairs = build.encode_pairs(family, data, config, RANDOMNESS)
    assert [len(numbers) for numbers in by_subject(photos + pairs)] == [3, 2, 6]
    assert {len(image.mean_VCHW) for image in photos} == {4}
    for image in pairs:
        assert len(image.mean_VCHW) == 1
        assert image.mean_VCHW.shape[2:] == photos[0].mean_VCHW.shape[2:]
        assert image.mask_V1HW is not None
        assert image.inside_V1HW is not None
        assert 0 < image.mask_V1HW.mean() < image.inside_V1HW.mean() < 1
    captions = Captions([*chain(*data.all_captions)], RANDOMNESS)
    samples = LatentDataset(photos + pairs, captions, RANDOMNESS, "subject")
    for turn in range(8):
        of_dog, of_cat, of_both = (samples[3 * turn + group] for group in range(3))
        assert (of_dog.prompt, of_cat.prompt) == (f"a photo of {DOG}", f"a photo of {CAT}")
        assert of_both.name.endswith("of data.cut_mix")
        assert of_both.prompt == data.pairs[int(of_both.name.split()[1])].caption


def test_a_run_shows_them_and_one_that_goes_on_has_the_bits_of_one_that_never_stopped(two_file: Path) -> None:
    runs = {}
    for name, steps in (("whole", (4,)), ("parts", (2, 4))):
        for step in steps:
            config = config_of(two_file, f"run.name={name}", f"train.max_steps={step}", "optim.schedule=constant")
            assert train(config) == 0
        runs[name] = RunFolder(config)
    assert_equal_runs(*runs.values())
    data = build.load_subject_data(config)
    made = [mixed.image for mixed in draw_pairs(data.pairs, (config.data.resolution,) * 2, Randomness(config.run.seed))]
    shown = read(runs["whole"].path)
    assert [image.tobytes() for image in shown.pairs] == [image.tobytes() for image in made]
    assert "6 of the 6 images of two subjects" in " ".join(render(shown).split())
    plain = config_of(two_file, "run.name=plain", "data.cut_mix=0")
    assert train(plain) == 0
    assert not RunFolder(plain).cut_mix.exists()
    assert "images of two subjects" not in render(read(RunFolder(plain).path))
    assert RunFolder(plain).metrics.read_text() != runs["whole"].metrics.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("prior.source=none", "data.num_workers=1", "data.unmasked_weight=0"),
        ("prior.source=teacher", "prior.teacher_latents=subject", "data.buckets=true", "data.bucket_step=16"),
        ("prior.source=teacher", "prior.teacher_latents=class", "data.shuffle_captions=true", "data.captions=true"),
        ("prior.source=ahead", "data.crop=subject", "train.micro_batch_size=1"),
    ],
)
def test_runs_of_other_settings_train_on_them(two_file: Path, settings: tuple[str, ...]) -> None:
    assert train(config_of(two_file, *settings)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tiny_xl_base", "tiny_z_image_base"])
def test_bases_of_other_families_train_on_them(base: str, two_file: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(base)
    lora = (f"model.base={folder}", "method.name=lora", "method.rank=2", "prior.source=none", "validate.every_steps=0")
    assert train(config_of(two_file, *lora, "method.train_text_encoder=false", "optim.identifier_lr=null")) == 0
