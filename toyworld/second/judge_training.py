"""Training of the second edition's judge on rendered pictures, and its accuracy on fresh ones.

Shapes: B images, H/W pixels, h/w feature positions, K classes, N things, E embedding dimensions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from toyworld.ahead import Ahead
from toyworld.judge import NO_ANSWER, degrade, half_alike
from toyworld.latents import to_pixels
from toyworld.second import picture
from toyworld.second.judge import QUESTIONS, Judge, JudgeNet, Verdict
from toyworld.second.picture import Picture, Spec, Thing
from toyworld.second.things import CLASSES, CREATURES
from toyworld.training import Budget, Plan, fit

TEMPERATURE = 0.1  # of the InfoNCE loss
P_SOFTENED = 0.5  # of the training batches
P_COMPANY = 0.5  # that a thing of a training batch is not alone in its picture
NUM_THINGS = 48  # a training batch, two images each
STAND_WEIGHT = 5.0  # of the loss of positions
JITTER = (0.02, 0.02, 0.03)  # standard deviation of center_x, ground and size where a training batch is cut


@dataclass(frozen=True)
class Truth:
    """Hold the right answers for B pictures; NO_ANSWER where there is nothing to answer."""

    place_B: Tensor
    present_BK: Tensor  # 1.0 or 0.0
    stand_BK3: Tensor
    answers: dict[str, Tensor]  # by question, [B, K]
    subject_B: Tensor  # the number of the class of the thing that two pictures share

    def to(self, device: str) -> Truth:
        """Return the same on another device."""
        answers = {name: numbers.to(device) for name, numbers in self.answers.items()}
        place, present, stand = (each.to(device) for each in (self.place_B, self.present_BK, self.stand_BK3))
        return Truth(place, present, stand, answers, self.subject_B.to(device))


def answers_of(thing: Thing) -> dict[str, int]:
    """Return the number of the right answer to each question, NO_ANSWER where a thing has no such part."""
    spec = thing.spec
    texts = {"facing": thing.facing, "num_eyes": str(spec.num_eyes)}
    asked = {"accent": spec.pattern != "plain", "worn_colour": spec.worn not in ("", "nothing")}
    asked |= dict.fromkeys(("head", "num_eyes", "worn"), spec.class_noun in CREATURES)
    return {
        name: answers.index(texts.get(name) or getattr(spec, name)) if asked.get(name, True) else NO_ANSWER
        for name, answers in QUESTIONS.items()
    }


def truth_of(pictures: Sequence[Picture]) -> Truth:
    """Return the right answers; each picture's first thing is the one that counts as its subject."""
    shape = (len(pictures), len(CLASSES))
    present, stand = torch.zeros(shape), torch.zeros(*shape, 3)
    answers = {name: torch.full(shape, NO_ANSWER) for name in QUESTIONS}
    for i, shown in enumerate(pictures):
        for thing in shown.things:
            k = CLASSES.index(thing.spec.class_noun)
            present[i, k] = 1.0
            stand[i, k] = torch.tensor([thing.center_x, thing.ground, thing.size])
            for name, number in answers_of(thing).items():
                answers[name][i, k] = number
    places = torch.tensor([picture.PLACES.index(shown.place) for shown in pictures])
    subjects = torch.tensor([CLASSES.index(shown.things[0].spec.class_noun) for shown in pictures])
    return Truth(places, present, stand, answers, subjects)


def near_miss(rng: random.Random, spec: Spec) -> Spec:
    """Return a thing like `spec` but for one thing: a colour, the pattern, a part, the proportions or accessories."""
    fields = ["main", "second", "pattern", "proportions", "accessories"]
    fields += ["accent"] * (spec.pattern != "plain")
    if spec.class_noun in CREATURES:
        fields += ["head", "num_eyes", "worn", *(["worn_colour"] * (spec.worn != "nothing"))]
    field = rng.choice(fields)
    while True:
        other = replace(spec, **{field: getattr(picture.random_spec(rng, spec.class_noun), field)})
        if other != spec and picture.can_be_told(other):
            return other


def training_pictures(rng: random.Random, num_things: int, class_noun: str | None = None) -> list[Picture]:
    """Return two pictures each of `num_things` things, side by side in the list.

    The things are `half_alike`, of `class_noun` or of any. Half of the pictures show other things too.
    """
    focus = class_noun or rng.choice(CLASSES)
    specs = half_alike(num_things, focus, partial(picture.random_spec, rng), partial(near_miss, rng))
    return [_in_some_picture(rng, spec) for spec in specs for _ in range(2)]


def _in_some_picture(rng: random.Random, spec: Spec) -> Picture:
    if rng.random() >= P_COMPANY:
        return picture.picture_of(rng, spec)
    number = rng.choice((2, 2, 2, 3))
    others = rng.sample([noun for noun in CLASSES if noun != spec.class_noun], number - 1)
    specs = [spec, *(picture.random_spec(rng, noun) for noun in others)]
    return picture.random_picture(rng, specs, picture.possible_relation(rng, specs))


def judge_loss(net: JudgeNet, pixels_BCHW: Tensor, truth: Truth) -> Tensor:
    """Return the cross entropies of all questions, the error of positions, and InfoNCE: which image shows the same?

    Things are looked at where they are, and a little beside it, as the network will find them.
    """
    found = net.find(pixels_BCHW)
    loss = F.cross_entropy(found.place, truth.place_B)
    loss = loss + len(CLASSES) * F.binary_cross_entropy_with_logits(found.present, truth.present_BK)
    there = truth.present_BK > 0
    stand_N3 = truth.stand_BK3[there]
    loss = loss + STAND_WEIGHT * (found.stand[there] - stand_N3).abs().mean()
    where_N = found.where[there].flatten(1)
    loss = loss + F.cross_entropy(where_N, corner_weights(stand_N3[:, :2], found.where.shape[-2:]).to(where_N.dtype))

    image_N, class_N = there.nonzero().unbind(1)
    jittered_N3 = stand_N3 + torch.randn_like(stand_N3) * stand_N3.new_tensor(JITTER)
    answers, embedding_NE = net.look(pixels_BCHW, jittered_N3, image_N, class_N)
    for name in QUESTIONS:
        right = truth.answers[name][there]
        if (right != NO_ANSWER).any():
            loss = loss + F.cross_entropy(answers[name], right, ignore_index=NO_ANSWER)
    embedding_BE = embedding_NE[class_N == truth.subject_B[image_N]]
    number = torch.arange(len(pixels_BCHW), device=pixels_BCHW.device)
    similarity = embedding_BE @ embedding_BE.T / TEMPERATURE
    similarity = similarity.masked_fill(number == number[:, None], -1e4)
    return loss + F.cross_entropy(similarity, number ^ 1)


def corner_weights(points_N2: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the weights of a grid's positions whose mean is each point, [N, h * w]; x and y are 0 to 1."""
    height, width = shape
    weights = []
    for fraction, number in ((points_N2[:, 1], height), (points_N2[:, 0], width)):
        distance = fraction.clamp(0, 1)[:, None] * (number - 1) - torch.arange(number, device=fraction.device)
        weights.append((1 - distance.abs()).clamp(min=0))
    rows_Nh, columns_Nw = weights
    return (rows_Nh[:, :, None] * columns_Nw[:, None, :]).flatten(1)


def train_judge(
    budget: Budget, soften: Sequence[Callable[[Tensor], Tensor]], folder: Path, device: str = "cpu"
) -> Judge:
    """Train a judge, or resume; its state is in `folder`/judge.pt.

    soften: ways to make pixels [B, 3, H, W] look as if a model had drawn them (a VAE's round trip, say). Half of the
    batches go through one of them; all are degraded, none is mirrored, as facing counts. This is done on `device`.
    """
    torch.manual_seed(0)
    net = JudgeNet().to(device)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        pixels, truth, rng = batch_at(step)
        pixels = pixels.to(device)
        if rng.random() < P_SOFTENED:
            with torch.no_grad():
                pixels = rng.choice(soften)(pixels)
        return judge_loss(net, degrade(pixels, rng), truth.to(device))

    plan = Plan(
        "judge", budget, peak_lr=2e-3, muon_lr=0.02, muon_prefix=("body.", "cut_body."), decay_fraction=0.8,
        ema_decay=0.99, weight_decay=1e-2,
    )  # fmt: skip
    with Ahead(_batch, device) as batch_at:
        fit(net, loss_at, plan, folder / "judge.pt")
    return Judge(net.cpu())


def _batch(step: int) -> tuple[Tensor, Truth, random.Random]:
    """Return the pixels of a step and their truth, and what its further draws come from."""
    rng = random.Random(f"judge {step}")
    pictures = training_pictures(rng, NUM_THINGS)
    return to_pixels([picture.render(shown) for shown in pictures]), truth_of(pictures), rng


@torch.no_grad()
def accuracy(judge: Judge, num_things: int = 880, seed: int = 1) -> dict[str, float]:
    """Return the fraction of right answers to each question on fresh renders, 0 to 1.

    Beside the questions: "place"; "class_noun", all classes of a picture and no other; "relation" of two things; "same
    thing nearest", how often the most similar image shows the same thing.
    """
    rng = random.Random(f"judge accuracy {seed}")
    pictures = [
        shown for noun in CLASSES for shown in training_pictures(rng, math.ceil(num_things / len(CLASSES)), noun)
    ]
    verdict, truth = judge([picture.render(shown) for shown in pictures]), truth_of(pictures)
    read = verdict.readings
    right = {"place": (read.place.argmax(-1) == truth.place_B).float().mean().item()}
    right["class_noun"] = ((read.present > 0).float() == truth.present_BK).all(-1).float().mean().item()
    for name in QUESTIONS:
        asked = truth.answers[name] != NO_ANSWER
        right[name] = (read.answers[name].argmax(-1) == truth.answers[name])[asked].float().mean().item()
    right["relation"] = _relations_right(verdict, pictures)
    embedding = read.embedding[torch.arange(len(pictures)), truth.subject_B]
    similarity = (embedding @ embedding.T).fill_diagonal_(-1)
    right["same thing nearest"] = (similarity.argmax(-1) == torch.arange(len(similarity)) ^ 1).float().mean().item()
    return right


def _relations_right(verdict: Verdict, pictures: Sequence[Picture]) -> float:
    rights = []
    for i, shown in enumerate(pictures):
        if shown.relation:
            first, second = (thing.spec.class_noun for thing in shown.things)
            rights.append(verdict.relation(i, first, second) == shown.relation)
    return sum(rights) / len(rights)
