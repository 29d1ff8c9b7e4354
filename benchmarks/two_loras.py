"""Two subjects' LoRAs over one base: what each does to the other.

    benchmarks/two_loras.py checkpoints/robot-lora checkpoints/dog-lora --num-images 8

Both are runs of lora on the same base, with identifiers of their own. Images of each subject's prompt, and of its
class, are made by the base with no LoRA, with each, and with both. Prints a Markdown table of each subject's likeness
(DINO, mean cosine to its photos): under a prompt its own subject's should stay, and the other's should not rise.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

import dreambooth
from dreambooth.config import load_config
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.metrics.subject import SubjectScorer, load_encoders
from dreambooth.prompts import fill_prompt

ENCODER = "checkpoints/toyworld-second-encoders/vit"


@dataclass(frozen=True)
class Run:
    """Hold a run's folder, its prompts, and its photos."""

    folder: Path
    base: str
    prompts: tuple[str, str]
    photos: list[Image]


def read_run(folder: Path) -> Run:
    config = load_config(folder / "config.yaml")
    subject = config.subjects[0]
    prompts = tuple(fill_prompt(each, config.subjects) for each in (subject.prompt, subject.class_prompt))
    photos = [load_image(path) for path in list_images(subject.images)]
    return Run(folder, config.model.base, (prompts[0], prompts[1]), photos)


def rows(runs: list[Run], num_images: int, steps: int, encoder: str) -> Iterator[tuple[str, str, list[float]]]:
    """Yield what is laid over the base, the prompt, and the likeness to each subject."""
    encoders = load_encoders(encoder, None)
    scorers = [SubjectScorer(encoders, run.photos) for run in runs]
    names = [run.folder.name for run in runs]
    for laid in ([], [0], [1], [0, 1]):
        loras = [runs[number].folder for number in laid]
        model = dreambooth.load(runs[0].base, device="cpu", loras=loras)
        for prompt in (prompt for run in runs for prompt in run.prompts):
            images = model.generate(prompt, num_images, seed=0, steps=steps)
            scores = [scorer.subject(images, [prompt] * num_images)["dino"] for scorer in scorers]
            means = [sum(each) / len(each) for each in scores]
            yield " and ".join(names[number] for number in laid) or "none", prompt, means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--encoder", default=ENCODER)
    args = parser.parse_args()
    runs = [read_run(folder) for folder in args.runs]
    print(f"| LoRA | prompt | {' | '.join(f'DINO to {run.folder.name}' for run in runs)} |\n|---|---|---|---|")
    for laid, prompt, means in rows(runs, args.num_images, args.steps, args.encoder):
        print(f"| {laid} | {prompt} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    main()
