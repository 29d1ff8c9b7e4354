"""Find the base model that a run recorded. Nothing heavy is imported here."""

from pathlib import Path

import yaml

from dreambooth.home_folder import with_home


def find_path(path: str, folder: Path) -> str:
    """Return where a path that a run recorded is now; unchanged if nothing is found, as for a hub id.

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
