"""How well the scores of images agree with the renderer's truth: CLIP-T, match, questions; DINO and a taught reader.

    python benchmarks/reader_scores.py prompts            right and wrong prompts of unseen renderings
    python benchmarks/reader_scores.py drawn              right and wrong prompts of images that the base drew
    python benchmarks/reader_scores.py subjects           a subject against others of its class, and near misses
    python benchmarks/reader_scores.py attention          how much of a word's map of attention lies on the thing

The first three print a Markdown table of areas under the ROC curve (AUC): 1 where every right image scores above every
wrong one, .5 where the score knows nothing. The 95 % intervals are over images, drawn again a thousand times; of a
difference both scores are of the same draws. `subjects` teaches a reader each subject first, and goes on where it was
interrupted.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL.Image import Image
from scipy.stats import rankdata

from dreambooth.data.images import to_images
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.sampler import sample_pixels
from dreambooth.generation.settings import SamplerSettings
from dreambooth.metrics.encoders import ClipEncoder
from dreambooth.metrics.scores import prompt_similarity
from dreambooth.metrics.subject import SubjectScorer, load_encoders
from dreambooth.readers.likelihood import answer_probability
from dreambooth.readers.loading import ReaderSource
from dreambooth.readers.protocols import Matcher, Reader, Searcher
from dreambooth.readers.table import load_matcher, load_reader, load_searcher
from dreambooth.readers.teach import Lesson, is_it, load_pupil, teach
from dreambooth.readers.text_options import TextOptions
from toyworld import world
from toyworld.captions import with_articles
from toyworld.judge import Judge
from toyworld.outcome import UNSEEN_PLACES
from toyworld.palette import COLOURS
from toyworld.photos import PLACES, photos
from toyworld.readers.lessons import by_cell
from toyworld.readers.questions import place_phrase
from toyworld.readers.scenes import KnownScene, unseen_scene
from toyworld.second.things import CLASSES

RETRIEVAL = "retrieval"  # the folder of what matches, in the reader's
BASE, ENCODERS = Path("checkpoints/toyworld"), Path("checkpoints/toyworld-encoders")
NUM_DRAWS = 1000
SUBJECTS = (("robot", 0), ("dog", 1), ("backpack", 2), ("car", 3))  # class and seed
NAME, ASKED = "a pink", "“is this the subject?”"  # no subject is pink; the language model writes words it knows


@dataclass(frozen=True)
class Tools:
    """Hold what scores."""

    clip: ClipEncoder
    matcher: Matcher
    searcher: Searcher  # the contrast that the matching head was trained beside
    reader: Reader


def load_tools(folder: Path) -> Tools:
    clip = load_encoders(None, str(ENCODERS / "clip")).clip
    assert clip is not None
    retrieval = ReaderSource(str(folder / RETRIEVAL))
    return Tools(clip, load_matcher(retrieval), load_searcher(retrieval), load_reader(ReaderSource(str(folder))))


# -------------------------------------------------------------------------------- areas under the curve


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """Return the part of pairs of a right and a wrong image in which the right one scores more; ties count half."""
    ranks = rankdata(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def table(first: str, groups: dict[str, tuple[dict[str, np.ndarray], np.ndarray]], against: str) -> str:
    """Return a table: of each group and score the AUC with its interval, and its difference to the score `against`.

    groups: scores of images by name, and whether each image is right.
    """
    lines = [f"| {first} | right, wrong | score | AUC | to {against} |", "|---" * 5 + "|"]
    for title, (scores, is_right) in groups.items():
        draws = drawn_numbers(is_right)
        found = {name: np.array([auc_of(values, is_right, draw) for draw in draws]) for name, values in scores.items()}
        for name, values in scores.items():
            low, high = np.quantile(found[name], (0.025, 0.975))
            area = f"{auc_of(values, is_right, np.arange(len(is_right))):.3f} ({low:.3f} to {high:.3f})"
            low, high = np.quantile(found[name] - found[against], (0.025, 0.975))
            change = "" if name == against else f"{low:+.3f} to {high:+.3f}"
            counts = f"{int(is_right.sum())}, {int((~is_right).sum())}"
            lines.append(f"| {title} | {counts} | {name} | {area} | {change} |")
    return "\n".join(lines)


def drawn_numbers(is_right: np.ndarray) -> list[np.ndarray]:
    """Return numbers of images drawn again and again, right and wrong ones as many as there are."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(is_right), np.flatnonzero(~is_right)]
    return [np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]) for _ in range(NUM_DRAWS)]


def auc_of(values: np.ndarray, is_right: np.ndarray, draw: np.ndarray) -> float:
    return auc(values[draw][is_right[draw]], values[draw][~is_right[draw]])


# -------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Asked:
    """Hold an image, what it is said to show in two wordings, a question with its answer, and whether that is so."""

    image: Image
    prompt: str
    caption: str
    question: str
    answer: str
    is_right: bool


def scored(tools: Tools, asked: Sequence[Asked]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the scores of images by name, and whether each is right."""
    images = [each.image for each in asked]
    images_BD = tools.clip.images(images)
    found = {
        "CLIP-T": prompt_similarity(images_BD, tools.clip.texts([each.prompt for each in asked])).numpy(),
        "CLIP-T, caption": prompt_similarity(images_BD, tools.clip.texts([each.caption for each in asked])).numpy(),
        "match": np.array([tools.matcher.match([each.image], each.prompt)[0] for each in asked]),
        "match, caption": np.array([tools.matcher.match([each.image], each.caption)[0] for each in asked]),
        "contrast, caption": np.array([tools.searcher.likeness([each.image], each.caption)[0] for each in asked]),
        "question": answers(tools.reader, asked),
    }
    return found, np.array([each.is_right for each in asked])


def answers(reader: Reader, asked: Sequence[Asked]) -> np.ndarray:
    """Return the probability of each answer; images that are asked the same are asked together."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, each in enumerate(asked):
        groups[each.question, each.answer].append(number)
    values = np.zeros(len(asked))
    for (question, answer), numbers in groups.items():
        values[numbers] = answer_probability(reader, [asked[number].image for number in numbers], question, answer)
    return values


# -------------------------------------------------------------------------------- renderings and prompts


def unseen_scenes(num_images: int) -> list[KnownScene]:
    """Return renderings of one thing each, all held out of every training."""
    rng, found = random.Random("reader scores"), []
    while len(found) < num_images:
        scene = unseen_scene(rng)
        if len(scene.things) == 1:
            found.append(scene)
    return found


def pairs(rng: random.Random, scene: KnownScene, fault: str) -> list[Asked]:
    """Return a rendering with a right text, and with one that is wrong in class, place, main colour or pattern."""
    thing = scene.things[0]
    told = {"class": thing.class_noun, "place": scene.place, "colour": thing.main, "pattern": thing.pattern}
    others = {
        "class": [noun for noun in CLASSES if noun != thing.class_noun],
        "place": [place for place in world.PLACES if place != scene.place],
        "colour": [name for name in COLOURS if name not in (thing.main, thing.second, thing.accent)],
        "pattern": [name for name in world.PATTERNS if name != thing.pattern],
    }
    wrong = {**told, fault: rng.choice(others[fault])}
    return [_asked(scene, texts, fault, texts is told) for texts in (told, wrong)]


def _asked(scene: KnownScene, told: dict[str, str], fault: str, is_right: bool) -> Asked:
    thing, noun, place = scene.things[0], told["class"], place_phrase(told["place"])
    pattern = "" if told["pattern"] == "plain" else f"{told['pattern']} "
    look = {"colour": f"{told['colour']} ", "pattern": pattern}.get(fault, "")
    prompt = f"a photo of a {look}{noun} {place}"
    caption = f"a {pattern}{told['colour']} and {thing.second} {noun} {place}"
    question, answer = {
        "class": (f"is there a {noun}?", "yes"),
        "place": ("where is it?", place),
        "colour": (f"what colour is the {noun}?", told["colour"]),
        "pattern": (f"what pattern has the {noun}?", told["pattern"]),
    }[fault]
    return Asked(scene.image, *map(with_articles, (prompt, caption, question)), answer, is_right)


def of_prompts(tools: Tools, num_images: int) -> str:
    rng, scenes = random.Random("wrong prompts"), unseen_scenes(num_images)
    groups = {}
    for fault in ("class", "place", "colour", "pattern"):
        groups[fault] = scored(tools, [each for scene in scenes for each in pairs(rng, scene, fault)])
    return table("wrong in the prompt", groups, "CLIP-T")


# -------------------------------------------------------------------------------- images of the base


def of_drawn(tools: Tools, num_images: int, steps: int, guidance: float) -> str:
    """Return the table for images of the base, under their own prompts and under wrong ones.

    The judge, which was trained on the truth, says what they show: those that it misses are left out.
    """
    rng = random.Random("drawn")
    told = [{"class": rng.choice(world.CLASSES), "place": rng.choice(world.PLACES)} for _ in range(num_images)]
    images = draw([_prompt(each) for each in told], steps, guidance)
    labels = Judge.load(BASE / "judge")(images).labels
    groups = {}
    for fault, head, known in (("class", "class_noun", world.CLASSES), ("place", "place", world.PLACES)):
        asked = []
        for image, own, seen in zip(images, told, labels[head], strict=True):
            wrong = {**own, fault: rng.choice([name for name in known if name != own[fault]])}
            if seen == own[fault]:
                asked += [_of_drawn(image, texts, fault, texts is own) for texts in (own, wrong)]
        groups[fault] = scored(tools, asked)
    return table("wrong in the prompt", groups, "CLIP-T")


def _prompt(told: dict[str, str]) -> str:
    return with_articles(f"a photo of a {told['class']} {place_phrase(told['place'])}")


def _of_drawn(image: Image, told: dict[str, str], fault: str, is_right: bool) -> Asked:
    prompt = _prompt(told)
    question, answer = with_articles(f"is there a {told['class']}?"), "yes"
    if fault == "place":
        question, answer = "where is it?", place_phrase(told["place"])
    return Asked(image, prompt, prompt.removeprefix("a photo of "), question, answer, is_right)


def draw(prompts: Sequence[str], steps: int, guidance: float) -> list[Image]:
    model = load_model(ModelRef(str(BASE)), "cpu")
    settings = SamplerSettings(num_inference_steps=steps, guidance_scale=guidance)
    size, seeds = (model.resolution, model.resolution), range(len(prompts))
    return [
        image
        for pixels_BCHW in sample_pixels(model.family, list(prompts), seeds, size, settings, batch_size=8)
        for image in to_images(pixels_BCHW)
    ]


# -------------------------------------------------------------------------------- a subject and others of its class


def of_subjects(folder: Path, work: Path, num_images: int, steps: int, nouns: Sequence[str]) -> str:
    """Return the table of each subject against others of its class, and against itself with another second colour."""
    groups: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {}
    for noun, seed in [each for each in SUBJECTS if each[0] in nouns]:
        own, *wrong = subject_scores(folder, work / f"{noun}-{seed}", noun, seed, num_images, steps)
        for title, other in zip(("others", "near misses"), wrong, strict=True):
            scores = {name: np.concatenate([own[name], other[name]]) for name in own}
            groups[f"{noun}, {title}"] = scores, np.arange(2 * num_images) < num_images
            yes = [np.mean(each[ASKED] > 0.5) for each in (own, other)]
            print(f"{noun}: yes to {yes[0]:.3f} of it, to {yes[1]:.3f} of {title}")
    for title in ("others", "near misses"):
        each = [scores for name, (scores, _) in groups.items() if name.endswith(title)]
        ranked = {name: np.concatenate([rankdata(scores[name]) for scores in each]) for name in each[0]}
        groups[f"all, {title}, ranked within each"] = ranked, np.tile(np.arange(2 * num_images) < num_images, len(each))
    return table("subject", groups, "DINO")


def subject_scores(
    folder: Path, work: Path, noun: str, seed: int, num_images: int, steps: int
) -> list[dict[str, np.ndarray]]:
    """Teach a reader a subject by five photos, and score unseen renderings of it, of others and of near misses.

    The others that it learns from are in the photos' places; what is scored is in places of neither.
    """
    rng, spec = random.Random(f"others of {noun} {seed}"), world.subject(noun, seed)
    own = photos(noun, seed)
    scenes = [world.random_scene(rng, PLACES[i % len(PLACES)]) for i in range(40)]
    known = [world.render(world.random_spec(rng, noun), scene) for scene in scenes]
    paths = {name: _written(images, work / name) for name, images in (("own", own), ("others", known))}
    lesson = Lesson(f"{NAME} {noun}", noun, paths["own"], paths["others"], steps=steps)
    reader = load_reader(ReaderSource(str(teach(load_pupil(ReaderSource(str(folder))), lesson, work / "taught"))))
    scorer = SubjectScorer(load_encoders(str(ENCODERS / "vit"), None), own)
    free = [colour for colour in COLOURS if colour not in (spec.main, spec.second, spec.accent)]
    kinds = [
        [spec] * num_images,
        [world.random_spec(rng, noun) for _ in range(num_images)],
        [replace(spec, second=rng.choice(free)) for _ in range(num_images)],
    ]
    found = []
    for specs in kinds:
        scenes = [world.random_scene(rng, UNSEEN_PLACES[i % 4]) for i in range(num_images)]
        images = [world.render(each, scene) for each, scene in zip(specs, scenes, strict=True)]
        asked = answer_probability(reader, images, is_it(lesson.name), "yes")
        found.append({"DINO": np.array(scorer.subject(images, [])["dino"]), ASKED: np.array(asked)})
    return found


# -------------------------------------------------------------------------------- attention


def of_attention(folder: Path, num_images: int) -> str:
    """Return a table: of words of captions that name a colour, the class or the place, how much lies on the thing."""
    scenes = unseen_scenes(num_images)
    found = load_reader(ReaderSource(str(folder))).attend([scene.image for scene in scenes], TextOptions(max_tokens=32))
    parts: dict[str, list[float]] = defaultdict(list)
    for scene, caption in zip(scenes, found, strict=True):
        kinds = {"colour": COLOURS, "class": CLASSES, "place": place_phrase(scene.place).split()[-1:]}
        for word in caption.words:
            on_thing = float(word.map_hw.flatten().numpy() @ by_cell(scene.things[0].mask, len(word.map_hw)))
            for kind in [kind for kind, words in kinds.items() if word.word in words]:
                parts[kind].append(on_thing)
    covered = np.mean([scene.things[0].mask.mean() for scene in scenes])
    lines = ["| word | words | of its map on the thing | the thing's part of the image |", "|---" * 4 + "|"]
    return "\n".join(lines + [f"| {k} | {len(v)} | {np.mean(v):.2f} | {covered:.2f} |" for k, v in parts.items()])


def _written(images: Sequence[Image], folder: Path) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{number:02d}.png" for number in range(len(images)))
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prompts", "drawn", "subjects", "attention"))
    parser.add_argument("--reader", type=Path, default=Path("checkpoints/toyworld-blip2"), help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("outputs/reader-scores"), help="taught readers (%(default)s)")
    parser.add_argument("--num-images", type=int, default=120, help="right ones and wrong ones each (%(default)s)")
    known = [noun for noun, _ in SUBJECTS]
    parser.add_argument("--nouns", nargs="+", choices=known, default=known, help="of the subjects (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of a lesson (%(default)s)")
    parser.add_argument("--sampler-steps", type=int, default=8, help="of images of the base (%(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the same (%(default)s)")
    args = parser.parse_args()
    if args.what == "subjects":
        print(of_subjects(args.reader, args.work, args.num_images, args.steps, args.nouns))
        return
    if args.what == "attention":
        print(of_attention(args.reader, args.num_images))
        return
    tools = load_tools(args.reader)
    if args.what == "prompts":
        print(of_prompts(tools, args.num_images))
    else:
        print(of_drawn(tools, args.num_images, args.sampler_steps, args.guidance))


if __name__ == "__main__":
    main()
