"""Report mistakes in a model and in prompts for it at once, before anything heavy is loaded."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dreambooth.generation.models.additions import check_additions, learned_by
from dreambooth.generation.models.location import check_is_there, check_path, fill, find_card, find_vae_scale_factor
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.weight_syntax import check_blends, parse_weights
from dreambooth.generation.prompting.wildcards import Wildcards, example, texts
from dreambooth.generation.settings import check_size

if TYPE_CHECKING:
    from dreambooth.generation.grids.axes import Cell


def check_model(ref: ModelRef) -> None:
    """Raise ModelError or UserError for a model, or what is laid over it, that is not there or of another kind."""
    check_is_there(ref.name)
    if ref.vae is not None:
        check_path(ref.vae, "--vae")
    check_additions(ref.loras, ref.embeddings)


def check_cells(cells: "Iterable[Cell]", wildcards: Wildcards) -> None:
    """Raise UserError or ModelError for a cell of a grid that cannot be made, as far as is known before loading."""
    by_model: dict[ModelRef, list[ImageOptions]] = {}
    for cell in cells:
        by_model.setdefault(cell.ref, []).append(cell.options)
    for ref, options in by_model.items():
        check_model(ref)
        check_options(ref, options, wildcards)


def check_options(ref: ModelRef, wanted: Iterable[ImageOptions], wildcards: Wildcards) -> None:
    """Raise UserError for a size that does not fit the model, and for a prompt that cannot be filled in or read."""
    wanted = list(wanted)
    card, factor = find_card(ref.name), find_vae_scale_factor(ref)
    subjects = (() if card is None else card.subjects) + learned_by(ref.loras)
    for options in wanted:
        if options.size is not None and factor is not None:
            check_size(factor, options.size)
    for template in dict.fromkeys(text for each in wanted for text in (each.prompt, each.negative_prompt)):
        for text in texts(template, wildcards):
            fill(text, ref.name, subjects)
        filled = fill(example(template, wildcards), ref.name, subjects)
        parse_weights(filled)
        check_blends(filled)
