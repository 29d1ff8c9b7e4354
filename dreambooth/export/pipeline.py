"""A diffusers pipeline folder."""

from dataclasses import replace
from pathlib import Path

from dreambooth.export.subject_info import ExportCard, write_card
from dreambooth.families import Family


def write(family: Family, card: ExportCard, folder: Path) -> None:
    """The whole model, adapters merged already, with the subject's card."""
    family.pipeline().save_pretrained(folder, safe_serialization=True)
    write_card(replace(card, method="full"), folder)
