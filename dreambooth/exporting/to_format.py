"""Write a result in another tool's format, with a model card, checked on request: what `export` does."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from dreambooth.disk import GIB, check_writable, translate_write_errors
from dreambooth.errors import UserError
from dreambooth.exporting import extraction, model_card
from dreambooth.exporting.formats import FORMATS, check_layout, files_of, find_format, write_as
from dreambooth.exporting.history import read_history
from dreambooth.exporting.tools import ExportedFiles
from dreambooth.exporting.verify import expected_model, num_adapted
from dreambooth.exporting.verify import verify as verify_export
from dreambooth.families import Family
from dreambooth.files import atomic_folder
from dreambooth.generation.models import loading
from dreambooth.generation.models.base_source import base_source
from dreambooth.generation.models.location import check_is_there, find_card, model_folder
from dreambooth.generation.models.reference import DTYPES, ModelRef
from dreambooth.subject_info import ExportCard

logger = logging.getLogger(__name__)

NUM_MODELS = 3  # the trained one, the written one and one that was read


def export(
    model: str | Path,
    format: str,  # noqa: A002 - the option's name
    out: str | Path | None = None,
    dtype: str = "float16",
    rank: int | None = None,
    base: str | Path | None = None,
    repo_id: str | None = None,
    verify: bool | None = None,
) -> Path:
    """Write a result in another tool's format, with a model card, and return the folder.

    model: run folder, or the model/ of one. format: a name in `FORMATS`. out: a new folder; None:
    <model>/exports/<format>, which is replaced. dtype: of the weights. rank: of a LoRA to extract where the method has
    none. base: where an adapter's base is now, if elsewhere. repo_id: for the card, where it is going.
    verify: read what was written as other programs do, and write nothing where it is not the trained model; None: where
    the free memory holds three models.
    Raises UserError, ModelError.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    model = str(model)
    check_is_there(model)
    card = find_card(model)
    if card is None:
        raise UserError(f"{model}: no result of a run (it has no dreambooth.json), so there is nothing to export")
    form = find_format(format, card.method, rank)
    if verify and format not in FORMATS.own:
        raise UserError(f"--verify: {format} is a plug-in's format, which nothing here reads; leave it out")
    folder = export_folder(model, format, out)
    history = read_history(Path(model), card)
    card = replace(card, settings=history.settings or None)
    family, card = _learned(model, card, rank, None if base is None else str(base))
    check_layout(format, family)
    with translate_write_errors(folder, "--out"), atomic_folder(folder) as beside:
        files = files_of(format, family, card, history.name)
        warn_of_dora(files)
        expected = expected_model(family) if format in FORMATS.own and is_verified(family, verify) else None
        beside.mkdir(parents=True)
        write_as(form, family, card, beside, history.name, dtype)
        if expected is not None:
            source = base_source(card, model_folder(model), None if base is None else str(base))
            adapted = num_adapted(family) if form.methods is not None else 0
            logger.info(f"verified: {verify_export(beside, files, expected, source, dtype, adapted)}")
        model_card.write(beside, files, family, card, history, repo_id)
    return folder


def is_verified(family: Family, asked: bool | None) -> bool:
    """Return whether an export is compared with the trained model: as asked, else where there is memory for it."""
    if asked is not None:
        return asked
    weights = (weight for part in (*family.components().values(), family.vae) for weight in part.parameters())
    needed = NUM_MODELS * 4 * (sum(weight.numel() for weight in weights) + family.num_text_weights())
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    if needed > free:
        logger.info(f"not verified: three models take {needed / GIB:.1f} GiB, {free / GIB:.1f} are free (--verify)")
    return needed <= free


def warn_of_dora(files: ExportedFiles) -> None:
    """Warn that other programs do not all read a DoRA in kohya's names as it was trained."""
    if files.form in ("kohya", "comfyui") and files.has_dora:
        logger.warning(
            "a DoRA in kohya's names is exact in SD.Next alone: ComfyUI comes close, AUTOMATIC1111 applies it wrongly, "
            "sd-scripts and diffusers drop its magnitudes, all without an error; use --format single-file"
        )


def export_folder(model: str, format_name: str, out: str | Path | None) -> Path:
    """Return the folder that an export goes to. Raises UserError where it is there already, or cannot be written."""
    folder = Path(out) if out else Path(model) / "exports" / format_name
    if out and folder.exists():
        raise UserError(f"--out {folder}: is there already; name a new folder, nothing is written over")
    check_writable(folder.parent, "--out")
    return folder


def _learned(model: str, card: ExportCard, rank: int | None, base: str | None) -> tuple[Family, ExportCard]:
    """Return the model and its card; with a rank as a LoRA over its base."""
    untouched = extraction.load_base(card, model_folder(model), base) if rank is not None else None
    family = loading.load_unchanged(ModelRef(model, base, dtype="float32"), "cpu").family
    if untouched is None or rank is None:
        return family, card
    extracted, kept = extraction.extract(family, untouched, card, rank)
    logger.info(f"rank {rank}: {kept}")
    for before, after in zip(card.subjects, extracted.subjects, strict=True):
        if before.identifier != after.identifier:
            logger.info(f"the identifier {before.identifier!r} is the word {after.identifier!r} now")
    return untouched, extracted
