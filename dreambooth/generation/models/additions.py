"""LoRAs and embeddings that are laid over a model (`--lora`, `--embedding`): how they are named, and their files.

What can be known of a file from its name and header is reported here, before anything heavy is loaded.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.generation.models.location import file_behind, find_card, kind_of_file, model_folder, suggestions
from dreambooth.generation.models.reference import EmbeddingRef, LoraRef
from dreambooth.home_folder import with_home, without_home
from dreambooth.methods import find_facts
from dreambooth.subject_info import LearnedSubject

WEIGHT_FILES = (".safetensors", ".pt", ".bin")  # of the latter two only numbers are read
OWN_LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter.safetensors")  # of a run's model/


# -------------------------------------------------------------------------------- as they are typed


def parse_lora(text: str) -> LoraRef:
    """Return FILE[:WEIGHT]. Raises UserError for a weight that is no number."""
    file, weight = split_file(text)
    if weight is None:
        return LoraRef(file)
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--lora {text}: the weight {weight!r} is no number; write FILE:WEIGHT, e.g. {file}:0.8")
    return LoraRef(file, number)


def moved_loras(texts: Sequence[str], recorded: Sequence[LoraRef]) -> tuple[LoraRef, ...]:
    """Return the LoRAs of FILE[:WEIGHT] each, of as many as a recipe has those without a weight with the recorded one.

    Raises UserError as `parse_lora`.
    """
    given = tuple(map(parse_lora, texts))
    if len(given) != len(recorded):
        return given
    return tuple(
        replace(was, file=own.file) if split_file(text)[1] is None else own
        for text, own, was in zip(texts, given, recorded, strict=True)
    )


def parse_embedding(text: str) -> EmbeddingRef:
    """Return FILE[:WORD]. Raises UserError for what is no word."""
    file, word = split_file(text)
    if word is not None and (not word or re.search(r"\s", word)):
        raise UserError(f"--embedding {text}: {word!r} is no word; write FILE:WORD, e.g. {file}:<dog>")
    return EmbeddingRef(file, word)


def split_file(text: str) -> tuple[str, str | None]:
    """Split FILE:WHAT at its last colon; a path that is there, or with a drive (C:\\dog.safetensors), stays whole."""
    file, colon, rest = text.rpartition(":")
    is_drive = re.fullmatch(r"[A-Za-z]", file) is not None and not Path(file).exists()
    if not colon or is_drive or re.search(r"[/\\]", rest) or rest.endswith(WEIGHT_FILES) or Path(text).exists():
        return text, None
    return file, rest


# -------------------------------------------------------------------------------- in a recipe


def as_json(refs: Sequence[LoraRef | EmbeddingRef]) -> list[dict[str, Any]] | None:
    """Return them as a recipe has them; None where there are none."""
    return [asdict(each) | {"file": without_home(each.file)} for each in refs] or None


def loras_of(found: Iterable[dict[str, Any]] | None) -> tuple[LoraRef, ...]:
    """Return the LoRAs of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    return tuple(LoraRef(with_home(each["file"]), float(each["weight"]), each["sha256"]) for each in found or ())


def embeddings_of(found: Iterable[dict[str, Any]] | None) -> tuple[EmbeddingRef, ...]:
    """Return the embeddings of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    return tuple(EmbeddingRef(with_home(each["file"]), each["word"], each["sha256"]) for each in found or ())


# -------------------------------------------------------------------------------- files


def lora_file(ref: LoraRef) -> Path:
    """Return the file of a LoRA; of a run or model folder the one that holds it.

    Raises ModelError for one that is missing or of another kind, with what to do.
    """
    path = _path_of(ref.file, "--lora")
    if path.is_dir():
        return _lora_in(path)
    if (kind := kind_of_file(path)) == "embedding":
        raise ModelError(f"--lora {escaped(path)}: a learned embedding; use --embedding {escaped(path)}")
    if kind == "model":
        raise ModelError(f"--lora {escaped(path)}: a whole model, no LoRA; name it as MODEL")
    return path


def _lora_in(place: Path) -> Path:
    folder = model_folder(str(place))
    card = find_card(str(place))
    if card is not None and card.method == "textual_inversion":
        file = next(iter(folder.glob("*.safetensors")), folder)
        raise ModelError(f"--lora {escaped(place)}: has learned a word, no LoRA; use --embedding {escaped(file)}")
    if card is not None and card.method in ("full", "custom_diffusion"):
        raise ModelError(
            f"--lora {escaped(place)}: was trained with {card.method}, which is no LoRA; extract one: "
            f"export {escaped(place)} --format kohya --rank 16"
        )
    files = sorted({file_behind(path) for path in folder.glob("*.safetensors")})
    own = [path for path in files if path.name in OWN_LORA_FILES]
    found = own[:1] or [path for path in files if kind_of_file(path) not in ("embedding", "model")]
    if len(found) != 1:
        listed = f" ({', '.join(path.name for path in found)})" if found else ""
        raise ModelError(f"--lora {escaped(place)}: holds {len(found)} LoRAs{listed}; name a file")
    return found[0]


def embedding_file(ref: EmbeddingRef) -> Path:
    """Return the file of an embedding. Raises ModelError for one that is missing or of another kind."""
    path = _path_of(ref.file, "--embedding")
    if path.is_dir():
        raise ModelError(f"--embedding {escaped(path)}: a folder; name a file")
    if (kind := kind_of_file(path)) == "lora":
        raise ModelError(f"--embedding {escaped(path)}: a LoRA; use --lora {escaped(path)}")
    if kind == "model":
        raise ModelError(f"--embedding {escaped(path)}: a whole model, no embedding; name it as MODEL")
    if ref.word is None and re.search(r"\s", path.stem):
        raise UserError(
            f"--embedding {escaped(path)}: its name is no word; write FILE:WORD, with a word for the prompt"
        )
    return path


def _path_of(file: str, option: str) -> Path:
    path = Path(file).expanduser()
    if not path.exists():
        raise ModelError(f"{option} {escaped(file)}: there is no such file or folder{suggestions(path)}")
    if path.is_file() and path.suffix not in WEIGHT_FILES:
        raise ModelError(f"{option} {escaped(file)}: must be one of {', '.join(WEIGHT_FILES)}")
    return file_behind(path)


def words_beside(path: Path) -> list[Path]:
    """Return the files of words that were learned with a LoRA: beside a file those called after it, or in its folder.

    Only where its own card says that it has learned words.
    """
    card = find_card(str(path)) if path.suffix == ".safetensors" else None
    in_folder = path.name in OWN_LORA_FILES
    card = card or (find_card(str(path.parent)) if in_folder else None)
    if card is None or not find_facts(card.method).adds_tokens:
        return []
    pattern = "learned_embeds*.safetensors" if in_folder else f"{path.stem}_emb*.safetensors"
    beside = sorted({file_behind(each) for each in path.parent.glob(pattern)})
    return [each for each in beside if not each.stem.endswith("_invokeai")]


def learned_by(refs: Iterable[LoraRef]) -> tuple[LearnedSubject, ...]:
    """Return the subjects that LoRAs of this toolkit have learned."""
    found: list[LearnedSubject] = []
    for ref in refs:
        path = lora_file(ref)
        card = find_card(str(path.parent)) if path.name in OWN_LORA_FILES else find_card(str(path))
        found += () if card is None else card.subjects
    return tuple(dict.fromkeys(found))


def check_additions(loras: Iterable[LoraRef], embeddings: Iterable[EmbeddingRef]) -> None:
    """Raise ModelError or UserError for a file that is missing or of another kind."""
    for lora in loras:
        lora_file(lora)
    for embedding in embeddings:
        embedding_file(embedding)
