"""Teach a reader's image encoder and its queries what each part of an image shows, by the renderer's truth.

The published readers begin with image encoders that were trained on hundreds of millions of images, and their queries
see as many. These two lessons stand for it. The image is cut into cells: the patches of the encoder, then a coarser
grid with one cell for each query. A linear layer tells, from a patch's or a query's state alone, the place and the
thing that covers most of the cell: its class, colours, pattern and box.

Shapes: B images, P cells (patches, then queries), D channels, H heads, K labels of all heads together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toyworld.palette import COLOURS
from toyworld.readers.batches import batch_of_step
from toyworld.readers.scenes import KnownScene
from toyworld.scenes import PLACES
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
    "place": PLACES,
}
MIN_COVERED = 0.25  # of a cell, from which on it shows a thing
UNKNOWN = -100  # the label of a cell without a thing, but for its class and place
BOX_WEIGHT = 5.0  # of the box's mean error, a fraction of the image's side

Reading = Callable[[Tensor], Tensor]  # of pixels [B, 3, H, W]: what is told of the cells, [B, P, K]


def new_cell_reader(width: int) -> nn.Linear:
    """Return the linear layer that tells what a cell shows from its state of `width` channels."""
    return nn.Linear(width, sum(map(len, HEADS.values())) + 4)


def cell_truth(scene: KnownScene, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the cells, int64 [P, H], and the boxes of their things in 0..1, float32 [P, 4].

    side: cells along a side of the image. A cell belongs to the thing that covers most of it.
    """
    labels = np.full((side * side, len(HEADS)), UNKNOWN, dtype=np.int64)
    labels[:, 0], labels[:, -1] = 0, PLACES.index(scene.place)
    boxes = np.zeros((side * side, 4), dtype=np.float32)
    covered = np.stack([_by_cell(thing.mask, side) for thing in scene.things])
    for number, thing in enumerate(scene.things):
        own = (covered.argmax(0) == number) & (covered[number] >= MIN_COVERED)
        for head, name in enumerate(list(HEADS)[:-1]):
            labels[own, head] = HEADS[name].index(getattr(thing, name))
        boxes[own] = np.array(thing.box, dtype=np.float32) / SIZE
    return labels, boxes


def _by_cell(mask: np.ndarray, side: int) -> np.ndarray:
    """Return the part of each cell that a mask covers, [P]."""
    step = SIZE // side
    means: np.ndarray = mask.reshape(side, step, side, step).mean((1, 3)).reshape(-1)
    return means


def cell_loss(read_BPK: Tensor, scenes: Sequence[KnownScene]) -> Tensor:
    """Return the cross entropy of every head, and the mean error of the boxes of cells that show a thing."""
    side = round(read_BPK.shape[1] ** 0.5)
    labels, boxes = zip(*(cell_truth(scene, side) for scene in scenes), strict=True)
    labels_BPH, boxes_BP4 = torch.from_numpy(np.stack(labels)), torch.from_numpy(np.stack(boxes))
    *heads, found_BP4 = read_BPK.split([*map(len, HEADS.values()), 4], dim=-1)
    losses = [
        F.cross_entropy(logits.flatten(0, 1), labels_BPH[..., number].flatten(), ignore_index=UNKNOWN)
        for number, logits in enumerate(heads)
    ]
    shows_BP = labels_BPH[..., 0] > 0
    return torch.stack(losses).sum() + BOX_WEIGHT * (found_BP4.sigmoid() - boxes_BP4)[shows_BP].abs().mean()


class PatchLesson(nn.Module):
    """Hold the image encoder of a CLIPModel and the layer that reads its patches; the layer is not kept."""

    def __init__(self, encoder: Any, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.read_cells = new_cell_reader(width)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        seen_BPD = self.encoder.post_layernorm(self.encoder(pixel_values=pixels_BCHW).last_hidden_state)
        told: Tensor = self.read_cells(seen_BPD[:, 1:])  # no class token
        return told


def teach_patches(clip: Any, drawn: Sequence[KnownScene], steps: int, work: Path) -> None:
    """Teach the image encoder of a CLIPModel what its patches show, or resume; its state is in `work`/patches.pt."""
    torch.manual_seed(0)
    lesson = PatchLesson(clip.vision_model, clip.config.vision_config.hidden_size)
    teach("patches", lesson, lesson, drawn, steps, work, ("encoder.encoder.",))


def teach(
    name: str, module: nn.Module, read: Reading, drawn: Sequence[KnownScene], steps: int, work: Path,
    muon_prefix: tuple[str, ...],
) -> None:  # fmt: skip
    """Train a module on what its cells show, or resume; its state is in `work`/NAME.pt.

    muon_prefix: names of the layers whose matrices Muon moves begin so.
    """

    def loss_at(step: int) -> Tensor:
        pixels, scenes, _ = batch_of_step(name, step, BATCH_SIZE, drawn)
        return cell_loss(read(pixels), scenes)

    plan = Plan(
        name, Budget(steps=steps), peak_lr=2e-3, muon_lr=0.02, muon_prefix=muon_prefix, decay_fraction=0.7,
        ema_decay=0.99, weight_decay=1e-2, save_every_seconds=60.0,
    )  # fmt: skip
    fit(module, loss_at, plan, work / f"{name}.pt")
