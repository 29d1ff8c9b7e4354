"""The subjects of an evaluation: one folder of photos, or a data set laid out as the DreamBooth paper's.

That is a folder for each subject, and beside them `prompts_and_classes.txt` as published (google/dreambooth), or a
`prompts.yaml` with `classes: {dog6: dog}` and `live: [dog6]`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dreambooth.data.image_folder import list_images
from dreambooth.errors import UserError
from dreambooth.evaluation.request import EvaluationRequest
from dreambooth.files import read_text

PUBLISHED_LIST = "prompts_and_classes.txt"
OWN_LIST = "prompts.yaml"
# The published list does not say which 9 of its 30 subjects are live; it has just 9 of these classes.
LIVE_CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Subject:
    """Hold a subject to evaluate on. class_noun, is_live: None if unknown."""

    name: str
    photos: tuple[Path, ...]
    class_noun: str | None = None
    is_live: bool | None = None


def subjects_of(request: EvaluationRequest) -> list[Subject]:
    """Return whose images are asked for. Raises UserError for photos that are not there or cannot be read."""
    if request.dataset is not None:
        return subjects_of_dataset(request.dataset, request.subjects, request.class_noun)
    assert request.images is not None
    return [subject_of_folder(request.images, request.class_noun)]


def subject_of_folder(folder: Path, class_noun: str | None) -> Subject:
    """Return the subject of one folder of photos. Raises UserError where there are none."""
    return Subject(folder.resolve().name, tuple(list_images(folder)), class_noun)


def subjects_of_dataset(folder: Path, names: Sequence[str] | None, class_noun: str | None) -> list[Subject]:
    """Return the data set's subjects, those in `names` alone if given.

    class_noun: overrides the data set's own; for one subject only. Raises UserError for what is missing.
    """
    if not folder.is_dir():
        raise UserError(f"--dataset: {folder} is no folder; name one that has a folder of images a subject")
    known = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not known:
        raise UserError(f"--dataset: {folder} has no folders; for a single folder of images there is --images")
    _check_names(names or [], known, folder)
    chosen = [name for name in known if names is None or name in names]
    if class_noun is not None and len(chosen) > 1:
        raise UserError(
            f"--class-noun: {class_noun!r} for {len(chosen)} subjects at once; write {folder / OWN_LIST} with "
            f"'classes: {{{chosen[0]}: {class_noun}}}', or name one of --subjects"
        )
    classes, live = read_lists(folder)
    found = [
        Subject(name, tuple(list_images(folder / name)), classes.get(name), name in live if name in classes else None)
        for name in chosen
    ]
    return found if class_noun is None else [replace(found[0], class_noun=class_noun)]


def _check_names(names: Sequence[str], known: Sequence[str], folder: Path) -> None:
    wrong = [name for name in names if name not in known]
    if wrong:
        near = difflib.get_close_matches(wrong[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise UserError(f"--subjects: {folder} has no {', '.join(wrong)}; {hint}")


def read_lists(folder: Path) -> tuple[dict[str, str], set[str]]:
    """Return each subject's class, and the names of live subjects; both empty where the data set has no list."""
    if (folder / OWN_LIST).is_file():
        return _read_own_list(folder / OWN_LIST)
    if (folder / PUBLISHED_LIST).is_file():
        classes = _read_published_list(read_text(folder / PUBLISHED_LIST))
        return classes, {name for name, noun in classes.items() if noun in LIVE_CLASSES}
    return {}, set()


def _read_own_list(path: Path) -> tuple[dict[str, str], set[str]]:
    try:
        found: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    found = found if isinstance(found, dict) else {}
    classes, live = found.get("classes"), found.get("live", [])
    if not isinstance(classes, dict) or not isinstance(live, list):
        raise UserError(f"{path}: expected 'classes: {{dog6: dog}}' and 'live: [dog6]'")
    if unknown := [str(name) for name in live if name not in classes]:
        raise UserError(f"{path}: live names {', '.join(unknown)}, which classes does not have")
    return {str(name): str(noun) for name, noun in classes.items()}, {str(name) for name in live}


def _read_published_list(text: str) -> dict[str, str]:
    """Read lines such as 'backpack_dog,backpack', from below 'subject_name,class' to the next empty line."""
    lines = [line.strip() for line in text.split("\n")]
    first = lines.index("subject_name,class") + 1 if "subject_name,class" in lines else len(lines)
    last = lines.index("", first) if "" in lines[first:] else len(lines)
    return {name: noun for name, _, noun in (line.partition(",") for line in lines[first:last])}
