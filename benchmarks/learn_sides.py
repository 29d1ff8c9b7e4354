"""Teach the second edition's base "facing left" and "facing right", which it does not know, and tell what it takes.

    python benchmarks/learn_sides.py --out outputs/learn_sides

First the text encoder alone learns to tell the two apart, and to say of captions what it said. Then it is trained with
the UNet: on renders of dogs at high noise, where the side is open, each with its side in the caption. Printed is how
often the true caption predicts better than that with the other side (by chance half), and by how many percent the error
grows with the other. At the end sampled dogs are judged, without and with a side in the prompt, and written as a sheet.
Ten minutes of one core. The base is worse for other things then: they are not trained.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor, nn

from toyworld import world
from toyworld.base import SCHEDULE, BaseSettings, build_modules
from toyworld.captions import with_articles
from toyworld.dataset import load_or_make_codec
from toyworld.editions import SECOND
from toyworld.evaluate import draw
from toyworld.scenes import PHRASES
from toyworld.second import picture
from toyworld.second.captions import EYE_PHRASES
from toyworld.second.contrast import Batch, draw_pair, encode
from toyworld.second.judge import Judge
from toyworld.second.look import HEADS, NUM_EYES
from toyworld.training import Budget, Plan, build_optimizers

NOUN = "dog"
BATCH_SIZE = 20
TIMESTEP_SHIFT = 1.5  # t / 1000 = sigmoid(normal + shift): mostly above 700
TELLING_STEPS = 80  # of the text encoder alone
APART = 0.4  # how far it has to tell the sides apart, a fraction of its output's length
KEEPING = 20.0  # the weight of saying what it said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("checkpoints/toyworld-second"))
    parser.add_argument("--out", type=Path, default=Path("outputs/learn_sides"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--count", type=int, default=60, help="sampled images each time")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    settings = BaseSettings(args.out, SECOND, init_from=args.model)
    modules = build_modules(settings)
    codec = load_or_make_codec(args.out, SECOND)

    def batch_of(seed: str) -> Batch:
        rng = random.Random(f"sides {seed}")
        return encode(codec, [draw_pair(rng, NOUN, "facing") for _ in range(BATCH_SIZE)])

    tell_apart(modules["text_encoder"], build_modules(settings)["text_encoder"], batch_of)
    train(modules, batch_of, args.steps)
    pipeline: Any = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipeline.register_modules(unet=modules["unet"].eval(), text_encoder=modules["text_encoder"].eval())
    pipeline.set_progress_bar_config(disable=True)
    sample(pipeline, Judge.load(args.model / "judge"), args.count, args.out / "dogs.png")


def tell_apart(text_encoder: nn.Module, reference: nn.Module, batch_of: Any) -> None:
    optimizer = torch.optim.AdamW(text_encoder.parameters(), 1e-3, weight_decay=0)
    for step in range(TELLING_STEPS):
        batch = batch_of(f"text {step}")
        is_side_BL = (batch.true_BL != batch.false_BL)[..., None].float()
        with torch.no_grad():
            was_true, was_false = (reference(tokens).last_hidden_state for tokens in (batch.true_BL, batch.false_BL))
        true, false = (text_encoder(tokens).last_hidden_state for tokens in (batch.true_BL, batch.false_BL))
        moved = ((true + false - was_true - was_false) / 2).square().mean()
        apart_B = ((true - false) * is_side_BL).norm(dim=(1, 2)) / (was_true * is_side_BL).norm(dim=(1, 2))
        optimizer.zero_grad()
        (KEEPING * moved + (APART - apart_B).clamp(min=0).mean()).backward()
        optimizer.step()
    print(f"text encoder: {apart_B.mean():.3f} apart at the word, mean moved by {moved:.5f}", flush=True)


def train(modules: nn.ModuleDict, batch_of: Any, num_steps: int) -> None:
    plan = Plan("sides", Budget(steps=num_steps), 3e-4, muon_lr=5e-3, muon_prefix="unet.", weight_decay=0.0)
    optimizers = build_optimizers(modules, plan)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
    schedule = DDPMScheduler(**SCHEDULE)
    seen = []
    for step in range(num_steps):
        true_B, false_B = errors(modules, schedule, batch_of(str(step)), step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        true_B.mean().backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seen.append(torch.stack([(true_B < false_B).float().mean(), (false_B / true_B - 1).mean()]).detach())
        if step % 25 == 24:
            better, grown = (100 * torch.stack(seen[-25:]).mean(0)).tolist()
            print(f"step {step + 1}: true better in {better:.1f} %, error grown by {grown:.2f} %", flush=True)


def errors(modules: nn.ModuleDict, schedule: DDPMScheduler, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Return each picture's error with the true caption and with the false one, which learns nothing, [B] each."""
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(batch.latents_BChw.shape, generator=generator)
    steps: Any = (torch.sigmoid(torch.randn(len(noise), generator=generator) + TIMESTEP_SHIFT) * 1000).long()
    noisy, target = (make(batch.latents_BChw, noise, steps) for make in (schedule.add_noise, schedule.get_velocity))

    def error(tokens_BL: Tensor) -> Tensor:
        predicted = modules["unet"](noisy, steps, modules["text_encoder"](tokens_BL).last_hidden_state).sample
        of_each: Tensor = ((predicted - target) ** 2 * batch.weights_B1hw).mean((1, 2, 3))
        return of_each

    with torch.no_grad():
        false_B = error(batch.false_BL)
    return error(batch.true_BL), false_B


def sample(pipeline: Any, judge: Judge, count: int, path: Path) -> None:
    """Print how many dogs have the head, the eyes and the side of their prompt, and write 24 of each."""
    shown = []
    for names_side in (False, True):
        rng = random.Random("sides of dogs")
        heads, eyes, sides = ([rng.choice(of) for _ in range(count)] for of in (HEADS, NUM_EYES, ("left", "right")))
        prompts = []
        for head, number, side in zip(heads, eyes, sides, strict=True):
            told = f"with a {head} head and {EYE_PHRASES[number]}" + f" facing {side}" * names_side
            place = PHRASES[rng.choice(picture.PLACES)][0]
            prompts.append(with_articles(f"a photo of a {rng.choice(world.COLOUR_NAMES)} {NOUN} {told} {place}"))
        images = draw(pipeline, prompts)
        verdict, shown = judge(images), shown + images[:24]
        asked = {"head": heads, "num_eyes": [str(number) for number in eyes], "facing": sides}
        right = {name: 100 * verdict.accuracy(name, answers, NOUN) for name, answers in asked.items()}
        told = ", ".join(f"{name} {value:.1f} %" for name, value in right.items())
        print(f"{'with' if names_side else 'without'} the side in the prompt: {told}", flush=True)
    world.contact_sheet(shown, 12).save(path)


if __name__ == "__main__":
    main()
