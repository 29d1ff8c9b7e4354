"""A learned word as a file: alone, or beside a file that cannot hold it, having no tokenizer."""

from pathlib import Path

from dreambooth.export.metadata import file_metadata
from dreambooth.export.subject_info import ExportCard
from dreambooth.families import Family
from dreambooth.methods import find_method, textual_inversion


def write(family: Family, card: ExportCard, folder: Path) -> None:
    """A file a word: diffusers and AUTOMATIC1111 read it as it is, ComfyUI by the file's name."""
    identifiers = [subject.identifier for subject in card.subjects]
    textual_inversion.save(family, folder, identifiers, file_metadata(family, card, "diffusers", "textual-inversion"))


def write_beside(family: Family, card: ExportCard, folder: Path) -> None:
    """The same, of a result that has one."""
    if find_method(card.method).adds_tokens:
        write(family, card, folder)
