"""The judge: a network that predicts class, colours, pattern and place of an image, and embeds the object's identity.

Trained on rendered images, whose truth is known. Softened, blurred and noisy ones too: a judge that has only seen
crisp renders misreads what a small diffusion model draws. The embedding is trained with InfoNCE (van den Oord et al.
2018, arXiv 1807.03748) on two renders of one object in different scenes, among near misses of it.

Shapes: B images, H/W pixels, K labels of a head, D embedding dimensions, N objects (two images each).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.errors import UserError
from toyworld import world
from toyworld.latents import to_pixels
from toyworld.training import Budget, Plan, fit

S = TypeVar("S")  # an edition's `Spec`

HEADS: dict[str, tuple[str, ...]] = {
    "class_noun": world.CLASSES,
    "main": world.COLOUR_NAMES,
    "second": world.COLOUR_NAMES,
    "accent": world.COLOUR_NAMES,
    "pattern": world.PATTERNS,
    "place": world.PLACES,
}
NO_ANSWER = -1  # in place of the number of a right answer, where there is none; of both editions
TEMPERATURE = 0.1  # of the InfoNCE loss
P_SOFTENED = 0.5  # of the training batches
NUM_OBJECTS = 48  # a training batch, two images each


class JudgeNet(nn.Module):
    """Answer questions: five strided convolutions, a shared layer, a linear head a question, one for the embedding."""

    def __init__(self, width: int = 24, embedding_dim: int = 64) -> None:
        super().__init__()
        self.config = {"width": width, "embedding_dim": embedding_dim, "heads": {k: list(v) for k, v in HEADS.items()}}
        w = width
        self.body = nn.Sequential(
            _block(3, w, 2), _block(w, 2 * w, 2), _block(2 * w, 3 * w, 1), _block(3 * w, 4 * w, 2),
            _block(4 * w, 4 * w, 1), _block(4 * w, 4 * w, 2), nn.Flatten(),
            nn.Linear(4 * w * 16, 256), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(labels)) for name, labels in HEADS.items()})
        self.embed = nn.Linear(256, embedding_dim)

    def forward(self, pixels_BCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return logits of every head [B, K], and the embedding [B, D] of length 1."""
        features = self.body(pixels_BCHW)
        logits = {name: head(features) for name, head in self.heads.items()}
        return logits, F.normalize(self.embed(features), dim=-1)


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Verdict:
    """Hold the judge's predictions for B images: a label for each question, and identity embeddings of length 1."""

    labels: dict[str, list[str]]  # by head: class_noun, main, second, accent, pattern, place
    probabilities: dict[str, Tensor]  # by head, [B, K], in the order of `HEADS`
    embedding_BD: Tensor

    def embedding(self, class_noun: str) -> Tensor:
        """Return the identity of what each image shows, [B, E]: one object, so its class says nothing more."""
        return self.embedding_BD

    def accuracy(self, head: str, expected: Sequence[str], class_noun: str = "") -> float:
        """Return the fraction of images whose label of `head` is the expected one."""
        return sum(a == b for a, b in zip(self.labels[head], expected, strict=True)) / len(expected)


class Judge:
    """Judge images: `Judge.load(folder)(images)` gives a `Verdict`."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval()

    @staticmethod
    def load(folder: str | Path) -> Judge:
        """Load config.json and model.safetensors. Raises UserError if they are missing or of another world."""
        folder = Path(folder)
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"no judge in {folder}: model.safetensors is missing; `toyworld train` makes one")
        config = json.loads((folder / "config.json").read_text())
        net = JudgeNet(config["width"], config["embedding_dim"])
        if config["heads"] != net.config["heads"]:
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
        logits: dict[str, list[Tensor]] = {name: [] for name in HEADS}
        embeddings = []
        for start in range(0, len(images), batch_size):
            batch = [p.resize((world.SIZE, world.SIZE)) for p in images[start : start + batch_size]]
            heads, embedding = self.net(to_pixels(batch))
            embeddings.append(embedding)
            for name in HEADS:
                logits[name].append(heads[name])
        probabilities = {name: torch.cat(parts).softmax(-1) for name, parts in logits.items()}
        labels = {name: [HEADS[name][i] for i in p.argmax(-1).tolist()] for name, p in probabilities.items()}
        return Verdict(labels, probabilities, torch.cat(embeddings))


def near_miss(rng: random.Random, spec: world.Spec) -> world.Spec:
    """Return an object like `spec` but for one thing: a colour, the pattern, the proportions or the accessories."""
    other = world.random_spec(rng, spec.class_noun)
    changes: tuple[Callable[[], world.Spec], ...] = (
        lambda: replace(spec, main=other.main),
        lambda: replace(spec, second=other.second),
        lambda: replace(spec, accent=other.accent),
        lambda: replace(spec, pattern=other.pattern),
        lambda: replace(spec, proportions=other.proportions),
        lambda: replace(spec, accessories=other.accessories),
    )
    return rng.choice(changes)()


def half_alike(num: int, focus: str, make: Callable[[str | None], S], miss: Callable[[S], S]) -> list[S]:
    """Return `num` objects, half of them of the class `focus`, and half of those near misses of their neighbour.

    What is trained on them has to tell apart robots, not robots from houses. make: of a class noun, or of any. miss:
    another object, like the given one but for one thing.
    """
    found: list[S] = []
    for i in range(num):
        crowded = i < num // 2
        found.append(miss(found[-1]) if crowded and i % 2 == 1 else make(focus if crowded else None))
    return found


def training_batch(rng: random.Random, num_objects: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return pixels [2N, 3, H, W], an object's two images side by side, and the true label numbers of every head.

    The objects are `half_alike`.
    """
    focus = rng.choice(world.CLASSES)
    specs = half_alike(num_objects, focus, partial(world.random_spec, rng), partial(near_miss, rng))
    pairs = [(spec, world.random_scene(rng)) for spec in specs for _ in range(2)]
    pixels = to_pixels([world.render(spec, scene) for spec, scene in pairs])
    truth: dict[str, list[int]] = {name: [] for name in HEADS}
    for spec, scene in pairs:
        for name, labels in HEADS.items():
            truth[name].append(labels.index(scene.place if name == "place" else getattr(spec, name)))
    return pixels, {name: torch.tensor(numbers) for name, numbers in truth.items()}


def augment(pixels_BCHW: Tensor, rng: random.Random) -> Tensor:
    """Augment images: half of them mirrored, all degraded."""
    mirrored_B111 = torch.rand(len(pixels_BCHW), 1, 1, 1) < 0.5
    return degrade(torch.where(mirrored_B111, pixels_BCHW.flip(-1), pixels_BCHW), rng)


def degrade(pixels_BCHW: Tensor, rng: random.Random) -> Tensor:
    """Return images with noise of up to 0.06, half of the batches also blurred or reduced."""
    pixels = pixels_BCHW + torch.randn_like(pixels_BCHW) * 0.06 * rng.random()
    kind = rng.choice(("none", "none", "blur", "reduce"))
    if kind == "blur":
        return F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), "replicate"), 3, 1)
    if kind == "reduce":
        return F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    return pixels


def judge_loss(net: JudgeNet, pixels_BCHW: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Return the sum of the heads' cross entropies plus InfoNCE: which other image shows the same object?"""
    logits, embedding = net(pixels_BCHW)
    # Where there is no pattern the accent shows on small parts only, or nowhere: not asked.
    patterned = truth["pattern"] != world.PATTERNS.index("plain")
    loss = torch.zeros(())
    for name in HEADS:
        each = F.cross_entropy(logits[name], truth[name], reduction="none")
        loss = loss + (each[patterned] if name == "accent" else each).mean()
    similarity = embedding @ embedding.T / TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(len(similarity), dtype=torch.bool), -1e4)
    partner = torch.arange(len(similarity)) ^ 1
    return loss + F.cross_entropy(similarity, partner)


def train_judge(budget: Budget, soften: Sequence[Callable[[Tensor], Tensor]], folder: Path) -> Judge:
    """Train a judge, or resume; its state is in `folder`/judge.pt.

    soften: ways to make pixels [B, 3, H, W] look as if a model had drawn them (a VAE's round trip, say). Half of the
    batches go through one of them; all go through `augment`.
    """
    torch.manual_seed(0)
    net = JudgeNet()

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        rng = random.Random(f"judge {step}")
        pixels, truth = training_batch(rng, NUM_OBJECTS)
        if rng.random() < P_SOFTENED:
            with torch.no_grad():
                pixels = rng.choice(soften)(pixels)
        return judge_loss(net, augment(pixels, rng), truth)

    plan = Plan(
        "judge", budget, peak_lr=2e-3, muon_lr=0.02, muon_prefix="body.", decay_fraction=0.8, ema_decay=0.99,
        weight_decay=1e-2,
    )  # fmt: skip
    fit(net, loss_at, plan, folder / "judge.pt")
    return Judge(net)


@torch.no_grad()
def accuracy(judge: Judge, num_objects: int = 200, seed: int = 1) -> dict[str, float]:
    """Return each head's accuracy on fresh renders, and how often the nearest image shows the same object, 0 to 1."""
    rng = random.Random(f"judge accuracy {seed}")
    pixels, truth = training_batch(rng, num_objects)
    logits, embedding = judge.net(pixels)
    accuracies = {name: (logits[name].argmax(-1) == truth[name]).float().mean().item() for name in HEADS}
    similarity = (embedding @ embedding.T).fill_diagonal_(-1)
    accuracies["same object nearest"] = (
        (similarity.argmax(-1) == torch.arange(len(similarity)) ^ 1).float().mean().item()
    )
    return accuracies
