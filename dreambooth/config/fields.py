"""The settings of a run: a dataclass a section; the text of a field is its help, which `train.py --help` prints."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

PATHS = (  # which files have with ~ for the home folder, and programs without
    "run.dir", "model.base", "model.config", "subject.images", "data.mask", "prior.folder", "method.start",
    "validate.images", "validate.dino", "validate.clip",
)  # fmt: skip


def setting(
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

    name: str = setting(MISSING, "the run's folder is <run.dir>/<run.name>")
    dir: str = setting("checkpoints", "folder of all runs")
    seed: int = setting(0, "decides every random choice of the run", minimum=0)
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: go on where the run was interrupted; never: start again (an old run of this name is set aside)"
    )


@dataclass
class ModelConfig:
    """The model to personalise."""

    base: str = setting(MISSING, "diffusers folder, hub id or single .safetensors file")
    family: str = setting("auto", "kind of model; auto reads it from the base")
    config: str | None = setting(
        None,
        "for a single file: folder or hub id with its configs and tokenizer, or one of those that are shipped: sd1, "
        "sd1-v, sd2, sd2-v, sdxl, sdxl-v, sdxl-v-ztsnr (v: predicts v); null: the one that the file itself tells",
    )
    revision: str | None = setting(None, "of a hub id: branch, tag or commit to take; null: its main branch")
    variant: str | None = setting(
        None, "which of the weights that lie beside each other: fp16, non_ema ...; null: those without such a word"
    )
    export_dtype: Literal["float32", "float16", "bfloat16"] = setting(
        "float32", "number format of the weights in model/; float16 halves the folder"
    )


@dataclass
class SubjectConfig:
    """What is learned. Of several subjects each is an entry of a list `subjects` (subjects.1.class_noun=cat)."""

    images: str = setting(MISSING, "folder with the pictures of the subject, 3 to 10 of them")
    identifier: str = setting("sks", "rare word that will mean the subject; one token of the tokenizer")
    class_noun: str = setting(MISSING, "what kind of thing it is: dog, backpack, toy ...")
    prompt: str = setting(
        "a photo of {subject}", "prompt of the subject's pictures; {subject} is '<identifier> <class_noun>'"
    )
    class_prompt: str = setting("a photo of a {class}", "prompt of the class prior; {class} is the class noun")


@dataclass
class DataConfig:
    """From files to pixels."""

    resolution: int = setting(
        512, "side of the square training pictures, pixels, a multiple of 8", minimum=8, maximum=16384, multiple=8
    )
    buckets: bool = setting(
        False,
        "each picture is cut not to a square but, by a few percent, to the nearest of some shapes between 1:2 and 2:1 "
        "that have about the square's area; class pictures are made in the same shapes",
    )
    bucket_step: int = setting(
        64, "sides of these shapes are multiples of this, pixels; a smaller one cuts off less", minimum=8, multiple=8
    )
    crop: Literal["center", "random"] = setting("center", "where a picture is cut that has not the shape it is to get")
    num_crops: int = setting(8, "crops a picture, encoded once each, when data.crop is random", minimum=1)
    flip: bool = setting(False, "also learn from mirrored pictures; leave off where left and right matter (lettering)")
    captions: bool = setting(
        False,
        "each picture has a caption of its own, with {subject} in it: a .txt of the same name beside it, or a line of "
        "metadata.jsonl; class pictures are then made of the same captions without the identifier",
    )
    caption_dropout: float = setting(
        0.0, "share of samples that are shown without any prompt; 0.1 keeps guidance", minimum=0
    )
    shuffle_captions: bool = setting(
        False, "a caption's parts between commas come in a new order each time, but for the first"
    )
    mask: str | None = setting(
        None,
        "what of the subject's pictures counts; alpha: what is not transparent; or a folder with a mask for each, of "
        "the same name, white where it counts; null: all of it",
    )
    unmasked_weight: float = setting(0.1, "how much places count that a mask leaves out, 0 to 1", minimum=0)
    num_workers: int = setting(
        0, "processes that load data; 0 is fastest, latents being in memory", minimum=0, maximum=256
    )


@dataclass
class PriorConfig:
    """Class-prior preservation: pictures of the class keep the model from forgetting it (paper, section 3.3)."""

    source: Literal["stream", "ahead", "folder", "teacher", "none"] = setting(
        "stream",
        "stream: made by the base model while training runs; ahead: all made first (least memory); "
        "folder: your own pictures; teacher: no pictures, the frozen base's own predictions are the target; "
        "none: no prior, the class will come to look like the subject",
    )
    teacher_latents: Literal["subject", "class"] = setting(
        "subject",
        "what the teacher is asked about: noisy latents of the subject's own pictures, or of class pictures made "
        "as by stream",
    )
    num_images: int = setting(200, "class pictures, used in turn; no more are made than the run's steps see", minimum=1)
    weight: float = setting(1.0, "lambda: the prior's loss counts this much beside the subject's", minimum=0)
    folder: str | None = setting(None, "folder of class pictures for prior.source=folder")
    num_inference_steps: int = setting(20, "sampler steps a class picture", minimum=1)
    guidance_scale: float = setting(7.5, "classifier-free guidance of the class pictures; 1 is none", minimum=1)
    guidance_min_noise: float = setting(
        0.0,
        "sampler steps at less noise than this part of the schedule are not guided; 0.3 makes class pictures in some "
        "85 % of the time",
        minimum=0,
    )
    scheduler: str = setting("dpm++", "sampler of the class pictures, by name as in sample.py --scheduler")
    batch_size: int = setting(4, "class pictures made at a time", minimum=1)


@dataclass
class MethodConfig:
    """What trains."""

    name: str = setting(
        "full",
        "full: every weight of the denoiser (and the text encoder); lora, loha, lokr: small matrices beside them, a "
        "file of a few MB; textual_inversion: a new word only; pivotal: a new word and a LoRA of the denoiser; "
        "custom_diffusion: what reads the prompt in the denoiser",
    )
    train_text_encoder: bool = setting(
        True, "full, lora, loha, lokr: train the text encoder too: better likeness, more memory"
    )
    rank: int = setting(
        16, "lora, loha, lokr, pivotal: width of the matrices; larger learns more, in a larger file", minimum=1
    )
    alpha: float | None = setting(None, "what they add is scaled by alpha / rank; null: rank, so not at all", above=0)
    dropout: float = setting(
        0.0, "share of an adapter's inputs (loha, lokr: of its modules) left out a step", minimum=0
    )
    dora: bool = setting(
        False, "lora, pivotal: DoRA in the denoiser, which learns direction and magnitude apart: slower"
    )
    rslora: bool = setting(False, "lora, pivotal: scale by alpha / sqrt(rank), so that large ranks learn as fast")
    targets: list[str] = setting(
        ("attention",),
        "lora, loha, lokr, pivotal: modules to adapt: attention, feed-forward, projections, convolutions, or ends of "
        "their names",
    )
    start: str | None = setting(
        None,
        "what to train on from; lora: a LoRA's file, in diffusers' names or kohya's; lora, loha, lokr, pivotal, "
        "textual_inversion: a run or model folder of the same method; rank, alpha and targets must be as there; "
        "null: nothing",
    )
    num_vectors: int = setting(1, "textual_inversion, pivotal: vectors of the new word, each a token", minimum=1)
    start_word: str | None = setting(
        None, "textual_inversion, pivotal: the word whose vector the new one starts from; null: the class noun"
    )


@dataclass
class OptimConfig:
    """AdamW and its learning rate."""

    name: Literal["adamw", "adamw8bit"] = setting(
        "adamw",
        "adamw8bit: its two moments in a byte a weight each instead of four, which saves 6 bytes a trained weight; for "
        "GPUs (extra '8bit'); on a CPU it is many times slower",
    )
    lr: float | None = setting(
        None,
        "learning rate of the denoiser; null: what suits the method: 2e-6 for full, 1e-5 for custom_diffusion, "
        "5e-4 for textual_inversion, else 1e-4",
        above=0,
    )
    text_encoder_lr: float | None = setting(None, "learning rate of the text encoder; null: optim.lr", above=0)
    identifier_lr: float | None = setting(
        None,
        "learning rate of the identifier's rows in its token embedding, whose other rows then stay: a high one tells "
        "subject and class apart sooner; null: all rows train as the text encoder does",
        above=0,
    )
    text_encoder_stop_step: int | None = setting(
        None, "from this step on the text encoder stays as it is, identifier and all; null: never", minimum=0
    )
    text_encoder_stop_drift: float | None = setting(
        None,
        "the text encoder stays as it is from the first validation on whose eval/drift (how far pictures of the class "
        "are from the untouched base's, 0 to 2) is above this, say 0.1; null: never",
        above=0,
    )
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "constant", "shape after the warm-up; the last two end at 0"
    )
    warmup_steps: int = setting(0, "optimizer steps from 0 to the full learning rate", minimum=0)
    weight_decay: float = setting(1e-2, "AdamW's decoupled weight decay", minimum=0)
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient", minimum=0)
    beta2: float = setting(0.999, "AdamW's decay of the mean squared gradient", minimum=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: never", minimum=0)
    in_backward: bool = setting(
        False,
        "each weight takes its step as soon as its gradient is there, which is then let go: 4 bytes a trained weight "
        "less; needs max_grad_norm=0",
    )


@dataclass
class LossConfig:
    """How an error counts."""

    weighting: Literal["none", "min_snr", "soft_min_snr", "debiased"] = setting(
        "none", "of the timesteps; min_snr: those with little noise count less, so that fewer steps are needed"
    )
    gamma: float = setting(5.0, "signal-to-noise ratio that min_snr and soft_min_snr cap at", above=0)
    huber_c: float | None = setting(
        None,
        "pseudo-Huber loss: differences above this count by their size, not its square; null: squared error",
        above=0,
    )
    noise_offset: float = setting(
        0.0, "share of noise that is one number a channel: lets the model learn very dark or bright; 0.05", minimum=0
    )
    input_perturbation: float = setting(
        0.0, "share of noise added to what the network sees only: against exposure bias; 0.1", minimum=0
    )
    zero_terminal_snr: bool = setting(
        False, "rescale the noise schedule so that the last timestep is noise alone; for bases that predict v"
    )


@dataclass
class TrainConfig:
    """The loop. A step is an optimizer step."""

    max_steps: int = setting(1000, "optimizer steps of the whole run", minimum=1)
    batch_size: int = setting(1, "subject pictures a step (and as many of the class), per device", minimum=1)
    micro_batch_size: int | None = setting(
        None,
        "samples, of the subject and the class together, that go through the networks at a time; 1: least memory, for "
        "the same gradient; null: the whole batch",
        minimum=1,
    )
    accumulate: int = setting(1, "batches a step: gradients are averaged over them", minimum=1)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = setting(
        "32-true", "number format of the arithmetic; auto: 16 bits for a large model on a GPU, else float32"
    )
    save_every_steps: int = setting(100, "optimizer steps between saves of the full state", minimum=1)
    keep_previous: bool = setting(
        True,
        "keep the state before the last one too, state/previous.ckpt, to go on from where the last is damaged; false: "
        "half the disk",
    )
    ema_decay: float = setting(
        0.0,
        "keep an average of the trained weights, of which this share stays a step, say 0.999: it is what is looked at "
        "and comes out; 0: none",
        minimum=0,
    )
    gradient_checkpointing: bool = setting(False, "compute activations twice: much less memory, a third slower")
    compile: bool = setting(False, "torch.compile the denoiser: slow start, faster steps on a GPU")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: the GPU where there is one")
    devices: int = setting(
        1,
        "processes on each machine, a GPU for each; a step sees batch_size x accumulate x devices x num_nodes pictures",
        minimum=1,
    )
    num_nodes: int = setting(
        1, "machines; torchrun or SLURM starts the processes of several, which all see the run's folder", minimum=1
    )
    strategy: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "what several processes divide; ddp (auto): the pictures; fsdp: weights, gradients and Adam's moments too, for "
        "what does not fit one GPU: more is sent, method full only",
    )
    num_threads: int | None = setting(None, "CPU threads; null: torch's choice. The last bits depend on it", minimum=1)


@dataclass
class ValidateConfig:
    """Pictures while training, always from the same noise, and what they are worth. The best step is what is kept."""

    every_steps: int = setting(
        100, "optimizer steps between validations, each after saving the full state; 0: none", minimum=0
    )
    prompts: list[str] = setting(
        ("a photo of {subject} on the beach", "a photo of {subject} in the snow", "a photo of a {class}"),
        "what to sample: with {subject} scored as the subject, with {class} as what must not change, others for drift; "
        "of several subjects a row for each, but {subject_2} or {class_2} names one, and joins it to others",
    )
    num_images: int = setting(4, "pictures a prompt", minimum=1)
    num_inference_steps: int = setting(25, "sampler steps a picture", minimum=1)
    guidance_scale: float = setting(7.5, "classifier-free guidance; 1 is none", minimum=1)
    scheduler: str = setting("ddim", "sampler, by name as in sample.py --scheduler")
    dino: str | None = setting(
        "auto",
        "scores the likeness: hub id or folder of a DINO, DINOv2 or ViT; null: none; "
        "auto: facebook/dino-vits16 where it can be had",
    )
    clip: str | None = setting(
        "auto",
        "scores obedience to the prompt: hub id or folder of a CLIP; null: none; "
        "auto: openai/clip-vit-base-patch32 where it can be had",
    )
    images: str | None = setting(
        None, "folder of more pictures of the subject, not trained on, for eval/loss; null: the training pictures"
    )
    keep_best: bool = setting(True, "model/ gets the weights of the best step by the scores; false: of the last step")
    patience: int = setting(5, "validations without a better one before the run ends; 0: never", minimum=0)


@dataclass
class LogConfig:
    """Where figures go; metrics.csv is always written."""

    every_steps: int = setting(1, "optimizer steps between lines of metrics.csv and the loggers", minimum=1)
    tensorboard: bool = setting(True, "write TensorBoard files")
    wandb: bool = setting(False, "log to Weights & Biases (extra 'wandb'); WANDB_MODE=offline works")
    wandb_project: str = setting("dreambooth", "project on Weights & Biases")


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
