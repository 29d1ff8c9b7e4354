"""Teach the readers' image encoders what each of their patches shows, by the renderer's truth: their first lesson.

The published readers begin with image encoders that were trained on hundreds of millions of images. This lesson stands
for it: from each patch's state alone, a linear layer tells the thing's class, colours and pattern, and its box.

Shapes: B images, P patches, D channels of the encoder, K labels of all heads together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toyworld.palette import COLOURS
from toyworld.readers.batches import batch_of_step
from toyworld.readers.scenes import KnownScene, KnownThing
from toyworld.second.things import CLASSES
from toyworld.training import Budget, Plan, fit
from toyworld.world import PATTERNS, SIZE

BATCH_SIZE = 48
BACKGROUND = "background"
HEADS: dict[str, tuple[str, ...]] = {
    "class_noun": (BACKGROUND, *CLASSES),
    "main": tuple(COLOURS),
    "second": tuple(COLOURS),
    "pattern": PATTERNS,
}
MIN_COVERED = 0.3  # of a patch, from which on it shows a thing
LAYERS = ("encoder.encoder.", "encoder.model.encoder.")  # of BLIP-2's image encoder, and of Kosmos-2's
UNKNOWN = -100  # the label of a patch without a thing, but for its class
BOX_WEIGHT = 5.0  # of the box's mean error, a fraction of the image's side

States = Callable[[Tensor], Tensor]  # of pixels [B, 3, H, W]: the patches' states, [B, P, D]


class PatchLesson(nn.Module):
    """Hold an image encoder and the linear layer that reads its patches; the layer is not kept."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = nn.Linear(width, sum(map(len, HEADS.values())) + 4)


def patch_truth(scene: KnownScene, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the patches, int64 [P, heads], and the boxes of their things in 0..1, float32 [P, 4].

    side: patches along a side of the image. A patch belongs to the thing that covers most of it.
    """
    labels = np.full((side * side, len(HEADS)), UNKNOWN, dtype=np.int64)
    labels[:, 0] = 0
    boxes = np.zeros((side * side, 4), dtype=np.float32)
    covered = np.stack([_by_patch(thing.mask, side) for thing in scene.things])
    for patch, number in enumerate(covered.argmax(0)):
        if covered[number, patch] >= MIN_COVERED:
            labels[patch] = _labels(scene.things[number])
            boxes[patch] = np.array(scene.things[number].box, dtype=np.float32) / SIZE
    return labels, boxes


def _by_patch(mask: np.ndarray, side: int) -> np.ndarray:
    """Return the part of each patch that a mask covers, [P]."""
    step = SIZE // side
    means: np.ndarray = mask.reshape(side, step, side, step).mean((1, 3)).reshape(-1)
    return means


def _labels(thing: KnownThing) -> list[int]:
    return [names.index(getattr(thing, head)) for head, names in HEADS.items()]


def patch_loss(read_BPK: Tensor, labels_BPH: Tensor, boxes_BP4: Tensor) -> Tensor:
    """Return the cross entropy of every head, and the mean error of the boxes of patches that show a thing."""
    *heads, found_BP4 = read_BPK.split([*map(len, HEADS.values()), 4], dim=-1)
    losses = [
        F.cross_entropy(logits.flatten(0, 1), labels_BPH[..., number].flatten(), ignore_index=UNKNOWN)
        for number, logits in enumerate(heads)
    ]
    shows_BP = labels_BPH[..., 0] > 0
    return torch.stack(losses).sum() + BOX_WEIGHT * (found_BP4.sigmoid() - boxes_BP4)[shows_BP].abs().mean()


def teach_patches(name: str, encoder: nn.Module, states: States, steps: int, work: Path) -> None:
    """Teach an image encoder what its patches show, or resume; its state is in `work`/NAME-patches.pt.

    The encoder stays as it is from then on, as in the readers' papers.
    """
    width = states(torch.zeros(1, 3, SIZE, SIZE)).shape[-1]
    torch.manual_seed(0)
    lesson = PatchLesson(encoder, width)

    def loss_at(step: int) -> Tensor:
        pixels, scenes, _ = batch_of_step(f"{name}-patches", step, BATCH_SIZE)
        states_BPD = states(pixels)
        side = round(states_BPD.shape[1] ** 0.5)
        labels, boxes = zip(*(patch_truth(scene, side) for scene in scenes), strict=True)
        truth: list[Any] = [torch.from_numpy(np.stack(each)) for each in (labels, boxes)]
        return patch_loss(lesson.read(states_BPD), *truth)

    plan = Plan(
        f"{name}-patches", Budget(steps=steps), peak_lr=2e-3, muon_lr=0.02, muon_prefix=LAYERS,
        decay_fraction=0.7, ema_decay=0.99, weight_decay=1e-2, save_every_seconds=60.0,
    )  # fmt: skip
    fit(lesson, loss_at, plan, work / f"{name}-patches.pt")
    encoder.requires_grad_(False)
