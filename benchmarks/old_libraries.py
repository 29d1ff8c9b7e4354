"""The program of `old_libraries.sh`: write every format of every method, read it with other versions, print a table.

`write` needs this toolkit; `read` runs with nothing but torch, diffusers, transformers and peft of any version.
Compared with the trained model in today's versions: the text embedding, and latents of one image from the same noise.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
VERSIONS = ("old", "mid", "late", "today")
# method, and settings of its adapter; each on each base
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"alpha": 1.0},
    "lora, rank-stabilized": {"rslora": True},
    "lora, DoRA": {"dora": True},
    "pivotal": {"alpha": 1.0},
    "textual_inversion": {},
}
FORMATS = ("diffusers", "single-file", "lora", "kohya", "embedding")
ERRORS = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
EXACT = 1e-5  # of the latents' length; rounding is some 1e-7
torch.set_num_threads(1)
warnings.filterwarnings("ignore")


# ------------------------------------------------------------------ write, with this toolkit


def write(folder: Path) -> None:
    sys.path.append(str(ROOT / "tests"))
    from conftest import make_tiny_base, make_tiny_xl_base

    bases = {
        "1.x": make_tiny_base(folder / "1.x"),
        "2.x": make_tiny_base(folder / "2.x", "v_prediction"),
        "XL": make_tiny_xl_base(folder / "XL"),
    }
    for base_name, base in bases.items():
        resave(base)
        for method in METHODS:
            for form in FORMATS:
                write_cell(folder / f"{base_name}, {method}, {form}", base, method, form)


def resave(base: Path) -> None:
    """Let every version read the base itself."""
    from dreambooth.exporting.pipeline import save_pipeline
    from dreambooth.families import ModelSource, load_family

    save_pipeline(load_family(ModelSource(str(base))).pipeline(), base)


def write_cell(folder: Path, base: Path, label: str, form_name: str) -> None:
    """Write an export, the base's folder beside it, and what the trained model makes of a prompt."""
    from dreambooth.exporting.formats import FORMATS, files_of, write_as
    from dreambooth.exporting.verify import expected_model
    from dreambooth.families import ModelSource, load_family
    from dreambooth.methods.base import MethodSettings
    from dreambooth.methods.table import METHODS as BY_NAME
    from dreambooth.subject_info import ExportCard, LearnedSubject

    method, form = label.split(",")[0], FORMATS[form_name]
    if form.methods is not None and method not in form.methods:
        return
    word = "<sks>" if BY_NAME[method].facts.adds_tokens else "sks"
    family = load_family(ModelSource(str(base)))
    settings = MethodSettings(rank=2, words=(word,), start_words=(("dog",),), num_vectors=2, **METHODS[label])
    generator = torch.Generator().manual_seed(1)
    for part in BY_NAME[method].attach(family, settings).values():
        part.eval()
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    card = ExportCard((LearnedSubject(word, "dog", "a photo of {subject}", "a photo of a {class}"),), 64, 2, 3.0, 8)
    card = ExportCard(**{**vars(card), "method": method})
    files, expected = files_of(form_name, family, card, "a"), expected_model(family)
    if form_name == "embedding" and method == "pivotal":
        return  # half a result
    folder.mkdir()
    write_as(form, family, card, folder, "a", "float32")
    told = {
        "base": str(base),
        "form": form_name,
        "weights": files.weights,
        "words": files.words,
        "prompt": f"a {word} dog",
    }
    (folder / "told.json").write_text(json.dumps(told))
    save_file(answers(expected.pipeline(), told["prompt"]), folder / "expected.tensors")


def answers(pipeline: Any, prompt: str) -> dict[str, torch.Tensor]:
    pipeline.set_progress_bar_config(disable=True)
    text = pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = pipeline(
        prompt, latents=noise, height=64, width=64, num_inference_steps=2, guidance_scale=2.0, output_type="latent"
    ).images
    return {"text": text.detach().contiguous(), "latents": latents.contiguous()}


# ------------------------------------------------------------------ read, with any version


def read(folder: Path, version: str) -> None:
    """Write the difference of each cell, or the error it ended with, to <version>.json."""
    found = {}
    for cell in sorted(folder.glob("*, *, *")):
        told = json.loads((cell / "told.json").read_text())
        try:
            theirs = answers(load(cell, told), told["prompt"])
        except ERRORS as error:
            found[cell.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        ours = load_file(cell / "expected.tensors")
        found[cell.name] = max(float((ours[key] - theirs[key]).norm() / ours[key].norm()) for key in ours)
    (folder / f"{version}.json").write_text(json.dumps(found))


def load(cell: Path, told: dict[str, Any]) -> Any:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    base, form = told["base"], told["form"]
    is_xl = Path(base).name == "XL"
    if form == "diffusers":
        return DiffusionPipeline.from_pretrained(cell)
    if form == "single-file":
        kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
        pipeline = kind.from_single_file(str(cell / told["weights"]), config=base, local_files_only=True)
    else:
        pipeline = DiffusionPipeline.from_pretrained(base)
    if form in ("lora", "kohya"):
        pipeline.load_lora_weights(cell, weight_name=told["weights"])
    for word, file in told["words"].items():
        tensors = load_file(cell / file)
        if "clip_l" not in tensors:
            pipeline.load_textual_inversion(cell / file, token=word)
            continue
        for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
            tokenizer, encoder = getattr(pipeline, f"tokenizer{suffix}"), getattr(pipeline, f"text_encoder{suffix}")
            rows = {word: tensors[name]}
            pipeline.load_textual_inversion(rows, token=word, tokenizer=tokenizer, text_encoder=encoder)
    return pipeline


# ------------------------------------------------------------------ the table


def table(folder: Path) -> None:
    found = {version: json.loads((folder / f"{version}.json").read_text()) for version in VERSIONS}
    print(f"| base, method, format | {' | '.join(VERSIONS)} |\n|---|{'---|' * len(VERSIONS)}")
    for cell in found["today"]:
        print(f"| {cell} | {' | '.join(shown(found[version][cell]) for version in VERSIONS)} |")


def shown(result: float | str) -> str:
    if isinstance(result, str):
        return result
    return "exact" if result <= EXACT else f"off by {result:.2g}"


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    {"write": write, "read": read, "table": table}[command](Path(folder), *rest)
