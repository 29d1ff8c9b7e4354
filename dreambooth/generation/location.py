"""Where a MODEL lies and what it has learned, before anything heavy is loaded: mistakes are reported at once."""

import difflib
import json
import re
from pathlib import Path

from dreambooth.errors import ModelError, UserError, escaped, first_line
from dreambooth.export import subject_info
from dreambooth.export.subject_info import ExportCard, SubjectInfo
from dreambooth.prompts import check_template, fill_prompt, has_field

RUNS = Path("checkpoints")  # where runs lie by default
MARKS = ("config.yaml", "model_index.json", "dreambooth.json")  # of a run, a pipeline, an adapter
NUM_LISTED = 8
MAX_HEADER = 100 * 2**20  # bytes, as in safetensors' own reader
PARTIAL_KINDS = {  # by a name of a weight that only they have
    "a LoRA in kohya's names": re.compile(r"^lora_(unet|te\d?)_"),
    "a LoRA in diffusers' names": re.compile(r"\.(lora_[AB]|lora\.(up|down)|lora_linear_layer)\b"),
    "a learned embedding": re.compile(r"^(emb_params|clip_[lg]|<.+>)$"),
}


def model_folder(model: str) -> Path:
    """Return the folder or file with the result; of a run folder its model/. Raises ModelError for one without."""
    folder = Path(model)
    if not (folder / "config.yaml").is_file() or (folder / "model_index.json").is_file():
        return folder
    if not (folder / "model").is_dir():
        raise ModelError(f"{model}: this run has no model yet; let its training end (the same train command goes on)")
    return folder / "model"


def find_card(model: str) -> ExportCard | None:
    """Return what a run or model folder says of its subject; None for a plain base. Raises ModelError as above."""
    return subject_info.find_card(model_folder(model))


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
    """Raise ModelError, with what to do, for a `.safetensors` that holds only what is laid over a model.

    The names are read from the file's header: 8 bytes for its length, then JSON.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER)))
    except (OSError, ValueError) as error:
        raise ModelError(f"{escaped(path)}: cannot be read as .safetensors ({first_line(error)})") from error
    names = list(header) if isinstance(header, dict) else []
    for kind, pattern in PARTIAL_KINDS.items():
        if any(pattern.search(name) for name in names):
            raise ModelError(
                f"{escaped(path)}: {kind}, not a whole model. Sample the run that it came from; in AUTOMATIC1111, "
                f"SD.Next or ComfyUI put it beside the model's others; to train on from a LoRA: method.start={path}"
            )


def default_folder(model: str) -> Path:
    """Return where the images of a model go: outputs/<its name>."""
    return Path("outputs") / (Path(model.rstrip("/")).stem or "model")


def fill(prompt: str, name: str, card: SubjectInfo | None) -> str:
    """Return a prompt with {subject}, {class}, {subject_2} ... replaced by what a model has learned.

    name, card: of the model. Raises UserError where it does not say what that is.
    """
    if card is not None:
        return fill_prompt(prompt, card.subjects)
    check_template(prompt)
    if has_field(prompt):
        raise UserError(f"prompt {prompt!r}: {name} has learned no subject (it has no dreambooth.json); spell it out")
    return fill_prompt(prompt, [])
