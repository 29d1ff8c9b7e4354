"""DreamBooth: personalise a text-to-image diffusion model from 3 to 10 images of a subject.

Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation" (arXiv
2208.12242). Importing this package loads nothing heavy; that comes with the first call.

    run = dreambooth.train("configs/my-dog.yaml", {"train.max_steps": 400}, on_progress=print)
    model = dreambooth.load("checkpoints/my-dog")
    images = model.generate("a photo of {subject} on the beach", num_images=4, seed=0)

docs/python.md has it all; `dreambooth.engine.train` is where a run reads like a table of contents.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dreambooth.errors import DreamBoothError, ModelError, NonFiniteError, UserError
from dreambooth.version import __version__

if TYPE_CHECKING:
    from dreambooth.api import Evaluation, GeneratedImage, Model, Progress, Run, TrainProgress, export, load, train

__all__ = [
    "DreamBoothError",
    "Evaluation",
    "GeneratedImage",
    "Model",
    "ModelError",
    "NonFiniteError",
    "Progress",
    "Run",
    "TrainProgress",
    "UserError",
    "__version__",
    "export",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name of `dreambooth.api`, with the libraries, when it is first used."""
    if name in __all__:
        return getattr(importlib.import_module("dreambooth.api"), name)
    raise AttributeError(f"module 'dreambooth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
