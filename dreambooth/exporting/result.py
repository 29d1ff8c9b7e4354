"""The result of a run as a folder: a pipeline that `DiffusionPipeline.from_pretrained` loads, or an adapter's files.

What a user must know to prompt it travels along in `dreambooth.json` (`subject_info`).
"""

import logging
from pathlib import Path

import torch

from dreambooth.errors import UserError
from dreambooth.exporting import adapter
from dreambooth.exporting.names import weights_file
from dreambooth.exporting.pipeline import save_pipeline
from dreambooth.families import Family
from dreambooth.files import atomic_folder
from dreambooth.methods import HAVE_KOHYA_NAMES, find_method
from dreambooth.methods.adapters import cast_trained
from dreambooth.subject_info import SubjectInfo, write_card

logger = logging.getLogger(__name__)


def export_model(family: Family, card: SubjectInfo, folder: Path, dtype: str) -> None:
    """Write the trained weights as `dtype` ('float32', 'float16', 'bfloat16') to `folder`, replacing it atomically.

    It is a pipeline or, where card.method is an adapter, that one's own files. Beside those lies a file, called after
    the run, that ComfyUI and AUTOMATIC1111 take whole: of peft's names ComfyUI skips most. The live weights take that
    dtype too: they are not used afterwards.
    """
    with atomic_folder(folder) as beside:
        _write_weights(family, card.method, beside, getattr(torch, dtype))
        is_read = card.method in HAVE_KOHYA_NAMES and "comfyui" in family.layouts
        if is_read and not adapter.has_dora(family):
            path = beside / weights_file(folder.absolute().parent.name)
            try:
                adapter.write_file(family, card, path, adapter.comfyui_state(family))
            except UserError as error:
                logger.info(f"no file for ComfyUI beside the result: {error}")
        write_card(card, beside)


def _write_weights(family: Family, method: str, folder: Path, dtype: torch.dtype) -> None:
    save = find_method(method).save
    if save is None:
        for part in (*family.components().values(), family.vae):
            part.to(dtype)
        save_pipeline(family.pipeline(), folder)
    else:
        cast_trained(family, dtype)
        save(family, folder)
