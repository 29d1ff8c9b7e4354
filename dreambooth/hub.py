"""Download from the Hugging Face hub, and say in one line why something is not to be had from there."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dreambooth.errors import ModelError, escaped, first_line


def downloaded(hub_id: str, revision: str | None, download: Callable[[], str]) -> Path:
    """Return where a hub id's files are in the local cache, downloaded if need be.

    download: such as `huggingface_hub.snapshot_download`, which fails at once where the hub cannot be reached. Raises
    ModelError for a path, an address, or an id that is not to be had.
    """
    if "://" in hub_id:
        raise ModelError(
            f"{escaped(hub_id)}: an address; nothing is fetched from there: name a hub id, or a file or folder here"
        )
    is_path = hub_id.startswith(".") or hub_id.endswith(".safetensors") or hub_id.count("/") > 1
    if Path(hub_id).is_absolute() or is_path:
        raise ModelError(f"{escaped(hub_id)}: there is no such folder or file")
    try:
        return Path(download())
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        # diffusers' own error has the hub's answer as its cause, once it has looked into the cache as well.
        answer = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        raise ModelError(_explain(hub_id, revision, answer)) from error


def _explain(hub_id: str, revision: str | None, error: BaseException) -> str:
    if isinstance(error, GatedRepoError):  # a subclass of the next one
        return f"{hub_id}: accept its licence on the hub and log in with `hf auth login`"
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return f"{hub_id}: neither a folder here nor a model on the hub"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{hub_id}: has no revision {revision!r} (model.revision, --revision): name a branch, tag or commit of it"
        )
    named = hub_id if revision is None else f"{hub_id} at {revision}"
    if isinstance(error, ValueError):
        return f"{named}: {first_line(error)}"
    return f"{named}: no such folder here, and the hub cannot be reached to look for it there"
