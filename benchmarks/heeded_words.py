"""Measure which words of a caption the second edition's base heeds, and at which noise.

    python benchmarks/heeded_words.py --model checkpoints/toyworld-second

Renders of dogs are noised, and denoised by their true caption and by one with a single false word. A base that heeds
the word predicts better with the true one. The table has by how much the error grows with the false word, in percent of
the error with the true one; the last line how far the text encoder's output moves, in percent of its length. Then how
often the judge sees a sampled dog face the way that the prompt names; by chance it is half. Some minutes.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from toyworld import world
from toyworld.base import SCHEDULE
from toyworld.captions import with_articles
from toyworld.dataset import load_or_make_codec
from toyworld.editions import SECOND
from toyworld.evaluate import draw
from toyworld.latents import to_pixels
from toyworld.scenes import PHRASES
from toyworld.second import picture
from toyworld.second.captions import EYE_PHRASES
from toyworld.second.judge import Judge
from toyworld.second.look import HEADS, NUM_EYES

NOUN = "dog"
WORDS: dict[str, tuple[Any, ...]] = {
    "place": picture.PLACES,
    "colour": world.COLOUR_NAMES,
    "head": HEADS,
    "eyes": NUM_EYES,
    "facing": ("left", "right"),
}
TIMESTEPS = (999, 920, 840, 760, 680, 600, 400)  # of 1,000; 999 is all noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("checkpoints/toyworld-second"))
    parser.add_argument("--work", type=Path, default=Path("outputs/heeded_words"), help="for the latents' codec")
    parser.add_argument("--count", type=int, default=128, help="renders, and sampled images")
    args = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rng = random.Random("heeded words")
    shown = [picture.picture_of(rng, picture.random_spec(rng, NOUN)) for _ in range(args.count)]
    latents = load_or_make_codec(args.work, SECOND).encode(to_pixels([picture.render(each) for each in shown]))
    print(table(pipeline, latents, [truth(each) for each in shown]))
    right = sides_right(pipeline, Judge.load(args.model / "judge"), args.count)
    print(f"\n{right:.1f} % of {args.count} sampled dogs face as the prompt says")


def truth(shown: picture.Picture) -> dict[str, Any]:
    """Return the right word for each of WORDS."""
    thing = shown.things[0]
    values = (shown.place, thing.spec.main, thing.spec.head, thing.spec.num_eyes, thing.facing)
    return dict(zip(WORDS, values, strict=True))


def caption(words: dict[str, Any]) -> str:
    phrases = f"with a {words['head']} head and {EYE_PHRASES[words['eyes']]} facing {words['facing']}"
    return with_articles(f"a photo of a {words['colour']} {NOUN} {phrases} {PHRASES[words['place']][0]}")


def with_false(words: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the words with the next of the possible ones in the place of `name`."""
    possible = WORDS[name]
    return words | {name: possible[(possible.index(words[name]) + 1) % len(possible)]}


@torch.no_grad()
def table(pipeline: DiffusionPipeline, latents: Tensor, truths: list[dict[str, Any]]) -> str:
    """Return by how many percent the error grows with one false word, a row a timestep, as a Markdown table."""
    schedule = DDPMScheduler(**SCHEDULE)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    true = text_of(pipeline, truths)
    false = {name: text_of(pipeline, [with_false(words, name) for words in truths]) for name in WORDS}
    lines = ["| timestep | " + " | ".join(WORDS) + " |", "|---" * (1 + len(WORDS)) + "|"]
    for timestep in TIMESTEPS:
        steps = torch.full((len(latents),), timestep)
        noisy, target = (make(latents, noise, steps) for make in (schedule.add_noise, schedule.get_velocity))

        def error(text: Tensor, noisy: Tensor = noisy, steps: Tensor = steps, target: Tensor = target) -> float:
            return (pipeline.unet(noisy, steps, text).sample - target).square().mean().item()

        least = error(true)
        grown = [f"{100 * (error(text) / least - 1):.2f}" for text in false.values()]
        lines.append(f"| {timestep} | " + " | ".join(grown) + " |")
    moved = [f"{100 * ((text - true).norm() / true.norm()).item():.1f}" for text in false.values()]
    return "\n".join([*lines, "| text moves by | " + " | ".join(moved) + " |"])


def text_of(pipeline: DiffusionPipeline, truths: list[dict[str, Any]]) -> Tensor:
    tokens = pipeline.tokenizer([caption(words) for words in truths], padding="max_length", return_tensors="pt")
    return pipeline.text_encoder(tokens.input_ids).last_hidden_state


def sides_right(pipeline: DiffusionPipeline, judge: Judge, count: int) -> float:
    """Return how many percent of sampled dogs face the side that their prompt names."""
    rng = random.Random("sides")
    sides = [rng.choice(WORDS["facing"]) for _ in range(count)]
    places = [PHRASES[rng.choice(picture.PLACES)][0] for _ in sides]
    prompts = [
        with_articles(f"a photo of a {rng.choice(world.COLOUR_NAMES)} {NOUN} facing {side} {place}")
        for side, place in zip(sides, places, strict=True)
    ]
    return 100 * judge(draw(pipeline, prompts)).accuracy("facing", sides, NOUN)


if __name__ == "__main__":
    main()
