"""The model card of an export, README.md: subject, images, how to use it, settings, scores, base."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from dreambooth.exporting.history import History
from dreambooth.exporting.tools import ExportedFiles, instructions
from dreambooth.families import Family
from dreambooth.files import write_text
from dreambooth.home_folder import with_home
from dreambooth.metrics.log_names import find_metric
from dreambooth.prompts import fill_prompt, subject_phrase
from dreambooth.subject_info import ExportCard

SAMPLES_FILE = "samples.png"
KINDS = {
    "diffusers": "A text-to-image model",
    "single-file": "A text-to-image model in the original layout",
    "lora": "A LoRA",
    "kohya": "A LoRA in kohya's layout",
    "comfyui": "A LoRA in ComfyUI's layout",
    "onnx": "A text-to-image model as ONNX graphs",
    "openvino": "A text-to-image model as OpenVINO graphs",
    "embedding": "A learned word",
}
TAGS = {"lora": ["lora"], "kohya": ["lora"], "comfyui": ["lora"], "embedding": ["textual_inversion"]}


def write(
    folder: Path, files: ExportedFiles, family: Family, card: ExportCard, history: History, repo: str | None
) -> None:
    """Write README.md, and beside it the images of the kept step. repo: its name on the hub, if it goes there."""
    form = files.form
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if history.grid is not None:
        shutil.copyfile(history.grid, folder / SAMPLES_FILE)
    base = None if card.base is None else with_home(card.base)
    licence = licence_of(base)
    chosen = {"revision": card.base_revision, "variant": card.base_variant}
    text = environment.get_template("model_card.md").render(
        metadata=metadata(form, card, licence).to_yaml(),
        names=[subject_phrase(subject) for subject in card.subjects],
        prompt=instance_prompt(card),
        prompt_code=repr(instance_prompt(card)),
        files=files,
        instructions=list(instructions(files)),
        kind=f"A {files.factors} under LyCORIS' names" if files.factors else KINDS.get(form, f"An export as {form}"),
        method=(card.settings or {}).get("method.name", card.method),
        scores=list(describe_scores(card, history)),
        card=card,
        form=form,
        repo=repo,
        history=history,
        licence=licence,
        samples_file=SAMPLES_FILE,
        pipeline=type(family.pipeline()).__name__,
        base_is_file=Path(base or "").is_file(),
        base_name=shown_base(base),
        config_name=shown_base(card.base_config and with_home(card.base_config)),
        vae_name=shown_base(card.base_vae and with_home(card.base_vae)),
        loaded_with="".join(f", {key}={value!r}" for key, value in chosen.items() if value),
        vae_code=None if form in ("diffusers", "single-file") else vae_code(card),
    )
    write_text(folder / "README.md", text)


def vae_code(card: ExportCard) -> str | None:
    """Return the Python that loads the VAE that a run had in the place of its base's own; None where it had none."""
    if card.base_vae is None:
        return None
    vae, config = Path(with_home(card.base_vae)), card.base_config or card.base
    if vae.is_file():
        named = shown_base(config and with_home(config))
        return f'AutoencoderKL.from_single_file("{vae.name}", config="{named}", subfolder="vae")'
    subfolder = ', subfolder="vae"' if (vae / "vae").is_dir() else ""
    return f'AutoencoderKL.from_pretrained("{shown_base(str(vae))}"{subfolder})'


def instance_prompt(card: ExportCard) -> str:
    """Return the first subject's own prompt."""
    return fill_prompt(card.subjects[0].prompt, card.subjects)


def describe_scores(card: ExportCard, history: History) -> Iterator[tuple[str, float, str]]:
    """Yield each score's name, mean and meaning, with the encoder that measured it."""
    for name, score in (card.scores or {}).items():
        encoder = history.measured_by.get(name.removeprefix("eval/"))
        yield name, score, find_metric(name).meaning + (f", by {encoder}" if encoder else "")


def metadata(form: str, card: ExportCard, licence: dict[str, str]) -> ModelCardData:
    """Return the metadata header for the hub. A base in a local folder has no name there."""
    named: dict[str, Any] = {**licence}
    if is_on_the_hub(card.base):
        named |= {"base_model": card.base, "base_model_relation": "adapter" if form in TAGS else "finetune"}
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "dreambooth", *TAGS.get(form, [])],
        instance_prompt=instance_prompt(card),
        **named,
    )


def shown_base(base: str | None) -> str | None:
    """Return the base's name to publish: a hub id, or of a local folder or file only its name."""
    return base if base is None or is_on_the_hub(base) else Path(base).name


def is_on_the_hub(base: str | None) -> bool:
    return base is not None and base.count("/") == 1 and base[0] not in "./~" and not Path(base).exists()


def licence_of(base: str | None) -> dict[str, str]:
    """Return license, license_name and license_link of a base's own model card; empty where none can be read."""
    path = None if base is None else _card_of(base)
    if path is None:
        return {}
    try:
        data = ModelCard.load(path).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: str(data[key]) for key in ("license", "license_name", "license_link") if data.get(key)}


def _card_of(base: str) -> Path | None:
    """Return the base's own model card: in its folder, or in the hub's local cache."""
    if Path(base).exists():
        path = Path(base) / "README.md"
        return path if path.is_file() else None
    try:
        found = try_to_load_from_cache(base, "README.md")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
