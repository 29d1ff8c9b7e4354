"""The hooks of a plug-in. A module with functions of these names, marked with `hookimpl`, is a plug-in.

    from dreambooth.plugins.hooks import hookimpl

    @hookimpl
    def change_image(image, request):
        ...

A hook may leave out arguments that it does not need. A plug-in with a hook `change_...` changes images: recipes name
it. Hooks `after_...` look on, and what they return is not read. No hook changes a training; a config that names a
plug-in's row (a loss, a method, a family) does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

PROJECT = "dreambooth"
API = 1  # raised when a hook or a table changes; a plug-in that needs a newer one says DREAMBOOTH_API = 2

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def add_rows(table: str) -> Mapping[str, Any] | None:
    """Return rows for a table, by name; None or nothing for tables that are not meant.

    Called once for each table, when it is first read, so what is heavy is imported here. table and its rows:

    commands   (module, help): module has `add_arguments(parser)` and `run(args) -> int`, or is the name of such a one
    axes       a function (cell, value) -> cell: `generation.grids.axes.Cell` with the value of a grid's axis, a text
    families   `families.FamilyRow`
    methods    `methods.base.Method`
    losses     a function (snr_B, gamma) -> weight_B of an x0 error, as in `losses.X0_WEIGHTS`
    formats    `exporting.formats.Format`
    scores     `metrics.log_names.Score`
    """


@hookspec
def change_request(request: Any) -> Any:
    """Return another `ImageRequest` for this one, or None. Called before a request is sampled, not for a recipe's."""


@hookspec
def change_model(model: Any) -> Any:
    """Return another `generation.models.loading.Model`, or None. Called once loaded; it may be changed in place."""


@hookspec
def change_latents(latents_BCHW: Any, step: int, num_steps: int, requests: Sequence[Any]) -> Any:
    """Return other latents of a batch, float32 [B, C, H, W], or None. step: sampler steps taken, from 1 on."""


@hookspec
def change_image(image: Any, request: Any) -> Any:
    """Return another PIL image for a finished one, or None."""


@hookspec
def after_image(image: Any, recipe: Mapping[str, Any]) -> None:
    """Look at an image with its recipe."""


@hookspec
def after_step(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Look at a training step's metrics by log name. run: its folder. Called as often as `log.every_steps` says."""


@hookspec
def after_validation(run: Any, step: int, metrics: Mapping[str, float], grid: Any, prompts: Sequence[str]) -> None:
    """Look at a validation: its scores by log name, and a PIL image with a row for each prompt."""


@hookspec
def after_training(run: Any, step: int, metrics: Mapping[str, float], model: Any) -> None:
    """Look at what a finished run has come to: the kept step, its scores, and the folder of its weights."""
