"""A small SegFormer (Xie et al. 2021, arXiv 2105.15203): which pixels of an image belong to a thing of which class?

Trained from scratch on renderings of both editions, whose masks are known, softened ones too. The published ones
reduce an image fourfold before the first layer; at 64 pixels that would lose arms and tails, so it is twofold here.
A CLIPSeg over the toy world's CLIP, which reads any text, was tried first: it had learned next to nothing in the time
that this one takes.

Shapes: B images, K labels, H/W pixels, h/w those of the logits.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from toyworld.encoder_batches import augment, blur
from toyworld.latents import to_pixels
from toyworld.readers.figures import Figure, mean
from toyworld.readers.scenes import KnownScene, seen_scene, unseen_scene
from toyworld.second.things import CLASSES
from toyworld.training import Budget, Plan, fit, load_average
from toyworld.world import SIZE

NAME = "segmenter"
BATCH_SIZE = 32
LABELS = ("background", *CLASSES)
MIN_IOU = 0.85  # the gate


@dataclass(frozen=True)
class Size:
    """Hold the dimensions of the four stages and of the decoder; the defaults are those of the shipped one."""

    widths: tuple[int, ...] = (16, 32, 64, 96)
    depths: tuple[int, ...] = (1, 1, 2, 2)
    decoder_width: int = 48


def build_segmenter(size: Size = Size()) -> Any:
    """Return an untrained SegformerForSemanticSegmentation; the same on every call."""
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=list(size.widths),
        depths=list(size.depths),
        strides=[2, 2, 2, 2],
        patch_sizes=[5, 3, 3, 3],
        num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=size.decoder_width,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
        mask_threshold=0.5,
    )
    model = SegformerForSemanticSegmentation(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # the library's own lets hardly anything through
            nn.init.kaiming_normal_(module.weight)
    return model


def label_logits(model: Any, pixels_BCHW: Tensor) -> Tensor:
    """Return the logits of each pixel's label, [B, K, H, W]."""
    logits_BKhw = model(pixel_values=pixels_BCHW).logits
    return F.interpolate(logits_BKhw, pixels_BCHW.shape[-2:], mode="bilinear", align_corners=False)


# -------------------------------------------------------------------------------- what it learns from


def label_map(scene: KnownScene) -> np.ndarray:
    """Return which part of each pixel belongs to each label, float32 [K, H, W] that sums to 1 over the labels."""
    found = np.zeros((len(LABELS), SIZE, SIZE), dtype=np.float32)
    for thing in scene.things:
        found[LABELS.index(thing.class_noun)] += thing.mask
    found[0] = np.clip(1 - found.sum(0), 0, 1)
    return found / found.sum(0)


def batch_of_step(step: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Return pixels [B, 3, H, W] in -1..1 and label maps [B, K, H, W] of a training step; the same on every call."""
    rng = random.Random(f"{NAME} {step}")
    scenes = [seen_scene(rng) for _ in range(num_images)]
    pixels = to_pixels([scene.image for scene in scenes])
    torch.manual_seed(step)
    return augment(pixels, blur(pixels, rng)), torch.from_numpy(np.stack([label_map(scene) for scene in scenes]))


def label_loss(logits_BKHW: Tensor, labels_BKHW: Tensor) -> Tensor:
    """Return the mean cross entropy of the pixels' labels; pixels at a border belong to two in part."""
    return F.cross_entropy(logits_BKHW, labels_BKHW)


def train(steps: int, work: Path) -> None:
    """Train the segmenter, or resume; its state is in `work`/segmenter.pt."""
    model = build_segmenter()

    def loss_at(step: int) -> Tensor:
        pixels, labels = batch_of_step(step, BATCH_SIZE)
        return label_loss(label_logits(model, pixels), labels)

    plan = Plan(
        NAME, Budget(steps=steps), peak_lr=2e-3, muon_lr=0.02, muon_prefix="segformer.", decay_fraction=0.7,
        ema_decay=0.99, weight_decay=1e-2,
    )  # fmt: skip
    fit(model, loss_at, plan, work / f"{NAME}.pt")


def trained(work: Path) -> Any:
    """Return the segmenter with the averaged weights of its training so far."""
    model = build_segmenter()
    load_average(model, work / f"{NAME}.pt")
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """Write the segmenter in half precision, with its image processor."""
    from transformers import SegformerImageProcessor

    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    halves = [0.5, 0.5, 0.5]  # pixels in -1..1, as everywhere here
    square = {"height": SIZE, "width": SIZE}
    SegformerImageProcessor(size=square, resample=3, image_mean=halves, image_std=halves).save_pretrained(folder)


# -------------------------------------------------------------------------------- what it has learned


def iou(found: np.ndarray, true: np.ndarray) -> float:
    """Return the intersection over the union of two masks, 0 to 1; 1 where both are empty."""
    union = np.logical_or(found, true).sum()
    return float(np.logical_and(found, true).sum() / union) if union else 1.0


def measure(find: Any, num_images: int = 300, seed: int = 0) -> list[Figure]:
    """Return the mean IoU on renderings of things in colours that no training image shows on their class.

    find: gives the masks for images and texts, one each: bool [H, W], as large as the images.
    """
    rng = random.Random(f"{NAME} gate {seed}")
    scenes = [unseen_scene(rng) for _ in range(num_images)]
    named = [(scene, thing.class_noun, thing.mask > 0.5) for scene in scenes for thing in scene.things]
    found = find([scene.image for scene, _, _ in named], [f"a {noun}" for _, noun, _ in named])
    each = [iou(mask, true) for mask, (_, _, true) in zip(found, named, strict=True)]
    alone = [value for value, (scene, _, _) in zip(each, named, strict=True) if len(scene.things) == 1]
    among = [value for value, (scene, _, _) in zip(each, named, strict=True) if len(scene.things) > 1]
    subjects = find([scene.image for scene in scenes], ["subject"] * num_images)
    wholes = [np.sum([thing.mask for thing in scene.things], axis=0) > 0.5 for scene in scenes]
    absent = [rng.choice([noun for noun in CLASSES if noun not in _nouns(scene)]) for scene in scenes]
    none = find([scene.image for scene in scenes], [f"a {noun}" for noun in absent])
    return [
        Figure("IoU of a thing, by its class noun", mean(each), MIN_IOU),
        Figure("of a thing alone in its image", mean(alone), MIN_IOU),
        Figure("of one of two or three things", mean(among)),
        Figure(
            'IoU of all things together, by "subject"',
            mean(iou(mask, true) for mask, true in zip(subjects, wholes, strict=True)),
            MIN_IOU,
        ),
        Figure("how often nothing is found of a class that is not there", mean([mask.mean() < 0.01 for mask in none])),
    ]


def _nouns(scene: KnownScene) -> set[str]:
    return {thing.class_noun for thing in scene.things}
