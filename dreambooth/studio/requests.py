"""Say what a request for a job may hold, checked field by field before anything is queued."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Value = bool | int | float | str | None
Prompt = Annotated[str, Field(min_length=1, max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=300)]


class JobRequest(BaseModel):
    """Hold what every job has. Fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid")

    priority: int = Field(0, ge=-100, le=100, description="jobs of a higher one go first; 0 is usual")
    timeout_s: float | None = Field(None, gt=0, description="seconds after which it is stopped, with its state saved")


class TrainRequest(JobRequest):
    """Ask for a training: of a subject's photos, of a config file, or of a run that is to go on."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "train",
                    "subject": "robot",
                    "class_noun": "robot",
                    "base": "checkpoints/toyworld-second",
                    "name": "robot",
                    "settings": {"train.max_steps": 40},
                },
                {"kind": "train", "run": "robot", "settings": {"train.max_steps": 80}},
                {"kind": "train", "config": "checkpoints/robot/config.yaml", "name": "robot-2"},
            ]
        }
    )

    kind: Literal["train"]
    subject: Name | None = Field(None, description="folder of photos in data/; a config is written for it")
    config: Name | None = Field(None, description="config file in the workspace; that of a run makes a fork of it")
    run: Name | None = Field(None, description="run in checkpoints/ that goes on, or is made longer")
    name: Name | None = Field(None, description="of the new run (default: the subject's name)")
    class_noun: Name | None = Field(None, description="with subject: what kind of thing it is")
    identifier: Name = Field("sks", description="with subject: rare word that will mean it")
    base: Name | None = Field(None, description="with subject: model folder in the workspace or hub id")
    settings: dict[str, Value | list[Value]] = Field({}, max_length=200, description="by config key: train.max_steps")
    accepted_changes: list[str] = Field([], max_length=200, description="keys whose changed values a run accepts")


class ControlImage(BaseModel):
    """Hold an image that a generated one is held to."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["canny", "depth", "pose"]
    image: Name
    weight: float = Field(1.0, ge=0, le=10)
    start: float = Field(0.0, ge=0, le=1)
    end: float = Field(1.0, ge=0, le=1)
    is_map: bool = Field(False, description="the image is the map itself")
    model: Name | None = Field(None, description="ControlNet: model folder or hub id")


class WeightedFile(BaseModel):
    """Hold a LoRA with its weight."""

    model_config = ConfigDict(extra="forbid")

    file: Name
    weight: float = Field(1.0, ge=-10, le=10)


class GenerateRequest(JobRequest):
    """Ask for images: of prompts, again by a recipe, or variations. Options are those of `sample`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "generate",
                    "model": "checkpoints/robot",
                    "prompts": ["a photo of {subject} on the moon"],
                    "num_images": 2,
                    "seed": 7,
                },
                {"kind": "generate", "vary": "outputs/job-3/00001.png", "num_images": 4, "variation_strength": 0.3},
            ]
        }
    )

    kind: Literal["generate"]
    model: Name | None = Field(None, description="run or model folder in the workspace, .safetensors, or hub id")
    prompts: list[Prompt] = Field([], max_length=200)
    from_image: Name | None = Field(None, description="image whose recipe is made again")
    vary: Name | None = Field(None, description="image to make variations of")
    variation_strength: float | None = Field(None, ge=0, le=1)
    num_images: int = Field(4, ge=1, le=1000)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    negative_prompt: str = Field("", max_length=2000)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    scheduler: str | None = Field(None, max_length=40)
    size: str | None = Field(None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT, pixels")
    batch_size: int | None = Field(None, ge=1, le=64)
    init_image: Name | None = None
    strength: float | None = Field(None, ge=0, le=1)
    mask: Name | None = None
    expand: str | None = Field(None, pattern=r"^\d{1,5}(,\d{1,5}){3}$", description="LEFT,TOP,RIGHT,BOTTOM, pixels")
    feather: int | None = Field(None, ge=0, le=10000)
    only_masked: bool = False
    controls: list[ControlImage] = Field([], max_length=8)
    styles: list[str] = Field([], max_length=8, description="names of the list")
    style_image: Name | None = None
    style_weight: float = Field(1.0, ge=0, le=10)
    loras: list[WeightedFile] = Field([], max_length=16)
    embeddings: list[Name] = Field([], max_length=16)
    upscale: float | None = Field(None, gt=1, le=8)
    upscale_strength: float | None = Field(None, ge=0, le=1)
    detail: float | None = Field(None, gt=0, le=1)
    grid: list[Annotated[str, Field(max_length=2000)]] = Field([], max_length=3, description="AXIS=V1,V2,...")
    score: bool = False
    best: int | None = Field(None, ge=1)
    attention_maps: bool = False
    base: Name | None = Field(None, description="base of an adapter, if it is elsewhere now")
    vae: Name | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None


class EvaluateRequest(JobRequest):
    """Ask for the paper's measures of models on a subject."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"kind": "evaluate", "models": ["checkpoints/robot"], "subject": "robot", "num_images": 1}]
        }
    )

    kind: Literal["evaluate"]
    models: list[Name] = Field(min_length=1, max_length=50)
    subject: Name
    class_noun: Name | None = None
    prompts: Literal["auto", "objects", "live"] = "auto"
    num_images: int = Field(4, ge=1, le=100)
    class_prompt_images: int = Field(4, ge=0, le=1000)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    steps: int | None = Field(None, ge=1, le=1000)
    base: Name | None = None


class PrepareRequest(JobRequest):
    """Ask for a look at a subject's photos: findings, captions, masks, crops, a word and settings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "prepare",
                    "subject": "robot",
                    "class_noun": "robot",
                    "base": "checkpoints/toyworld-second",
                }
            ]
        }
    )

    kind: Literal["prepare"]
    subject: Name
    class_noun: Name | None = Field(None, description="what kind of thing it is; without it no settings are proposed")
    identifier: Name | None = None
    base: Name | None = None
    mask_model: Name | None = Field(None, description="finds the subject where there are no masks: folder or hub id")
    caption_model: Name | None = Field(None, description="captions photos that have no caption: folder or hub id")
    accept: list[Literal["config", "captions", "masks"]] = Field([], max_length=3, description="what is also written")


class ExportRequest(JobRequest):
    """Ask for a run's result in a format of other tools."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "export", "run": "robot", "format": "lora"}]})

    kind: Literal["export"]
    run: Name
    format: Literal["diffusers", "single-file", "lora", "kohya", "comfyui", "embedding"]
    rank: int | None = Field(None, ge=1, le=4096)
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    base: Name | None = None
    verify: bool = False
    push_to_hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="OWNER/NAME")
    private: bool = True


AnyRequest = Annotated[
    TrainRequest | GenerateRequest | EvaluateRequest | PrepareRequest | ExportRequest, Field(discriminator="kind")
]


def as_stored(request: JobRequest) -> dict[str, Any]:
    """Return a request as the queue keeps it: what was asked for, without defaults."""
    return request.model_dump(mode="json", exclude_unset=True)
