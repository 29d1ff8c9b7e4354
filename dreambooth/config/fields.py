"""The settings of a run: a dataclass for each section. A field's text is its help, which `train.py --help` prints."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from dreambooth.devices import AUTO, NAMES

PATHS = (  # in files with ~ for the home folder, in programs without
    "run.dir", "model.base", "model.config", "model.vae", "subject.images", "data.mask", "data.mask_model",
    "prior.folder", "method.start", "validate.images", "validate.dino", "validate.clip",
)  # fmt: skip


AUTOMATIC = (  # may say `auto`: then a rule decides by the base, the method and the photos (`proposal.rules`)
    "data.resolution", "prior.source", "prior.teacher_latents", "prior.weight", "prior.num_images", "prior.batch_size",
    "method.rank", "optim.lr", "optim.text_encoder_lr", "optim.identifier_lr", "train.max_steps", "train.batch_size",
)  # fmt: skip


def setting(
    default: Any,
    text: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    multiple: int = 1,
    choices: tuple[str, ...] = (),
    table: str | None = None,
) -> Any:
    """Make a config field from its default, its help text with the unit, and its range.

    minimum, maximum: the least and largest value allowed. above: a lower end that is not allowed itself. multiple: of
    which a value must be one. choices: all that are allowed, beside the rows that plug-ins add to `table`.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "multiple": multiple}
    metadata = {"text": text, **limits, "choices": choices, "table": table}
    if isinstance(default, tuple):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """The run's name, folder and seed."""

    name: str = setting(MISSING, "name of the run; its folder is <run.dir>/<run.name>")
    dir: str = setting("checkpoints", "folder of all runs")
    seed: int = setting(0, "seed of every random choice of the run", minimum=0)
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: resume where the run was interrupted; never: start again (an old run of this name is renamed)"
    )


@dataclass
class ModelConfig:
    """The model to personalise."""

    base: str = setting(MISSING, "diffusers folder, hub id or single .safetensors file")
    family: str = setting(
        "auto",
        "model family: sd, sdxl, z_image, qwen_image, flux2_klein, krea2, flux1 or sd3; auto reads it from the base",
    )
    config: str | None = setting(
        None,
        "for a single file: folder or hub id with its configs and tokenizer, or a built-in one: sd1, sd1-v, sd2, "
        "sd2-v, sdxl, sdxl-v, sdxl-v-ztsnr (v: predicts v); null: read from the file; for a transformer alone: the "
        "pipeline with the VAE and text encoders beside it",
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub id; null: its main branch")
    variant: str | None = setting(None, "variant of the weights, such as fp16 or non_ema; null: the files without one")
    vae: str | None = setting(
        None,
        "another VAE in the place of the base's own, or where a single file has none: folder, hub id or single "
        ".safetensors; null: the base's own",
    )
    quantize: Literal["none", "int8", "fp8", "nf4"] = setting(
        "none",
        "how the weights that do not train are stored, in the networks and the text encoders, for methods that train "
        "others beside them; int8, fp8: a byte each; nf4: .56 bytes each (extra 'quantize')",
    )
    export_dtype: Literal["float32", "float16", "bfloat16"] = setting(
        "float32", "number format of the weights in model/; float16 halves the folder"
    )


@dataclass
class SubjectConfig:
    """The subject to learn; several are entries of a list `subjects` (subjects.1.class_noun=cat)."""

    images: str = setting(MISSING, "folder with 3 to 10 images of the subject")
    identifier: str = setting("sks", "rare word that will stand for the subject; best one token of the tokenizer")
    class_noun: str = setting(MISSING, "class of the subject: dog, backpack, toy ...; a style or dataset has none")
    prompt: str = setting(
        "a photo of {subject}", "prompt of the subject's images; {subject} is '<identifier> <class_noun>'"
    )
    class_prompt: str = setting("a photo of a {class}", "prompt of the class prior; {class} is the class noun")
    kind: Literal["subject", "style", "dataset"] = setting(
        "subject",
        "what the images teach; subject: one thing, {subject} is '<identifier> <class_noun>'; style: how they are "
        "drawn, {subject} is the identifier alone; dataset: what their captions say, without a new name",
    )


@dataclass
class DataConfig:
    """Say how images are read: size, crop, captions, masks."""

    resolution: int = setting(
        512, "side of the square training images, pixels, a multiple of 8", minimum=8, maximum=16384, multiple=8
    )
    buckets: bool = setting(
        False,
        "crop each image to the nearest of several aspect ratios from 1:2 to 2:1, of about the square's area, instead "
        "of to the square; class images are generated in the same shapes",
    )
    bucket_step: int = setting(
        64, "step between the sides of the buckets, pixels; a smaller one crops less", minimum=8, multiple=8
    )
    crop: Literal["center", "random", "subject"] = setting(
        "center",
        "how to crop an image whose aspect ratio differs from the target; subject: around what data.mask has white, "
        "never through it, and closer where it is small; where the image is too narrow it is padded, and the padding "
        "does not count",
    )
    num_crops: int = setting(8, "random crops of each image, encoded once, with data.crop=random", minimum=1)
    flip: bool = setting(False, "also train on mirrored images; leave off where left and right matter (lettering)")
    captions: bool = setting(
        False,
        "use a caption for each image, with {subject} in it: a .txt of the same name beside it, or a line of "
        "metadata.jsonl; class images are then made from these without the identifier, and from the class prompt",
    )
    caption_dropout: float = setting(
        0.0, "fraction of samples that train without a prompt, 0 to 1; 0.1 keeps guidance", minimum=0
    )
    shuffle_captions: bool = setting(
        False, "shuffle the comma-separated parts of a caption each time, but keep the first in place"
    )
    mask: str | None = setting(
        None,
        "which part of the subject's images counts; alpha: what is not transparent; auto: what a model finds by the "
        "class noun, as sample --mask does; or a folder with a mask for each, of the same name, white where it counts; "
        "null: all of it",
    )
    mask_model: str | None = setting(
        None,
        "finds the masks of data.mask=auto: folder or hub id of a CLIPSeg, SegFormer, SAM, SAM 2 or SAM 3; null: a "
        "published CLIPSeg, of photos up to 128 pixels the toy world's SegFormer",
    )
    unmasked_weight: float = setting(0.1, "weight of the loss where a mask is black, 0 to 1", minimum=0)
    cut_mix: int = setting(
        0,
        "images of two subjects side by side, cut out of their photos by data.mask, with prompts that name both; they "
        "take turns with the subjects; 0: none",
        minimum=0,
        maximum=1000,
    )
    num_workers: int = setting(
        0, "data loader processes; 0 is fastest, as latents are in memory", minimum=0, maximum=256
    )


@dataclass
class PriorConfig:
    """Class-prior preservation: images of the class keep the model from forgetting it (paper, section 3.3)."""

    source: Literal["stream", "ahead", "folder", "teacher", "none"] = setting(
        "stream",
        "stream: class images are generated by the base model while training runs; ahead: all before the first step "
        "(least memory); folder: your own images; teacher: no images, the frozen base's predictions are the target; "
        "none: no prior, the class comes to look like the subject",
    )
    teacher_latents: Literal["subject", "class"] = setting(
        "subject",
        "with prior.source=teacher, the latents whose noisy versions the teacher predicts: of the subject's images, or "
        "of class images generated as by stream",
    )
    num_images: int = setting(
        200, "class images, used in turn; no more are generated than the run's steps see", minimum=1
    )
    weight: float = setting(1.0, "lambda: weight of the prior's loss relative to the subject's", minimum=0)
    timesteps: Literal["loss", "base"] = setting(
        "loss",
        "how often each timestep is trained on with the class; loss: as loss.timesteps says; base: as the base was "
        "trained, which keeps the class where loss.timesteps trains little",
    )
    folder: str | None = setting(None, "folder of class images for prior.source=folder")
    num_inference_steps: int = setting(20, "sampler steps per class image", minimum=1)
    guidance_scale: float = setting(
        7.5,
        "classifier-free guidance scale of the class images, as the base's own pipeline counts it; none is 1, of "
        "z_image and krea2 0; flux1 reads it itself",
        minimum=0,
    )
    guidance_min_noise: float = setting(
        0.0,
        "sampler steps below this fraction of the noise schedule run without guidance; 0.3 generates class images in "
        "about 85 % of the time",
        minimum=0,
    )
    scheduler: str = setting("dpm++", "sampler of the class images, named as in sample.py --scheduler")
    batch_size: int = setting(4, "class images generated at a time", minimum=1)


@dataclass
class MethodConfig:
    """Choose what trains, and with how many weights."""

    name: str = setting(
        "full",
        "full: every weight of the denoiser (and the text encoder); lora, loha, lokr: small matrices beside them, in a "
        "file of a few MB; textual_inversion: only the embedding of a new token; pivotal: that and a LoRA of the "
        "denoiser; custom_diffusion: the keys and values of the denoiser's cross-attention",
    )
    train_text_encoder: bool = setting(
        True,
        "full, lora, loha, lokr: train the text encoder too; better subject fidelity, more memory; those of "
        "flow matching stay frozen",
    )
    rank: int = setting(
        16, "lora, loha, lokr, pivotal: rank of the matrices; a higher one learns more, in a larger file", minimum=1
    )
    alpha: float | None = setting(
        None, "the adapter's output is scaled by alpha / rank; null: rank, a scale of 1", above=0
    )
    dropout: float = setting(
        0.0, "dropout of an adapter's inputs (loha, lokr: of its modules), from 0 to below 1", minimum=0
    )
    dora: bool = setting(
        False, "lora, pivotal: DoRA in the denoiser, which trains direction and magnitude apart; slower"
    )
    rslora: bool = setting(False, "lora, pivotal: scale by alpha / sqrt(rank), so that high ranks learn as fast")
    targets: list[str] = setting(
        ("attention",),
        "lora, loha, lokr, pivotal: modules to adapt: attention, feed-forward, projections, convolutions, modulation, "
        "text (what reads the text encoder's output; z_image), as the base has them, or the last parts of module names",
    )
    start: str | None = setting(
        None,
        "trained result to start from; lora: a LoRA file in diffusers' or kohya's format; lora, loha, lokr, pivotal, "
        "textual_inversion: a run or model folder of the same method; rank, alpha and targets must match; "
        "null: none",
    )
    num_vectors: int = setting(
        1, "textual_inversion, pivotal: embedding vectors of the new word, a token each", minimum=1
    )
    start_word: str | None = setting(
        None,
        "full, textual_inversion, pivotal: words whose mean embedding the identifier's starts as, such as 'striped "
        "purple'; auto: the pattern, material and colour that validate.clip sees in the photos; null: the class noun, "
        "with full its own",
    )


@dataclass
class OptimConfig:
    """The optimizer and its learning rate."""

    name: Literal["adamw", "adamw8bit", "adafactor", "prodigy", "schedulefree"] = setting(
        "adamw",
        "adamw8bit: moments in 8 bits, which saves 6 bytes per trained weight; for GPUs (extra '8bit'), many times "
        "slower on a CPU; adafactor: next to no moments; prodigy: estimates the learning rate itself; schedulefree: "
        "averages the weights instead of a falling rate (both: extra 'optimizers')",
    )
    lr: float | None = setting(
        None,
        "learning rate of the denoiser; null: the method's default: 2e-6 for full, 1e-5 for custom_diffusion, "
        "5e-4 for textual_inversion, else 1e-4; with schedulefree twice that, with prodigy 1, a factor of its own rate",
        above=0,
    )
    text_encoder_lr: float | None = setting(None, "learning rate of the text encoder; null: optim.lr", above=0)
    identifier_lr: float | None = setting(
        None,
        "learning rate of the identifier's rows in the token embedding, whose other rows are then frozen; a high one "
        "tells subject and class apart sooner; null: all rows train at the text encoder's rate",
        above=0,
    )
    text_encoder_stop_step: int | None = setting(
        None, "optimizer step from which the text encoder is frozen, identifier included; null: never", minimum=0
    )
    text_encoder_stop_drift: float | None = setting(
        None,
        "freeze the text encoder after the first validation whose eval/drift is above this, e.g. 0.1 (distance of "
        "class images from the untouched base's, 0 to 2); null: never",
        above=0,
    )
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "constant", "learning rate after the warm-up; cosine and linear fall to 0 at train.max_steps"
    )
    warmup_steps: int = setting(0, "optimizer steps of linear warm-up to the full learning rate", minimum=0)
    weight_decay: float = setting(1e-2, "decoupled weight decay", minimum=0)
    beta1: float = setting(0.9, "decay rate of the mean gradient; adafactor keeps none", minimum=0)
    beta2: float = setting(
        0.999, "decay rate of the mean squared gradient; that of adafactor rises with the steps", minimum=0
    )
    max_grad_norm: float = setting(1.0, "clip the gradient norm to this; 0: no clipping", minimum=0)
    in_backward: bool = setting(
        False,
        "update each weight during backward and free its gradient, which saves 4 bytes per trained weight; needs "
        "max_grad_norm=0",
    )


@dataclass
class LossConfig:
    """The loss."""

    weighting: str = setting(
        "none",
        "weighting of the timesteps; min_snr: low-noise timesteps count less, so that fewer steps are needed",
        choices=("none", "min_snr", "soft_min_snr", "debiased"),
        table="losses",
    )
    gamma: float = setting(5.0, "signal-to-noise ratio at which min_snr and soft_min_snr cap the weight", above=0)
    huber_c: float | None = setting(
        None,
        "pseudo-Huber loss: errors above this count linearly, not squared; null: squared error",
        above=0,
    )
    noise_offset: float = setting(
        0.0,
        "scale of extra noise that is constant within a channel, e.g. 0.05; teaches very dark and bright images",
        minimum=0,
    )
    input_perturbation: float = setting(
        0.0, "scale of extra noise in the network's input alone, e.g. 0.1; against exposure bias", minimum=0
    )
    timesteps: Literal["base", "uniform", "logit_normal", "sigmoid", "shifted"] = setting(
        "base",
        "how often each timestep is trained on; base: as the base was (sd, sdxl: uniform; flux2_klein: shifted; other "
        "families: logit_normal, shifted as their samplers are); logit_normal, sigmoid: mostly the middle; shifted: "
        "uniform, moved towards noise",
    )
    timestep_mean: float | None = setting(
        None, "mean of the timestep's logit with loss.timesteps=logit_normal; above 0 trains more on noise; null: 0"
    )
    timestep_std: float | None = setting(
        None,
        "standard deviation of the timestep's logit with logit_normal and sigmoid; above 1 trains more on both ends; "
        "null: 1",
        above=0,
    )
    timestep_shift: float | None = setting(
        None,
        "moves the timesteps of logit_normal, sigmoid and shifted towards noise: 3 makes a half of the way to noise "
        "three quarters; null: 1, of shifted as the base's sampler does for the image's size",
        above=0,
    )
    zero_terminal_snr: bool = setting(
        False, "rescale the noise schedule so that the last timestep is pure noise; for bases that predict v"
    )


@dataclass
class TrainConfig:
    """The training loop; a step is an optimizer step."""

    max_steps: int = setting(1000, "optimizer steps of the whole run", minimum=1)
    batch_size: int = setting(1, "subject images per batch and device, beside as many class images", minimum=1)
    micro_batch_size: int | None = setting(
        None,
        "samples, of subject and class together, in one forward and backward pass; 1: least memory for the same "
        "gradient; null: the whole batch",
        minimum=1,
    )
    accumulate: int = setting(1, "batches per step, over which gradients are averaged", minimum=1)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = setting(
        "32-true", "precision of the arithmetic; auto: 16 bits for a large model on a GPU, else float32"
    )
    save_every_steps: int = setting(100, "optimizer steps between saves of the full training state", minimum=1)
    keep_previous: bool = setting(
        True,
        "also keep the second-newest state, state/previous.ckpt, to resume from where the last one is damaged; false: "
        "half the disk space",
    )
    keep_states: bool = setting(
        False,
        "keep all states of a finished run; false: it lets go of those that making it longer does not need, "
        "state/previous.ckpt, and state/best.ckpt where the last step is the best",
    )
    ema_decay: float = setting(
        0.0,
        "EMA decay per optimizer step, e.g. 0.999; validation and export use the average; 0: no average",
        minimum=0,
    )
    gradient_checkpointing: bool = setting(False, "recompute activations in backward: much less memory, a third slower")
    memory: Literal["manual", "auto"] = setting(
        "manual",
        "auto: when the run begins, apply the first set of what saves memory with which it fits the device, as `plan` "
        "lists it, and write that to config.yaml; manual: take the settings as they are",
    )
    offload: Literal["none", "parts", "blocks"] = setting(
        "none",
        "which frozen weights stay in main memory until they compute, to the same bits; parts: denoiser and VAE take "
        "turns on the device; blocks: so do the denoiser's blocks, the next one's weights on their way meanwhile (with "
        "train.gradient_checkpointing); slower",
    )
    compile: bool = setting(False, "torch.compile the denoiser; slow start, faster steps on a GPU")
    device: str = setting(
        AUTO, "device to train on; auto: the GPU of NVIDIA or AMD where there is one, else the CPU", choices=NAMES
    )
    devices: int = setting(
        1,
        "processes per machine, a GPU each; a step sees batch_size x accumulate x devices x num_nodes images",
        minimum=1,
    )
    num_nodes: int = setting(
        1, "machines; with several, torchrun or srun starts the processes, and all must see the run's folder", minimum=1
    )
    strategy: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "what several processes share out; ddp (auto): the images; fsdp: also weights, gradients and Adam's moments, "
        "for what does not fit one GPU; more communication, method full only",
    )
    num_threads: int | None = setting(
        None, "CPU threads; null: PyTorch's choice; the last bits of results depend on it", minimum=1
    )

    @property
    def samples_per_step(self) -> int:
        """Return how many subject samples an optimizer step sees, over all devices."""
        return self.batch_size * self.accumulate * self.devices * self.num_nodes


@dataclass
class ValidateConfig:
    """Images sampled while training, always from the same noise, and their scores, by which a step is kept."""

    every_steps: int = setting(
        100, "optimizer steps between validations, each after saving the full training state; 0: none", minimum=0
    )
    prompts: list[str] = setting(
        ("a photo of {subject} on the beach", "a photo of {subject} in the snow", "a photo of a {class}"),
        "prompts to sample; {subject} is scored for subject fidelity, {class} for what must not change, others for "
        "drift; with several subjects each gets a row, but {subject_2} or {class_2} names one, and joins it to others",
    )
    num_images: int = setting(4, "images per prompt", minimum=1)
    num_inference_steps: int = setting(25, "sampler steps per image", minimum=1)
    guidance_scale: float = setting(
        7.5,
        "classifier-free guidance scale, as the base's own pipeline counts it; none is 1, of z_image and krea2 0",
        minimum=0,
    )
    scheduler: str = setting("ddim", "sampler, named as in sample.py --scheduler")
    dino: str | None = setting(
        "auto",
        "encoder that scores subject fidelity: hub id or folder of a DINO, DINOv2 or ViT; null: none; "
        "auto: facebook/dino-vits16 where it is available",
    )
    clip: str | None = setting(
        "auto",
        "encoder that scores prompt fidelity: hub id or folder of a CLIP; null: none; "
        "auto: openai/clip-vit-base-patch32 where it is available",
    )
    matcher: str | None = setting(
        None,
        "model that scores whether image and prompt belong together: hub id or folder of a BLIP-2 for retrieval, such "
        "as Salesforce/blip2-itm-vit-g; null: none",
    )
    reader: str | None = setting(
        None,
        "model that answers validate.questions: hub id or folder of a BLIP-2, a Kosmos-2 or another "
        "image-text-to-text model; null: none",
    )
    questions: list[str] = setting(
        (),
        "asked of images of prompts with {subject}; 'is there a beach?' is right with yes, 'where is it? on the beach' "
        "with what follows; 'beach: is there a beach?' is asked where the prompt has the word; {class} is filled, and "
        "{subject} by the name that the reader was taught",
    )
    images: str | None = setting(
        None, "folder of held-out images of the subject for eval/loss; null: the training images"
    )
    keep_best: bool = setting(
        True,
        "export the last step that is not clearly worse than the best by its scores; false: the last step",
    )
    keep_weights: bool = setting(
        False, "also keep the weights of each validation, in steps/ of the run, for `sample --grid step=80,160`"
    )
    patience: int = setting(5, "validations without improvement before the run ends; 0: never", minimum=0)


@dataclass
class LogConfig:
    """The loggers; metrics.csv is always written."""

    every_steps: int = setting(1, "optimizer steps between entries of metrics.csv and the loggers", minimum=1)
    tensorboard: bool = setting(True, "write TensorBoard files")
    wandb: bool = setting(False, "log to Weights & Biases (extra 'wandb'); WANDB_MODE=offline works")
    wandb_model: bool = setting(
        False, "with log.wandb: upload model/, samples/ and config.yaml as an artifact when the run has finished"
    )
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


# What may change when a run is resumed: its length, how often it is saved, validated and logged, what changes no bit.
MAY_CHANGE = (
    "train.offload",
    "train.max_steps",
    "train.save_every_steps",
    "train.keep_previous",
    "train.keep_states",
    "run.dir",
    "run.name",
    "run.resume",
    "model.export_dtype",
    "validate.every_steps",
    "validate.keep_best",
    "validate.keep_weights",
    "validate.patience",
)
MAY_CHANGE_SECTIONS = ("log",)
