"""The base beneath a result: where it lies now, and what it is loaded with."""

from pathlib import Path

import yaml

from dreambooth.errors import ModelError
from dreambooth.export.subject_info import SubjectInfo
from dreambooth.families import ModelSource
from dreambooth.files import with_home


def base_source(
    card: SubjectInfo, folder: Path, base: str | None = None, revision: str | None = None, variant: str | None = None
) -> ModelSource:
    """Return the base of a result in `folder`, with all that its run loaded it with.

    base: where it is now, if elsewhere; revision, variant: of that, or in the place of the run's. Raises ModelError
    where the base is not known.
    """
    if base is not None:
        return ModelSource(base, config=card.base_config, revision=revision, variant=variant)
    if card.base is None:
        raise ModelError(f"{folder}: its base is not known (dreambooth.json names none); name it with --base")
    return ModelSource(
        find_path(card.base, folder),
        config=card.base_config and find_path(card.base_config, folder),
        revision=revision or card.base_revision,
        variant=variant or card.base_variant,
    )


def find_path(path: str, folder: Path) -> str:
    """Return where a path that a run recorded lies, seen from here; as it is where nothing is found, as of a hub id.

    A relative path is looked for here, then in the folder that the run was started in, then in those around the result:
    a run that was moved with its base is found whole.
    """
    whole = Path(with_home(path))
    if whole.is_absolute() or whole.exists():
        return str(whole)
    for start in (*_started_in(folder), *folder.absolute().parents):
        if (start / whole).exists():
            return str(start / whole)
    return path


def _started_in(folder: Path) -> list[Path]:
    """Return the folder that a result's run was started in, where its config.yaml says that."""
    config = folder.parent / "config.yaml"
    if not config.is_file():
        return []
    provenance = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("provenance", {})
    return [Path(with_home(provenance["folder"]))] if "folder" in provenance else []
