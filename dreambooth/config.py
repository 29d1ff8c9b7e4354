"""Every setting of a run: typed, documented, checked before anything heavy is imported.

One dataclass a section; the text of a field is its help (`train.py --help` prints these very texts). OmegaConf merges
the YAML file with `section.key=value` overrides. All mistakes are found and reported together, each with the key, the
value and what is allowed. Nothing here imports torch.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreambooth import plain_yaml
from dreambooth.errors import UserError, shown
from dreambooth.files import with_home, without_home
from dreambooth.prompts import has_field, unknown_fields

PROVENANCE = "provenance"  # the section that a run adds to its config.yaml; read back, it is ignored
MAX_INT = 2**63 - 1
MAX_REFERENCES = 8  # from one key to the next
MAX_NAME_BYTES = 200
MAX_KEYS = 1000
MAX_SHOWN = 100  # characters of a value in a message
REFERENCE = re.compile(r"\$\{(\w+(?:\[\d+\])?\.\w+)\}")  # to another key: ${subject.class_noun}
PATHS = (  # which files have with ~ for the home folder, and programs without
    "run.dir", "model.base", "model.config", "subject.images", "data.mask", "prior.folder", "method.start",
    "validate.images", "validate.dino", "validate.clip",
)  # fmt: skip
ENTRY = re.compile(r"^subjects\[(\d+)\]")  # how the keys of the second subject begin: subjects[1]


def knob(
    default: Any,
    text: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    multiple: int = 1,
) -> Any:
    """A config field: its default, its help text with the unit, and its range (`minimum`, `maximum` allowed, `above`
    not), in steps of `multiple`."""
    metadata = {"text": text, "minimum": minimum, "above": above, "maximum": maximum, "multiple": multiple}
    if isinstance(default, tuple):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """Where a run lives and how it is repeated."""

    name: str = knob(MISSING, "the run's folder is <run.dir>/<run.name>")
    dir: str = knob("checkpoints", "folder of all runs")
    seed: int = knob(0, "decides every random choice of the run", minimum=0)
    resume: Literal["auto", "never"] = knob(
        "auto", "auto: go on where the run was interrupted; never: start again (an old run of this name is set aside)"
    )


@dataclass
class ModelConfig:
    """The model to personalise."""

    base: str = knob(MISSING, "diffusers folder, hub id or single .safetensors file")
    family: str = knob("auto", "kind of model; auto reads it from the base")
    config: str | None = knob(
        None,
        "for a single file: folder or hub id with its configs and tokenizer, or one of those that are shipped: sd1, "
        "sd1-v, sd2, sd2-v, sdxl, sdxl-v, sdxl-v-ztsnr (v: predicts v); null: the one that the file itself tells",
    )
    revision: str | None = knob(None, "of a hub id: branch, tag or commit to take; null: its main branch")
    variant: str | None = knob(
        None, "which of the weights that lie beside each other: fp16, non_ema ...; null: those without such a word"
    )
    export_dtype: Literal["float32", "float16", "bfloat16"] = knob(
        "float32", "number format of the weights in model/; float16 halves the folder"
    )


@dataclass
class SubjectConfig:
    """What is learned. Of several subjects each is an entry of a list `subjects` (subjects.1.class_noun=cat)."""

    images: str = knob(MISSING, "folder with the pictures of the subject, 3 to 10 of them")
    identifier: str = knob("sks", "rare word that will mean the subject; one token of the tokenizer")
    class_noun: str = knob(MISSING, "what kind of thing it is: dog, backpack, toy ...")
    prompt: str = knob(
        "a photo of {subject}", "prompt of the subject's pictures; {subject} is '<identifier> <class_noun>'"
    )
    class_prompt: str = knob("a photo of a {class}", "prompt of the class prior; {class} is the class noun")


@dataclass
class DataConfig:
    """From files to pixels."""

    resolution: int = knob(
        512, "side of the square training pictures, pixels, a multiple of 8", minimum=8, maximum=16384, multiple=8
    )
    buckets: bool = knob(
        False,
        "each picture is cut not to a square but, by a few percent, to the nearest of some shapes between 1:2 and 2:1 "
        "that have about the square's area; class pictures are made in the same shapes",
    )
    bucket_step: int = knob(
        64, "sides of these shapes are multiples of this, pixels; a smaller one cuts off less", minimum=8, multiple=8
    )
    crop: Literal["center", "random"] = knob("center", "where a picture is cut that has not the shape it is to get")
    num_crops: int = knob(8, "crops a picture, encoded once each, when data.crop is random", minimum=1)
    flip: bool = knob(False, "also learn from mirrored pictures; leave off where left and right matter (lettering)")
    captions: bool = knob(
        False,
        "each picture has a caption of its own, with {subject} in it: a .txt of the same name beside it, or a line of "
        "metadata.jsonl; class pictures are then made of the same captions without the identifier",
    )
    caption_dropout: float = knob(
        0.0, "share of samples that are shown without any prompt; 0.1 keeps guidance", minimum=0
    )
    shuffle_captions: bool = knob(
        False, "a caption's parts between commas come in a new order each time, but for the first"
    )
    mask: str | None = knob(
        None,
        "what of the subject's pictures counts; alpha: what is not transparent; or a folder with a mask for each, of "
        "the same name, white where it counts; null: all of it",
    )
    unmasked_weight: float = knob(0.1, "how much places count that a mask leaves out, 0 to 1", minimum=0)
    num_workers: int = knob(
        0, "processes that load data; 0 is fastest, latents being in memory", minimum=0, maximum=256
    )


@dataclass
class PriorConfig:
    """Class-prior preservation: pictures of the class keep the model from forgetting it (paper, section 3.3)."""

    source: Literal["stream", "ahead", "folder", "teacher", "none"] = knob(
        "stream",
        "stream: made by the base model while training runs; ahead: all made first (least memory); "
        "folder: your own pictures; teacher: no pictures, the frozen base's own predictions are the target; "
        "none: no prior, the class will come to look like the subject",
    )
    teacher_latents: Literal["subject", "class"] = knob(
        "subject",
        "what the teacher is asked about: noisy latents of the subject's own pictures, or of class pictures made "
        "as by stream",
    )
    num_images: int = knob(200, "class pictures, used in turn; no more are made than the run's steps see", minimum=1)
    weight: float = knob(1.0, "lambda: the prior's loss counts this much beside the subject's", minimum=0)
    folder: str | None = knob(None, "folder of class pictures for prior.source=folder")
    num_inference_steps: int = knob(20, "sampler steps a class picture", minimum=1)
    guidance_scale: float = knob(7.5, "classifier-free guidance of the class pictures; 1 is none", minimum=1)
    guidance_min_noise: float = knob(
        0.0,
        "sampler steps at less noise than this part of the schedule are not guided; 0.3 makes class pictures in some "
        "85 % of the time",
        minimum=0,
    )
    scheduler: str = knob("dpm++", "sampler of the class pictures, by name as in sample.py --scheduler")
    batch_size: int = knob(4, "class pictures made at a time", minimum=1)


@dataclass
class MethodConfig:
    """What trains."""

    name: str = knob(
        "full",
        "full: every weight of the denoiser (and the text encoder); lora, loha, lokr: small matrices beside them, a "
        "file of a few MB; textual_inversion: a new word only; pivotal: a new word and a LoRA of the denoiser; "
        "custom_diffusion: what reads the prompt in the denoiser",
    )
    train_text_encoder: bool = knob(
        True, "full, lora, loha, lokr: train the text encoder too: better likeness, more memory"
    )
    rank: int = knob(
        16, "lora, loha, lokr, pivotal: width of the matrices; larger learns more, in a larger file", minimum=1
    )
    alpha: float | None = knob(None, "what they add is scaled by alpha / rank; null: rank, so not at all", above=0)
    dropout: float = knob(0.0, "share of an adapter's inputs (loha, lokr: of its modules) left out a step", minimum=0)
    dora: bool = knob(False, "lora, pivotal: DoRA in the denoiser, which learns direction and magnitude apart: slower")
    rslora: bool = knob(False, "lora, pivotal: scale by alpha / sqrt(rank), so that large ranks learn as fast")
    targets: list[str] = knob(
        ("attention",),
        "lora, loha, lokr, pivotal: modules to adapt: attention, feed-forward, projections, convolutions, or ends of "
        "their names",
    )
    start: str | None = knob(
        None,
        "what to train on from; lora: a LoRA's file, in diffusers' names or kohya's; lora, loha, lokr, pivotal, "
        "textual_inversion: a run or model folder of the same method; rank, alpha and targets must be as there; "
        "null: nothing",
    )
    num_vectors: int = knob(1, "textual_inversion, pivotal: vectors of the new word, each a token", minimum=1)
    start_word: str | None = knob(
        None, "textual_inversion, pivotal: the word whose vector the new one starts from; null: the class noun"
    )


@dataclass
class OptimConfig:
    """AdamW and its learning rate."""

    name: Literal["adamw", "adamw8bit"] = knob(
        "adamw",
        "adamw8bit: its two moments in a byte a weight each instead of four, which saves 6 bytes a trained weight; for "
        "GPUs (extra '8bit'); on a CPU it is many times slower",
    )
    lr: float | None = knob(
        None,
        "learning rate of the denoiser; null: what suits the method: 2e-6 for full, 1e-5 for custom_diffusion, "
        "5e-4 for textual_inversion, else 1e-4",
        above=0,
    )
    text_encoder_lr: float | None = knob(None, "learning rate of the text encoder; null: optim.lr", above=0)
    identifier_lr: float | None = knob(
        None,
        "learning rate of the identifier's rows in its token embedding, whose other rows then stay: a high one tells "
        "subject and class apart sooner; null: all rows train as the text encoder does",
        above=0,
    )
    text_encoder_stop_step: int | None = knob(
        None, "from this step on the text encoder stays as it is, identifier and all; null: never", minimum=0
    )
    text_encoder_stop_drift: float | None = knob(
        None,
        "the text encoder stays as it is from the first validation on whose eval/drift (how far pictures of the class "
        "are from the untouched base's, 0 to 2) is above this, say 0.1; null: never",
        above=0,
    )
    schedule: Literal["constant", "cosine", "linear"] = knob(
        "constant", "shape after the warm-up; the last two end at 0"
    )
    warmup_steps: int = knob(0, "optimizer steps from 0 to the full learning rate", minimum=0)
    weight_decay: float = knob(1e-2, "AdamW's decoupled weight decay", minimum=0)
    beta1: float = knob(0.9, "AdamW's decay of the mean gradient", minimum=0)
    beta2: float = knob(0.999, "AdamW's decay of the mean squared gradient", minimum=0)
    max_grad_norm: float = knob(1.0, "gradients are scaled down to this norm; 0: never", minimum=0)
    in_backward: bool = knob(
        False,
        "each weight takes its step as soon as its gradient is there, which is then let go: 4 bytes a trained weight "
        "less; needs max_grad_norm=0",
    )


@dataclass
class LossConfig:
    """How an error counts."""

    weighting: Literal["none", "min_snr", "soft_min_snr", "debiased"] = knob(
        "none", "of the timesteps; min_snr: those with little noise count less, so that fewer steps are needed"
    )
    gamma: float = knob(5.0, "signal-to-noise ratio that min_snr and soft_min_snr cap at", above=0)
    huber_c: float | None = knob(
        None,
        "pseudo-Huber loss: differences above this count by their size, not its square; null: squared error",
        above=0,
    )
    noise_offset: float = knob(
        0.0, "share of noise that is one number a channel: lets the model learn very dark or bright; 0.05", minimum=0
    )
    input_perturbation: float = knob(
        0.0, "share of noise added to what the network sees only: against exposure bias; 0.1", minimum=0
    )
    zero_terminal_snr: bool = knob(
        False, "rescale the noise schedule so that the last timestep is noise alone; for bases that predict v"
    )


@dataclass
class TrainConfig:
    """The loop. A step is an optimizer step."""

    max_steps: int = knob(1000, "optimizer steps of the whole run", minimum=1)
    batch_size: int = knob(1, "subject pictures a step (and as many of the class), per device", minimum=1)
    micro_batch_size: int | None = knob(
        None,
        "samples, of the subject and the class together, that go through the networks at a time; 1: least memory, for "
        "the same gradient; null: the whole batch",
        minimum=1,
    )
    accumulate: int = knob(1, "batches a step: gradients are averaged over them", minimum=1)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = knob(
        "32-true", "number format of the arithmetic; auto: 16 bits for a large model on a GPU, else float32"
    )
    save_every_steps: int = knob(100, "optimizer steps between saves of the full state", minimum=1)
    keep_previous: bool = knob(
        True,
        "keep the state before the last one too, state/previous.ckpt, to go on from where the last is damaged; false: "
        "half the disk",
    )
    ema_decay: float = knob(
        0.0,
        "keep an average of the trained weights, of which this share stays a step, say 0.999: it is what is looked at "
        "and comes out; 0: none",
        minimum=0,
    )
    gradient_checkpointing: bool = knob(False, "compute activations twice: much less memory, a third slower")
    compile: bool = knob(False, "torch.compile the denoiser: slow start, faster steps on a GPU")
    device: Literal["auto", "cpu", "cuda"] = knob("auto", "auto: the GPU where there is one")
    devices: int = knob(
        1,
        "processes on each machine, a GPU for each; a step sees batch_size x accumulate x devices x num_nodes pictures",
        minimum=1,
    )
    num_nodes: int = knob(
        1, "machines; torchrun or SLURM starts the processes of several, which all see the run's folder", minimum=1
    )
    strategy: Literal["auto", "ddp", "fsdp"] = knob(
        "auto",
        "what several processes divide; ddp (auto): the pictures; fsdp: weights, gradients and Adam's moments too, for "
        "what does not fit one GPU: more is sent, method full only",
    )
    num_threads: int | None = knob(None, "CPU threads; null: torch's choice. The last bits depend on it", minimum=1)


@dataclass
class ValidateConfig:
    """Pictures while training, always from the same noise, and what they are worth. The best step is what is kept."""

    every_steps: int = knob(
        100, "optimizer steps between validations, each after saving the full state; 0: none", minimum=0
    )
    prompts: list[str] = knob(
        ("a photo of {subject} on the beach", "a photo of {subject} in the snow", "a photo of a {class}"),
        "what to sample: with {subject} scored as the subject, with {class} as what must not change, others for drift; "
        "of several subjects a row for each, but {subject_2} or {class_2} names one, and joins it to others",
    )
    num_images: int = knob(4, "pictures a prompt", minimum=1)
    num_inference_steps: int = knob(25, "sampler steps a picture", minimum=1)
    guidance_scale: float = knob(7.5, "classifier-free guidance; 1 is none", minimum=1)
    scheduler: str = knob("ddim", "sampler, by name as in sample.py --scheduler")
    dino: str | None = knob(
        "auto",
        "scores the likeness: hub id or folder of a DINO, DINOv2 or ViT; null: none; "
        "auto: facebook/dino-vits16 where it can be had",
    )
    clip: str | None = knob(
        "auto",
        "scores obedience to the prompt: hub id or folder of a CLIP; null: none; "
        "auto: openai/clip-vit-base-patch32 where it can be had",
    )
    images: str | None = knob(
        None, "folder of more pictures of the subject, not trained on, for eval/loss; null: the training pictures"
    )
    keep_best: bool = knob(True, "model/ gets the weights of the best step by the scores; false: of the last step")
    patience: int = knob(5, "validations without a better one before the run ends; 0: never", minimum=0)


@dataclass
class LogConfig:
    """Where figures go; metrics.csv is always written."""

    every_steps: int = knob(1, "optimizer steps between lines of metrics.csv and the loggers", minimum=1)
    tensorboard: bool = knob(True, "write TensorBoard files")
    wandb: bool = knob(False, "log to Weights & Biases (extra 'wandb'); WANDB_MODE=offline works")
    wandb_project: str = knob("dreambooth", "project on Weights & Biases")


@dataclass
class Config:
    """All sections; `load_config` makes one that has been checked. The section `subject` is a list of one."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    subjects: list[SubjectConfig] = field(default_factory=lambda: [SubjectConfig()])
    data: DataConfig = field(default_factory=DataConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    log: LogConfig = field(default_factory=LogConfig)


# What may differ between a run and its resumption: how long, how often it is saved, looked at and logged.
MAY_CHANGE = (
    "train.max_steps",
    "train.save_every_steps",
    "train.keep_previous",
    "run.dir",
    "run.name",
    "run.resume",
    "model.export_dtype",
    "validate.every_steps",
    "validate.keep_best",
    "validate.patience",
)
MAY_CHANGE_SECTIONS = ("log",)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, check everything.

    Raises UserError that lists every mistake, one a line.
    """
    raw, problems = _read_yaml(Path(path))
    settings, wrong = _flat(raw)
    problems += wrong
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(f"{override!r} is no override: write section.key=value, e.g. train.max_steps=200")
        else:
            key = re.sub(r"^subjects\.(\d+)\.", r"subjects[\1].", key)
            settings[key] = _override_value(key, text)
    if len(settings) > MAX_KEYS:
        raise UserError(f"{shown(path)}: {len(settings)} keys are no config; there are {len(config_fields())}")
    settings = {key: _resolved(settings, key, value) for key, value in settings.items()}
    bad = {key: problem for key, value in settings.items() if (problem := _problem(key, value))}
    problems += [*bad.values(), *_list_problems(settings), *_missing_keys(settings)]
    good = {key: value for key, value in settings.items() if key not in bad}
    if len(bad) == len(problems) and not any(_missing_keys(good)):  # what else is wrong can be told as well
        config = _build(good, path)
        problems += [problem for problem in _joint_problems(config) if not any(key in problem for key in bad)]
    if problems:
        raise UserError(_listed(path, problems))
    return config


@functools.cache
def config_fields() -> dict[str, dataclasses.Field[Any]]:
    """Every key, `section.key`, with its dataclass field (whose `type` is resolved)."""
    fields = {}
    for section, section_class in _sections().items():
        hints = typing.get_type_hints(section_class)
        for item in dataclasses.fields(section_class):
            item.type = hints[item.name]
            fields[f"{section}.{item.name}"] = item
    return fields


def field_of(key: str) -> dataclasses.Field[Any] | None:
    """The field of a key, None for an unknown one; an entry of `subjects` has those of `subject`."""
    return config_fields().get(ENTRY.sub("subject", key))


def default_of(key: str) -> Any:
    """The default of a key that is known; `???` where it is required."""
    item = field_of(key)
    assert item is not None, key
    return _default(item)


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default is not dataclasses.MISSING else typing.cast(Any, item.default_factory)()


def describe_config() -> str:
    """All keys with type, default and help, a section a paragraph: what `train.py --help` prints."""
    lines = []
    section = ""
    for key, item in config_fields().items():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            lines += ["", f"{section}: {_sections()[section].__doc__}"]
        lines.append(f"  {key} ({_type_name(item.type)}; {_default_name(item)})")
        lines.append(f"      {item.metadata['text']}")
    return "\n".join(lines[1:])


def to_dict(config: Config) -> dict[str, Any]:
    """The config as a file has it, in plain containers: one subject is the section `subject`, the home folder `~`.

    Other paths stay whole: a run has to find its base and its pictures again.
    """
    sections = dataclasses.asdict(config)
    for section, values in sections.items():
        for own in values if section == "subjects" else [values]:
            prefix = "subject" if section == "subjects" else section
            paths = [name for name, value in own.items() if f"{prefix}.{name}" in PATHS and isinstance(value, str)]
            own.update({name: without_home(own[name]) for name in paths})
    if len(config.subjects) > 1:
        return sections
    return {
        "subject" if name == "subjects" else name: values[0] if name == "subjects" else values
        for name, values in sections.items()
    }


def subject_key(config: Config, number: int) -> str:
    """How a subject's keys begin: `subject`, or of several `subjects[1]`."""
    return "subject" if len(config.subjects) == 1 else f"subjects[{number}]"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two configs (`to_dict`) and may not change within a run, as `key: old -> new` lines."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in {**after, **before}
        if before.get(key) != after.get(key) and key not in MAY_CHANGE and key.split(".")[0] not in MAY_CHANGE_SECTIONS
    ]


def flatten(raw: dict[str, Any], path: str = "config") -> dict[str, Any]:
    """{"train": {"max_steps": 3}} -> {"train.max_steps": 3}; entries of the list `subjects` are `subjects[0]` ...

    Raises UserError, which names `path`, for what is no section.
    """
    flat, problems = _flat(raw)
    if problems:
        raise UserError(_listed(path, problems))
    return flat


def _flat(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same, and what is wrong with the sections."""
    flat: dict[str, Any] = {}
    sections, problems = _without_list(raw)
    for section, values in sections.items():
        if section == PROVENANCE:
            continue
        is_section = section in _sections() or ENTRY.fullmatch(section)
        if isinstance(values, dict) and is_section:
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        elif is_section:
            problems.append(f"{section}: a section must hold keys, found {_cut(values)}")
        else:
            flat[section] = values
    return flat, problems


# ------------------------------------------------------------------------------------------------ reading and checking


def _read_yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file():
        raise UserError(f"{shown(path)}: there is no such config file; configs/ holds examples")
    raw, problems = plain_yaml.read(path)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise UserError(f"{shown(path)}: expected sections ({', '.join(_sections())}), found {found}")
    return raw, problems


def _sections() -> dict[str, type]:
    """The sections of a file with their classes, in order."""
    classes = {item.name: typing.cast(Any, item.type) for item in dataclasses.fields(Config)}
    return {
        "subject" if name == "subjects" else name: SubjectConfig if name == "subjects" else kind
        for name, kind in classes.items()
    }


def _without_list(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entries of the list `subjects`, if there is one, as sections of their own; what is wrong with it."""
    named = {str(name): values for name, values in raw.items()}
    if "subjects" not in named:
        return named, []
    entries = named.pop("subjects")
    if not isinstance(entries, list) or not entries:
        return named, [f"subjects: must be a list of entries with the keys of 'subject', found {_cut(entries)}"]
    return named | {f"subjects[{number}]": entry for number, entry in enumerate(entries)}, []


def _subject_sections(keys: typing.Iterable[str]) -> list[str]:
    """How these settings name what is learned: `subject`, or `subjects[0]`, `subjects[1]` ..."""
    numbers = sorted({int(match[1]) for key in keys if (match := ENTRY.match(key))})
    return [f"subjects[{number}]" for number in numbers] or ["subject"]


def _list_problems(settings: dict[str, Any]) -> typing.Iterator[str]:
    """What is wrong with the list `subjects` as such."""
    sections = _subject_sections(settings)
    if sections == ["subject"]:
        return
    if told := [key for key in settings if key.startswith("subject.")]:
        yield f"subjects: stands in the place of the section 'subject'; there is {told[0]} as well: leave one out"
    if gaps := [name for number, name in enumerate(sections) if name != f"subjects[{number}]"]:
        yield f"{gaps[0]}: no such entry; they count from 0, and the next to add is subjects[{sections.index(gaps[0])}]"


def _missing_keys(settings: dict[str, Any]) -> typing.Iterator[str]:
    for key, item in config_fields().items():
        section, name = key.split(".")
        for own in _subject_sections(settings) if section == "subject" else [section]:
            if item.default is MISSING and f"{own}.{name}" not in settings:
                yield f"{own}.{name}: required ({item.metadata['text']})"


def _override_value(key: str, text: str) -> Any:
    """On the command line a text stays a text (007, no); other values are read as YAML."""
    item = field_of(key)
    if item is not None and item.type is str:
        return text
    try:
        value, repeated = plain_yaml.parse(text)
        return text if repeated else value
    except yaml.YAMLError:
        return text


def _resolved(settings: dict[str, Any], key: str, value: Any, beneath: tuple[str, ...] = ()) -> Any:
    """A value with each ${section.key} in it replaced by that key's own; a value that is nothing else keeps its type.

    What cannot be replaced stays as it is: an unknown key, one that refers to itself, ${oc.env:HOME} and the like.
    """
    if isinstance(value, list):
        return [_resolved(settings, key, each, beneath) for each in value]
    if not isinstance(value, str) or len(beneath) > MAX_REFERENCES:
        return value

    def referred(match: re.Match[str]) -> Any:
        other = _own_name(match[1], settings)
        if other in (*beneath, key) or field_of(other) is None:
            return match[0]
        found = settings[other] if other in settings else default_of(other)
        return match[0] if found == MISSING else _resolved(settings, other, found, (*beneath, key))

    whole = REFERENCE.fullmatch(value)
    return referred(whole) if whole else REFERENCE.sub(lambda match: str(referred(match)), value)


def _own_name(key: str, settings: dict[str, Any]) -> str:
    """`subject.images` is that of the first of several, `subjects[0].images` that of the only one."""
    first = _subject_sections(settings)[0]
    return re.sub(r"^(subject|subjects\[0\])\.", f"{first}.", key)


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with one setting by itself: its name, its type or its range."""
    item = field_of(key)
    if item is None:
        return _unknown_key(key)
    kind = item.type
    for each in value if isinstance(value, list) else [value]:
        if _is_text(kind) and isinstance(each, (bool, int, float)):
            return f"{key}: YAML reads this as {_cut(each)}, not as text; put it in quotes"
    if problem := next(filter(None, map(_text_problem, value if isinstance(value, list) else [value])), None):
        return f"{key}: {problem}"
    if isinstance(value, str) and _takes_float(kind):
        value = _number(value)
    is_other = kind is bool and isinstance(value, (int, float)) and value not in (0, 1)
    if is_other or (typing.get_origin(kind) is list and not isinstance(value, list)):
        return f"{key}: {_cut(value)} is not allowed; expected {_type_name(kind)}"
    if isinstance(value, int) and abs(value) > MAX_INT:
        return f"{key}: {_cut(value)} is too large"
    try:
        merged: Any = OmegaConf.merge(_alone(ENTRY.sub("subject", key)), {"value": value})
    except OmegaConfBaseException:
        return f"{key}: {_cut(value)} is not allowed; expected {_type_name(kind)}{_nearest(value, kind)}"
    return _range_problem(key, item, value if isinstance(value, (int, float)) else merged["value"])


@functools.cache
def _alone(key: str) -> Any:
    """A structured config of nothing but a field of this type: all its section takes twenty times as long to fill."""
    item = config_fields()[key]
    return OmegaConf.structured(dataclasses.make_dataclass("Alone", [("value", item.type, field(default=MISSING))]))


def _unknown_key(key: str) -> str:
    fields, entry = config_fields(), ENTRY.match(key)
    near = difflib.get_close_matches(key[:MAX_SHOWN], [*fields, *_sections()], n=1, cutoff=0.5)
    by_name = [known for known in fields if known.split(".")[-1] == key.split(".")[-1]]
    hint = (by_name or near or [f"one of the sections {', '.join(_sections())}"])[0]
    hint = hint.replace("subject.", f"{entry[0]}.") if entry else hint
    return f"{shown(_shortened(key))}: unknown key; did you mean {hint}?"


def _text_problem(value: Any) -> str | None:
    """What is wrong with a text by itself."""
    if not isinstance(value, str):
        return None
    if value == MISSING:
        return "'???' stands for a value that is missing; write one"
    if "${" in value:
        return (
            f"{_cut(value)} is not allowed: only keys of this config can be referred to, as in ${{subject.class_noun}}"
        )
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"{_cut(value)} holds characters that are no text"
    return None


def _nearest(value: Any, kind: Any) -> str:
    """Of a choice the one that was probably meant."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    near = difflib.get_close_matches(str(value)[:MAX_SHOWN], choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _cut(value: Any) -> str:
    """A value as a message shows it."""
    try:
        return _shortened(repr(value))
    except ValueError:  # a number of more than 4300 digits
        return "a number of thousands of digits"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _build(settings: dict[str, Any], path: str | Path) -> Config:
    """Merge checked settings over the defaults; every required key must be there."""
    nested: dict[str, dict[str, Any]] = {name: {} for name in _sections()}
    for key, value in settings.items():
        section, name = key.split(".")
        takes_float = _takes_float(typing.cast(Any, field_of(key)).type)
        own = nested.setdefault(section, {})
        if ENTRY.sub("subject", key) in PATHS and isinstance(value, str):
            value = with_home(value)
        own[name] = _number(value) if takes_float and isinstance(value, str) else value
    try:
        entries = [_structured(SubjectConfig, nested[name]) for name in _subject_sections(settings)]
        sections = {name: _structured(kind, nested[name]) for name, kind in _sections().items() if name != "subject"}
        made = typing.cast(dict[str, Any], OmegaConf.to_object(OmegaConf.create({**sections, "subjects": entries})))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    return Config(**made)


def _structured(kind: type, values: dict[str, Any]) -> typing.Any:
    return OmegaConf.merge(OmegaConf.structured(kind), values)


def _range_problem(key: str, item: dataclasses.Field[Any], value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    limits = item.metadata
    if not math.isfinite(value):
        return f"{key}: {value} is not a finite number"
    if limits["minimum"] is not None and value < limits["minimum"]:
        return f"{key}: {value} is too small; at least {limits['minimum']}"
    if limits["above"] is not None and value <= limits["above"]:
        return f"{key}: {value} is too small; must be above {limits['above']}"
    if limits["maximum"] is not None and value > limits["maximum"]:
        return f"{key}: {value} is too large; at most {limits['maximum']}"
    if rest := value % limits["multiple"] if limits["multiple"] > 1 else 0:
        below = max(value - rest, limits["multiple"])
        return (
            f"{key}: {value} is not a multiple of {limits['multiple']}; {below} or {value - rest + limits['multiple']}"
        )
    return None


def _joint_problems(config: Config) -> typing.Iterator[str]:
    """Rules that join several keys."""
    prior, optim = config.prior, config.optim
    for number, subject in enumerate(config.subjects):
        yield from _subject_problems(subject_key(config, number), subject)
    yield from _problems_of_several(config)
    for key, prompt in _templates(config):
        if unknown := unknown_fields(prompt, len(config.subjects)):
            yield f"{key}: {prompt!r} has {unknown[0]}, and this run has {len(config.subjects)} subject(s)"
    if not _names_a_folder(config.run.name):
        yield f"run.name: {_cut(config.run.name)} must name a folder: short, on one line, without / and the like"
    if prior.source == "folder" and not prior.folder:
        yield "prior.folder: required when prior.source is 'folder'"
    if prior.source != "folder" and prior.folder:
        yield f"prior.folder: only read when prior.source is 'folder' (it is {prior.source!r})"
    for name in ("text_encoder_lr", "identifier_lr", "text_encoder_stop_step", "text_encoder_stop_drift"):
        if getattr(optim, name) is not None and not config.method.train_text_encoder:
            yield f"optim.{name}: set, but method.train_text_encoder is false"
    if optim.identifier_lr is not None and config.method.name in ("lora", "loha", "lokr", "custom_diffusion"):
        yield f"optim.identifier_lr: {config.method.name} trains no row of the embedding (pivotal does); set it to null"
    if optim.text_encoder_stop_drift is not None and not config.validate.every_steps:
        yield "optim.text_encoder_stop_drift: set, but validate.every_steps is 0: nothing measures the drift"
    if config.method.start is not None and config.method.name in ("full", "custom_diffusion"):
        yield f"method.start: {config.method.name} starts from model.base; set it to null"
    if config.validate.every_steps and not config.validate.prompts:
        yield "validate.prompts: empty; name one, or set validate.every_steps to 0"
    if optim.warmup_steps >= config.train.max_steps:
        yield f"optim.warmup_steps: {optim.warmup_steps} must be below train.max_steps ({config.train.max_steps})"
    if config.train.ema_decay >= 1:
        yield f"train.ema_decay: {config.train.ema_decay} must be below 1, or nothing is ever learned"
    if config.data.buckets and config.data.resolution % config.data.bucket_step:
        yield f"data.bucket_step: {config.data.bucket_step} must divide data.resolution ({config.data.resolution})"
    if config.data.caption_dropout > 1:
        yield f"data.caption_dropout: {config.data.caption_dropout} is too large; at most 1"
    if config.data.unmasked_weight > 1:
        yield f"data.unmasked_weight: {config.data.unmasked_weight} is too large; at most 1"
    if config.optim.in_backward:
        yield from _in_backward_problems(config)
    if config.train.strategy == "fsdp":
        yield from _fsdp_problems(config)
    if max(optim.beta1, optim.beta2) >= 1:
        yield f"optim.beta1, optim.beta2: {optim.beta1}, {optim.beta2} must be below 1"


def _names_a_folder(name: str) -> bool:
    """On any system, with room for an ending."""
    if not name.strip() or name in (".", "..") or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        return False
    return not set(name) & set('/\\:*?"<>|')


def _in_backward_problems(config: Config) -> typing.Iterator[str]:
    train = config.train
    for key, value, needed in (
        ("optim.max_grad_norm", config.optim.max_grad_norm, 0),
        ("train.accumulate", train.accumulate, 1),
        ("train.micro_batch_size", train.micro_batch_size, None),
        ("train.devices", train.devices, 1),
        ("train.num_nodes", train.num_nodes, 1),
    ):
        if value != needed:
            wanted = "null" if needed is None else needed
            yield f"{key}: {value} needs all gradients at once, optim.in_backward lets them go; set it to {wanted}"
    if train.precision in ("auto", "16-mixed"):
        yield f"train.precision: {train.precision} may scale gradients, which optim.in_backward cannot; use bf16-mixed"


def _fsdp_problems(config: Config) -> typing.Iterator[str]:
    """What does not go with divided weights."""
    if config.train.devices * config.train.num_nodes == 1:
        yield "train.strategy: fsdp divides the weights among processes; set train.devices, or use auto"
    if config.method.name != "full":
        yield f"train.strategy: fsdp is for method full; what {config.method.name} trains is small: use ddp"
    for key, is_set in (
        ("optim.name", config.optim.name != "adamw"),  # an 8-bit moment belongs to a block of a whole weight
        ("optim.identifier_lr", config.optim.identifier_lr is not None),
        ("train.ema_decay", config.train.ema_decay > 0),
        ("train.compile", config.train.compile),
        ("data.buckets", config.data.buckets),  # processes would compute in different numbers of groups, and wait
    ):
        if is_set:
            yield f"{key}: not possible with train.strategy fsdp; leave it at its default, or use ddp"


def _subject_problems(section: str, subject: SubjectConfig) -> typing.Iterator[str]:
    if "{subject}" not in subject.prompt:
        yield f"{section}.prompt: {subject.prompt!r} must contain {{subject}}"
    if "{class}" not in subject.class_prompt or has_field(subject.class_prompt, "subject"):
        yield f"{section}.class_prompt: {subject.class_prompt!r} must contain {{class}}, and not {{subject}}"
    for name, text in (("identifier", subject.identifier), ("class_noun", subject.class_noun)):
        if not text.strip():
            yield f"{section}.{name}: must not be empty"
    if subject.identifier.strip() and subject.identifier.strip().casefold() == subject.class_noun.strip().casefold():
        yield (
            f"{section}.identifier: {subject.identifier!r} is the class noun itself, so nothing would tell the subject "
            "from its class; name a rare word: sks"
        )


def _templates(config: Config) -> typing.Iterator[tuple[str, str]]:
    """Every prompt with its key."""
    for number, subject in enumerate(config.subjects):
        yield f"{subject_key(config, number)}.prompt", subject.prompt
        yield f"{subject_key(config, number)}.class_prompt", subject.class_prompt
    yield from (("validate.prompts", prompt) for prompt in config.validate.prompts)


def _problems_of_several(config: Config) -> typing.Iterator[str]:
    """What goes for several subjects only. CLIP's tokenizer does not tell capitals from small letters."""
    words = [subject.identifier.strip().casefold() for subject in config.subjects]
    for (one, word), (other, later) in itertools.combinations(enumerate(words), 2):
        if word and later and (word in later or later in word):
            yield (
                f"subjects[{other}].identifier: {config.subjects[other].identifier!r} must differ from that of "
                f"subjects[{one}], {config.subjects[one].identifier!r}, and neither may be a part of the other"
            )
    if len(words) == 1:
        return
    nouns = list(dict.fromkeys(subject.class_noun for subject in config.subjects))
    if config.prior.source == "folder" and len(nouns) > 1:
        yield f"prior.source: a folder has pictures of one class, here are {', '.join(nouns)}; use stream or teacher"
    if config.prior.num_images < len(nouns):
        yield f"prior.num_images: {config.prior.num_images} is too small for {len(nouns)} classes: {', '.join(nouns)}"
    if config.data.mask not in (None, "alpha"):
        yield "data.mask: a folder is for one subject, pictures of two may have one name; cut them out, and use alpha"
    if config.validate.images is not None:
        yield "validate.images: does not tell whose pictures they are; with several subjects leave it null"


def _listed(path: str | Path, problems: list[str]) -> str:
    return f"{shown(path)}: {problems[0]}" if len(problems) == 1 else "\n  ".join([f"{shown(path)}:", *problems])


def _is_text(kind: Any) -> bool:
    return str in (kind, *typing.get_args(kind))


def _takes_float(kind: Any) -> bool:
    return kind is float or float in typing.get_args(kind)


def _number(text: str) -> Any:
    """YAML 1.1 takes 5e-6 for a text (it wants 5.0e-6); everyone means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return " or ".join("null" if part is type(None) else _type_name(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return "list of texts"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[kind.__name__]


def _default_name(item: dataclasses.Field[Any]) -> str:
    if item.default is MISSING:
        return "required"
    default = _default(item)
    return f"default {'null' if default is None else str(default).lower() if isinstance(default, bool) else default}"
