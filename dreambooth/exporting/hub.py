"""A folder as a repository on the Hugging Face hub: an export as a model, shared images as a static Space."""

from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dreambooth.errors import ModelError, UserError, first_line

# The hub's answers, what goes wrong before there is one (a connection refused), the system's; a card it cannot read.
ERRORS: tuple[type[BaseException], ...] = (HfHubHTTPError, *HfHubHTTPError.__bases__, ValueError)
Kind = Literal["model", "space"]


def check(repo: str, option: str = "--push-to-hub") -> None:
    """Raise UserError for a name that is not OWNER/NAME, ModelError where nobody is logged in. option: where it is."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{option}: {repo!r} is no name of a repository: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"{option}: {repo!r} names no owner; write OWNER/NAME")
    if get_token() is None:
        raise ModelError(f"{repo}: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, private: bool, kind: Kind = "model") -> str:
    """Upload a folder in one commit to a repository, which is created if need be. Returns its address.

    kind: a space shows the index.html of the folder. Raises ModelError; the folder stays.
    """
    try:
        api = HfApi()
        sdk = "static" if kind == "space" else None
        address = api.create_repo(repo, private=private or None, exist_ok=True, repo_type=kind, space_sdk=sdk)
        links = [path.name for path in folder.iterdir() if path.is_symlink()]  # the same file under its earlier name
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            ignore_patterns=links,
            commit_message="Written by DreamBooth toolkit",
            repo_type=kind,
        )
    except ERRORS as error:
        again = f"hf upload {repo} {folder}" + (" --repo-type space" if kind == "space" else "")
        raise ModelError(
            f"{repo}: the hub did not take it: {first_line(error)}\n  it is in {folder}; `{again}` tries again"
        ) from error
    return str(address)
