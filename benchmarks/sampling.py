"""Sampling side by side: ours, diffusers' own pipeline and exported graphs, on the same cores.

    benchmarks/sampling.py checkpoints/toyworld --graphs onnx openvino --work outputs/sampling

Every round makes the same images by each in turn, so that a busy machine slows all alike; the median of the rounds
counts. Prints a Markdown table: seconds an image, and how far the images are from ours (0 to 1, the largest and the
mean). Those of diffusers start from noise of its own, so only their time is compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import dreambooth
from dreambooth.exporting import graphs
from dreambooth.families import load_family
from dreambooth.files import atomic_folder
from dreambooth.subject_info import ExportCard

PROMPT = "a photo of a red robot on the beach"
GUIDANCE_SCALE = 5.0


def graph_folder(model: str, form: str, work: Path) -> Path:
    """Return the folder of a model's graphs, which is written the first time."""
    folder = work / form
    if not folder.is_dir():
        family = load_family(model)
        started = time.perf_counter()
        with atomic_folder(folder) as beside:
            beside.mkdir(parents=True)
            graphs.write(form, family, ExportCard((), family.resolution, 25, GUIDANCE_SCALE, 0), beside, form)
        print(f"{form}: written in {time.perf_counter() - started:.0f} s")
    return folder


def ours(model: str, steps: int, num_images: int) -> Callable[[], list[Any]]:
    """Return what makes images by our sampler."""
    loaded = dreambooth.load(model, device="cpu")
    arguments = {"seed": 0, "steps": steps, "guidance_scale": GUIDANCE_SCALE, "scheduler": "ddim"}
    return lambda: list(loaded.generate(PROMPT, num_images=num_images, batch_size=num_images, **arguments))


def theirs(model: str, steps: int, num_images: int) -> Callable[[], list[Any]]:
    """Return what makes images by diffusers' pipeline, as its documentation has it."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": steps, "guidance_scale": GUIDANCE_SCALE, "num_images_per_prompt": num_images}
    return lambda: pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **arguments).images


def timed(make: Callable[[], list[Any]]) -> float:
    started = time.perf_counter()
    make()
    return time.perf_counter() - started


def difference(images: list[Any], expected: list[Any]) -> tuple[float, float]:
    """Return the largest and the mean difference of two lists of images, of 1."""
    both = [np.stack([np.asarray(image, dtype=np.float32) / 255 for image in each]) for each in (images, expected)]
    apart = np.abs(both[0] - both[1])
    return float(apart.max()), float(apart.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder of Stable Diffusion")
    parser.add_argument("--graphs", nargs="*", default=[], choices=("onnx", "openvino"))
    parser.add_argument("--work", type=Path, default=Path("outputs/sampling"), help="where graphs are written")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=4, help="in one batch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    size = (args.steps, args.images)
    makers = {"ours": ours(args.model, *size), "diffusers": theirs(args.model, *size)}
    makers |= {form: ours(str(graph_folder(args.model, form, args.work)), *size) for form in args.graphs}
    expected = makers["ours"]()
    apart = {name: difference(make(), expected) for name, make in makers.items() if name not in ("ours", "diffusers")}
    makers["diffusers"]()  # warm
    rounds = [{name: timed(make) / args.images for name, make in makers.items()} for _ in range(args.rounds)]
    print(
        f"{args.model}: {args.steps} steps of DDIM, {args.images} images a batch, {torch.get_num_threads()} thread(s)\n"
    )
    print("| | seconds an image | beside ours | largest difference | mean |\n|---|---|---|---|---|")
    medians = {name: statistics.median(each[name] for each in rounds) for name in makers}
    for name, seconds in medians.items():
        shown = " | ".join(f"{number:.4f}" for number in apart[name]) if name in apart else "- | -"
        print(f"| {name} | {seconds:.3f} | {seconds / medians['ours']:.2f} | {shown} |")


if __name__ == "__main__":
    main()
