"""The base model of a result: its path now, and how it is loaded."""

from pathlib import Path

from dreambooth.errors import ModelError
from dreambooth.families import ModelSource
from dreambooth.generation.models.base_path import find_path
from dreambooth.subject_info import SubjectInfo


def base_source(
    card: SubjectInfo,
    folder: Path,
    base: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
) -> ModelSource:
    """Return the base of a result in `folder`, with all that its run loaded it with.

    base: where it is now, if elsewhere; revision, variant: of that, or in the place of the run's; vae: in the place of
    the run's. Raises ModelError where the base is not known.
    """
    vae = vae or (card.base_vae and find_path(card.base_vae, folder))
    if base is not None:
        return ModelSource(base, config=card.base_config, revision=revision, variant=variant, vae=vae)
    if card.base is None:
        raise ModelError(f"{folder}: its base is not known (dreambooth.json names none); name it with --base")
    return ModelSource(
        find_path(card.base, folder),
        config=card.base_config and find_path(card.base_config, folder),
        revision=revision or card.base_revision,
        variant=variant or card.base_variant,
        vae=vae,
    )
