"""Two small metric encoders of our own, in the shapes of the models that the field measures with.

`clip` is a CLIPModel (Radford et al. 2021, arXiv 2103.00020): does an image show what its prompt says? `vit` is a
ViTModel that plays DINO's part: do two images show the same object? Both are trained from scratch on renders, whose
truth is known, so that code that measures with DINO and CLIP runs without a download.

Shapes: B images, T texts, H/W pixels, D embedding dimensions, K labels of a head, Q questions (the heads), N rows and
M columns of a similarity matrix.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from dreambooth.errors import UserError
from toyworld import encoder_batches, judge
from toyworld.editions import FIRST, SECOND, Edition
from toyworld.encoder_batches import augment, blur, noisy_round_trip
from toyworld.judge import NO_ANSWER
from toyworld.second import encoder_batches as second_batches
from toyworld.second import judge_training
from toyworld.tokenizer import MAX_LENGTH, build_tokenizer
from toyworld.training import Budget, Plan, fit, load_average
from toyworld.world import SIZE

NAMES = ("vit", "clip")  # in this order: CLIP begins as the ViT
PATCH_SIZE = 8  # pixels
TEMPERATURE_SAME_OBJECT = 0.1
TEMPERATURE_SAME_CLASS = 0.2
# Of the loss term for objects of one class: only it says that a robot is more like another robot than like a teapot.
WEIGHT_SAME_CLASS = 1.0
MAX_LOGIT_SCALE = 4.6052  # ln 100, as in the paper
SOFT_BATCH_EVERY = 4  # steps; one batch in so many went through the autoencoder,
SOFT_BATCH_USES = 4  # and each of those is used so often, since decoding takes five times as long as a step


class Batch(Protocol):
    """Hold images of which 2i and 2i + 1 show one object, with their truth."""

    @property
    def pixels_BCHW(self) -> Tensor: ...  # noqa: N802

    def truth(self) -> dict[str, Tensor]:
        """Return the number of the right answer to every question, [B]; NO_ANSWER where there is none."""

    def captions(self, rng: random.Random) -> tuple[list[str], Tensor]:
        """Return T = B captions, and whether each is true of each image, bool [B, T]."""


@dataclass(frozen=True)
class Lessons:
    """Hold what the encoders of an edition learn from."""

    edition: Edition
    questions: Mapping[str, Mapping[str, Sequence[str]]]  # by encoder, with their answers
    draw: Callable[[random.Random, int], Batch]  # of so many objects, each alone
    draw_for_texts: Callable[[random.Random, int], Batch]  # for CLIP
    near_miss: Callable[[random.Random, Any], Any]  # another object that differs in one thing


def _but(questions: Mapping[str, Sequence[str]], *names: str) -> dict[str, Sequence[str]]:
    return {name: answers for name, answers in questions.items() if name not in names}


# An object's embedding by the ViT must not depend on the place, or on where it faces.
LESSONS = {
    "first": Lessons(
        FIRST,
        {"clip": judge.HEADS, "vit": _but(judge.HEADS, "place")},
        encoder_batches.draw,
        encoder_batches.draw,
        judge.near_miss,
    ),
    "second": Lessons(
        SECOND,
        {
            "clip": _but(second_batches.QUESTIONS, *second_batches.PARTS),
            "vit": _but(second_batches.QUESTIONS, "place", "facing"),
        },
        second_batches.draw,
        second_batches.draw_for_texts,
        judge_training.near_miss,
    ),
}


@dataclass(frozen=True)
class Size:
    """Hold the dimensions of an encoder; the defaults are those of the shipped ones."""

    width: int = 128  # of the vision transformer; its layers are four times as wide inside
    num_layers: int = 4
    num_heads: int = 4
    text_width: int = 96
    num_text_layers: int = 2
    projection_dim: int = 64  # dimension of image and text embeddings


def build_vit(size: Size = Size()) -> Any:
    """Return an untrained ViTModel; its embedding is the CLS row of `last_hidden_state`."""
    config = ViTConfig(image_size=SIZE, patch_size=PATCH_SIZE, **_transformer(size.width, size.num_layers, size))
    return ViTModel(config, add_pooling_layer=False)


def build_clip(size: Size = Size(), edition: Edition = FIRST) -> Any:
    """Return an untrained CLIPModel over the tokens of an edition of the toy world.

    The text embedding is read at the first end token, which is also what pads: the config must name its number.
    """
    tokenizer = build_tokenizer(edition.vocabulary())
    transformer = _transformer(size.width, size.num_layers, size)
    vision = {"image_size": SIZE, "patch_size": PATCH_SIZE, "hidden_act": "gelu", **transformer}  # as in the ViT
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_transformer(size.text_width, size.num_text_layers, size),
    }
    shared = {"projection_dim": size.projection_dim}
    return CLIPModel(CLIPConfig(text_config={**text, **shared}, vision_config={**vision, **shared}, **shared))


def _transformer(width: int, num_layers: int, size: Size) -> dict[str, int]:
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": num_layers}
    return {**shape, "num_attention_heads": size.num_heads}


class Student(nn.Module):
    """Encode images, with linear heads that answer the renderer's questions; training over, the heads are dropped.

    They give a signal from the first step on, when a contrastive loss gives none yet.
    """

    def __init__(self, model: Any, embedding_dim: int, questions: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({name: nn.Linear(embedding_dim, len(questions[name])) for name in questions})

    def answers(self, embedding_BD: Tensor) -> dict[str, Tensor]:
        """Return the logits of every head, [B, K]."""
        return {name: head(embedding_BD) for name, head in self.heads.items()}


def vit_embedding(model: Any, pixels_BCHW: Tensor) -> Tensor:
    """Return the ViT's embedding of each image, [B, D], not normalised."""
    return model(pixel_values=pixels_BCHW).last_hidden_state[:, 0]


def questions_loss(answers: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Sum over the heads of their mean cross entropy where there is an answer."""
    means = []
    for name, logits in answers.items():
        each = F.cross_entropy(logits, truth[name], reduction="none", ignore_index=NO_ANSWER)
        means.append(each.sum() / (truth[name] != NO_ANSWER).sum().clamp(min=1))
    return torch.stack(means).sum()


def contrastive_loss(similarity_NM: Tensor, positive_NM: Tensor) -> Tensor:
    """Return InfoNCE with several right answers a row:  -mean over positives p of log softmax(similarity)[p].

    Khosla et al. 2020 (arXiv 2004.11362), eq. 2; with one positive it is van den Oord et al. 2018 (arXiv 1807.03748).
    Its least value is the logarithm of the number of positives, at equal similarity to all of them.

    positive_NM: bool, at least one True a row. Returns [N].
    """
    log_probability_NM = similarity_NM.log_softmax(-1)
    return -log_probability_NM.where(positive_NM, 0.0).sum(-1) / positive_NM.sum(-1)


def identity_loss(embedding_BD: Tensor, class_B: Tensor) -> Tensor:
    """Pull the two images of one object together, and, more gently, the images of one class.

    embedding_BD: of length 1; images 2i and 2i + 1 show one object. class_B: the number of each image's class.
    """
    num = len(embedding_BD)
    itself = torch.eye(num, dtype=torch.bool)
    cosine = (embedding_BD @ embedding_BD.T).masked_fill(itself, -1e4)
    same_object = itself[torch.arange(num) ^ 1]
    same_class = (class_B[:, None] == class_B[None]) & ~itself
    objects = contrastive_loss(cosine / TEMPERATURE_SAME_OBJECT, same_object).mean()
    classes = contrastive_loss(cosine / TEMPERATURE_SAME_CLASS, same_class).mean()
    return objects + WEIGHT_SAME_CLASS * classes


def vit_loss(student: Student, pixels_BCHW: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Return the identity loss plus the questions' loss, both of the same embedding."""
    embedding = vit_embedding(student.model, pixels_BCHW)
    questions = questions_loss(student.answers(embedding), truth)
    return questions + identity_loss(F.normalize(embedding, dim=-1), truth["class_noun"])


def image_text_loss(image_BD: Tensor, text_TD: Tensor, logit_scale: Tensor, is_true_BT: Tensor) -> Tensor:
    """Return CLIP's symmetric loss, except that every text that is true of an image counts as a right answer.

    "a photo of a robot" is true of each robot in the batch: as a negative it would teach the model to deny it.

    image_BD, text_TD: of length 1. logit_scale: a logarithm. is_true_BT: at least one True in every row and column.
    """
    logits = logit_scale.clamp(max=MAX_LOGIT_SCALE).exp() * image_BD @ text_TD.T
    of_image, of_text = contrastive_loss(logits, is_true_BT), contrastive_loss(logits.T, is_true_BT.T)
    return (of_image.mean() + of_text.mean()) / 2


def clip_loss(
    student: Student, pixels_BCHW: Tensor, truth: dict[str, Tensor], tokens: Any, is_true_BT: Tensor
) -> Tensor:
    """Return the image-text loss plus the questions' loss of the image embedding."""
    image = student.model.get_image_features(pixel_values=pixels_BCHW).pooler_output
    text = student.model.get_text_features(**tokens).pooler_output
    both = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    return questions_loss(student.answers(image), truth) + image_text_loss(*both, student.model.logit_scale, is_true_BT)


def build_student(name: str, lessons: Lessons, size: Size = Size()) -> Student:
    """Return the untrained encoder `name` with its heads; the same on every call."""
    torch.manual_seed(0)
    if name == "clip":
        return Student(build_clip(size, lessons.edition), size.projection_dim, lessons.questions[name])
    return Student(build_vit(size), size.width, lessons.questions[name])


def loss_of_step(name: str, lessons: Lessons, student: Student, vae: Any, num_objects: int) -> Callable[[int], Tensor]:
    """Return a function that gives the loss of any step's batch; its random choices follow from the step alone."""
    draw = lessons.draw_for_texts if name == "clip" else lessons.draw
    tokenizer: Any = build_tokenizer(lessons.edition.vocabulary())

    @lru_cache(maxsize=1)
    def soft_batch(number: int) -> tuple[Batch, Tensor]:
        torch.manual_seed(number)
        batch = draw(random.Random(f"{name} soft {number}"), num_objects)
        return batch, noisy_round_trip(vae, batch.pixels_BCHW)

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{name} {step}")
        if step % SOFT_BATCH_EVERY == 0:
            batch, soft = soft_batch(step // (SOFT_BATCH_EVERY * SOFT_BATCH_USES))
        else:
            batch = draw(rng, num_objects)
            soft = blur(batch.pixels_BCHW, rng)
        torch.manual_seed(step)
        pixels = augment(batch.pixels_BCHW, soft)
        if name == "vit":
            return vit_loss(student, pixels, batch.truth())
        texts, is_true_BT = batch.captions(rng)
        return clip_loss(
            student, pixels, batch.truth(), tokenizer(texts, padding=True, return_tensors="pt"), is_true_BT
        )

    return loss_at


def load_vae(base: Path) -> Any:
    """Load the autoencoder of the embedded base, which softens images."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).eval()


# The names of a ViT's weights, and of the same in CLIP's image tower.
RENAMED = {
    "embeddings.patch_embeddings.projection.": "embeddings.patch_embedding.",
    "layernorm_before": "layer_norm1",
    "layernorm_after": "layer_norm2",
    "attention.o_proj": "self_attn.out_proj",
    "attention.": "self_attn.",
}


@torch.no_grad()
def begin_as_vit(clip: Any, vit: Any, pixels_BCHW: Tensor) -> None:
    """Let CLIP's image tower begin as a ViT of its size: by itself it hardly told classes apart after 1,900 steps.

    It has a norm behind its embeddings that a ViT has not; that begins with the mean and the deviation that the
    embeddings of `pixels_BCHW` have.
    """
    weights = {}
    for name, weight in vit.state_dict().items():
        for old, new in RENAMED.items():
            if old in name:
                name = name.replace(old, new)
                break
        name = f"encoder.{name}" if name.startswith("layers.") else name
        weights[name.replace("layernorm.", "post_layernorm.")] = weight
    bias_D = weights.pop("embeddings.patch_embedding.bias")  # which CLIP has in the positions
    positions_ND = weights.pop("embeddings.position_embeddings")[0]
    class_D = weights.pop("embeddings.cls_token")[0, 0]
    weights["embeddings.class_embedding"] = class_D
    weights["embeddings.position_embedding.weight"] = torch.cat([positions_ND[:1], positions_ND[1:] + bias_D])
    embedded_BND = vit.embeddings(pixels_BCHW)
    deviation, mean = torch.std_mean(embedded_BND, dim=-1)
    weights["pre_layrnorm.weight"] = deviation.mean().expand_as(class_D)
    weights["pre_layrnorm.bias"] = mean.mean().expand_as(class_D)
    own = clip.vision_model.state_dict()
    clip.vision_model.load_state_dict({**own, **weights})


def train(name: str, lessons: Lessons, minutes: float, vae: Any, work: Path, num_objects: int = 48) -> None:
    """Train the encoder `name`, or resume; its state is in `work`/`name`.pt.

    CLIP begins as the ViT, whose state has to be there: raises UserError where it is not.
    """
    student = build_student(name, lessons)
    slower = 1.0
    if name == "clip":
        if not (work / "vit.pt").is_file():
            raise UserError(f"{work / 'vit.pt'} is missing: CLIP begins as the ViT, so train that first")
        slower = 1 / 3  # it knows much
        begin_as_vit(student.model, trained("vit", lessons, work), lessons.draw(random.Random(0), 24).pixels_BCHW)
    prefix = "model.vision_model.encoder." if name == "clip" else "model.layers."
    plan = Plan(
        name, Budget(minutes), peak_lr=1.5e-3 * slower, muon_lr=0.02 * slower, muon_prefix=prefix, decay_fraction=0.6,
        ema_decay=0.995, weight_decay=1e-2,
    )  # fmt: skip
    fit(student, loss_of_step(name, lessons, student, vae, num_objects), plan, work / f"{name}.pt")


def trained(name: str, lessons: Lessons, work: Path) -> Any:
    """Return the encoder `name` with the averaged weights of its training so far."""
    student = build_student(name, lessons)
    load_average(student, work / f"{name}.pt")
    return student.model.eval()


def save(model: Any, folder: Path, edition: Edition = FIRST) -> None:
    """Write an encoder in half precision, with its image processor and for CLIP its tokenizer."""
    from transformers import CLIPImageProcessor, ViTImageProcessor

    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    bicubic = 3  # PIL's number
    halves = [0.5, 0.5, 0.5]  # pixels in -1..1, as everywhere here
    square = {"height": SIZE, "width": SIZE}
    common = {"resample": bicubic, "do_rescale": True, "image_mean": halves, "image_std": halves}
    if model.config.model_type == "clip":
        build_tokenizer(edition.vocabulary()).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square, **common).save_pretrained(folder)
    else:
        ViTImageProcessor(size=square, **common).save_pretrained(folder)
