"""Measure what a LoRA takes on quantized bases, each optimizer and offload, beside what `plan` foretells; and time.

    python benchmarks/memory.py z_image --shape small --resolution 256
    python benchmarks/memory.py flux2_klein --shape real --resolution 1024 --rows "model.quantize=nf4"

The base has random weights and is made in --work, unless it lies there already: `real` has the shapes of Z-Image (6B)
or of FLUX.2 Klein (4B) with their text encoders, in bfloat16, 16 to 20 GB; `small` a hundredth of it. Each row is a
process of its own. The peak is of what torch has held there: on a CPU its allocator's own count over two steps, since a
process also keeps what was let go of (`real_size.py` measures processes).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
ROWS = (
    "", "train.gradient_checkpointing=true", "model.quantize=int8", "model.quantize=nf4",
    "model.quantize=nf4 train.gradient_checkpointing=true train.offload=blocks", "optim.name=adafactor",
    "optim.name=prodigy",
)  # fmt: skip
QWEN3 = {
    "real": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "small": {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 28, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512,
    },
}  # fmt: skip
TRANSFORMERS = {
    ("z_image", "real"): (ZImageTransformer2DModel, {}),  # the class's defaults are the model's shapes
    ("z_image", "small"): (
        ZImageTransformer2DModel, {"dim": 1024, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "cap_feat_dim": 256},
    ),
    ("flux2_klein", "real"): (
        Flux2Transformer2DModel,
        {
            "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
            "joint_attention_dim": 7680, "guidance_embeds": False,
        },
    ),
    ("flux2_klein", "small"): (
        Flux2Transformer2DModel,
        {
            "in_channels": 128, "num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8,
            "joint_attention_dim": 768, "guidance_embeds": False,
        },
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("z_image", "flux2_klein"))
    parser.add_argument("--shape", choices=("real", "small"), default="small")
    parser.add_argument("--resolution", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=4, help="of which the first is not timed")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--rows", nargs="+", default=ROWS, help="settings of each row, in one argument")
    parser.add_argument("--work", type=Path, default=Path("outputs/memory"))
    parser.add_argument("--child", choices=("plan", "train"), help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    base = args.work / f"{args.family}-{args.shape}"
    config = args.work / f"{base.name}.yaml"
    if args.child:
        print(json.dumps(plan(config, overrides) if args.child == "plan" else train(config, overrides)))
        return
    if not (base / "model_index.json").is_file():
        make(args.family, args.shape, base)
    write_config(args, base, config)
    print("| settings | foretold, GiB | measured, GiB | difference | s a step |\n|---|---|---|---|---|", flush=True)
    for row in args.rows:
        foretold, found = (child(each, row) for each in ("plan", "train"))
        off = foretold["bytes"] / found["bytes"] - 1
        sizes = " | ".join(f"{each['bytes'] / 2**30:.3f}" for each in (foretold, found))
        print(f"| {row or 'as they are'} | {sizes} | {off:+.0%} | {found['seconds']:.3f} |", flush=True)


def child(kind: str, row: str) -> dict[str, float]:
    """Run one part in a process of its own, and return what it prints last. row: settings beside those of the file."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", kind, *row.split()]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{kind} with {row!r} failed")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def plan(config: Path, overrides: list[str]) -> dict[str, float]:
    from dreambooth.config import load_config
    from dreambooth.preflight.memory_plan import Planner

    loaded = load_config(config, overrides)
    return {"bytes": Planner(loaded, has_weights=False).need(loaded).total}


def train(config: Path, overrides: list[str]) -> dict[str, float]:
    """Train some steps; return the peak of bytes, and the seconds of a step behind the first."""
    from dreambooth import engine
    from dreambooth.config import load_config

    ends: list[float] = []

    def on_progress(progress: object) -> bool:
        ends.append(time.perf_counter())
        return True

    peak = (
        None if torch.cuda.is_available() else allocated_on_cpu(load_config(config, [*overrides, "train.max_steps=2"]))
    )
    if engine.train(load_config(config, overrides), on_progress=on_progress):
        sys.exit("the run was stopped")
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {"bytes": torch.cuda.max_memory_allocated() if peak is None else peak, "seconds": seconds}


def allocated_on_cpu(config: object) -> int:
    """Train, and return the most bytes that torch's allocator has held at once, by its profiler."""
    from dreambooth import engine

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine.train(config)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    return max(int(event["args"]["Total Allocated"]) for event in events if event.get("name") == "[memory]")


def write_config(args: argparse.Namespace, base: Path, path: Path) -> None:
    settings = {
        "run": {"name": f"{base.name}-lora", "dir": str(args.work), "resume": "never"},
        "model": {"base": str(base)},
        "subject": {"images": str(ROOT / "data" / "dog"), "class_noun": "dog"},
        "data": {"resolution": args.resolution},
        "prior": {"source": "none"},
        "method": {"name": "lora"},
        "train": {"max_steps": args.steps, "precision": args.precision, "save_every_steps": 1000},
        "validate": {"every_steps": 0},
        "log": {"tensorboard": False},
    }
    path.write_text(yaml.safe_dump(settings))


@torch.no_grad()
def make(family: str, shape: str, folder: Path) -> None:
    """Write a pipeline's folder in bfloat16, with small random weights."""
    from tiny_flow import make_qwen_tokenizer

    transformer_class, arguments = TRANSFORMERS[family, shape]
    with torch.device("meta"):
        transformer = transformer_class(**arguments)
        text_encoder = (Qwen3Model if family == "z_image" else Qwen3ForCausalLM)(Qwen3Config(**QWEN3[shape]))
    networks = [randomized(network) for network in (transformer, text_encoder)]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=family != "z_image")
    pipeline = (ZImagePipeline if family == "z_image" else Flux2KleinPipeline)(
        scheduler=scheduler,
        vae=make_vae(family, shape),
        text_encoder=networks[1],
        tokenizer=make_qwen_tokenizer(("photo", "dog", "sks")),
        transformer=networks[0],
    )
    pipeline.save_pretrained(folder)


def randomized(network: nn.Module) -> nn.Module:
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    for name, weight in network.named_parameters():
        nn.init.normal_(weight, 1 if weight.ndim == 1 and not name.endswith("bias") else 0, 0.02)
    return network


def make_vae(family: str, shape: str) -> nn.Module:
    sizes = (128, 256, 512, 512) if shape == "real" else (32, 32, 64, 64)
    if family == "flux2_klein":
        return AutoencoderKLFlux2(block_out_channels=sizes)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(
        block_out_channels=sizes, latent_channels=16, layers_per_block=2, sample_size=1024, scaling_factor=0.3611,
        shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, **blocks,
    )  # fmt: skip


if __name__ == "__main__":
    main()
