"""Find where in an image something is that a text names, as a mask: white is what was named.

CLIPSeg (Lüddecke and Ecker 2022, arXiv 2112.10003) and SAM 3 (Carion et al. 2025, arXiv 2511.16719) read a text.
SegFormer (Xie et al. 2021, arXiv 2105.15203) has labels, and finds those that the text names. SAM (Kirillov et al.
2023, arXiv 2304.02643) and SAM 2 (Ravi et al. 2024, arXiv 2408.00714) read a box, and get that of CLIPSeg's mask.

Shapes: B images, K labels, H/W pixels, h/w those of a model's own mask.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageChops

from dreambooth.errors import ModelError, UserError
from dreambooth.readers.loading import ReaderSource, load_network, load_part, moved, read_config
from dreambooth.readers.usual import MASK

BACKGROUND = "background"
ANYTHING = ("subject", "object", "thing")  # each names all that a model has a label of
NUM_TOLD = 20  # labels in a message
BATCH_SIZE = 32  # images at a time
# Probability from which on a pixel counts, where a model's config has no `mask_threshold` of its own. The published
# CLIPSeg is cautious, so less than a half.
USUAL_THRESHOLD = 0.3
BOX_MARGIN = 0.05  # that a box is larger than the mask it is made of, on each side, as a part of the box


class MaskFinder(Protocol):
    """Find what texts name in images."""

    name: str

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Image.Image]:
        """Return for each image and its text a mask, mode L, as large as the image: 255 on what is named, else 0."""


class ClipSegFinder:
    """Find by CLIPSeg."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network = load_network(source, transformers.CLIPSegForImageSegmentation)
        self.processor = load_part(source.name, transformers.AutoProcessor)
        self.threshold = float(getattr(self.network.config, "mask_threshold", USUAL_THRESHOLD))

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Image.Image]:
        masks: list[Image.Image] = []
        for first in range(0, len(images), BATCH_SIZE):
            batch = list(images[first : first + BATCH_SIZE])
            words = list(texts[first : first + BATCH_SIZE])
            inputs = self.processor(text=words, images=batch, padding=True, truncation=True, return_tensors="pt")
            logits_Bhw = self.network(**moved(inputs, self.network)).logits
            for image, logits_hw in zip(batch, logits_Bhw, strict=True):
                masks.append(_as_mask(logits_hw.float().sigmoid(), image.size, self.threshold))
        return masks


class SegformerFinder:
    """Find by SegFormer: the pixels of the labels that a text names, or of all but `background`."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network = load_network(source, transformers.SegformerForSemanticSegmentation)
        self.processor = load_part(source.name, transformers.AutoImageProcessor)
        self.labels = {int(number): str(label) for number, label in self.network.config.id2label.items()}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Image.Image]:
        named = [self.numbers_of(text) for text in texts]
        masks: list[Image.Image] = []
        for first in range(0, len(images), BATCH_SIZE):
            batch = list(images[first : first + BATCH_SIZE])
            inputs = self.processor(images=batch, return_tensors="pt")
            found_BKhw = self.network(**moved(inputs, self.network)).logits.float().softmax(1)
            for image, found_Khw, numbers in zip(batch, found_BKhw, named[first:], strict=False):
                masks.append(_as_mask(found_Khw[numbers].sum(0), image.size, 0.5))
        return masks

    def numbers_of(self, text: str) -> list[int]:
        """Return the labels that a text names. Raises UserError where it names none."""
        things = [number for number, label in self.labels.items() if label.lower() != BACKGROUND]
        if text.removeprefix("the ") in ANYTHING and len(things) < len(self.labels):
            return things
        words = _words_alone(text)
        found = [
            number
            for number, label in self.labels.items()
            if any(_words_alone(name) in words for name in re.split("[,;]", label))
        ]
        if not found:
            labels = sorted(self.labels.values())
            known = ", ".join(labels[:NUM_TOLD]) + (", ..." if len(labels) > NUM_TOLD else "")
            raise UserError(f"mask={text}: {self.name} has no label of it; it has {known}")
        return found


class Sam3Finder:
    """Find by SAM 3: all things of an image that fit the text."""

    def __init__(self, source: ReaderSource) -> None:
        self.name = source.name
        self.network = load_network(source, transformers.Sam3Model)
        self.processor = load_part(source.name, transformers.AutoProcessor)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Image.Image]:
        return [self._find(image, text) for image, text in zip(images, texts, strict=True)]

    def _find(self, image: Image.Image, text: str) -> Image.Image:
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        size = [(image.height, image.width)]
        found = self.processor.post_process_instance_segmentation(
            self.network(**moved(inputs, self.network)), threshold=0.5, mask_threshold=0.5, target_sizes=size
        )[0]
        masks_NHW = found["masks"].bool().cpu()
        covered_HW = masks_NHW.any(0) if len(masks_NHW) else torch.zeros(size[0], dtype=torch.bool)
        return _as_mask(covered_HW.float(), image.size, 0.5)


class BoxFinder:
    """Find by SAM or SAM 2 within the box of what another finder finds."""

    def __init__(self, source: ReaderSource, network_class: Any, coarse: MaskFinder) -> None:
        self.name = source.name
        self.network = load_network(source, network_class)
        self.processor = load_part(source.name, transformers.AutoProcessor)
        self.coarse = coarse

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Image.Image]:
        masks = self.coarse(images, texts)
        return [self._refined(image, mask) for image, mask in zip(images, masks, strict=True)]

    def _refined(self, image: Image.Image, mask: Image.Image) -> Image.Image:
        box = mask.getbbox()
        if box is None:
            return mask
        inputs = self.processor(images=image, input_boxes=[[list(_wider(box, image.size))]], return_tensors="pt")
        sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        outputs = self.network(**moved(inputs, self.network), multimask_output=False)
        masks_HW = self.processor.post_process_masks(outputs.pred_masks.float().cpu(), *sizes)[0]
        return _as_mask(masks_HW.reshape(-1, image.height, image.width)[0].float(), image.size, 0.5)


def _words_alone(text: str) -> str:
    """Return the words of a text in small letters, a blank around each: `Upper-clothes` are two."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "


def _as_mask(found_hw: torch.Tensor, size: tuple[int, int], threshold: float) -> Image.Image:
    """Return a map of probabilities as a mask of that (width, height)."""
    width, height = size
    found_HW = F.interpolate(found_hw[None, None].float().cpu(), (height, width), mode="bilinear")[0, 0]
    return Image.fromarray((255 * (found_HW >= threshold)).to(torch.uint8).numpy())


def _wider(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box with a margin, within an image of that (width, height)."""
    left, top, right, bottom = box
    across, down = BOX_MARGIN * (right - left), BOX_MARGIN * (bottom - top)
    return max(0, left - across), max(0, top - down), min(size[0], right + across), min(size[1], bottom + down)


def _sam(source: ReaderSource) -> MaskFinder:
    return BoxFinder(source, transformers.SamModel, ClipSegFinder(ReaderSource(MASK.published, source.device)))


def _sam2(source: ReaderSource) -> MaskFinder:
    return BoxFinder(source, transformers.Sam2Model, ClipSegFinder(ReaderSource(MASK.published, source.device)))


# By the model type of a config. SAM 2 and SAM 3 need torchvision.
FINDERS: dict[str, Callable[[ReaderSource], MaskFinder]] = {
    "clipseg": ClipSegFinder,
    "segformer": SegformerFinder,
    "sam": _sam,
    "sam2": _sam2,
    "sam3": Sam3Finder,
}


def load_mask_finder(name: str, device: str = "cpu") -> MaskFinder:
    """Load a CLIPSeg, SegFormer, SAM, SAM 2 or SAM 3 by hub id or folder. device: of torch.

    Raises ModelError where there is none, or it is of another kind.
    """
    kind = str(read_config(name).model_type)
    if kind not in FINDERS:
        raise ModelError(f"{name}: a {kind} finds no masks of texts; name one of {', '.join(FINDERS)}")
    return FINDERS[kind](ReaderSource(name, device))


def find_mask(
    image: Image.Image, text: str, name: str | None = None, noun: str | None = None, device: str = "cpu"
) -> Image.Image:
    """Return the mask of what a text names: mode L, as large as the image, 255 on it and 0 elsewhere.

    text: anything, such as a class noun; `background` is all but `noun` (None: but any subject). name: hub id or
    folder of a CLIPSeg, SegFormer, SAM, SAM 2 or SAM 3 (None: `usual.MASK`). Raises UserError where nothing is found,
    ModelError.
    """
    finder = load_mask_finder(name or MASK.model_for(image.size), device)
    is_background = text == BACKGROUND
    asked = (noun or "subject") if is_background else text
    mask = finder([image], [asked])[0]
    if mask.getbbox() is None:
        raise UserError(f"mask={text}: {finder.name} finds no {asked!r} in the image; use other words, or draw a mask")
    return ImageChops.invert(mask) if is_background else mask
