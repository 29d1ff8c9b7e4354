"""Load results: a run's own files, an export's folder, or one file of an export, recognised by their content."""

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dreambooth.errors import ModelError, first_line
from dreambooth.families import Family, ModelSource, load_family
from dreambooth.families.single_file import UNET, read_header
from dreambooth.generation.models.location import file_behind
from dreambooth.methods import embedding_files, find_facts, find_method, lora_files
from dreambooth.subject_info import ExportCard

OWN_FILES = {  # of a method's folder, as `Method.save` writes them
    "pytorch_lora_weights.safetensors",
    "adapter.safetensors",
    "cross_attention.safetensors",
    "learned_embeds.safetensors",
}
ALIASES = ("kohya.safetensors", "model.safetensors")  # the names of earlier versions, links to the others


@dataclass(frozen=True)
class ResultFiles:
    """Hold the files of an export: a whole model, or changes of a base, and learned words."""

    model: Path | None
    changes: tuple[Path, ...]
    words: tuple[Path, ...]


def is_own(location: Path, card: ExportCard) -> bool:
    """Return whether a folder holds the method's own files, as a run's model/ does, and not an export's."""
    own = (location / name for name in OWN_FILES)
    is_written = any(path.is_file() and not path.is_symlink() for path in own)
    return location.is_dir() and find_facts(card.method).is_adapter and is_written


def load_result(location: Path, card: ExportCard, base: ModelSource, vae: str | None = None) -> Family:
    """Load a result that is no pipeline. base: the model that it changes, or for a whole model in one file its configs.

    vae: in the place of a whole model's own. Raises ModelError.
    """
    if is_own(location, card):
        family = load_family(base)
        load = find_method(card.method).load
        assert load is not None
        load(family, location)
        return family
    files = find_files(location)
    family = load_family(base if files.model is None else replace(whole_model(files.model, base), vae=vae))
    for path in files.changes:
        lora_files.apply(family, path)
    for path in files.words:
        embedding_files.add_file(family, path)
    return family


def whole_model(path: Path, base: ModelSource) -> ModelSource:
    """Return the source of a single file: its configs are the base's, or the built-in ones of its shape."""
    config = base.config
    if config is None and not has_builtin_config(path) and not Path(base.base).expanduser().is_file():
        config = base.base
    return ModelSource(str(path), config=config, dtype=base.dtype)


def has_builtin_config(path: Path) -> bool:
    try:
        return bool(read_header(path).config)
    except ModelError:
        return False


def find_files(location: Path) -> ResultFiles:
    """Sort the .safetensors of a folder, or a file and the words beside it, by what they hold. Raises ModelError."""
    location = file_behind(location)
    if location.is_file():
        beside = location.parent.glob(f"{location.stem}_emb*.safetensors")
        paths = [location, *sorted(path for path in beside if path != location)]
    else:
        paths = [path for path in sorted(location.glob("*.safetensors")) if not path.is_symlink()]
        paths = [path for path in paths if path.name not in ALIASES or len(paths) == 1]
    kinds = {path: kind_of(path) for path in paths if not path.stem.endswith("_invokeai")}
    models, changes, words = ([path for path, kind in kinds.items() if kind == each] for each in ("model", "", "word"))
    return ResultFiles(next(iter(models), None), tuple(changes), tuple(words))


def kind_of(path: Path) -> str:
    """Return 'model', 'word', or '' for an adapter. Raises ModelError."""
    try:
        with safe_open(path, "pt") as file:
            if "word" in (file.metadata() or {}):
                return "word"
            return "model" if any(key.startswith(UNET) for key in file.keys()) else ""  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as .safetensors: {first_line(error)}") from error
