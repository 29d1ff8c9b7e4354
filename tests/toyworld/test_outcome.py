"""`toyworld outcome` on a model of random weights that has learned several subjects."""

import shutil
from pathlib import Path

from PIL import Image

from dreambooth.cli import main
from dreambooth.subject_info import LearnedSubject, SubjectInfo, write_card

JUDGE = Path(__file__).parents[2] / "checkpoints" / "toyworld-second" / "judge"
ROBOT, DOG = (
    LearnedSubject(name, noun, "a photo of {subject}", "a photo of a {class}")
    for name, noun in (("sks", "robot"), ("olis", "dog"))
)


def poster_of(base: Path, photos: Path, folder: Path, *subjects: LearnedSubject) -> Image.Image:
    """Return the poster of the dog, by a copy of the base in `folder` that knows these subjects."""
    shutil.copytree(base, folder)
    write_card(SubjectInfo(subjects, resolution=64, num_inference_steps=2, guidance_scale=1.0, step=1), folder)
    options = ["--num-images", "4", "--judge", str(JUDGE), "--photos", str(photos)]
    poster = folder / "posters" / "dog.png"
    assert main(["toyworld", "outcome", str(folder), "--class", "dog", *options, "--poster", str(poster)]) == 0
    return Image.open(poster)


def test_the_poster_shows_the_subject_that_is_measured(tiny_base: Path, pictures: Path, tmp_path: Path):
    second, only, first = (
        poster_of(tiny_base, pictures, tmp_path / name, *subjects).tobytes()
        for name, subjects in (("second", (ROBOT, DOG)), ("only", (DOG,)), ("first", (ROBOT,)))
    )
    assert second == only
    assert second != first
