"""Compare two versions of the program on small runs, bit for bit: weights, logs, images and exports.

    python benchmarks/same_bits.py HEAD~1                    the commit before, and this tree as it is now
    python benchmarks/same_bits.py v0.1 --cache ~/same-bits  results of a commit are kept there and made once
    python benchmarks/same_bits.py v0.1 --only lora xl       some of the cases

For a change that must not change results: a case trains the embedded base for four steps, once undisturbed and once
stopped by a signal and resumed, then samples, exports, evaluates. Every file that comes of it is compared by value.
The table tells for each case how many values were compared and which differ; the exit code is 1 if any does.

Only the command line is used, so the two versions may be built quite differently inside. A process of its own runs each
command; it is forked from one that has imported torch, diffusers and Lightning already, which saves most of the time.
Not compared: times, config.yaml, prose (report.html, model cards, table.md) and TensorBoard's files.
"""

import argparse
import csv
import importlib
import json
import multiprocessing
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline")

import diffusers
import numpy as np
import safetensors
import torch
import transformers
import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork")
INPUTS = "inputs"  # what a case is made of; everything else in its folder is compared
PROMPTS = ("a photo of {subject} on the beach", "a photo of a {class}")

# ------------------------------------------------------------------------------------------------ the cases

COMMON: dict[str, Any] = {
    "run": {"dir": "runs"},
    "model": {"base": "checkpoints/toyworld"},
    "subjects": [{"images": "data/robot", "identifier": "sks", "class_noun": "robot"}],
    "data": {"resolution": 64},
    "prior": {"num_images": 4, "num_inference_steps": 2, "guidance_scale": 2, "batch_size": 2},
    "optim": {"lr": 1e-3, "schedule": "linear", "warmup_steps": 1},
    "train": {"max_steps": 4, "batch_size": 2, "save_every_steps": 2, "num_threads": 1},
    "validate": {
        "every_steps": 2, "prompts": list(PROMPTS), "num_images": 1, "num_inference_steps": 2, "dino": None,
        "clip": None,
    },
    "log": {"tensorboard": False},
}  # fmt: skip
SCORES = ("validate.dino=checkpoints/toyworld-encoders/vit", "validate.clip=checkpoints/toyworld-encoders/clip")
SHAPES = ("subjects.0.images=inputs/pictures", "data.buckets=true", "data.bucket_step=16")


def train(name: str, *settings: str) -> tuple[str, ...]:
    return ("train.py", "inputs/config.yaml", f"run.name={name}", *settings)


def sample(model: str, out: str, *options: str, prompt: str = PROMPTS[0]) -> tuple[str, ...]:
    return ("sample.py", model, prompt, "--num-images", "1", "--steps", "2", "--out", f"pictures/{out}", *options)


def sample_single_file(config: str) -> tuple[str, ...]:
    model, prompt = "exports/single-file/model.safetensors", "a photo of sks robot"
    return sample(model, "single-file", "--config", config, prompt=prompt)


def export(form: str, *options: str) -> tuple[str, ...]:
    return ("-m", "dreambooth", "export", "runs/whole", "--format", form, "--out", f"exports/{form}", *options)


@dataclass(frozen=True)
class Case:
    """Describe a run by its settings over COMMON, what is then done with it, and how its second run is stopped.

    A command's first word is a script or -m. train_on: a third run starts from the first one's result. xl: the base is
    a Stable Diffusion XL of random weights.
    """

    name: str
    settings: tuple[str, ...]
    then: tuple[tuple[str, ...], ...] = ()
    stopped_by: str = "SIGKILL"
    train_on: bool = False
    xl: bool = False


FROM_IMAGE = ("sample.py", "--from-image", "pictures/whole/00000.png", "--out", "pictures/again")
REPORT = ("-m", "dreambooth", "report", "runs/whole")
EVALUATE = (
    "-m", "dreambooth", "evaluate", "runs/whole", "--images", "data/robot", "--prompts", "inputs/prompts.txt",
    "--num-images", "2", "--class-prompt-images", "2", "--base", "checkpoints/toyworld", "--steps", "2",
    "--dino", "checkpoints/toyworld-encoders/vit", "--clip", "checkpoints/toyworld-encoders/clip",
    "--out", "evaluation",
)  # fmt: skip

CASES = (
    Case(
        "full",
        (
            "prior.source=stream", "prior.guidance_min_noise=0.3", "optim.identifier_lr=1e-2", "train.ema_decay=0.8",
            "data.flip=true", "log.tensorboard=true", *SCORES,
        ),
        (
            sample("runs/whole", "whole"), FROM_IMAGE, EVALUATE, REPORT, export("diffusers"), export("single-file"),
            sample_single_file("checkpoints/toyworld"), export("kohya", "--rank", "2"),
        ),
    ),
    Case(
        "full-in-backward",
        (
            "prior.source=folder", "prior.folder=data/dog", "optim.in_backward=true", "optim.max_grad_norm=0",
            "data.crop=random", "data.num_crops=2", "loss.weighting=min_snr", "optim.text_encoder_stop_step=3",
            "train.gradient_checkpointing=true",
        ),
        stopped_by="SIGTERM",
    ),
    Case(
        "full-micro-batches",
        (
            "prior.source=ahead", *SHAPES, "train.micro_batch_size=1", "train.accumulate=2", "data.num_workers=1",
            "optim.text_encoder_stop_step=1", "optim.text_encoder_lr=5e-4", "loss.weighting=debiased",
        ),
    ),
    Case(
        "full-bf16",
        (
            "prior.source=none", "train.precision=bf16-mixed", "model.export_dtype=float16", "train.batch_size=1",
            "validate.every_steps=0",
        ),
        (sample("runs/whole", "whole", "--dtype", "bfloat16"), export("lora", "--rank", "2")),
        stopped_by="SIGTERM",
    ),
    Case(
        "lora",
        (
            "method.name=lora", "method.rank=4", "method.dropout=0.1", "prior.source=teacher",
            "prior.teacher_latents=class", "method.targets=[attention,feed-forward]", "loss.weighting=soft_min_snr",
            "validate.images=data/dog", *SCORES,
        ),
        (
            sample("runs/whole", "whole"), REPORT, export("lora"), export("kohya"), export("diffusers"),
            export("single-file"), sample("exports/lora", "lora", "--scheduler", "euler-a"),
        ),
        stopped_by="SIGTERM", train_on=True,
    ),
    Case(
        "lora-dora",
        (
            "method.name=lora", "method.rank=4", "method.alpha=2", "method.dora=true", "method.rslora=true",
            "method.train_text_encoder=false", "prior.source=none", "loss.huber_c=0.1", "loss.noise_offset=0.05",
            "loss.input_perturbation=0.1", "train.accumulate=3", "subjects.0.images=inputs/pictures",
            "data.captions=true", "data.caption_dropout=0.3", "data.shuffle_captions=true",
        ),
        (sample("runs/whole", "whole"), export("lora")),
    ),
    Case(
        "loha",
        (
            "method.name=loha", "method.rank=2", "method.targets=[attention,convolutions]", "prior.source=stream",
            "subjects.0.images=inputs/pictures", "data.mask=alpha", "train.ema_decay=0.8",
        ),
        (sample("runs/whole", "whole"), export("lora", "--rank", "2")),
        stopped_by="SIGTERM",
    ),
    Case(
        "lokr",
        (
            "method.name=lokr", "method.rank=2", "method.targets=[attention,projections]", "prior.source=ahead",
            *SHAPES, "data.mask=inputs/masks", "data.unmasked_weight=0.2", "method.dropout=0.1",
        ),
        (sample("runs/whole", "whole"), export("diffusers")),
    ),
    Case(
        "textual-inversion",
        (
            "method.name=textual_inversion", "method.num_vectors=2", "method.start_word=car", "prior.source=stream",
            "subjects.0.identifier=<sks>", "optim.schedule=cosine",
        ),
        (sample("runs/whole", "whole"), export("embedding")),
        train_on=True,
    ),
    Case(
        "pivotal",
        (
            "method.name=pivotal", "method.rank=2", "prior.source=teacher", "prior.teacher_latents=subject",
            "subjects.0.identifier=<sks>", "optim.identifier_lr=1e-2", "train.ema_decay=0.8", "prior.weight=2",
            "optim.text_encoder_stop_step=3",
        ),
        (sample("runs/whole", "whole"), EVALUATE, REPORT, export("lora"), export("embedding")),
    ),
    Case(
        "custom-diffusion",
        ("method.name=custom_diffusion", "prior.source=folder", "prior.folder=data/dog", "train.micro_batch_size=3"),
        (sample("runs/whole", "whole"), export("kohya", "--rank", "2")),
        stopped_by="SIGTERM",
    ),
    Case(
        "two-subjects",
        (
            "subjects.1.images=data/dog", "subjects.1.identifier=olis", "subjects.1.class_noun=dog",
            "method.name=lora", "method.rank=4", "prior.source=stream", *SCORES,
            'validate.prompts=["a photo of {subject}", "a photo of {subject} and {subject_2}", "a photo of a {class}"]',
        ),
        (sample("runs/whole", "whole"),),
    ),
    Case(
        "two-processes",
        ("method.name=lora", "method.rank=4", "prior.source=stream", "train.devices=2", "train.batch_size=1"),
    ),
    Case(
        "xl",
        (
            "model.base=inputs/xl", *SHAPES, "prior.source=stream", "loss.zero_terminal_snr=true",
            "loss.weighting=min_snr", "optim.in_backward=true", "optim.max_grad_norm=0",
        ),
        (sample("runs/whole", "whole"), export("single-file"), sample_single_file("inputs/xl")),
        stopped_by="SIGTERM", xl=True,
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ running them


def run_case(case: Case, tree: Path, folder: Path, work: Path) -> None:
    """Make `folder`, with all that the version in `tree` makes of a case. Raises SystemExit if a command fails."""
    beside = Path(tempfile.mkdtemp(dir=work))
    (beside / INPUTS).mkdir(parents=True)
    for name in ("checkpoints", "data"):
        (beside / name).symlink_to(tree / name)  # so that paths in configs, cards and recipes are the same everywhere
    os.chdir(beside)
    make_inputs(case)
    run(tree, train("whole", *case.settings))
    run(tree, train("resumed", *case.settings), case.stopped_by)
    run(tree, train("resumed", *case.settings))
    for command in case.then:
        run(tree, command)
        take_plain_names(Path("pictures"))
    if case.train_on:
        run(tree, train("started", *case.settings, "method.start=runs/whole"))
    for state in Path("runs").glob("*/state/previous.*"):
        state.unlink()  # an earlier step of the same, and as large
    Path(INPUTS, "case.json").write_text(record(case), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside.rename(folder)


def take_plain_names(folder: Path) -> None:
    """Give sampled images the names of earlier versions, their number alone, and drop grids, which got titles."""
    for path in sorted(folder.rglob("*.png")):
        if path.name.startswith("grid-"):
            path.unlink()
        elif "-" in path.name:
            path.rename(path.with_name(f"{path.name.partition('-')[0]}.png"))


def record(case: Case) -> str:
    """Return everything that a case's results depend on beside the version, as JSON."""
    return json.dumps({**asdict(case), "common": COMMON, **machine()}, indent=1)


def machine() -> dict[str, str]:
    """Return what decides the last bits: libraries, processor, and variables that choose among its kernels."""
    names = ("torch", "diffusers", "transformers", "pytorch-lightning", "peft", "pillow")
    variables = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR")
    return {
        **{name: version(name) for name in names},
        "processor": cpu_name(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        **{name: os.environ.get(name, "") for name in variables},
    }


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def is_made(case: Case, folder: Path) -> bool:
    path = folder / INPUTS / "case.json"
    return path.is_file() and path.read_text(encoding="utf-8") == record(case)


def run(tree: Path, command: tuple[str, ...], stopped_by: str | None = None) -> None:
    """Run a command in a process of its own. Raises SystemExit if its exit code is not what it should be."""
    process = FORK.Process(target=become, args=(tree, command, stopped_by))
    process.start()
    process.join()
    wanted = {None: 0, "SIGKILL": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM}[stopped_by]
    if process.exitcode != wanted:
        said = Path(INPUTS, "log").read_text(encoding="utf-8")[-3000:]
        raise SystemExit(f"{Path.cwd()}: exit code {process.exitcode} and not {wanted}:\n{said}")


def become(tree: Path, command: tuple[str, ...], stopped_by: str | None) -> None:
    """Turn this forked process into `python COMMAND`, started in the case's folder and in a session of its own."""
    os.setsid()
    log = os.open(f"{INPUTS}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, f"\n$ python {' '.join(command)}\n".encode())
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.path[0] = str(tree)
    os.environ["PYTHONPATH"] = str(tree)  # for processes that the run itself starts
    if stopped_by:
        stop_at_save(signal.Signals[stopped_by])
    if command[0] == "-m":
        sys.argv = [*command[1:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(tree / command[0]), *command[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")


def stop_at_save(number: signal.Signals) -> None:
    """Have this process signalled as a state is put in its place.

    SIGKILL comes at the second save, so that the steps since the first are lost; SIGTERM at the first, after which the
    run may end in order.
    """
    wanted, saves = (2 if number == signal.SIGKILL else 1), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal saves
        if event == "os.rename" and os.fspath(arguments[1]).endswith("state/last.ckpt"):
            saves += 1
            if saves == wanted:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def make_inputs(case: Case) -> None:
    """Write what the case is made of: config, pictures with captions and masks, prompts, an XL base."""
    inputs = Path(INPUTS)
    (inputs / "config.yaml").write_text(yaml.safe_dump(COMMON), encoding="utf-8")
    (inputs / "prompts.txt").write_text(f"{PROMPTS[0]}\n{{subject}} in the snow\n", encoding="utf-8")
    for folder in ("pictures", "masks"):
        (inputs / folder).mkdir()
    for number, size in enumerate(((64, 64), (64, 96), (112, 64))):
        box = (8, 8 + 8 * number, 44, 56)
        picture, mask = Image.new("RGBA", size, (250, 240, 200, 0)), Image.new("L", size)
        ImageDraw.Draw(picture).ellipse(box, fill=("red", "green", "blue")[number])
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        picture.save(inputs / "pictures" / f"{number}.png")
        mask.save(inputs / "masks" / f"{number}.png")
        caption = f"a photo of {{subject}}, number {number}, on sand"
        (inputs / "pictures" / f"{number}.txt").write_text(caption, encoding="utf-8")
    if case.xl:
        make_xl_base(inputs / "xl")


def make_xl_base(folder: Path) -> None:
    """Save the real classes of Stable Diffusion XL at tiny size, with random weights, which predict v."""
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained("checkpoints/toyworld/tokenizer")
    text_configs = [
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, projection_dim=width, intermediate_size=32,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, hidden_act=activation,
        )
        for width, activation in ((16, "quick_gelu"), (24, "gelu"))
    ]  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 24,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type="v_prediction"
    )
    diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(text_configs[0]), tokenizer=tokenizer, unet=unet,
        text_encoder_2=transformers.CLIPTextModelWithProjection(text_configs[1]), tokenizer_2=tokenizer,
        scheduler=scheduler,
    ).save_pretrained(folder)  # fmt: skip


# ------------------------------------------------------------------------------------------------ comparing them

SHOWN = 5  # differences of a kind, below the table
KINDS = ("weights", "logs", "images", "exports")
PROSE = (".md", ".html", ".yaml")
VOLATILE = {"started", "seconds", "validation_seconds", "peak_memory_mib", "sha256", "num_bytes", "seal"}


@dataclass
class Finding:
    """Count the values of a kind that were compared, and those that differ: where and, of numbers, by how much."""

    num_values: int = 0
    differences: list[tuple[str, float | None]] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.num_values:
            return "-"
        if not self.differences:
            return f"same ({self.num_values})"
        largest = max((size for _, size in self.differences if size is not None), default=None)
        by = "" if largest is None else f" by up to {largest:.2g}"
        return f"DIFFERENT{by} ({len(self.differences)} of {self.num_values})"


def compare(before: Path, now: Path) -> dict[str, Finding]:
    """Compare all files of two folders, by kind."""
    findings = {kind: Finding() for kind in KINDS}
    for path in sorted(files_in(before) | files_in(now)):
        finding = findings[kind_of(path)]
        values = [read(folder / path) if (folder / path).is_file() else {} for folder in (before, now)]
        for name in dict.fromkeys((*values[0], *values[1])):
            finding.num_values += 1
            sides = [side.get(name, MISSING) for side in values]
            if not same(*sides):
                finding.differences.append((f"{path}: {name}", distance(*sides)))
    return findings


MISSING = object()


def files_in(folder: Path) -> set[Path]:
    """Return what is to be compared, relative to the folder."""
    found = set()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        is_ours = relative.parts[0] not in (INPUTS, "checkpoints", "data")
        if is_ours and path.is_file() and path.suffix not in PROSE and "tfevents" not in path.name:
            found.add(relative)
    return found


def kind_of(path: Path) -> str:
    if "exports" in path.parts:
        return "exports"
    if path.suffix == ".png" or "prior" in path.parts:
        return "images"
    return "logs" if "logs" in path.parts or "evaluation" in path.parts else "weights"


def read(path: Path) -> dict[str, Any]:
    """Return a file's values by name; those that are another every time are left out."""
    if path.name == "lock":
        return {}
    values = READERS.get(path.suffix, read_bytes)(path)
    return {name: value for name, value in values.items() if name.rpartition("/")[2] not in VOLATILE}


def read_state(path: Path) -> dict[str, Any]:
    return dict(flat(torch.load(path, weights_only=True, mmap=True)))


def read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | dict(flat(file.metadata() or {}, "metadata"))  # noqa: SIM118


def read_image(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        info = dict(image.info)
        boxes = json.loads(info.pop("dreambooth-cells", "null"))
        pixels = torch.from_numpy(np.array(image if boxes is None else without_labels(image, boxes)))
    if "dreambooth" in info:
        recipe = {name: value for name, value in json.loads(info["dreambooth"]).items() if value is not None}
        recipe["weights"] = recipe["weights"][:16]  # as evaluate wrote them once, without fields that are not set
        info["dreambooth"] = recipe
    return {"pixels": pixels, **dict(flat(info, "recipe"))}


def without_labels(grid: Image.Image, boxes: list[list[int]]) -> Image.Image:
    """Return a grid without what is written on it, laid out as earlier versions did. boxes: of its images."""
    left, top, right, bottom = boxes[0]
    columns = sum(box[1] == top for box in boxes)
    width, height = right - left + 2, bottom - top + 2
    plain = Image.new("RGB", (columns * width + 2, len(boxes) // columns * height + 2), "white")
    for number, box in enumerate(boxes):
        row, column = divmod(number, columns)
        plain.paste(grid.crop(tuple(box)), (column * width + 2, row * height + 2))
    return plain


def read_table(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8", newline="") as file:
        return dict(flat(list(csv.DictReader(file))))


def read_json(path: Path) -> dict[str, Any]:
    return dict(flat(json.loads(path.read_text(encoding="utf-8"))))


def read_json_lines(path: Path) -> dict[str, Any]:
    return dict(flat([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))


def read_bytes(path: Path) -> dict[str, Any]:
    return {"bytes": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".ckpt": read_state,
    ".safetensors": read_safetensors,
    ".png": read_image,
    ".csv": read_table,
    ".json": read_json,
    ".jsonl": read_json_lines,
}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts and lists, by the path to them."""
    if isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(each, f"{name}/{key}")
    else:
        yield name, value


def same(before: Any, now: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(now, torch.Tensor):
        alike = before.dtype == now.dtype and before.shape == now.shape
        return alike and torch.equal(bits(before), bits(now))
    return type(before) is type(now) and repr(before) == repr(now)  # two NaN are the same, 0 and -0 are not


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def distance(before: Any, now: Any) -> float | None:
    """Return the largest difference of two tensors or numbers, also of numbers in a table's text; else None."""
    try:
        numbers = [torch.as_tensor(float(v) if isinstance(v, str) else v).double() for v in (before, now)]
        return float((numbers[0] - numbers[1]).abs().max())
    except (TypeError, ValueError, RuntimeError):  # not numbers, or not of one shape
        return None


# ------------------------------------------------------------------------------------------------ both sides


def main() -> int:
    args = parse()
    cases = [case for case in CASES if not args.only or case.name in args.only]
    preload()
    if args.cache:
        args.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="same-bits-", dir=args.cache) as temporary:
        work = Path(temporary).resolve()
        before, now = (args.cache or work).resolve() / commit_of(args.before), work / "now"
        jobs = [(case, args.before, before / case.name) for case in cases if not is_made(case, before / case.name)]
        jobs += [(case, args.now, now / case.name) for case in cases]
        trees = {revision: check_out(revision, work) for revision in {revision for _, revision, _ in jobs}}
        run_all([(case, trees[revision], folder, work) for case, revision, folder in jobs], args.jobs)
        rows = {case.name: compare_case(case, before / case.name, now / case.name) for case in cases}
    print(table(rows))
    return int(any(row is None or any(each.differences for each in row.values()) for row in rows.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="COMMIT", help="what to compare with, as git names it")
    parser.add_argument("--now", metavar="COMMIT", help="compare this commit, not the tree as it is")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep what COMMIT makes, some 2 GB, and use it again")
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=names, help=f"some of {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at a time (default 2)")
    return parser.parse_args()


def preload() -> None:
    """Import what every command needs, once and before any fork; nothing of the program itself."""
    names = "pytorch_lightning diffusers.training_utils peft matplotlib.backends.backend_svg torch.utils.tensorboard"
    for name in names.split():
        importlib.import_module(name)
    _ = diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline  # the classes load on first use
    _ = transformers.CLIPTextModelWithProjection, transformers.CLIPModel, transformers.ViTModel


def commit_of(revision: str) -> str:
    command = ["git", "rev-parse", "--verify", "--short=12", f"{revision}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def check_out(revision: str | None, work: Path) -> Path:
    """Return a folder with the files of a commit; without one, the tree as it is."""
    if revision is None:
        return ROOT
    tree = work / f"tree-{commit_of(revision)}"
    tree.mkdir(exist_ok=True)
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree


def run_all(jobs: list[tuple[Case, Path, Path, Path]], at_a_time: int) -> None:
    """Call `run_case` in forked processes, so many at a time; a case that fails says so and leaves no folder."""
    running: list[BaseProcess] = []
    for number, job in enumerate(jobs, start=1):
        while len(running) >= at_a_time:
            wait([process.sentinel for process in running])
            running = [process for process in running if process.is_alive()]
        print(f"{number}/{len(jobs)} {job[0].name} in {job[1]}", file=sys.stderr, flush=True)
        process = FORK.Process(target=run_case, args=job)
        process.start()
        running.append(process)
    for process in running:
        process.join()


def compare_case(case: Case, before: Path, now: Path) -> dict[str, Finding] | None:
    """Compare what both sides made of a case; None where one of them failed."""
    return compare(before, now) if is_made(case, before) and is_made(case, now) else None


def table(rows: dict[str, dict[str, Finding] | None]) -> str:
    """Return a row for each case, and below the table the first values that differ."""
    lines = [["case", *KINDS]]
    details = []
    for name, row in rows.items():
        lines.append([name, *(["FAILED"] if row is None else [str(row[kind]) for kind in KINDS])])
        for finding in (row or {}).values():
            details += [f"{name}: {where} (by {size})" for where, size in finding.differences[:SHOWN]]
    widths = [max(len(line[column]) for line in lines if len(line) > column) for column in range(len(lines[0]))]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) for line in lines]
    return "\n".join([*(line.rstrip() for line in aligned), *details])


if __name__ == "__main__":
    sys.exit(main())
