"""Export formats by name: `python -m dreambooth export RUN --format NAME`.

A new format: one function that writes a model's files into a folder, and one row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth.errors import UserError
from dreambooth.exporting import adapter, graphs, original, pipeline, word
from dreambooth.exporting.tools import ExportedFiles
from dreambooth.families import Family
from dreambooth.families.runtimes import import_extra
from dreambooth.families.sd_graphs import PIPELINES
from dreambooth.methods import HAVE_A_LORA, HAVE_FACTORS, HAVE_KOHYA_NAMES, adapters, find_facts
from dreambooth.plugins import Table
from dreambooth.subject_info import ExportCard

__all__ = ["FORMATS", "Format", "find_format", "write_as"]


@dataclass(frozen=True)
class Format:
    """Hold how a format is written, and for which methods' results.

    write: puts files, named after the run, into a folder.

    methods: of which results; None: of all, adapters merged into their base.

    extracted: of which further methods, as a LoRA that `extraction` makes of what they have changed.

    any_family: whether every family is written so; else those that name the format among their `layouts`.

    needs: libraries of the extra that has the format's name.
    """

    write: Callable[[Family, ExportCard, Path, str], None]
    methods: tuple[str, ...] | None = None
    extracted: tuple[str, ...] = ()
    any_family: bool = False
    needs: tuple[str, ...] = ()

    def takes(self, method: str) -> bool:
        return self.methods is None or method in (*self.methods, *self.extracted)


WHOLE_MATRICES = ("full", "custom_diffusion")
NAMED_BY_MODULE = ("kohya", "comfyui")  # the formats that name tensors as kohya's scripts or ComfyUI name modules
FORMATS: Table[Format] = Table(
    "formats",
    {
        "diffusers": Format(pipeline.write, any_family=True),
        "single-file": Format(original.write),
        "lora": Format(adapter.write_lora, HAVE_A_LORA, (*HAVE_FACTORS, *WHOLE_MATRICES), any_family=True),
        "kohya": Format(adapter.write_kohya, HAVE_KOHYA_NAMES, WHOLE_MATRICES),
        "comfyui": Format(adapter.write_comfyui, HAVE_KOHYA_NAMES, WHOLE_MATRICES),
        "onnx": Format(graphs.write_onnx, needs=("onnxscript", "onnxruntime")),
        "openvino": Format(graphs.write_openvino, needs=("onnxscript", "openvino")),
        "embedding": Format(word.write, ("textual_inversion", "pivotal")),
    },
)


def write_as(form: Format, family: Family, card: ExportCard, folder: Path, name: str, dtype: str) -> None:
    """Write a trained family in files named after `name`.

    Its live weights are merged where the format asks for that, and take `dtype`.
    """
    if form.methods is None:
        adapters.merge(family)
    for part in (*family.components().values(), family.vae):
        part.to(dtype=getattr(torch, dtype))
    form.write(family, card, folder, name)


def check_layout(form: str, family: Family) -> None:
    """Raise UserError for a format that the files of a family are not written in."""
    written = [name for name, row in FORMATS.items() if row.any_family or name in family.layouts]
    if form not in written:
        raise UserError(f"--format: {form} is not written for a {family.architecture}; use one of {', '.join(written)}")


def files_of(form: str, family: Family, card: ExportCard, name: str) -> ExportedFiles:
    """Return which files an export consists of, before its adapters are merged."""
    return ExportedFiles(
        form,
        name,
        card,
        denoiser=next(name for name, part in family.components().items() if part is family.denoiser),
        has_words=form not in ("diffusers", *PIPELINES) and find_facts(card.method).adds_tokens,
        has_dora=form in ("lora", *NAMED_BY_MODULE) and adapter.has_dora(family),
        factors={"loha": "LoHa", "lokr": "LoKr"}.get(card.method) if form in NAMED_BY_MODULE else None,
        is_for_comfyui=adapter.is_for_comfyui(family, form),
        is_for_diffusers=adapter.is_for_diffusers(family, form),
    )


def find_format(name: str, method: str, rank: int | None = None) -> Format:
    """Return a format by name. rank: of a LoRA that is to be extracted.

    Raises UserError for an unknown one, for one that a method's result cannot take, for libraries that are not
    installed, and for a rank that is missing, out of its range or of no use.
    """
    if name not in FORMATS:
        raise UserError(f"--format: {name!r} is not known; one of {', '.join(FORMATS)}")
    form = FORMATS[name]
    if not form.takes(method):
        takers = " and ".join((*(form.methods or ()), *form.extracted))
        possible = ", ".join(each for each, row in FORMATS.items() if row.takes(method))
        raise UserError(f"--format: {name} is for {takers}, this was trained with {method}; use {possible}")
    if method in form.extracted and rank is None:
        raise UserError(f"--rank: required for {name} of a run that was trained with {method}: 16, say")
    if method not in form.extracted and rank is not None:
        raise UserError(f"--rank: {rank}, but {name} of {method} is written as it was trained; leave --rank out")
    if rank is not None and rank < 1:
        raise UserError(f"--rank: {rank} is too small; at least 1")
    for library in form.needs:
        import_extra(library, name)
    return form
