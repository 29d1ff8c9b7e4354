"""The judge of the second edition: for each class whether it is in an image, where, and what it looks like.

Trained on rendered pictures, whose truth is known; softened, blurred and noisy ones too: a judge that has only seen
crisp renders misreads what a small diffusion model draws. Each class looks at the image through a few maps of its own
(attention pooling), so that a red cup beside a blue house is a cup that is red and a house that is blue.

Shapes: B images, H/W pixels, h/w feature positions, K classes, A maps a class, D features, Q questions, E embedding
dimensions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.errors import UserError
from toyworld.ahead import Ahead
from toyworld.latents import to_pixels
from toyworld.second import picture
from toyworld.second.look import HEADS, NUM_EYES, WORN
from toyworld.second.picture import Picture, Spec, Thing
from toyworld.second.things import CLASSES, CREATURES
from toyworld.training import Budget, Plan, fit
from toyworld.world import COLOUR_NAMES, PATTERNS

# What is asked of each thing in an image, and the possible answers.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "main": COLOUR_NAMES,
    "second": COLOUR_NAMES,
    "accent": COLOUR_NAMES,
    "pattern": PATTERNS,
    "head": HEADS,
    "num_eyes": tuple(str(number) for number in NUM_EYES),
    "worn": WORN,
    "worn_colour": COLOUR_NAMES,
    "facing": ("left", "right"),
}
NOT_ASKED = -1  # in place of an answer's number
TEMPERATURE = 0.1  # of the InfoNCE loss
P_SOFTENED = 0.5  # of the training batches
P_COMPANY = 0.5  # that a thing of a training batch is not alone in its picture
NUM_THINGS = 48  # a training batch, two images each
STAND_WEIGHT = 5.0  # of the loss of positions
PRESENT = 0.5  # probability from which on a class counts as seen


class JudgeNet(nn.Module):
    """Strided convolutions, attention pooling for each class, and linear heads that all classes share."""

    def __init__(self, width: int = 32, num_maps: int = 3, embedding_dim: int = 64) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "num_maps": num_maps, "embedding_dim": embedding_dim}
        self.config |= {"edition": 2, "classes": list(CLASSES)}
        self.config["questions"] = {name: list(answers) for name, answers in QUESTIONS.items()}
        w, features = width, 4 * width
        self.body = nn.Sequential(
            _block(3, w, 2), _block(w, 2 * w, 2), _block(2 * w, 3 * w, 1), _block(3 * w, features, 2),
            _block(features, features, 1), _block(features, features, 1),
        )  # fmt: skip
        self.where = nn.Conv2d(features, num_maps * len(CLASSES), 1)
        self.class_features = nn.Parameter(torch.randn(len(CLASSES), 16))
        # Each map also tells its mean position, x and y.
        self.mix = nn.Sequential(
            nn.Linear(num_maps * (features + 2) + 16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
        )
        self.present = nn.Linear(256, 1)
        self.stand = nn.Linear(256, 3)
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(answers)) for name, answers in QUESTIONS.items()})
        self.embed = nn.Linear(256, embedding_dim)
        self.place = nn.Sequential(nn.Linear(features * 2, 128), nn.ReLU(), nn.Linear(128, len(picture.PLACES)))

    def forward(self, pixels_BCHW: Tensor) -> Readings:
        """Return what is seen of every class, there or not."""
        map_BDhw = self.body(pixels_BCHW)
        features_BKD = self.mix(self._pooled(map_BDhw))
        place_features = torch.cat([map_BDhw.mean((2, 3)), map_BDhw.amax((2, 3))], dim=1)
        return Readings(
            place=self.place(place_features),
            present=self.present(features_BKD)[..., 0],
            stand=self.stand(features_BKD),
            answers={name: head(features_BKD) for name, head in self.heads.items()},
            embedding=F.normalize(self.embed(features_BKD), dim=-1),
        )

    def _pooled(self, map_BDhw: Tensor) -> Tensor:
        """Return each class's features through its maps, with its own constants, [B, K, A * (D + 2) + 16]."""
        batch, _, height, width = map_BDhw.shape
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        position = torch.stack([x, y]).to(map_BDhw).expand(batch, 2, height, width)
        values = torch.cat([map_BDhw, position], dim=1).flatten(2)
        attention = self.where(map_BDhw).flatten(2).softmax(-1)
        pooled = (attention @ values.transpose(1, 2)).view(batch, len(CLASSES), -1)
        return torch.cat([pooled, self.class_features.expand(batch, -1, -1)], dim=-1)


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Readings:
    """Hold the network's outputs, before any softmax."""

    place: Tensor  # [B, places]
    present: Tensor  # [B, K]
    stand: Tensor  # [B, K, 3]: center_x, ground, size as fractions of the image
    answers: dict[str, Tensor]  # by question, [B, K, its answers]
    embedding: Tensor  # [B, K, E], of length 1

    @staticmethod
    def cat(parts: Sequence[Readings]) -> Readings:
        """Return one of all images."""
        return Readings(
            place=torch.cat([part.place for part in parts]),
            present=torch.cat([part.present for part in parts]),
            stand=torch.cat([part.stand for part in parts]),
            answers={name: torch.cat([part.answers[name] for part in parts]) for name in QUESTIONS},
            embedding=torch.cat([part.embedding for part in parts]),
        )


class Verdict:
    """Answers questions about B images that the judge has seen."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings

    def place(self, i: int) -> str:
        """Return where image `i` is."""
        return picture.PLACES[int(self.readings.place[i].argmax())]

    def seen(self, i: int) -> list[str]:
        """Return the classes in image `i`, the most certain first; the most certain one always counts."""
        probabilities = self.readings.present[i].sigmoid()
        order = probabilities.argsort(descending=True).tolist()
        return [CLASSES[k] for n, k in enumerate(order) if n == 0 or probabilities[k] >= PRESENT]

    def answer(self, i: int, class_noun: str, question: str) -> str:
        """Return what the thing of that class in image `i` is like, whether it is there or not."""
        answers = self.readings.answers[question][i, CLASSES.index(class_noun)]
        return QUESTIONS[question][int(answers.argmax())]

    def relation(self, i: int, first: str, second: str) -> str:
        """Return how the thing of class `first` stands to that of class `second`, by where the judge sees them."""
        (x, ground, _), (other_x, other_ground, _) = (
            self.readings.stand[i, CLASSES.index(noun)].tolist() for noun in (first, second)
        )
        return picture.relation_between((x, ground), (other_x, other_ground))

    def stand(self, class_noun: str) -> Tensor:
        """Return center_x, ground and size of the thing of that class, as fractions of each image, [B, 3]."""
        return self.readings.stand[:, CLASSES.index(class_noun)]

    def embedding(self, class_noun: str) -> Tensor:
        """Return the identity of the thing of that class in each image, [B, E] of length 1."""
        return self.readings.embedding[:, CLASSES.index(class_noun)]


class Judge:
    """`Judge.load(folder)(images)` gives a `Verdict`."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval()

    @staticmethod
    def load(folder: str | Path) -> Judge:
        """Load config.json and model.safetensors. Raises UserError if they are missing or of another world."""
        folder = Path(folder)
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"no judge in {folder}: model.safetensors is missing; `toyworld train` makes one")
        config = json.loads((folder / "config.json").read_text())
        net = JudgeNet()
        if config != net.config:
            raise UserError(f"the judge in {folder} was trained for another toy world; train it again")
        net.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
        return Judge(net)

    def save(self, folder: Path) -> None:
        """Write half-precision weights and the config."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.net.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.net.config, indent=2) + "\n")

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], batch_size: int = 100) -> Verdict:
        """Judge images; those of another size than 64 px are resized."""
        parts = []
        for start in range(0, len(images), batch_size):
            batch = [image.resize((picture.SIZE, picture.SIZE)) for image in images[start : start + batch_size]]
            parts.append(self.net(to_pixels(batch)))
        return Verdict(Readings.cat(parts))


# --- training


@dataclass(frozen=True)
class Truth:
    """Hold the right answers for B pictures; NOT_ASKED where there is nothing to answer."""

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
    """Return the number of the right answer to each question, NOT_ASKED where a thing has no such part."""
    spec = thing.spec
    texts = {"facing": thing.facing, "num_eyes": str(spec.num_eyes)}
    asked = {"accent": spec.pattern != "plain", "worn_colour": spec.worn not in ("", "nothing")}
    asked |= dict.fromkeys(("head", "num_eyes", "worn"), spec.class_noun in CREATURES)
    return {
        name: answers.index(texts.get(name) or getattr(spec, name)) if asked.get(name, True) else NOT_ASKED
        for name, answers in QUESTIONS.items()
    }


def truth_of(pictures: Sequence[Picture]) -> Truth:
    """Return the right answers; each picture's first thing is the one that counts as its subject."""
    shape = (len(pictures), len(CLASSES))
    present, stand = torch.zeros(shape), torch.zeros(*shape, 3)
    answers = {name: torch.full(shape, NOT_ASKED) for name in QUESTIONS}
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
    other = picture.random_spec(rng, spec.class_noun)
    fields = ["main", "second", "accent", "pattern", "proportions", "accessories"]
    if spec.class_noun in CREATURES:
        fields += ["head", "num_eyes", "worn", "worn_colour"]
    field = rng.choice(fields)
    return replace(spec, **{field: getattr(other, field)})


def training_pictures(rng: random.Random, num_things: int) -> list[Picture]:
    """Return two pictures each of `num_things` things, side by side in the list.

    Half of the things are of one class, and half of those are near misses of their neighbour: the embedding must tell
    apart robots, not robots from houses. Half of the pictures show other things too.
    """
    focus = rng.choice(CLASSES)
    specs: list[Spec] = []
    for i in range(num_things):
        crowded = i < num_things // 2
        if crowded and i % 2 == 1:
            specs.append(near_miss(rng, specs[-1]))
        else:
            specs.append(picture.random_spec(rng, focus if crowded else None))
    return [_in_some_picture(rng, spec) for spec in specs for _ in range(2)]


def _in_some_picture(rng: random.Random, spec: Spec) -> Picture:
    if rng.random() >= P_COMPANY:
        return picture.picture_of(rng, spec)
    number = rng.choice((2, 2, 2, 3))
    others = rng.sample([noun for noun in CLASSES if noun != spec.class_noun], number - 1)
    specs = [spec, *(picture.random_spec(rng, noun) for noun in others)]
    return picture.random_picture(rng, specs, picture.possible_relation(rng, specs))


def augment(pixels_BCHW: Tensor, rng: random.Random) -> Tensor:
    """Augment images: noise of up to 0.06; half of the batches blurred or reduced. Never mirrored: facing counts."""
    pixels = pixels_BCHW + torch.randn_like(pixels_BCHW) * 0.06 * rng.random()
    kind = rng.choice(("none", "none", "blur", "reduce"))
    if kind == "blur":
        return F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), "replicate"), 3, 1)
    if kind == "reduce":
        return F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    return pixels


def judge_loss(net: JudgeNet, pixels_BCHW: Tensor, truth: Truth) -> Tensor:
    """Return the cross entropies of all questions, the error of positions, and InfoNCE: which image shows the same?"""
    read = net(pixels_BCHW)
    loss = F.cross_entropy(read.place, truth.place_B)
    loss = loss + len(CLASSES) * F.binary_cross_entropy_with_logits(read.present, truth.present_BK)
    there = truth.present_BK > 0
    loss = loss + STAND_WEIGHT * (read.stand[there] - truth.stand_BK3[there]).abs().mean()
    for name in QUESTIONS:
        asked = truth.answers[name] != NOT_ASKED
        if asked.any():
            loss = loss + F.cross_entropy(read.answers[name][asked], truth.answers[name][asked])
    number = torch.arange(len(pixels_BCHW), device=pixels_BCHW.device)
    embedding = read.embedding[number, truth.subject_B]
    similarity = embedding @ embedding.T / TEMPERATURE
    similarity = similarity.masked_fill(number == number[:, None], -1e4)
    return loss + F.cross_entropy(similarity, number ^ 1)


def train_judge(
    budget: Budget, soften: Sequence[Callable[[Tensor], Tensor]], folder: Path, device: str = "cpu"
) -> Judge:
    """Train a judge, or resume; its state is in `folder`/judge.pt.

    soften: ways to make pixels [B, 3, H, W] look as if a model had drawn them (a VAE's round trip, say). Half of the
    batches go through one of them; all go through `augment`. Both work on the training's device.
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
        return judge_loss(net, augment(pixels, rng), truth.to(device))

    plan = Plan(
        "judge", budget, peak_lr=2e-3, muon_lr=0.02, muon_prefix="body.", decay_fraction=0.8, ema_decay=0.99,
        weight_decay=1e-2,
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
def accuracy(judge: Judge, num_things: int = 200, seed: int = 1) -> dict[str, float]:
    """Return the fraction of right answers to each question on fresh renders, 0 to 1.

    Beside the questions: "place"; "class_noun", all classes of a picture and no other; "relation" of two things; "same
    thing nearest", how often the most similar image shows the same thing.
    """
    pictures = training_pictures(random.Random(f"judge accuracy {seed}"), num_things)
    verdict, truth = judge([picture.render(shown) for shown in pictures]), truth_of(pictures)
    read = verdict.readings
    right = {"place": (read.place.argmax(-1) == truth.place_B).float().mean().item()}
    right["class_noun"] = ((read.present > 0).float() == truth.present_BK).all(-1).float().mean().item()
    for name in QUESTIONS:
        asked = truth.answers[name] != NOT_ASKED
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
