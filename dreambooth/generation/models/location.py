"""Where a MODEL lies and what it has learned, before anything heavy is loaded: mistakes are reported at once."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth import subject_info
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.generation.models.base_path import find_path
from dreambooth.generation.models.reference import ModelRef
from dreambooth.prompts import check_template, fill_prompt, has_field, subject_phrase
from dreambooth.subject_info import ExportCard, LearnedSubject, read_header

RUNS = Path("checkpoints")  # where runs lie by default
RESULT = "model"  # of a run
MARKS = ("config.yaml", "model_index.json", "dreambooth.json")  # of a run, a pipeline, an adapter
NUM_LISTED = 8
BUILTIN_SCALE_FACTOR = 8
PARTIAL_KINDS = {  # kind and what to call it, by a name of a weight that only they have
    ("lora", "a LoRA in kohya's names"): re.compile(r"^lora_(unet|te\d?)_"),
    ("lora", "a LoRA in diffusers' names"): re.compile(
        r"\.(lora_[AB]|lora\.(up|down)|lora_linear_layer|(to_\w+)_lora|hada_w1_a|lokr_w[12]\w*)\b"
    ),
    ("embedding", "a learned embedding"): re.compile(r"^(emb_params|clip_[lg]|<.+>)$"),
}
MODEL_NAMES = re.compile(r"^(model\.diffusion_model|cond_stage_model|conditioner)\.")


def model_folder(model: str) -> Path:
    """Return the folder or file with the result; of a run folder its model/. Raises ModelError for one without."""
    folder = Path(model)
    if not (folder / "config.yaml").is_file() or (folder / "model_index.json").is_file():
        return folder
    if not (folder / "model").is_dir():
        raise ModelError(f"{model}: this run has no model yet; let its training end (the same train command goes on)")
    return folder / "model"


def file_behind(path: Path) -> Path:
    """Return the file that an old name is a link to; any other path as it is, a link into the hub's cache too."""
    target = path.readlink() if path.is_symlink() else path
    return path.with_name(target.name) if target.parent == Path() else path


def find_card(model: str) -> ExportCard | None:
    """Return what a run or model folder says of its subject; None for a plain base. Raises ModelError as above."""
    return subject_info.find_card(model_folder(model))


def steps_of(run: Path) -> dict[int, str]:
    """Return where a run's folder has weights, by optimizer step: its result, those of validations, its states.

    Raises ModelError for a run without a result.
    """
    found: dict[int, str] = {}
    for manifest in sorted((run / "state").glob("*.json")):
        state = manifest.with_suffix(".ckpt")
        if state.is_file() and (step := _newest_step(manifest)) is not None:
            found[step] = str(state.relative_to(run))
    found |= {int(path.stem): str(path.relative_to(run)) for path in (run / "steps").glob("[0-9]*.ckpt")}
    card = find_card(str(run))
    return found if card is None else {**found, card.step: RESULT}


def _newest_step(manifest: Path) -> int | None:
    """Return the step that a state's manifest names first; None where it cannot be read."""
    try:
        return int(json.loads(manifest.read_bytes())[0]["step"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def source_of_step(run: Path, step: int) -> str:
    """Return where a run has the weights of a step, as `steps_of` names it. Raises UserError where it has none."""
    steps = steps_of(run)
    if step not in steps:
        there = f"it has those of {', '.join(map(str, sorted(steps)))}" if steps else "it is no run"
        raise UserError(
            f"step {step}: {escaped(run)} has no weights of this step; {there}. validate.keep_weights=true keeps those "
            "of each validation"
        )
    return steps[step]


def find_vae_scale_factor(ref: ModelRef) -> int | None:
    """Return pixels a latent of a model, along a side, by the config of its VAE; None where that is not at hand.

    The built-in configs, by which single files are read, all have 8.
    """
    place, card = base_place(ref), find_card(ref.name)
    if place.is_file():
        config = ref.config or (card and card.base_config and find_path(card.base_config, place))
        if not config:
            return BUILTIN_SCALE_FACTOR
        place = Path(config).expanduser()
    return _scale_factor_in(place / "vae" / "config.json")


def base_place(ref: ModelRef) -> Path:
    """Return the folder or file of a model or, where it is an adapter, of its base."""
    place, card = model_folder(ref.name), find_card(ref.name)
    if card is None or place.is_file() or (place / "model_index.json").is_file():
        return place
    base = ref.base or (card.base and find_path(card.base, place))
    return Path(base).expanduser() if base else place


def find_denoiser_config(ref: ModelRef, parts: Sequence[str] = ("unet", "transformer")) -> dict[str, Any] | None:
    """Return the config of a model's UNet or transformer; None where it is not at hand.

    What is wrong with it is reported when it loads. parts: folders that it may be in.
    """
    for part in parts:
        try:
            config = json.loads((base_place(ref) / part / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return None


def _scale_factor_in(config: Path) -> int | None:
    try:
        return 2 ** (len(json.loads(config.read_bytes())["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with it is told when it is loaded


def check_is_there(model: str) -> None:
    """Raise ModelError, with the nearest names, for a MODEL that can be neither a path here nor a hub id.

    `checkpoints/my-dg` could be a hub id as well; beside models that lie there it is taken for a misspelt path.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        check_whole_model(path)
    if path.exists():
        return
    is_hub_id = not path.is_absolute() and not model.startswith(".") and model.count("/") == 1
    if is_hub_id and not _models_in(path.parent):
        return
    if not is_hub_id and path.name == model and not model.endswith(".safetensors") and not _near(path):
        return  # gpt2 and the like: a hub id of one word
    raise ModelError(f"{escaped(model)}: there is no such folder or file{suggestions(path)}")


def suggestions(path: Path) -> str:
    """Return what to append to a message about a path that is not there: the nearest name, and which runs there are."""
    near, there = _near(path), _models_in(path.parent) or _models_in(RUNS)
    hint = f"; did you mean {near}?" if near else ""
    if there:
        listed = ", ".join(map(str, there[:NUM_LISTED])) + (" ..." if len(there) > NUM_LISTED else "")
        hint += f"{' There' if near else '; there'} are: {listed}"
    return hint


def _near(path: Path) -> Path | None:
    """Return the path here whose name is nearest: beside this one, or a run or model by its name alone."""
    beside = [each for each in path.parent.iterdir() if not each.name.startswith(".")] if path.parent.is_dir() else []
    by_name = {each.name: each for each in [*_models_in(RUNS), *beside]}
    found = difflib.get_close_matches(path.name, by_name, n=1)
    return by_name[found[0]] if found else None


def _models_in(folder: Path) -> list[Path]:
    """Return the runs, pipelines and adapters in a folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if any((path / mark).is_file() for mark in MARKS))


def check_whole_model(path: Path) -> None:
    """Raise ModelError, with what to do, for a `.safetensors` of other tools that is only laid over a model.

    One of this toolkit says what its base is.
    """
    found = _partial_kind(path)
    if found is None or subject_info.card_in_file(path) is not None:
        return
    kind, called = found
    train_on = f"; to train on from it: method.start={escaped(path)}" if kind == "lora" else ""
    raise ModelError(
        f"{escaped(path)}: {called}, not a whole model; lay it over one: sample MODEL PROMPT --{kind} {escaped(path)}"
        f"{train_on}"
    )


def kind_of_file(path: Path) -> str | None:
    """Return 'lora', 'embedding' or 'model' by what a .safetensors holds; None where that does not tell."""
    if path.suffix != ".safetensors":
        return None
    if (found := _partial_kind(path)) is not None:
        return found[0]
    header = read_header(path)
    if "word" in header.get("__metadata__", {}):
        return "embedding"
    return "model" if any(MODEL_NAMES.match(name) for name in header) else None


def _partial_kind(path: Path) -> tuple[str, str] | None:
    names = list(read_header(path))
    return next((kind for kind, pattern in PARTIAL_KINDS.items() if any(map(pattern.search, names))), None)


def check_path(model: str, name: str) -> None:
    """Raise ModelError for a model that is not there and can be no hub id. name: of its option or key."""
    is_path = model.startswith(".") or model.count("/") > 1 or model.endswith(".safetensors")
    if (is_path or Path(model).is_absolute()) and not Path(model).expanduser().exists():
        raise ModelError(f"{name} {escaped(model)}: there is no such folder or file")


def default_folder(model: str) -> Path:
    """Return where the images of a model go: outputs/<its name>."""
    return Path("outputs") / (Path(model.rstrip("/")).stem or "model")


def fill(prompt: str, name: str, subjects: Sequence[LearnedSubject]) -> str:
    """Return a prompt with {subject}, {class}, {subject_2} ... replaced by what a model has learned.

    name: of the model. Raises UserError where it has learned nothing, or does not say what that is.
    """
    if any(subject_phrase(each) for each in subjects):
        return fill_prompt(prompt, subjects)
    check_template(prompt)
    if has_field(prompt):
        why = "it has no dreambooth.json, or is of a data set"
        raise UserError(f"prompt {prompt!r}: {name} has learned no subject ({why}); spell it out")
    return fill_prompt(prompt, [])
