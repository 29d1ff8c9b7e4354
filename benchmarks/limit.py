"""How far a step is from what the device can do: its arithmetic, counted, over the fastest matrix product, measured.

    python benchmarks/limit.py MODEL --resolution 512 --precision bf16

MODEL is a pipeline folder. Batch 1 + 1; all weights with the text encoder, and a LoRA of rank 4. No step can be faster
than its arithmetic at that rate; norms, activations and the optimizer, which move bytes, come on top.
"""

import argparse
import statistics
import time

import torch

from dreambooth.config import load_config
from dreambooth.preflight.memory_plan import Planner

METHODS = {
    "full, with text encoder": ["method.name=full"],
    "lora, rank 4": ["method.name=lora", "method.rank=4", "method.train_text_encoder=false"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--resolution", type=int, default=512, help="pixels")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rate = matmul_rate(torch.bfloat16 if args.precision == "bf16" else torch.float32)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{device}, torch {torch.__version__}: {rate / 1e12:.2f} TFLOP/s in a {args.precision} matrix product\n")
    print("| | TFLOP a step | at that rate, s |\n|---|---|---|")
    for name, overrides in METHODS.items():
        flops = step_flops(args.model, args.resolution, overrides)
        print(f"| {name} | {flops / 1e12:.3g} | {flops / rate:.3g} |")


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the FLOP a second of a large product, the median of several."""
    device, side = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[2:])


def step_flops(model: str, resolution: int, overrides: list[str]) -> int:
    """Return the operations of forward and backward, by torch's count."""
    wanted = [
        f"model.base={model}",
        f"data.resolution={resolution}",
        "subject.images=data/dog",
        "subject.class_noun=dog",
    ]
    config = load_config("configs/sd15.yaml", [*wanted, "train.gradient_checkpointing=false", *overrides])
    return Planner(config).step(config).flops


if __name__ == "__main__":
    main()
