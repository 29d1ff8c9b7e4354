"""Instructions for the programs that use an exported file: its folder, and the prompt to type."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth.exporting.names import weights_file, word_files
from dreambooth.prompts import fill_prompt
from dreambooth.subject_info import SubjectInfo

IN_DIFFUSERS = (
    "diffusers",
    "single-file",
    "lora",
    "kohya",
    "comfyui",
    "embedding",
)  # not graphs, nor plug-ins' formats
MERGED = "`--format single-file`, which holds the adapter merged into its base,"


@dataclass(frozen=True)
class ExportedFiles:
    """Hold the names of an export's files.

    form: of `formats.FORMATS`. name: that of the run. has_words: there are learned words beside the weights, or alone.
    has_dora: the LoRA has magnitudes. factors: "LoHa" or "LoKr" where it is one of these. denoiser: its name in the
    pipeline, "unet" or "transformer". is_for_comfyui, is_for_diffusers: it takes the names of a transformer's adapter
    whole.
    """

    form: str
    name: str
    card: SubjectInfo
    has_words: bool = False
    has_dora: bool = False
    factors: str | None = None
    denoiser: str = "unet"
    is_for_comfyui: bool = True
    is_for_diffusers: bool = True

    @property
    def weights(self) -> str:
        """Return the file with all but the words."""
        return weights_file(self.name)

    @property
    def words(self) -> dict[str, str]:
        """Return the words' files by word."""
        identifiers = [subject.identifier for subject in self.card.subjects]
        return dict(zip(identifiers, word_files(self.name, identifiers), strict=True)) if self.has_words else {}

    @property
    def loads_in_diffusers(self) -> bool:
        """Return whether diffusers reads it right: of kohya's names it drops magnitudes, and LyCORIS' it refuses."""
        has_names_of_kohya = self.form in ("kohya", "comfyui")
        is_changed = has_names_of_kohya and (self.has_dora or self.factors)
        return self.form in IN_DIFFUSERS and self.is_for_diffusers and not is_changed

    def prompt(self, words: Sequence[str] | None = None) -> str:
        """Return the first subject's own prompt. words: replace its identifiers, for programs that need others."""
        subjects = self.card.subjects
        if words is not None:
            subjects = tuple(replace(each, identifier=word) for each, word in zip(subjects, words, strict=True))
        return fill_prompt(subjects[0].prompt, subjects)


def instructions(files: ExportedFiles) -> Iterator[tuple[str, str]]:
    """Yield the name of a program and what to do there. Of a transformer it is known of ComfyUI alone."""
    if files.form in ("onnx", "openvino"):
        extra = f'pip install "dreambooth[{files.form}]"'
        yield "dreambooth", f"`{extra}`, then `dreambooth sample FOLDER {shlex.quote(files.prompt())}`."
        return
    if files.form not in IN_DIFFUSERS:
        yield "The program that its plug-in is for", f"Prompt: `{files.prompt()}`."
        return
    if files.denoiser == "transformer":
        yield "ComfyUI", f"{_comfyui_transformer(files)} Prompt: `{files.prompt()}`."
        return
    stems = [Path(file).stem for file in files.words.values()]
    comfy = files.prompt([f"embedding:{stem}" for stem in stems] or None)
    plain = files.prompt(stems or None)
    yield "ComfyUI", f"{_comfyui(files)} Prompt: `{comfy}`."
    yield "AUTOMATIC1111, Forge", f"{_a1111(files)} Prompt: `{_with_lora(files, plain)}`."
    yield "SD.Next", f"{_sdnext(files)} Prompt: `{_with_lora(files, plain)}`."
    yield "InvokeAI", f"{_invokeai(files)} Prompt: `{files.prompt([f'<{stem}>' for stem in stems] or None)}`."


def _with_lora(files: ExportedFiles, prompt: str) -> str:
    return f"{prompt} <lora:{files.name}:1>" if files.form in ("lora", "kohya", "comfyui") else prompt


def _beside(files: ExportedFiles, folder: str) -> str:
    """Return the sentence that says where the words' files go."""
    listed = " and ".join(f"`{file}`" for file in files.words.values())
    return f" {listed} to `{folder}`." if listed else ""


def _copied(files: ExportedFiles, folders: Mapping[str, str], words: str) -> str:
    """Return where the file, or the whole folder, goes. folders: by format. words: the sentence of the words' files."""
    copied = "This folder" if files.form == "diffusers" else f"`{files.weights}`"
    own = f"{copied} to `{folders[files.form]}`." if files.form in folders else ""
    return f"{own}{words}".strip()


def _comfyui(files: ExportedFiles) -> str:
    words = _beside(files, "models/embeddings")
    if files.form == "diffusers":
        return "It reads no folders: export with `--format single-file`."
    if files.form == "lora":
        return f"It applies a part of these names only, without an error: export with `--format kohya`.{words}"
    if files.form in ("kohya", "comfyui") and files.has_dora:
        return f"This DoRA comes out a little different there: {MERGED} does not.{words}"
    folders = {"single-file": "models/checkpoints", "kohya": "models/loras", "comfyui": "models/loras"}
    return _copied(files, folders, words)


def _comfyui_transformer(files: ExportedFiles) -> str:
    if files.form == "diffusers":
        return "It reads no folders: export the adapter with `--format comfyui`."
    if not files.is_for_comfyui:
        return "It skips these names without an error: export with `--format comfyui`."
    different = " A DoRA comes out a little different there." if files.has_dora else ""
    return f"`{files.weights}` to `models/loras`.{different}"


def _a1111(files: ExportedFiles) -> str:
    words = _beside(files, "embeddings")
    if files.form == "diffusers":
        return "It reads no folders: export with `--format single-file`."
    if files.form == "lora":
        return f"Export with `--format kohya`, whose names it knows.{words}"
    if files.form in ("kohya", "comfyui") and files.has_dora:
        return f"It applies this DoRA wrongly, without an error: take {MERGED} instead.{words}"
    folders = {"single-file": "models/Stable-diffusion", "kohya": "models/Lora", "comfyui": "models/Lora"}
    return _copied(files, folders, words)


def _sdnext(files: ExportedFiles) -> str:
    words = _beside(files, "models/embeddings")
    folders = {"diffusers": "models/Diffusers", "single-file": "models/Stable-diffusion"}
    folders |= {"lora": "models/Lora", "kohya": "models/Lora", "comfyui": "models/Lora"}
    return _copied(files, folders, words)


def _invokeai(files: ExportedFiles) -> str:
    several = f" Of several vectors `{files.name}_emb*_invokeai.safetensors`." if files.has_words else ""
    if files.form in ("kohya", "comfyui") and files.has_dora:
        return f"Take {MERGED} instead.{several}"
    return f"Import it in the model manager.{several}"
