"""Load models of transformers that read images, by hub id or folder; only numbers are read from their weights."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from dreambooth.devices import kind_of
from dreambooth.errors import ModelError, UserError, escaped, first_line
from dreambooth.hub import downloaded

QUANTIZATIONS = ("int8", "nf4")
# What transformers and the libraries below raise on files that are missing, damaged or do not fit each other.
LOADING_ERRORS: tuple[type[Exception], ...] = (
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class ReaderSource:
    """Say which model is loaded, and how.

    name: hub id or folder. device: of torch. dtype: of torch; None: float16 on a GPU, else float32. quantize: int8
    (Dettmers et al. 2022, arXiv 2208.07339) or nf4 (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes.
    """

    name: str
    device: str = "cpu"
    dtype: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.quantize not in (None, *QUANTIZATIONS):
            raise UserError(f"quantize={self.quantize}: must be one of {', '.join(QUANTIZATIONS)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of the weights that are not quantized."""
        found: torch.dtype = getattr(torch, self.dtype or kind_of(torch.device(self.device)).dtype)
        return found

    @property
    def title(self) -> str:
        """Return the name for a message."""
        return escaped(self.name)


def read_config(name: str) -> Any:
    """Return the config of a model. Raises ModelError where there is none, or transformers does not know its kind."""
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{escaped(name)}: the folder has no config.json, so it is no model of transformers")
    return load_part(name, transformers.AutoConfig)


def load_part(name: str, part_class: Any, **options: Any) -> Any:
    """Load a config, network, processor or tokenizer: from the cache where it is there, else from the hub.

    Raises ModelError, at once where the hub cannot be reached: `from_pretrained` would ask six times, for 24 seconds.
    """
    if not Path(name).is_dir():
        try:
            return part_class.from_pretrained(name, local_files_only=True, trust_remote_code=False, **options)
        except (OSError, ValueError):
            downloaded(name, None, partial(snapshot_download, name, allow_patterns="config.json"))
        except LOADING_ERRORS as error:
            raise ModelError(f"{escaped(name)}: cannot be loaded from the cache: {first_line(error)}") from error
    try:
        return part_class.from_pretrained(name, trust_remote_code=False, **options)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{escaped(name)}: cannot be loaded, neither as a folder here nor from the hub: {first_line(error)}"
        ) from error


def load_network(source: ReaderSource, network_class: Any, never_quantized: Sequence[str] = ()) -> Any:
    """Load a whole network, ready to be asked. Raises ModelError, UserError for what bitsandbytes cannot hold.

    never_quantized: modules by name, beside those that transformers leaves as they are.
    """
    options: dict[str, Any] = {"dtype": source.torch_dtype, "output_loading_info": True, "use_safetensors": True}
    if source.quantize is not None:
        options |= {"quantization_config": _quantization(source, never_quantized), "device_map": {"": source.device}}
    network, info = load_part(source.name, network_class, **options)
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = ", ".join(sorted(map(str, info["missing_keys"]))[:3]) or "of another shape"
        raise ModelError(f"{source.title}: not a whole {type(network).__name__}: weights are missing: {missing}")
    network = network.eval().requires_grad_(False)
    if source.quantize is None:
        return network.to(source.device)
    _check_packing(source, network)
    return network


def load_retrieval(source: ReaderSource) -> tuple[Any, Any]:
    """Return the network of BLIP-2's first stage and its processor, which can cut texts to the network's length.

    Its last layers are never quantized: transformers gives what goes into them the dtype of their weights.
    """
    last = ("vision_projection", "text_projection", "itm_head")
    network = load_network(source, transformers.Blip2ForImageTextRetrieval, last)
    processor = load_part(source.name, transformers.AutoProcessor)
    words, longest = processor.tokenizer, network.config.qformer_config.max_position_embeddings
    words.model_max_length = min(words.model_max_length, longest)
    return network, processor


def moved(inputs: Any, network: Any) -> dict[str, torch.Tensor]:
    """Return a processor's tensors on a network's device, its floats in the network's dtype."""
    return {
        name: tensor.to(network.device, network.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }


def _check_packing(source: ReaderSource, network: Any) -> None:
    """Raise UserError for 4-bit layers that bitsandbytes cannot pack on a CPU, 64 inputs and 32 outputs at a time."""
    if source.device != "cpu":
        return
    for name, layer in network.named_modules():
        packs = getattr(layer, "support_avx512bf16_for_cpu", False)
        if packs and (layer.in_features % 64 or layer.out_features % 32):
            raise UserError(
                f"--quantize {source.quantize}: {source.title}: {name} has {layer.in_features} inputs and "
                f"{layer.out_features} outputs, on a CPU they must be multiples of 64 and 32; use int8, or leave it out"
            )


def _quantization(source: ReaderSource, never: Sequence[str]) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--quantize {source.quantize}: needs bitsandbytes; pip install 'dreambooth[8bit]', or leave it out"
        ) from error
    if source.quantize == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(never) or None)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=source.torch_dtype,
        llm_int8_skip_modules=list(never) or None,
    )
