"""Two subjects in one image: whether both are there, each like itself, and what of the other bleeds into it.

    benchmarks/two_subjects.py checkpoints/two-subjects
    benchmarks/two_subjects.py checkpoints/second-robot-lora checkpoints/second-dog-lora

One run that has learned two subjects of the toy world's second edition, or two LoRAs of one subject each, joined.
Images of each subject alone and of both side by side, in places that no photo shows, are read by the base's judge,
which knows the truth. Prints a Markdown table:

source        learned: what the model draws; rendered: renderings of the same; decoded: those renderings once the base's
              autoencoder has encoded and decoded them, beyond which no training of the denoiser leads
image         alone; both: the prompt says who is to the left of whom; and: it joins them by that word alone
both seen     the two classes are the two that the judge sees first
place         that of the prompt
way           likeness by the judge's embedding of each thing: 0 others of its class, 1 renderings of it
dino          likeness of the thing's own part of the image to its photos, as a share of what it reaches alone
swapped       images whose thing is nearer to itself in the other's colours and pattern than to itself
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from PIL.Image import Image

import dreambooth
from dreambooth.config import load_config
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.data.images import to_images, to_tensor
from dreambooth.families import Family
from dreambooth.generation.models.loading import load_model
from dreambooth.metrics.subject import SubjectScorer, load_encoders
from toyworld.outcome import UNSEEN_PLACES
from toyworld.scenes import PHRASES
from toyworld.second import picture
from toyworld.second.judge import Judge, Verdict
from toyworld.second.picture import Spec

ENCODER = "checkpoints/toyworld-second-encoders/vit"
NUM_REFERENCES = 60  # renderings of the subject, and of others of its class
BOTH, AND = "both", "and"  # side by side as the prompt says, and joined by "and" alone
STEPS, GUIDANCE = 20, 4.0


@dataclass(frozen=True)
class Subject:
    """Hold a learned subject: its words in a prompt, its true identity, and its photos."""

    words: str
    spec: Spec
    photos: list[Image]

    @property
    def noun(self) -> str:
        return self.spec.class_noun


def subjects_of(folder: Path, seeds: dict[str, int]) -> list[Subject]:
    """Return the subjects of a run."""
    found = []
    for subject in load_config(folder / "config.yaml").subjects:
        spec = picture.subject(subject.class_noun, seeds[subject.class_noun])
        photos = [load_image(path) for path in list_images(subject.images)]
        found.append(Subject(f"{subject.identifier} {subject.class_noun}", spec, photos))
    return found


@dataclass(frozen=True)
class Shown:
    """Hold images, and the place that each should show."""

    images: Sequence[Image]
    places: list[str]


def draw(model: dreambooth.Model, prompts: Sequence[str], num_images: int) -> Shown:
    """Return images of each prompt in each of the unseen places, `num_images` a place and prompt."""
    asked = [(f"{prompt} {PHRASES[place][0]}", place) for prompt in prompts for place in UNSEEN_PLACES]
    images = [
        image
        for text, _ in asked
        for image in model.generate(text, num_images, seed=1000, steps=STEPS, guidance_scale=GUIDANCE)
    ]
    return Shown(images, [place for _, place in asked for _ in range(num_images)])


def embedded(judge: Judge, specs: Sequence[Spec], seed: int) -> torch.Tensor:
    """Return the judge's embeddings of renderings of things of one class, each alone, [N, E]."""
    rng = random.Random(seed)
    images = [picture.render(picture.picture_of(rng, spec)) for spec in specs]
    return judge(images).embedding(specs[0].class_noun)


@dataclass(frozen=True)
class Likeness:
    """Compare a thing in images with its subject, by the judge's embedding."""

    own_NE: torch.Tensor
    swapped_NE: torch.Tensor  # the subject in the other's colours and pattern
    floor: float  # of others of its class to the subject
    ceiling: float  # of renderings of the subject to others of it

    @staticmethod
    def of(judge: Judge, spec: Spec, other: Spec) -> "Likeness":
        rng = random.Random(f"others than {spec}")
        swapped = replace(spec, main=other.main, second=other.second, accent=other.accent, pattern=other.pattern)
        own_NE = embedded(judge, [spec] * NUM_REFERENCES, 0)
        again_NE = embedded(judge, [spec] * NUM_REFERENCES, 1)
        others_NE = embedded(judge, [picture.random_spec(rng, spec.class_noun) for _ in range(NUM_REFERENCES)], 2)
        swapped_NE = embedded(judge, [swapped] * NUM_REFERENCES, 3)
        floor, ceiling = (float((each @ own_NE.T).mean()) for each in (others_NE, again_NE))
        return Likeness(own_NE, swapped_NE, floor, ceiling)

    def way(self, thing_BE: torch.Tensor) -> float:
        return (float((thing_BE @ self.own_NE.T).mean()) - self.floor) / (self.ceiling - self.floor)

    def swapped(self, thing_BE: torch.Tensor) -> float:
        nearer = (thing_BE @ self.swapped_NE.T).mean(1) > (thing_BE @ self.own_NE.T).mean(1)
        return float(nearer.float().mean())


def cut_out(images: Sequence[Image], verdict: Verdict, noun: str) -> list[Image]:
    """Return the square of each image where the judge sees the thing of that class."""
    squares = []
    for image, stand in zip(images, verdict.stand(noun).tolist(), strict=True):
        x, ground, size = (number * image.width for number in stand)
        size = max(size, 8)
        squares.append(image.crop((int(x - size / 2), int(ground - size), int(x + size / 2), int(ground))))
    return squares


def drawn(model: dreambooth.Model, subjects: list[Subject], num_images: int) -> dict[str, Shown]:
    """Return what the model draws of each subject alone, by class noun, and of both in two wordings."""
    first, second = subjects
    orders, links = ((first, second), (second, first)), {BOTH: "to the left of", AND: "and"}
    prompts = {one.noun: [f"a photo of {one.words}"] for one in subjects} | {
        name: [f"a photo of {one.words} {link} {two.words}" for one, two in orders] for name, link in links.items()
    }
    return {name: draw(model, own, num_images) for name, own in prompts.items()}


def rendered(subjects: list[Subject], number: int) -> dict[str, Shown]:
    """Return renderings of each subject alone, by class noun, and of both, in places that no photo shows."""
    rng, specs = random.Random(5), [one.spec for one in subjects]
    things = {one.noun: [[one.spec]] for one in subjects} | {BOTH: [specs, specs[::-1]]}
    found = {}
    for name, orders in things.items():
        places = [UNSEEN_PLACES[i % len(UNSEEN_PLACES)] for i in range(number)]
        pictures = [
            picture.random_picture(rng, order, "left of" if len(order) == 2 else "", place)
            for i, place in enumerate(places)
            for order in [orders[i // len(UNSEEN_PLACES) % len(orders)]]
        ]
        found[name] = Shown([picture.render(each) for each in pictures], places)
    return found


@torch.no_grad()
def through_autoencoder(shown: Shown, family: Family) -> Shown:
    """Return what is left of images once they have been encoded and decoded."""
    latents_BCHW, _ = family.encode_images(torch.stack([to_tensor(image) for image in shown.images]))
    return Shown(to_images(family.decode_latents(latents_BCHW)), shown.places)


def rows(source: str, shown: dict[str, Shown], judge: Judge, subjects: list[Subject], encoder: str) -> list[str]:
    """Return the table's rows of images from one source: each subject alone, then both."""
    first, second = subjects
    images = {name: own.images for name, own in shown.items()}
    verdicts = {name: judge(own) for name, own in images.items()}
    nouns = {one.noun for one in subjects}
    seen = {
        name: fmean(set(verdicts[name].seen(i)[:2]) == nouns for i in range(len(images[name])))
        for name in images.keys() - nouns
    }
    encoders, lines = load_encoders(encoder, None), []
    for one, other in ((first, second), (second, first)):
        likeness = Likeness.of(judge, one.spec, other.spec)
        scorer = SubjectScorer(encoders, cut_out(one.photos, judge(one.photos), one.noun))
        dino, own_images = {}, [name for name in images if name != other.noun]
        for name in own_images:
            squares = cut_out(images[name], verdicts[name], one.noun)
            dino[name] = fmean(scorer.subject(squares, [one.words] * len(squares))["dino"])
        for name in own_images:
            thing_BE = verdicts[name].embedding(one.noun)
            there = fmean(one.noun in verdicts[name].seen(i) for i in range(len(images[name])))
            in_place = fmean(verdicts[name].place(i) == place for i, place in enumerate(shown[name].places))
            image_of = f"{name} ({seen[name]:.2f})" if name in seen else "alone"
            way, swapped = likeness.way(thing_BE), likeness.swapped(thing_BE)
            figures = (there, in_place, way, dino[name], dino[name] / dino[one.noun], swapped)
            lines.append(f"| {one.words} | {source} | {image_of} | {' | '.join(f'{each:.2f}' for each in figures)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="one run of two subjects, or two LoRAs of one each")
    parser.add_argument("--seeds", default="robot=21,dog=1", help="of the subjects, by class (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=6, help="a place and prompt (default: %(default)s)")
    parser.add_argument("--encoder", default=ENCODER, help="DINO (default: %(default)s)")
    args = parser.parse_args()
    seeds = {noun: int(seed) for noun, seed in (pair.split("=") for pair in args.seeds.split(","))}
    subjects = [subject for run in args.runs for subject in subjects_of(run, seeds)]
    if len(subjects) != 2:
        parser.error(f"{len(subjects)} subjects in {', '.join(map(str, args.runs))}: two are compared")
    base = load_config(args.runs[0] / "config.yaml").model.base
    alone = len(args.runs) == 1
    model = (
        dreambooth.load(args.runs[0], device="cpu") if alone else dreambooth.load(base, device="cpu", loras=args.runs)
    )
    judge, family = Judge.load(Path(base) / "judge"), load_model(base, "cpu").family
    truth = rendered(subjects, NUM_REFERENCES)
    decoded = {name: through_autoencoder(images, family) for name, images in truth.items()}
    learned = drawn(model, subjects, args.num_images)
    print("| subject | source | image (both seen) | seen | place | way | dino | of alone | swapped |")
    print("|---" * 9 + "|")
    for source, shown in {"learned": learned, "rendered": truth, "decoded": decoded}.items():
        print("\n".join(rows(source, shown, judge, subjects, args.encoder)), flush=True)


if __name__ == "__main__":
    main()
