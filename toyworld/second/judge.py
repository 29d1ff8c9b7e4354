"""The judge of the second edition: for each class whether it is in an image, where, and what it looks like.

Trained on rendered pictures, whose truth is known; softened, blurred and noisy ones too: a judge that has only seen
crisp renders misreads what a small diffusion model draws. Each class is found first and then looked at in a cut-out, so
that a red cup beside a blue house is a cup that is red and a house that is blue. `judge_training` trains it.

Shapes: B images, H/W pixels, h/w feature positions, K classes, N things, D features, E embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.errors import UserError
from toyworld.latents import to_pixels
from toyworld.second import picture
from toyworld.second.look import HEADS, NUM_EYES, WORN
from toyworld.second.things import CLASSES
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
CUT_SIZE = 48  # pixels of a cut-out, each way
CUT_MARGIN = 1.15  # a cut-out's side in units of the thing's box
NUM_CLASS_FEATURES = 16
PRESENT = 0.5  # probability from which on a class counts as seen


class JudgeNet(nn.Module):
    """Finds each class in an image, cuts out where it is, and reads from the cut-out what it looks like.

    A map for each class says where it is; a head, say, is as large in the cut-out of a thing that is far away as of one
    that fills the image. The things' class tells which of two in a cut-out is meant.
    """

    def __init__(self, width: int = 24, cut_width: int = 32, embedding_dim: int = 64) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "cut_width": cut_width, "embedding_dim": embedding_dim}
        self.config |= {"cut_size": CUT_SIZE, "cut_margin": CUT_MARGIN, "edition": 2, "classes": list(CLASSES)}
        self.config["questions"] = {name: list(answers) for name, answers in QUESTIONS.items()}
        w, features = width, 4 * width
        self.body = nn.Sequential(
            _block(3, w, 2), _block(w, 2 * w, 2), _block(2 * w, 3 * w, 1), _block(3 * w, features, 2),
            _block(features, features, 1), _block(features, features, 1),
        )  # fmt: skip
        self.where = nn.Conv2d(features, len(CLASSES), 1)
        self.class_features = nn.Parameter(torch.randn(len(CLASSES), NUM_CLASS_FEATURES))
        self.mix = nn.Sequential(nn.Linear(features + 2 + NUM_CLASS_FEATURES, 128), nn.ReLU())
        self.present = nn.Linear(128, 1)
        self.stand = nn.Linear(128, 3)
        self.place = nn.Sequential(nn.Linear(features * 2, 128), nn.ReLU(), nn.Linear(128, len(picture.PLACES)))
        c = cut_width
        self.cut_body = nn.Sequential(
            _block(3, c, 2), _block(c, 2 * c, 2), _block(2 * c, 3 * c, 1), _block(3 * c, 4 * c, 2),
            _block(4 * c, 4 * c, 1),
        )  # fmt: skip
        self.cut_narrow = nn.Conv2d(4 * c, 24, 1)
        self.cut_mix = nn.Sequential(
            nn.Linear(24 * (CUT_SIZE // 8) ** 2 + NUM_CLASS_FEATURES, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(answers)) for name, answers in QUESTIONS.items()})
        self.embed = nn.Linear(256, embedding_dim)

    def forward(self, pixels_BCHW: Tensor) -> Readings:
        """Return what is seen of every class, there or not."""
        found = self.find(pixels_BCHW)
        image_N, class_N = torch.ones_like(found.present).nonzero().unbind(1)
        answers, embedding_NE = self.look(pixels_BCHW, found.stand.flatten(0, 1), image_N, class_N)
        shape = found.present.shape
        return Readings(
            place=found.place,
            present=found.present,
            stand=found.stand,
            answers={name: answer.unflatten(0, shape) for name, answer in answers.items()},
            embedding=embedding_NE.unflatten(0, shape),
        )

    def find(self, pixels_BCHW: Tensor) -> Found:
        """Return where each class is and whether it is there, and the place."""
        map_BDhw = self.body(pixels_BCHW)
        batch, _, height, width = map_BDhw.shape
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        position = torch.stack([x, y]).to(map_BDhw).expand(batch, 2, height, width)
        values = torch.cat([map_BDhw, position], dim=1).flatten(2)
        where = self.where(map_BDhw).flatten(2)
        pooled_BKD = where.softmax(-1) @ values.transpose(1, 2)
        features_BKD = self.mix(torch.cat([pooled_BKD, self.class_features.expand(batch, -1, -1)], dim=-1))
        mean_position = F.pad(pooled_BKD[..., -2:], (0, 1))  # and a size of 0
        place_features = torch.cat([map_BDhw.mean((2, 3)), map_BDhw.amax((2, 3))], dim=1)
        return Found(
            place=self.place(place_features),
            present=self.present(features_BKD)[..., 0],
            where=where.unflatten(-1, (height, width)),
            stand=mean_position + self.stand(features_BKD),
        )

    def look(
        self, pixels_BCHW: Tensor, stand_N3: Tensor, image_N: Tensor, class_N: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the answers to each question [N, its answers] and the embeddings [N, E] of N things in B images."""
        features = self.cut_narrow(self.cut_body(cut_outs(pixels_BCHW, stand_N3, image_N))).flatten(1)
        mixed = self.cut_mix(torch.cat([features, self.class_features[class_N]], dim=1))
        return {name: head(mixed) for name, head in self.heads.items()}, F.normalize(self.embed(mixed), dim=-1)


def cut_outs(pixels_BCHW: Tensor, stand_N3: Tensor, image_N: Tensor) -> Tensor:
    """Return the squares around N things of given center_x, ground and size, [N, 3, CUT_SIZE, CUT_SIZE].

    No gradient flows to the positions.
    """
    center_x, ground, size = stand_N3.detach().unbind(1)
    half = CUT_MARGIN * size.clamp(0.1, 1.2)  # half a side, in grid_sample's units: the image is 2 wide
    theta = torch.zeros(len(size), 2, 3, device=pixels_BCHW.device)
    theta[:, 0, 0] = theta[:, 1, 1] = half
    theta[:, 0, 2] = 2 * center_x - 1
    theta[:, 1, 2] = 2 * (ground - size / 2) - 1
    grid = F.affine_grid(theta, [len(size), 3, CUT_SIZE, CUT_SIZE], align_corners=False)
    return F.grid_sample(pixels_BCHW[image_N], grid, padding_mode="border", align_corners=False)


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Found:
    """Hold what the whole image says, before any softmax."""

    place: Tensor  # [B, places]
    present: Tensor  # [B, K]
    where: Tensor  # [B, K, h, w]
    stand: Tensor  # [B, K, 3]: center_x, ground, size as fractions of the image


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

    def accuracy(self, question: str, expected: Sequence[str], class_noun: str) -> float:
        """Return the fraction of images of which the answer is the expected one.

        question: "place", "class_noun" (the most certain class), or one about the thing of that class.
        """
        if question == "place":
            found = [self.place(i) for i in range(len(expected))]
        elif question == "class_noun":
            found = [self.seen(i)[0] for i in range(len(expected))]
        else:
            found = [self.answer(i, class_noun, question) for i in range(len(expected))]
        return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)

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
            raise UserError(f"the judge in {folder} is of another version or toy world; train it again")
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
