"""Provenance of a run: versions and the commit of this code."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreambooth.home_folder import without_home


def provenance() -> dict[str, Any]:
    """Return the versions of Python and the libraries, the commit of this code, and the folder where a run starts."""
    packages = ("torch", "pytorch-lightning", "diffusers", "transformers", "omegaconf", "numpy", "pillow")
    here = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "git_commit": described.stdout.strip() or "unknown",
        "folder": without_home(os.getcwd()),
    }
