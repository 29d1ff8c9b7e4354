"""Teach a reader's image encoder and its queries what each part of an image shows, by the renderer's truth.

The published readers begin with image encoders that were trained on hundreds of millions of images, and their queries
see as many. These two lessons stand for it. The image is cut into cells: the patches of the encoder, then a coarser
grid with one cell for each query. A linear layer tells, from a patch's or a query's state alone, the place and the
thing that covers most of the cell: its class, colours, pattern and box.

Shapes: B images, P cells (patches, then queries), D channels, H heads, K labels of all heads together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModel

from toyworld.palette import COLOURS
from toyworld.readers.batches import batch_of_step, renderings
from toyworld.readers.scenes import KnownScene
from toyworld.scenes import PLACES
from toyworld.second.things import CLASSES
from toyworld.training import Budget, Plan, fit, load_average, rank_and_world, run_in_processes
from toyworld.world import PATTERNS, SIZE

PATCHES = "patches"  # the image encoder's lesson, and its state
NUM_RENDERINGS = 60_000  # from which each of its processes draws
BATCH_SIZE = 64  # over all processes
# Patches of an image that the image encoder's lesson sees. With 64 in all nearly all that show a thing are among them.
NUM_KEPT = 36
PREFERENCE = 0.7  # for patches that show a thing
P_RECOLOURED = 0.25  # of the images of the image encoder's lesson
QUERIES_BATCH_SIZE = 48
BACKGROUND = "background"
HEADS: dict[str, tuple[str, ...]] = {
    "class_noun": (BACKGROUND, *CLASSES),
    "main": tuple(COLOURS),
    "second": tuple(COLOURS),
    "pattern": PATTERNS,
    "place": PLACES,
}
MIN_COVERED = 0.25  # of a cell, from which on it shows a thing
UNKNOWN = -100  # a label that has no loss: a cell without a thing has only class and place
BOX_WEIGHT = 5.0  # of the box's mean error, a fraction of the image's side


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
    covered = np.stack([by_cell(thing.mask, side) for thing in scene.things])
    for number, thing in enumerate(scene.things):
        own = (covered.argmax(0) == number) & (covered[number] >= MIN_COVERED)
        for head, name in enumerate(list(HEADS)[:-1]):
            labels[own, head] = HEADS[name].index(getattr(thing, name))
        boxes[own] = np.array(thing.box, dtype=np.float32) / SIZE
    return labels, boxes


def by_cell(mask: np.ndarray, side: int) -> np.ndarray:
    """Return the part of each cell that a mask covers, [P]."""
    step = SIZE // side
    means: np.ndarray = mask.reshape(side, step, side, step).mean((1, 3)).reshape(-1)
    return means


def cells_of(scenes: Sequence[KnownScene], side: int) -> tuple[Tensor, Tensor]:
    """Return the labels of the cells of several scenes, [B, P, H], and the boxes of their things, [B, P, 4]."""
    labels, boxes = zip(*(cell_truth(scene, side) for scene in scenes), strict=True)
    return torch.from_numpy(np.stack(labels)), torch.from_numpy(np.stack(boxes))


def cell_loss(read_BPK: Tensor, labels_BPH: Tensor, boxes_BP4: Tensor) -> Tensor:
    """Return the cross entropy of every head, and the mean error of the boxes of cells that show a thing."""
    *heads, found_BP4 = read_BPK.split([*map(len, HEADS.values()), 4], dim=-1)
    losses = [
        F.cross_entropy(logits.flatten(0, 1), labels_BPH[..., number].flatten(), ignore_index=UNKNOWN)
        for number, logits in enumerate(heads)
    ]
    shows_BP = labels_BPH[..., 0] > 0
    return torch.stack(losses).sum() + BOX_WEIGHT * (found_BP4.sigmoid() - boxes_BP4)[shows_BP].abs().mean()


# -------------------------------------------------------------------------------- the image encoder


class PatchLesson(nn.Module):
    """Hold the image encoder of a CLIP or a BLIP-2 and the layer that reads its patches; the layer is not kept."""

    def __init__(self, encoder: Any, num_kept: int = NUM_KEPT) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_kept = num_kept
        self.read_cells = new_cell_reader(encoder.config.hidden_size)

    def forward(self, pixels_BCHW: Tensor, kept_BP: Tensor) -> Tensor:
        """Return what is told of the patches of these numbers; the encoder sees no others (FLIP, arXiv 2212.00794)."""
        states_BPD = self.encoder.embeddings(pixels_BCHW)  # the class token before the patches
        with_class_BP = torch.cat([torch.zeros_like(kept_BP[:, :1]), 1 + kept_BP], dim=1)
        states_BPD = _pick(states_BPD, with_class_BP)
        if isinstance(self.encoder, CLIPVisionModel):
            states_BPD = self.encoder.pre_layrnorm(states_BPD)
        seen_BPD = self.encoder.post_layernorm(self.encoder.encoder(inputs_embeds=states_BPD).last_hidden_state)
        told: Tensor = self.read_cells(seen_BPD[:, 1:])
        return told


def patch_loss(lesson: PatchLesson, pixels_BCHW: Tensor, scenes: Sequence[KnownScene]) -> Tensor:
    """Return the loss of some patches of each image, the first images recoloured: their shapes alone are asked for.

    Otherwise the encoder tells classes by colours too: training holds back a part of the colours of each class.
    """
    vision = lesson.encoder.config
    labels_BPH, boxes_BP4 = cells_of(scenes, vision.image_size // vision.patch_size)
    num_recoloured = round(P_RECOLOURED * len(scenes))
    pixels_BCHW = torch.cat([recolour(pixels_BCHW[:num_recoloured]), pixels_BCHW[num_recoloured:]])
    for head in ("main", "second", "place"):
        labels_BPH[:num_recoloured, :, list(HEADS).index(head)] = UNKNOWN
    order_BP = PREFERENCE * (labels_BPH[..., 0] > 0) + torch.rand(labels_BPH.shape[:2])
    kept_BP = order_BP.topk(min(lesson.num_kept, order_BP.shape[1]), dim=1).indices
    return cell_loss(lesson(pixels_BCHW, kept_BP), _pick(labels_BPH, kept_BP), _pick(boxes_BP4, kept_BP))


def recolour(pixels_BCHW: Tensor) -> Tensor:
    """Return images with their channels permuted, some of them inverted, and all drawn towards their mean."""
    mixes = [torch.eye(3)[torch.randperm(3)] * (1 - 2 * torch.randint(0, 2, (3, 1))) for _ in pixels_BCHW]
    mix_B33, towards_B11 = torch.stack(mixes), 0.6 * torch.rand(len(mixes), 1, 1)
    mix_B33 = torch.lerp(mix_B33, mix_B33.mean(1, keepdim=True).expand_as(mix_B33), towards_B11)
    return torch.einsum("bij,bjhw->bihw", mix_B33, pixels_BCHW)


def _pick(rows_BPX: Tensor, kept_BK: Tensor) -> Tensor:
    return rows_BPX.gather(1, kept_BK[..., None].expand(-1, -1, rows_BPX.shape[-1]))


def taught_clip(
    folder: Path, steps: int, work: Path, num_renderings: int = NUM_RENDERINGS, num_processes: int = 2
) -> Any:
    """Return the CLIPModel of a folder whose image encoder has learned what its patches show.

    Trains it first, or resumes; its state is in `work`/patches.pt. num_renderings: from which each process draws.
    """
    teach_patches(PATCHES, partial(_clip_lesson, folder), steps, work, num_renderings, num_processes)
    return learned_clip(folder, work)


def learned_clip(folder: Path, work: Path) -> Any:
    """Return the CLIPModel of a folder with the image encoder of the lesson so far, whose state is in `work`."""
    clip = read_clip(folder)
    load_average(PatchLesson(clip.vision_model), work / f"{PATCHES}.pt")
    return clip


def _clip_lesson(folder: Path) -> PatchLesson:
    return PatchLesson(read_clip(folder).vision_model)


def teach_patches(
    name: str, build: Callable[[], PatchLesson], steps: int, work: Path, num_renderings: int, num_processes: int
) -> None:
    """Train an image encoder on what its patches show, or resume; its state is in `work`, by the lesson's name.

    build: returns the lesson as it begins, in each of the processes; each draws from so many renderings of its own.
    """
    run_in_processes(num_processes, _teach_patches, name, build, steps, work, num_renderings)


def _teach_patches(name: str, build: Callable[[], PatchLesson], steps: int, work: Path, num_renderings: int) -> None:
    rank, num_processes = rank_and_world()
    path = work / f"{name}.pt"
    if path.is_file() and torch.load(path, map_location="cpu", weights_only=True)["step"] >= steps:
        return
    torch.manual_seed(0)
    lesson = build()
    drawn = renderings(num_renderings, num_processes=1, first=rank * num_renderings)

    def loss_at(step: int) -> Tensor:
        pixels, scenes, _ = batch_of_step(f"{name} {rank}", step, BATCH_SIZE // num_processes, drawn)
        return patch_loss(lesson, pixels, scenes)

    plan = Plan(
        name, Budget(steps=steps), peak_lr=1e-3, muon_lr=0.01, muon_prefix="encoder.encoder.", decay_fraction=0.7,
        weight_decay=1e-2, save_every_seconds=60.0,
    )  # fmt: skip
    fit(lesson, loss_at, plan, path)


def read_clip(folder: Path) -> Any:
    return CLIPModel.from_pretrained(folder, dtype=torch.float32)


# -------------------------------------------------------------------------------- the queries


def query_plan(name: str, steps: int, muon_prefix: str) -> Plan:
    """Return how queries are taught. muon_prefix: names of the layers whose matrices Muon moves begin so."""
    return Plan(
        name, Budget(steps=steps), peak_lr=2e-3, muon_lr=0.02, muon_prefix=muon_prefix, decay_fraction=0.7,
        ema_decay=0.99, weight_decay=1e-2, save_every_seconds=60.0,
    )  # fmt: skip


def query_loss(read_BQK: Tensor, scenes: Sequence[KnownScene]) -> Tensor:
    """Return the loss of what queries tell, one for each cell of a square grid."""
    return cell_loss(read_BQK, *cells_of(scenes, round(read_BQK.shape[1] ** 0.5)))
