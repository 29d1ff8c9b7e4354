"""`export --verify`, on by default: the written file, read as other programs read it, is the model that was trained.

Every dialect is read by other code than wrote it, by its own rules: pipelines, single files, words and LoRAs of peft's
names by diffusers, LoRA, LoHa and LoKr of kohya's names by `lora_files`. Compared are the weights as they take effect,
and the latents of one image from the same noise. In 16 bits both differ by rounding.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from dreambooth.errors import ModelError, first_line
from dreambooth.exporting.tools import ExportedFiles
from dreambooth.families import Family, ModelSource, components, load_family
from dreambooth.families.inspection import LOADING_ERRORS
from dreambooth.families.sd_graphs import PIPELINES
from dreambooth.generation.models.reading import whole_model
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods import adapters, lora_files
from dreambooth.methods.textual_inversion import vectors
from dreambooth.prompts import fill_prompt

# Limits of the largest difference of a weight, relative to the largest weight of its tensor, and of the norm of the
# difference of two images' latents, relative to their norm: some roundings of the dtype.
WEIGHT_LIMITS = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
IMAGE_LIMITS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# float16 rounds smaller values absolutely, not relatively: to multiples of 2^-24. A bias that has no gradient, as that
# of attention's keys, can be so small as a whole.
SMALLEST_NORMAL = 2.0**-14
WHOLE_MODELS = ("diffusers", "single-file")  # forms that store the weights as they are
LATENTS = 8  # along a side of the image that is compared
NUM_STEPS, GUIDANCE_SCALE = 2, 2.0


@dataclass(frozen=True)
class Comparison:
    """Hold the largest differences of weights and of an image, relative as in the limits.

    worst: that weight's name. adapted: how many modules an adapter changes, of which none was lost.
    """

    weight: float
    worst: str
    image: float
    adapted: int = 0

    def __str__(self) -> str:
        arrived = f"all of {self.adapted} adapted modules arrive, " if self.adapted else ""
        return f"{arrived}largest difference of a weight {self.weight:.1e} ({self.worst}), of an image {self.image:.1e}"


def expected_model(family: Family) -> Family:
    """Return a copy with its adapters merged in float32, before writing changes the live weights."""
    merged = copy.deepcopy(family)
    adapters.merge(merged)
    return merged


@torch.no_grad()
def verify(
    folder: Path, files: ExportedFiles, expected: Family, base: ModelSource, dtype: str, adapted: int = 0
) -> Comparison:
    """Compare an export with the trained model. base: of the run. Raises ModelError where they differ.

    adapted: how many modules the adapter changes; readers pass over names that they do not know, without an error.
    """
    if files.form in PIPELINES:
        return verify_graphs(folder, files, expected, dtype)
    try:
        read, arrived = read_independently(folder, files, base)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be read as {files.form}: {first_line(error)}") from error
    if files.form != "embedding" and arrived != adapted:
        raise ModelError(f"{folder}: of {adapted} adapted modules {arrived} arrive: the reader knows the others not")
    weight, worst = max(differences(files, expected, read), default=(0.0, "none"))
    if files.form in WHOLE_MODELS:
        round_weights(expected, getattr(torch, dtype))
    image = 0.0 if files.form == "embedding" else image_difference(expected, read, files)
    found = Comparison(weight, worst, image, adapted)
    if not (weight <= WEIGHT_LIMITS[dtype] and image <= IMAGE_LIMITS[dtype]):
        raise ModelError(f"{folder}: not the model that was trained: {found}")
    return found


def verify_graphs(folder: Path, files: ExportedFiles, expected: Family, dtype: str) -> Comparison:
    """Compare the image that graphs make, by our own sampler. Raises ModelError where it is another."""
    prompt = fill_prompt(files.card.subjects[0].prompt, files.card.subjects)
    start = noise_from_seeds([0], expected.latent_shape(*[LATENTS * expected.vae_scale_factor] * 2))
    settings = SamplerSettings(NUM_STEPS, GUIDANCE_SCALE)
    ours, theirs = (
        family.decode_latents(sample_latents(family, [prompt], start, settings))
        for family in (expected, load_family(str(folder)))
    )
    found = Comparison(0.0, "not compared", float((ours - theirs).norm() / ours.norm()))
    if not found.image <= IMAGE_LIMITS[dtype]:
        raise ModelError(f"{folder}: not the model that was trained: {found}")
    return found


def num_adapted(family: Family) -> int:
    """Return how many modules an adapter changes: those of a LoRA whose second matrix is not zero, or of LyCORIS."""
    return sum(
        bool(layer.lora_B[adapters.ADAPTER].weight.any()) if isinstance(layer, LoraLayer) else 1
        for layer in adapters.adapted_layers(family)
        if isinstance(layer, LoraLayer | LycorisLayer)
    )


def read_independently(folder: Path, files: ExportedFiles, base: ModelSource) -> tuple[Any, int]:
    """Return the files as a diffusers pipeline, read by other code than wrote them, and how many modules are adapted.

    Adapters are merged.
    """
    path, arrived = folder / files.weights, 0
    if files.form == "diffusers":
        return DiffusionPipeline.from_pretrained(folder), 0
    if files.form == "single-file":
        pipeline = load_family(whole_model(path, base)).pipeline()
    else:
        family = load_family(base)
        is_transformers = files.form == "comfyui" and files.denoiser == "transformer" and files.loads_in_diffusers
        if files.form in ("kohya", "comfyui") and not is_transformers:
            changes = lora_files.read_changes(family, path)
            arrived = sum(change.is_any for own in changes.values() for change in own.values())
            lora_files.apply(family, path)
        pipeline = family.pipeline()
        if files.form == "lora" or is_transformers:
            pipeline.load_lora_weights(folder, weight_name=files.weights, adapter_name=adapters.ADAPTER)
            arrived = num_adapted(family)
            adapters.merge(family)
    for word, file in files.words.items():
        load_word(pipeline, word, folder / file)
    return pipeline, arrived


def load_word(pipeline: Any, word: str, path: Path) -> None:
    """Load a word with diffusers, which needs the rows of XL's two encoders one by one."""
    tensors = load_file(path)
    if "clip_l" not in tensors:
        pipeline.load_textual_inversion(path, token=word)
        return
    for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
        tokenizer, encoder = (getattr(pipeline, f"{part}{suffix}") for part in ("tokenizer", "text_encoder"))
        pipeline.load_textual_inversion({word: tensors[name]}, token=word, tokenizer=tokenizer, text_encoder=encoder)


def round_weights(family: Family, dtype: torch.dtype) -> None:
    """Round the weights as a file of that dtype stores them; they stay in the dtype that they have.

    Two steps from noise magnify what rounding does: by 4e-2 on a toy base. So the images of a whole model, whose
    weights have been compared, are of the same weights.
    """
    for part in components(family).values():
        for tensor in part.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))


def differences(files: ExportedFiles, expected: Family, read: Any) -> Iterator[tuple[float, str]]:
    """Yield the largest difference in each tensor, and its name; of an embedding only the words' rows."""
    if files.form == "embedding":
        for word in files.words:
            ids = read.tokenizer.convert_tokens_to_ids([word])
            rows = read.text_encoder.get_input_embeddings().weight[ids]
            yield relative_difference(vectors(expected, word)[0][:1], rows), word
        return
    for name, part in components(expected).items():
        theirs: Mapping[str, Tensor] = nn.Module.state_dict(getattr(read, name))
        for key, tensor in part.state_dict().items():
            yield relative_difference(tensor, theirs[key]), f"{name}.{key}"


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two tensors over the largest value of `ours`, which counts as no tiny one.

    Vocabularies that end differently, in rows that no token has, are compared as far as both go.
    """
    if ours.shape[1:] != theirs.shape[1:]:
        return float("inf")
    rows = min(len(ours), len(theirs)) if ours.ndim else None
    ours, theirs = (ours[:rows], theirs[:rows]) if rows is not None else (ours, theirs)
    largest = max(float(ours.float().abs().max()), SMALLEST_NORMAL)
    return float((ours.float() - theirs.float()).abs().max()) / largest


def image_difference(expected: Family, read: Any, files: ExportedFiles) -> float:
    prompt = fill_prompt(files.card.subjects[0].prompt, files.card.subjects)
    side = LATENTS * expected.vae_scale_factor
    noise_BCHW = torch.randn(1, *expected.latent_shape(side, side), generator=torch.Generator().manual_seed(0))
    arguments = expected.pipeline_arguments(noise_BCHW, GUIDANCE_SCALE)
    ours, theirs = (draw(pipeline, prompt, arguments, side) for pipeline in (expected.pipeline(), read))
    return float((ours - theirs).norm() / ours.norm())


def draw(pipeline: Any, prompt: str, arguments: dict[str, Any], side: int) -> Tensor:
    """Return the latents of a small image. arguments: `Family.pipeline_arguments`. side: pixels."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=[prompt], height=side, width=side, num_inference_steps=NUM_STEPS, output_type="latent", **arguments
    ).images
