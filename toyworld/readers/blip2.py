"""A small BLIP-2 (Li et al. 2023, arXiv 2301.12597) that describes the toy world and answers questions about it.

Trained in the paper's two stages. First the Q-Former learns which caption belongs to which image, by contrast and by
matching (section 3.1). Then a language model learns to write what the Q-Former's queries have seen (section 3.2). The
image encoder begins as that of the toy world's CLIP, with smaller patches, as the paper's begins as EVA-CLIP's, and
stays as it is in both stages, as there. Before them it learns what its patches show, and the queries what the cells of
a coarser grid show (`lessons.py`). The paper's second stage holds a trained language model and moves the Q-Former. Here
the language model is new, so it is the other way round: what the queries tell has to stay what it is while something
learns to read it. The third loss of the paper's first stage, captions by the Q-Former itself, is left to the second
stage.

Shapes: B images, T texts, L tokens of a text, Q queries, D embedding dimensions, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    OPTConfig,
)

from toyworld.encoders import MAX_LOGIT_SCALE, contrastive_loss
from toyworld.latents import to_pixels
from toyworld.readers import lessons
from toyworld.readers.batches import SeenScenes, renderings
from toyworld.readers.questions import caption, questions, statements
from toyworld.readers.scenes import KnownScene
from toyworld.readers.words import IMAGE, MAX_LENGTH, build_writer
from toyworld.training import Budget, Plan, fit, load_average
from toyworld.world import SIZE

# The trainings, and their states.
ENCODER, QUERIES, MATCHING, WRITING = "blip2-encoder", "blip2-queries", "blip2-matching", "blip2-writing"
BATCH_SIZE = 48
# Pixels. With CLIP's patches of 8 it is hard to tell which colour of a small thing's stripes and spots is its main one.
PATCH_SIZE = 4
NUM_KEPT_PATCHES = 80  # of 256, in the image encoder's lesson
NOT_COUNTED = -100  # a label that has no loss
CELLS_WEIGHT = 0.3  # of what the queries tell of their cells, in the first stage: they are not to forget it
P_PRESENCE = 0.75  # that the question for yes or no is whether a thing is there: the hardest to learn
PROMPT = "Question: {question} Answer:"


@dataclass(frozen=True)
class Size:
    """Hold the dimensions of Q-Former and language model; the defaults are those of the shipped one."""

    num_queries: int = 16  # a square: one for each cell of a grid
    width: int = 128  # of the Q-Former; its layers are four times as wide inside
    num_layers: int = 4
    text_width: int = 128
    num_text_layers: int = 3
    embedding_dim: int = 64  # in which images and texts are compared


# -------------------------------------------------------------------------------- the networks


def build_config(clip: Any, size: Size, *, reads_text: bool) -> Any:
    """Return the config of either stage's model. reads_text: the Q-Former reads texts too, as in the first stage."""
    words = build_writer()
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    vision = clip.config.vision_config
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    image = {name: getattr(vision, name) for name in (*fields, "hidden_act", "layer_norm_eps")}
    qformer = {
        "vocab_size": len(words),
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": words.pad_token_id,
        "encoder_hidden_size": vision.hidden_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_qformer_text_input": reads_text,
    }
    text = OPTConfig(
        vocab_size=len(words), hidden_size=size.text_width, word_embed_proj_dim=size.text_width,
        ffn_dim=4 * size.text_width, num_hidden_layers=size.num_text_layers, num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH + size.num_queries, dropout=0.0, **ids,
    )  # fmt: skip
    return Blip2Config(
        vision_config={**image, "patch_size": PATCH_SIZE, "initializer_range": 0.02},
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=size.num_queries,
        image_text_hidden_size=size.embedding_dim,
        image_token_index=None if reads_text else words.convert_tokens_to_ids(IMAGE),
    )


class Matcher(nn.Module):
    """Hold the first stage's model, and what is trained with it: its contrast's temperature, the cells' reader."""

    def __init__(self, clip: Any, size: Size = Size()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Blip2ForImageTextRetrieval(build_config(clip, size, reads_text=True))
        spread_weights(self.model)
        nn.init.normal_(self.model.query_tokens, std=0.02)
        take_image_encoder(self.model.vision_model, clip.vision_model)
        self.model.vision_model.requires_grad_(False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07), as in CLIP
        self.read_cells = lessons.new_cell_reader(size.width)

    def look(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the image encoder's states, [B, P, D]."""
        seen_BPD: Tensor = self.model.vision_model(pixel_values=pixels_BCHW).last_hidden_state
        return seen_BPD

    def find(self, seen_BPD: Tensor) -> Tensor:
        """Return the states of the queries that have read the image encoder's, [B, Q, D]."""
        queries_BQD = self.model.query_tokens.expand(len(seen_BPD), -1, -1)
        found_BQD: Tensor = self.model.qformer(
            query_embeds=queries_BQD, encoder_hidden_states=seen_BPD
        ).last_hidden_state
        return found_BQD


def spread_weights(model: nn.Module) -> None:
    """Draw the matrices anew so that what they return has the spread of what they are given.

    The library's own are for large models: at these widths they let hardly anything through.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):  # that one is the embeddings
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


def take_image_encoder(own: Any, clip: Any) -> None:
    """Fill BLIP-2's image encoder with CLIP's weights.

    Its patches are smaller: of one of CLIP's filters it takes the sum over its smaller patches, so that a patch of one
    colour says the same, and positions between CLIP's. CLIP normalises its embeddings before the first layer, BLIP-2
    does not: the norm's factors go into the embeddings, divided by the spread that those of CLIP have on average over
    some renderings. CLIP's bias of keys changes no attention, and BLIP-2 has none.
    """
    norm, given, taken = clip.pre_layrnorm, clip.embeddings, own.embeddings
    with torch.no_grad():
        spread_P = given(to_pixels([scene.image for scene in renderings(16, num_processes=1)])).std(-1).mean(0)
        class_factor_D, factor_D = norm.weight / spread_P[0], norm.weight / spread_P[1:].mean()
        parts = given.patch_size // taken.patch_size
        filters = given.patch_embedding.weight.unflatten(3, (parts, -1)).unflatten(2, (parts, -1)).sum((2, 4))
        taken.patch_embedding.weight.copy_(filters * factor_D[:, None, None, None])
        taken.patch_embedding.bias.zero_()
        taken.class_embedding.copy_(given.class_embedding * class_factor_D)
        class_PD, patches_PD = given.position_embedding.weight.split([1, len(spread_P) - 1])
        patches_PD = _between(patches_PD, own.config.image_size // taken.patch_size)
        taken.position_embedding.copy_(torch.cat([class_PD * class_factor_D, patches_PD * factor_D]) + norm.bias)
        for layer, source in zip(own.encoder.layers, clip.encoder.layers, strict=True):
            for name in ("layer_norm1", "layer_norm2", "mlp"):
                getattr(layer, name).load_state_dict(getattr(source, name).state_dict())
            attention = source.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            layer.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            biases = (attention.q_proj.bias, torch.zeros_like(attention.k_proj.bias), attention.v_proj.bias)
            layer.self_attn.qkv.bias.copy_(torch.cat(biases))
            layer.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        own.post_layernorm.load_state_dict(clip.post_layernorm.state_dict())


def _between(positions_PD: Tensor, side: int) -> Tensor:
    """Return embeddings of positions for so many patches along a side, between those of a coarser square."""
    grid_DHW = positions_PD.T.unflatten(1, (round(len(positions_PD) ** 0.5), -1))
    return F.interpolate(grid_DHW[None], size=(side, side), mode="bilinear")[0].flatten(1).T


def build_writer_model(matcher: Matcher, clip: Any, size: Size = Size()) -> Any:
    """Return the second stage's model: image encoder and Q-Former of the first stage, held, a new language model."""
    torch.manual_seed(1)
    model = Blip2ForConditionalGeneration(build_config(clip, size, reads_text=False))
    spread_weights(model)
    model.vision_model.load_state_dict(matcher.model.vision_model.state_dict())
    model.vision_model.requires_grad_(False)
    own = set(model.qformer.state_dict())
    taken = {name: value for name, value in matcher.model.qformer.state_dict().items() if name in own}
    model.qformer.load_state_dict(taken)
    with torch.no_grad():
        model.query_tokens.copy_(matcher.model.query_tokens)
    model.qformer.requires_grad_(False)
    model.query_tokens.requires_grad_(False)
    return model


# -------------------------------------------------------------------------------- the first stage


def matching_loss(matcher: Matcher, seen_BPD: Tensor, scenes: Sequence[KnownScene], rng: random.Random) -> Tensor:
    """Return image-text contrast plus image-text matching, and a part of the cells' loss.

    Contrast: the cosine of a caption with the query that fits it best, against all of the batch. Matching: a true and a
    wrong statement about each image; is it true? (The paper draws the wrong ones among the others' captions.)
    """
    image_BQD = matcher.find(seen_BPD)
    cells = CELLS_WEIGHT * lessons.query_loss(matcher.read_cells(image_BQD), scenes)
    true, wrong = zip(*(statements(rng, scene) for scene in scenes), strict=True)
    match = _match(
        matcher.model, seen_BPD.repeat(2, 1, 1), [*true, *wrong], torch.arange(2 * len(scenes)) < len(scenes)
    )
    return cells + _contrast(matcher, image_BQD, [caption(scene) for scene in scenes]) + match


def _contrast(matcher: Matcher, image_BQD: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the cross entropy of which text belongs to which image, and the other way round."""
    model, tokens = matcher.model, _tokens(texts)
    text_TLD = model.qformer(
        query_embeds=model.embeddings(input_ids=tokens.input_ids), query_length=0, attention_mask=tokens.attention_mask
    ).last_hidden_state
    image_BQD = F.normalize(model.vision_projection(image_BQD).float(), dim=-1)
    text_TD = F.normalize(model.text_projection(text_TLD[:, 0]).float(), dim=-1)
    cosine_BT = torch.einsum("bqd,td->bqt", image_BQD, text_TD).amax(1)
    same_BT = torch.tensor([[one == other for other in texts] for one in texts])
    logits_BT = matcher.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * cosine_BT
    return (contrastive_loss(logits_BT, same_BT).mean() + contrastive_loss(logits_BT.T, same_BT).mean()) / 2


def _match(model: Any, seen_TPD: Tensor, texts: Sequence[str], is_true_T: Tensor) -> Tensor:
    """Return the cross entropy of whether each text is true of its image."""
    tokens = _tokens(texts)
    queries_TQD = model.query_tokens.expand(len(texts), -1, -1)
    mask_TQ = torch.ones(queries_TQD.shape[:2], dtype=tokens.attention_mask.dtype)
    found_TLD = model.qformer(
        query_embeds=model.embeddings(input_ids=tokens.input_ids, query_embeds=queries_TQD),
        query_length=queries_TQD.shape[1],
        attention_mask=torch.cat([mask_TQ, tokens.attention_mask], dim=1),
        encoder_hidden_states=seen_TPD,
    ).last_hidden_state
    logits = model.itm_head(found_TLD[:, : queries_TQD.shape[1]]).mean(1)
    return F.cross_entropy(logits.float(), is_true_T.long())


def _tokens(texts: Sequence[str]) -> Any:
    return build_writer()(list(texts), padding=True, padding_side="right", return_tensors="pt")


# -------------------------------------------------------------------------------- the second stage


def writing_loss(model: Any, found_BQD: Tensor, texts: Sequence[Sequence[tuple[str, str]]]) -> Tensor:
    """Return the mean cross entropy of what is to be written: each image's texts, as (prompt, what follows it).

    found_BQD: what the queries have found in the images.
    """
    features_BQD = model.language_projection(found_BQD)
    per_image = len(texts[0])
    ids_TL, labels_TL = token_rows([pair for pairs in texts for pair in pairs], features_BQD.shape[1])
    embeds_TLD = model.get_input_embeddings()(ids_TL)
    embeds_TLD = torch.cat([features_BQD.repeat_interleave(per_image, 0), embeds_TLD[:, features_BQD.shape[1] :]], 1)
    mask_TL = (ids_TL != build_writer().pad_token_id).long()
    logits_TLV = model.language_model(inputs_embeds=embeds_TLD, attention_mask=mask_TL).logits
    return F.cross_entropy(
        logits_TLV[:, :-1].flatten(0, 1).float(), labels_TL[:, 1:].flatten(), ignore_index=NOT_COUNTED
    )


def token_rows(pairs: Sequence[tuple[str, str]], num_queries: int) -> tuple[Tensor, Tensor]:
    """Return tokens and labels of texts, [T, L]: places of the image, begin, prompt, what follows it, end, padding."""
    words = build_writer()
    image = [words.convert_tokens_to_ids(IMAGE)] * num_queries
    rows, labels = [], []
    for prompt, text in pairs:
        head = [*image, words.bos_token_id, *words(prompt, add_special_tokens=False).input_ids]
        tail = [*words(text, add_special_tokens=False).input_ids, words.eos_token_id]
        rows.append(head + tail)
        labels.append([NOT_COUNTED] * len(head) + tail)
    longest = max(map(len, rows))
    padded = [row + [words.pad_token_id] * (longest - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor([row + [NOT_COUNTED] * (longest - len(row)) for row in labels])


# -------------------------------------------------------------------------------- training


def teach_image_encoder(
    matcher: Matcher, folder: Path, steps: int, work: Path, num_renderings: int, num_processes: int = 2
) -> None:
    """Teach the image encoder what its patches show, or resume; its state is in `work`/blip2-encoder.pt.

    folder: of the CLIP whose image encoder has had the same lesson with larger patches, by the state in `work`.
    """
    build = partial(_encoder_lesson, folder, work)
    lessons.teach_patches(ENCODER, build, steps, work, num_renderings, num_processes)
    load_average(lessons.PatchLesson(matcher.model.vision_model), work / f"{ENCODER}.pt")


def _encoder_lesson(folder: Path, work: Path) -> lessons.PatchLesson:
    encoder = Matcher(lessons.learned_clip(folder, work)).model.vision_model
    return lessons.PatchLesson(encoder.requires_grad_(True), NUM_KEPT_PATCHES)


def teach_queries(matcher: Matcher, seen: SeenScenes, steps: int, work: Path) -> None:
    """Teach the queries what their cells show, or resume; its state is in `work`/blip2-queries.pt."""

    def loss_at(step: int) -> Tensor:
        seen_BPD, scenes, _ = seen.batch(QUERIES, step, lessons.QUERIES_BATCH_SIZE)
        return lessons.query_loss(matcher.read_cells(matcher.find(seen_BPD)), scenes)

    settings = lessons.query_plan(QUERIES, steps, "model.qformer.encoder.")
    settings = replace(settings, muon_lr=0.01, decay_fraction=0.8, ema_decay=0.998)
    fit(matcher, loss_at, settings, work / f"{QUERIES}.pt")


def train_matcher(matcher: Matcher, seen: SeenScenes, steps: int, work: Path) -> None:
    """Train the first stage, or resume; its state is in `work`/blip2-matching.pt."""

    def loss_at(step: int) -> Tensor:
        return matching_loss(matcher, *seen.batch(MATCHING, step, BATCH_SIZE))

    settings = replace(plan(MATCHING, steps, "model.qformer.encoder."), muon_lr=0.01)
    fit(matcher, loss_at, settings, work / f"{MATCHING}.pt")


def train_writer(model: Any, found: SeenScenes, steps: int, work: Path) -> None:
    """Train the second stage, or resume; its state is in `work`/blip2-writing.pt. found: with the queries' states."""

    def loss_at(step: int) -> Tensor:
        found_BQD, scenes, rng = found.batch(WRITING, step, BATCH_SIZE)
        return writing_loss(model, found_BQD, [texts_of(rng, scene) for scene in scenes])

    fit(model, loss_at, plan(WRITING, steps, "language_model.model.decoder.layers."), work / f"{WRITING}.pt")


def texts_of(rng: random.Random, scene: KnownScene) -> list[tuple[str, str]]:
    """Return a scene's caption, one question for yes or no and one other with answers, as (prompt, what follows it)."""
    asked = {question.kind: question for question in questions(rng, scene)}
    yes_or_no = asked.pop("presence"), asked.pop("setting")
    chosen = [yes_or_no[rng.random() >= P_PRESENCE], rng.choice(list(asked.values()))]
    return [("", caption(scene)), *((PROMPT.format(question=each.text), each.answer) for each in chosen)]


def plan(name: str, steps: int, muon_prefix: str | tuple[str, ...]) -> Plan:
    """Return how a stage is trained. muon_prefix: names of the layers whose matrices Muon moves begin so."""
    return Plan(
        name, Budget(steps=steps), peak_lr=1e-3, muon_lr=0.02, muon_prefix=muon_prefix, decay_fraction=0.7,
        ema_decay=0.99, weight_decay=1e-2, betas=(0.9, 0.98), save_every_seconds=60.0,
    )  # fmt: skip


def trained_matcher(clip: Any, work: Path) -> Matcher:
    """Return the first stage's model with the averaged weights of its training so far."""
    matcher = Matcher(clip)
    load_average(matcher, work / f"{MATCHING}.pt")
    return matcher.eval()


def save(model: Any, folder: Path) -> None:
    """Write a model in half precision with its processor."""
    from transformers import Blip2Processor, BlipImageProcessor

    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    halves = [0.5, 0.5, 0.5]  # pixels in -1..1, as everywhere here
    images = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE}, resample=3, do_rescale=True, image_mean=halves, image_std=halves
    )
    reads_places = model.config.image_token_index is not None
    queries = model.config.num_query_tokens if reads_places else None
    Blip2Processor(images, copy.deepcopy(build_writer()), num_query_tokens=queries).save_pretrained(folder)
