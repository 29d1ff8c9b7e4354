"""A diffusers pipeline folder."""

from pathlib import Path

from dreambooth.export import SubjectCard, write_card
from dreambooth.families import Family


def write(family: Family, card: SubjectCard, folder: Path) -> None:
    """The whole model, adapters merged already, with the subject's card."""
    family.pipeline().save_pretrained(folder, safe_serialization=True)
    write_card(card, folder)
