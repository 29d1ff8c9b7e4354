"""An export as a model repository on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dreambooth.errors import ModelError, UserError, first_line

# The hub's answers, what goes wrong before there is one (a connection refused), the system's; a card it cannot read.
ERRORS: tuple[type[BaseException], ...] = (HfHubHTTPError, *HfHubHTTPError.__bases__, ValueError)


def check(repo: str) -> None:
    """Raise UserError for a name that is not OWNER/NAME, ModelError where nobody is logged in."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub: {repo!r} is no name of a repository: {first_line(error)}") from error
    if "/" not in repo:
        raise UserError(f"--push-to-hub: {repo!r} names no owner; write OWNER/NAME")
    if get_token() is None:
        raise ModelError(f"{repo}: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder in one commit to a repository, which is created if need be. Returns its address.

    Raises ModelError; the folder stays.
    """
    try:
        api = HfApi()
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        links = [path.name for path in folder.iterdir() if path.is_symlink()]  # the same file under its earlier name
        api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=links, commit_message="Written by DreamBooth toolkit"
        )
    except ERRORS as error:
        raise ModelError(
            f"{repo}: the hub did not take it: {first_line(error)}\n  the export is in {folder}; "
            f"`hf upload {repo} {folder}` tries again"
        ) from error
    return str(address)
