"""Store the frozen linear layers of a network's blocks in 8 or 4 bits, and compute with them in the usual formats.

int8  a scale for each row of the matrix, its largest value / 127     Dettmers et al. 2022, arXiv 2208.07339
fp8   a scale for each row, its largest value / 448, float8 e4m3      Micikevicius et al. 2022, arXiv 2209.05433
nf4   16 levels at quantiles of the normal distribution, a scale for each 64 weights, by bitsandbytes
                                                                      Dettmers et al. 2023, arXiv 2305.14314

A layer makes its matrix when it multiplies, and once more in backward: autograd keeps the codes alone, so that a LoRA
beside it trains in the memory of the codes. Layers outside of blocks, such as embeddings and the first and last layer,
are few and stay as they are.
Shapes: N rows (outputs), M columns (inputs).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreambooth.errors import ModelError, UserError

INT8_MAX, FP8_MAX = 127, 448
FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64  # weights to a scale


@dataclass(frozen=True)
class Quantizer:
    """Hold the functions of a format.

    encode: returns the codes of a matrix [N, M], as bytes, and its scales, float32. decode: returns the matrix again,
    from codes and scales, in a shape and dtype.
    """

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor, Tensor, tuple[int, int], torch.dtype], Tensor]


def row_scales(weight_NM: Tensor, largest: int) -> Tensor:
    """Return for each row the factor by which its largest value becomes `largest`, float32 [N, 1]; never zero."""
    return weight_NM.abs().amax(1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny) / largest


def encode_int8(weight_NM: Tensor) -> tuple[Tensor, Tensor]:
    scale_N1 = row_scales(weight_NM, INT8_MAX)
    return (weight_NM.float() / scale_N1).round_().to(torch.int8), scale_N1


def encode_fp8(weight_NM: Tensor) -> tuple[Tensor, Tensor]:
    scale_N1 = row_scales(weight_NM, FP8_MAX)
    return (weight_NM.float() / scale_N1).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scale_N1


def decode_rows(dtype_of_codes: torch.dtype) -> Callable[..., Tensor]:
    """Return the decoder of a format with a scale for each row."""

    def decode(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return codes.view(dtype_of_codes).to(dtype).mul_(scales.to(dtype))

    return decode


def encode_nf4(weight_NM: Tensor) -> tuple[Tensor, Tensor]:
    quantize = import_bitsandbytes().functional.quantize_4bit
    codes, state = quantize(weight_NM, blocksize=NF4_BLOCK, quant_type="nf4")
    return codes, state.absmax


def decode_nf4(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    functional = import_bitsandbytes().functional
    flat = torch.Size((1, shape[0] * shape[1]))  # of odd rows the CPU's kernel takes none, and torch would compile one
    state = functional.QuantState(scales, flat, dtype=dtype, blocksize=NF4_BLOCK, quant_type="nf4")
    weight_NM: Tensor = functional.dequantize_4bit(codes, state).view(shape)
    return weight_NM


def import_bitsandbytes() -> Any:
    """Import bitsandbytes. Raises UserError where it is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"model.quantize=nf4: bitsandbytes cannot be imported ({error}); pip install 'dreambooth[quantize]', or "
            "use int8"
        ) from error
    return bitsandbytes


QUANTIZERS: dict[str, Quantizer] = {
    "int8": Quantizer(encode_int8, decode_rows(torch.int8)),
    "fp8": Quantizer(encode_fp8, decode_rows(FP8)),
    "nf4": Quantizer(encode_nf4, decode_nf4),
}


def check_quantizer(name: str, device: torch.device) -> None:
    """Raise UserError for an unknown format, for one whose package is missing, and for one the device has not."""
    if name not in QUANTIZERS:
        raise UserError(f"model.quantize={name}: unknown quantization; use none or one of {', '.join(QUANTIZERS)}")
    if name == "nf4":
        import_bitsandbytes()
    if name == "fp8":
        try:
            torch.zeros(1, device=device).to(FP8).float()
        except (RuntimeError, TypeError) as error:
            raise UserError(f"model.quantize=fp8: {device.type} has no numbers of 8 bits; use int8") from error


# -------------------------------------------------------------------------------- the layer


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose matrix is kept as codes.

    Codes and scales are buffers of bytes, which no cast to another float format touches. `weight` makes the matrix
    anew each time it is read: what is written into it is lost.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.quantizer = linear.in_features, linear.out_features, name
        self.weight_dtype = linear.weight.dtype
        self.register_parameter("bias", linear.bias)
        codes, scales = QUANTIZERS[name].encode(linear.weight.detach())
        if not scales.is_meta and not bool(torch.isfinite(scales).all()):
            raise ModelError("weights hold numbers that are not finite")
        self.register_buffer("codes", codes.view(torch.uint8))
        self.register_buffer("scales", scales.contiguous().view(torch.uint8))

    def decoded(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the matrix, [N, M], of these codes and scales."""
        shape = (self.out_features, self.in_features)
        return QUANTIZERS[self.quantizer].decode(codes, scales.view(torch.float32), shape, dtype)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.decoded(self.codes, self.scales, self.weight_dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        product: Tensor = cast(Any, _Product).apply(input.to(dtype), self.codes, self.scales, self)
        return product if self.bias is None else product + self.bias.to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        super()._apply(fn, recurse)
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype)).dtype
        return self


class _Product(torch.autograd.Function):
    """Multiply with a quantized matrix, and keep its codes alone for backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, codes: Tensor, scales: Tensor, layer: QuantizedLinear) -> Tensor:  # noqa: A002
        ctx.save_for_backward(codes, scales)
        ctx.layer = layer
        return F.linear(input, layer.decoded(codes, scales, input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient @ ctx.layer.decoded(*ctx.saved_tensors, gradient.dtype), None, None, None


# -------------------------------------------------------------------------------- whole networks


@torch.no_grad()
def quantize(network: nn.Module, name: str) -> None:
    """Replace the linear layers of a network's blocks, one after another: each matrix is let go before the next.

    Raises ModelError for weights that are not finite.
    """
    for parent, child, linear in list(_linears_of_blocks(network)):
        try:
            setattr(parent, child, QuantizedLinear(linear, name))
        except ModelError as error:
            raise ModelError(f"{type(network).__name__}: {child}: {error}") from error
        linear.register_parameter("weight", None)  # the list above still has the layer


def _linears_of_blocks(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield (parent, name within it, layer) of the plain linear layers within the lists of blocks of a network."""
    seen = set()
    for blocks in network.modules():
        if not isinstance(blocks, nn.ModuleList):
            continue
        for parent in blocks.modules():
            for child, module in parent.named_children():
                if type(module) is nn.Linear and module not in seen:
                    seen.add(module)
                    yield parent, child, module


def is_quantized(network: nn.Module) -> bool:
    return any(isinstance(module, QuantizedLinear) for module in network.modules())


def stored_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a network keeps: parameters, and buffers, as codes and scales of quantized layers are."""
    yield from network.parameters()
    yield from network.buffers()


def num_weights(network: nn.Module) -> int:
    """Return how many weights a network has, however they are stored."""
    layers = [module for module in network.modules() if isinstance(module, QuantizedLinear)]
    quantized = sum(layer.in_features * layer.out_features for layer in layers)
    return quantized + sum(weight.numel() for weight in network.parameters())
