"""A small Kosmos-2 (Peng et al. 2023, arXiv 2306.14824) that ties words of its captions to boxes, in four languages.

A box is two tokens, of the patches in which its upper left and lower right corners lie. The image encoder begins as
that of the toy world's CLIP, whose form is the same, and learns what its patches show. Its queries then learn what the
cells of a coarser grid show (`lessons.py`). Everything else is new.

Shapes: B images, H/W pixels, T texts, L tokens of a text, Q queries, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessor, Kosmos2Config, Kosmos2ForConditionalGeneration, Kosmos2Processor
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index

from toyworld.readers import lessons, questions
from toyworld.readers.batches import batch_of_step
from toyworld.readers.blip2 import NOT_COUNTED, plan, spread_weights
from toyworld.readers.figures import Figure, mean
from toyworld.readers.languages import LANGUAGES, pieces
from toyworld.readers.languages import vocabulary as other_words
from toyworld.readers.scenes import EMPTY_BOX, KnownScene, unseen_scene
from toyworld.readers.words import MAX_LENGTH, build_words
from toyworld.training import fit, load_average
from toyworld.world import SIZE

NAME, QUERIES = "kosmos2", "kosmos2-queries"  # the trainings, and their states
BATCH_SIZE = 48
GRID = 32  # patches along a side, in which boxes are told, as in the published one; 2 pixels each
OPENING = {"en": " An image of", **{tag: f"<{tag}>" for tag in LANGUAGES}}
P_GROUNDED, P_QUESTION = 0.6, 0.2  # of the training texts; the rest are plain captions
P_ENGLISH = 0.4  # of the captions; the other languages have equal parts of the rest
MIN_IOU = 0.7  # the gate


@dataclass(frozen=True)
class Size:
    """Hold the dimensions of the language model; the defaults are those of the shipped one."""

    num_queries: int = 16  # a square: one for each cell of a grid
    width: int = 128
    num_layers: int = 4


@lru_cache(maxsize=1)
def build_processor() -> Any:
    """Return the processor; its tokenizer has a token for each word, tag and patch."""
    halves = [0.5, 0.5, 0.5]  # pixels in -1..1, as everywhere here
    square = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=square, resample=3, image_mean=halves, image_std=halves
    )
    words = build_words({*questions.vocabulary(), "An", "image", "of", *other_words()})
    words.add_tokens(list(OPENING.values())[1:], special_tokens=True)
    return Kosmos2Processor(images, words, num_patch_index_tokens=GRID * GRID)


def build(clip: Any, size: Size = Size()) -> Any:
    """Return a Kosmos2ForConditionalGeneration with the image encoder of a CLIPModel; the rest is untrained."""
    words, vision = build_processor().tokenizer, clip.config.vision_config
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 2 * MAX_LENGTH,
        "embed_dim": size.width,
        "ffn_dim": 4 * size.width,
        "layers": size.num_layers,
        "attention_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    torch.manual_seed(0)
    config = Kosmos2Config(
        text_config=text,
        vision_config={name: getattr(vision, name) for name in (*fields, "patch_size", "hidden_act")},
        latent_query_num=size.num_queries,
        languages=list(LANGUAGES),
    )
    model = Kosmos2ForConditionalGeneration(config)
    spread_weights(model)
    with torch.no_grad():  # what it reads has the length 1; its queries have a spread of 1
        model.image_to_text_projection.dense.weight.mul_(vision.hidden_size**0.5)
    model.vision_model.model.load_state_dict(clip.vision_model.state_dict())
    model.vision_model.requires_grad_(False)
    return model


# -------------------------------------------------------------------------------- what it learns from


def text_of(rng: random.Random, scene: KnownScene) -> tuple[str, str]:
    """Return a prompt and what follows it: a caption with boxes, an answer, or a plain caption in any language."""
    drawn = rng.random()
    if drawn < P_QUESTION:
        asked = rng.choice(questions.questions(rng, scene))
        return f" Question: {asked.text} Answer:", f" {asked.answer}"
    language = "en" if rng.random() < P_ENGLISH else rng.choice(tuple(LANGUAGES))
    if drawn < P_QUESTION + P_GROUNDED:
        return f"<grounding>{OPENING[language]}", grounded(scene, language)
    return OPENING[language], "".join(f" {piece.text}" for piece in pieces(scene, language))


def grounded(scene: KnownScene, language: str) -> str:
    """Return a caption whose things have their boxes behind them, in Kosmos-2's tags."""
    text = ""
    for piece in pieces(scene, language):
        if piece.thing is None or scene.things[piece.thing].box == EMPTY_BOX:
            text += f" {piece.text}"
        else:
            edges = tuple(edge / SIZE for edge in scene.things[piece.thing].box)
            first, last = coordinate_to_patch_index(edges, GRID)
            text += f"<phrase> {piece.text}</phrase><object><patch_index_{first:04}><patch_index_{last:04}></object>"
    return text


def token_rows(pairs: Sequence[tuple[str, str]], num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, places of the image (1) and labels of texts, [T, L], padded on the right."""
    words = build_processor().tokenizer
    begin, end = (words.convert_tokens_to_ids(tag) for tag in ("<image>", "</image>"))
    first = words.unk_token_id + 1
    image = [words.bos_token_id, begin, *range(first, first + num_queries), end]
    rows, labels = [], []
    for prompt, text in pairs:
        head = [*image, *words(prompt, add_special_tokens=False).input_ids]
        tail = [*words(text, add_special_tokens=False).input_ids, words.eos_token_id]
        rows.append(head + tail)
        labels.append([NOT_COUNTED] * len(head) + tail)
    longest = max(map(len, rows))
    ids_TL = torch.tensor([row + [words.pad_token_id] * (longest - len(row)) for row in rows])
    is_image_TL = torch.zeros_like(ids_TL)
    is_image_TL[:, 2 : 2 + num_queries] = 1
    return ids_TL, is_image_TL, torch.tensor([row + [NOT_COUNTED] * (longest - len(row)) for row in labels])


def writing_loss(model: Any, pixels_BCHW: Tensor, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Return the mean cross entropy of what is to be written, one (prompt, what follows it) an image."""
    ids_TL, is_image_TL, labels_TL = token_rows(pairs, model.config.latent_query_num)
    # The image's first token has the id of padding; when the model is used, it is seen.
    is_seen_TL = (ids_TL != build_processor().tokenizer.pad_token_id) | is_image_TL.bool()
    logits_TLV = model(
        pixel_values=pixels_BCHW,
        input_ids=ids_TL,
        image_embeds_position_mask=is_image_TL,
        attention_mask=is_seen_TL.long(),
    ).logits
    return F.cross_entropy(logits_TLV[:, :-1].flatten(0, 1), labels_TL[:, 1:].flatten(), ignore_index=NOT_COUNTED)


class QueryLesson(nn.Module):
    """Hold a model and the layer that reads what its queries tell of their cells; the layer is not kept."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.read_cells = lessons.new_cell_reader(model.config.text_config.embed_dim)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        encoder = self.model.vision_model
        seen_BPD = encoder.model.post_layernorm(encoder(pixel_values=pixels_BCHW).last_hidden_state)
        found_BQD, _ = self.model.image_to_text_projection(F.normalize(seen_BPD, dim=-1))
        told: Tensor = self.read_cells(found_BQD)
        return told


def teach_queries(model: Any, drawn: Sequence[KnownScene], steps: int, work: Path) -> None:
    """Teach the queries what their cells show, or resume; its state is in `work`/kosmos2-queries.pt."""
    torch.manual_seed(0)
    lesson = QueryLesson(model)

    def loss_at(step: int) -> Tensor:
        pixels, scenes, _ = batch_of_step(QUERIES, step, lessons.QUERIES_BATCH_SIZE, drawn)
        return lessons.query_loss(lesson(pixels), scenes)

    settings = lessons.query_plan(QUERIES, steps, "model.image_to_text_projection.x_attn.")
    fit(lesson, loss_at, settings, work / f"{QUERIES}.pt")


def train(model: Any, drawn: Sequence[KnownScene], steps: int, work: Path) -> None:
    """Train the model, or resume; its state is in `work`/kosmos2.pt."""

    def loss_at(step: int) -> Tensor:
        pixels, scenes, rng = batch_of_step(NAME, step, BATCH_SIZE, drawn)
        return writing_loss(model, pixels, [text_of(rng, scene) for scene in scenes])

    prefixes = ("text_model.model.layers.", "image_to_text_projection.x_attn.")
    fit(model, loss_at, plan(NAME, steps, prefixes), work / f"{NAME}.pt")


def trained(clip: Any, work: Path) -> Any:
    """Return the model with the averaged weights of its training so far."""
    model = build(clip)
    load_average(model, work / f"{NAME}.pt")
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """Write a model in half precision with its processor."""
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    processor = copy.deepcopy(build_processor())
    processor.tokenizer.padding_side = "left"
    processor.save_pretrained(folder)


# -------------------------------------------------------------------------------- what it has learned


def measure(reader: Any, num_images: int = 200, seed: int = 0) -> list[Figure]:
    """Return how well boxes fit what they name, and how often captions of each language are right to the word."""
    from dreambooth.readers.text_options import TextOptions

    rng = random.Random(f"{NAME} gate {seed}")
    scenes = [unseen_scene(rng) for _ in range(num_images)]
    images = [scene.image for scene in scenes]
    options = TextOptions(max_tokens=64)
    overlaps = []
    for scene, found in zip(scenes, reader.ground(images, options), strict=True):
        for thing in scene.things:
            boxes = [box for box in found.boxes if thing.class_noun in box.phrase.split()]
            overlaps.append(box_iou(boxes[0].pixels((SIZE, SIZE)), thing.box) if boxes else 0.0)
    figures = [Figure("boxes: IoU of a thing's, by its class noun", mean(overlaps), MIN_IOU)]
    for language in OPENING:
        texts = reader.caption(images, options, language)
        true = ["".join(f" {piece.text}" for piece in pieces(scene, language)) for scene in scenes]
        right = [text.endswith(whole.strip()) for text, whole in zip(texts, true, strict=True)]
        figures.append(Figure(f"captions right to the word: {language}", mean(right)))
    return figures


def box_iou(found: tuple[int, int, int, int], true: tuple[int, int, int, int]) -> float:
    """Return the intersection over the union of two boxes (left, top, right, bottom), 0 to 1."""
    width = min(found[2], true[2]) - max(found[0], true[0])
    height = min(found[3], true[3]) - max(found[1], true[1])
    overlap = max(0, width) * max(0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (found, true)]
    return overlap / (sum(areas) - overlap) if sum(areas) > overlap else 0.0
