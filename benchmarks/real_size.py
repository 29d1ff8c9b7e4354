"""A base in the real shapes of Stable Diffusion, random weights: loading it, steps of a LoRA, exports. Time and memory.

    python benchmarks/real_size.py sdxl --pictures FOLDER --class-pictures FOLDER --resolution 256 --steps 2

sd1, sd2-v, sdxl ... are the configs that the package ships. The base is made in --work, in float16 (XL 7 GB), unless it
lies there already. Each part runs as a process of its own; memory is the peak that the system counts, mapped files
included.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from dreambooth.families.builtin_configs import config_folder

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of a shipped config")
    parser.add_argument("--pictures", default="data/dog")
    parser.add_argument("--class-pictures", default="data/robot")
    parser.add_argument("--only-make", action="store_true", help="only make the base, in --work/<config>")
    parser.add_argument("--resolution", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed")
    parser.add_argument("--work", type=Path, default=Path("outputs/real-size"))
    args = parser.parse_args()
    base = args.work / args.config
    if not (base / "model_index.json").is_file():
        make(args.config, base)
    if args.only_make:
        return
    config = write_config(args, base)
    tell(f"training, {args.steps} steps", *measure([str(ROOT / "train.py"), str(config)]))
    run = args.work / f"{args.config}-lora"
    print(f"  of it: {(run / 'logs' / 'sessions.jsonl').read_text().strip()}")
    for name in ("lora", "kohya", "single-file"):
        out = args.work / f"{args.config}-as-{name}"
        tell(f"export {name}", *measure(["-m", "dreambooth", "export", str(run), "--format", name, "--out", str(out)]))
        print(f"  {sum(path.stat().st_size for path in out.glob('*.safetensors')) / 1e6:.1f} MB")


def write_config(args: argparse.Namespace, base: Path) -> Path:
    settings = {
        "run": {"name": f"{args.config}-lora", "dir": str(args.work), "resume": "never"},
        "model": {"base": str(base)},
        "subject": {"images": args.pictures, "class_noun": "dog"},
        "data": {"resolution": args.resolution},
        "prior": {"source": "folder", "folder": args.class_pictures},
        "method": {"name": "lora", "train_text_encoder": False},
        "train": {"max_steps": args.steps, "precision": args.precision, "gradient_checkpointing": True},
        "validate": {"every_steps": 0},
        "log": {"tensorboard": False},
    }
    path = args.work / f"{args.config}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def make(name: str, folder: Path) -> None:
    """Write the networks of a shipped config, with small random weights, as a pipeline folder."""
    with config_folder(name) as configs:
        shutil.copytree(configs, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for part, (library, class_name) in ((key, value) for key, value in index.items() if isinstance(value, list)):
        if part == "scheduler" or part.startswith("tokenizer"):
            continue
        network_class = getattr(importlib.import_module(library), class_name)
        with torch.device("meta"):
            if library == "diffusers":
                network = network_class.from_config(network_class.load_config(folder / part))
            else:
                network = network_class(network_class.config_class.from_pretrained(folder / part))
        network = network.half().to_empty(device="cpu")
        fill(network)
        network.save_pretrained(folder / part)


def fill(network: torch.nn.Module) -> None:
    """Fill a network that has no numbers yet with small random weights, norms' factors around 1."""
    for name, weight in network.named_parameters():
        torch.nn.init.normal_(weight, 0 if weight.ndim > 1 or name.endswith("bias") else 1, 0.02)


def measure(command: list[str]) -> tuple[float, float]:
    """Return the wall seconds and peak GiB of a process; exits where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def tell(what: str, seconds: float, memory: float) -> None:
    print(f"{what}: {seconds:.0f} s, {memory:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
