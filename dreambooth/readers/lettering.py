"""Read the lettering in an image by RapidOCR: PP-OCR (Du et al. 2020, arXiv 2009.09941) on onnxruntime.

Optional: the extra `ocr`. The package brings its weights, so nothing is downloaded.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image

from dreambooth.errors import UserError
from dreambooth.readers.protocols import Box


@dataclass(frozen=True)
class TextLine:
    """Hold a line of text in an image. score: how sure the reader is of it, 0 to 1. box: where it is."""

    text: str
    score: float
    box: Box


def is_available() -> bool:
    """Return whether the packages of the extra `ocr` are installed."""
    return all(find_spec(package) is not None for package in ("rapidocr", "onnxruntime"))


class TextReader:
    """Read lines of text, of most alphabets. Raises UserError without the extra `ocr`.

    num_threads: of onnxruntime; -1: one for each core.
    """

    def __init__(self, num_threads: int = -1) -> None:
        if not is_available():
            raise UserError("reading text in images needs RapidOCR; pip install 'dreambooth[ocr]'")
        from rapidocr import RapidOCR

        options = {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": num_threads}
        self._engine = RapidOCR(params=options)

    def __call__(self, image: Image.Image) -> list[TextLine]:
        """Return the lines that are read in an image, the surest and the least sure alike."""
        bgr_HW3 = np.asarray(image.convert("RGB"))[..., ::-1]
        found = self._engine(bgr_HW3, use_cls=False)  # upright text alone
        if found.boxes is None:
            return []
        lines = zip(found.txts, found.scores, found.boxes, strict=True)
        return [TextLine(text, float(score), _box_of(corners_42, image.size)) for text, score, corners_42 in lines]


def _box_of(corners_42: np.ndarray, size: tuple[int, int]) -> Box:
    """Return the upright box around four corners in pixels."""
    left, top = np.clip(corners_42.min(0) / size, 0, 1)
    right, bottom = np.clip(corners_42.max(0) / size, 0, 1)
    return float(left), float(top), float(right), float(bottom)
