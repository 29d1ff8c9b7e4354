"""The subjects of a sweep: a folder of folders with class nouns, or a CSV with a line for each."""

import csv
import dataclasses
from pathlib import Path

from dreambooth.config import SubjectConfig
from dreambooth.errors import UserError, escaped
from dreambooth.evaluation.subjects import read_lists
from dreambooth.files import read_lines
from dreambooth.sweep.cells import Subject
from dreambooth.sweep.fields import SubjectsSection

FIELDS = tuple(field.name for field in dataclasses.fields(SubjectConfig))  # images, identifier, class_noun ...


def read_subjects(section: SubjectsSection) -> tuple[Subject, ...]:
    """Read the subjects. Raises UserError for a folder, a table or a noun that is missing."""
    if (section.folder is None) == (section.table is None):
        raise UserError("subjects: name either subjects.folder or subjects.table")
    if section.folder is not None:
        subjects = _of_folder(Path(section.folder), section.class_noun)
    else:
        subjects = _of_table(Path(str(section.table)), section.class_noun)
    names = [subject.name for subject in subjects]
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UserError(f"subjects: {repeated[0]!r} is there twice; give each a name of its own")
    return tuple(subjects)


def _of_folder(folder: Path, class_noun: str | None) -> list[Subject]:
    if not folder.is_dir():
        raise UserError(f"subjects.folder={escaped(folder)}: there is no such folder; name one of folders of photos")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"subjects.folder={escaped(folder)}: it holds no folders; each subject needs one of photos")
    nouns = read_lists(folder)[0]
    if missing := [name for name in names if name not in nouns and class_noun is None]:
        raise UserError(
            f"subjects.folder={escaped(folder)}: no class noun for {', '.join(map(escaped, missing[:5]))}; write "
            f"{escaped(folder / 'prompts.yaml')} with 'classes: {{{escaped(missing[0])}: dog}}', or set "
            "subjects.class_noun for all"
        )
    return [
        Subject(name, (("images", str(folder / name)), ("class_noun", nouns.get(name) or str(class_noun))))
        for name in names
    ]


def _of_table(path: Path, class_noun: str | None) -> list[Subject]:
    if not path.is_file():
        raise UserError(f"subjects.table={escaped(path)}: there is no such file")
    table = csv.DictReader(read_lines(path), strict=True, restkey="", restval="")
    try:
        rows = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise UserError(f"{escaped(path)}: after line {table.line_num}: {error}; mend the quotes") from error
    columns = table.fieldnames or [] if rows else []
    if unknown := [name for name in columns if name not in ("name", *FIELDS)]:
        raise UserError(f"{escaped(path)}: unknown column {escaped(unknown[0])!r}; there are name, {', '.join(FIELDS)}")
    if "images" not in columns:
        raise UserError(f"{escaped(path)}: no column images with lines below it; write images,class_noun first")
    return [_of_row(path, number, row, class_noun) for number, row in rows]


def _of_row(path: Path, number: int, row: dict[str, str], class_noun: str | None) -> Subject:
    if "" in row:
        raise UserError(
            f"{escaped(path)}: line {number} has more values than there are columns; a value with a comma needs quotes"
        )
    values = {name: row[name].strip() for name in FIELDS if (row.get(name) or "").strip()}
    values.setdefault("class_noun", class_noun or "")
    for name in ("images", "class_noun"):
        if not values.get(name):
            raise UserError(f"{escaped(path)}: line {number} has no {name}")
    images = Path(values["images"])
    values["images"] = str(images if images.is_absolute() else path.parent / images)
    if not Path(values["images"]).is_dir():
        raise UserError(f"{escaped(path)}: line {number}: {escaped(values['images'])}: there is no such folder")
    return Subject((row.get("name") or "").strip() or images.name, tuple(values.items()))
