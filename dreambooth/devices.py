"""Devices by name, and each one's rules in one table: what computes where, in which dtype, is decided here alone.

One rule is for all: noise is drawn on the CPU (`randomness`, and `torch.Generator()` for samplers that add some), so an
image depends on the device by rounding alone. Schedules, weights of losses and the VAE are float32. Nothing heavy is
imported before a device is asked for.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.errors import UserError

if TYPE_CHECKING:
    import torch

FLOAT32, BFLOAT16, FLOAT16 = "32-true", "bf16-mixed", "16-mixed"  # precisions of training, as Lightning names them


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_rocm() -> bool:
    import torch

    return torch.version.hip is not None and torch.cuda.is_available()


def _has_xpu() -> bool:
    import torch

    return torch.xpu.is_available()


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


@dataclass(frozen=True)
class DeviceKind:
    """Hold the rules of one kind of device.

    type: its name in `torch.device`. title: in messages. is_there: whether PyTorch finds one. dtype: that images are
    sampled in where none is asked for. precisions: that training can have; empty: it cannot be trained on.
    trains_by_auto: whether train.device=auto takes it. has_own_memory: apart from the machine's. is_tried: by us.
    """

    type: str
    title: str
    is_there: Callable[[], bool]
    dtype: str
    precisions: tuple[str, ...]
    trains_by_auto: bool
    has_own_memory: bool
    is_tried: bool


# In the order in which auto looks for them. PyTorch calls AMD's GPUs cuda too, so that name is for both.
ALL_PRECISIONS = (FLOAT32, BFLOAT16, FLOAT16)
DEVICES = {
    "cuda": DeviceKind("cuda", "GPU", _has_cuda, "float16", ALL_PRECISIONS, True, True, is_tried=False),
    "rocm": DeviceKind("cuda", "AMD GPU", _has_rocm, "float16", ALL_PRECISIONS, True, True, is_tried=False),
    # Lightning has no accelerator of its own for it.
    "xpu": DeviceKind("xpu", "Intel GPU", _has_xpu, "float16", (), False, True, is_tried=False),
    # Lightning's mixed precision is CUDA's there.
    "mps": DeviceKind("mps", "Apple GPU", _has_mps, "float16", (FLOAT32,), False, False, is_tried=False),
    "cpu": DeviceKind("cpu", "CPU", lambda: True, "float32", (FLOAT32, BFLOAT16), True, False, is_tried=True),
}
AUTO = "auto"
NAMES = (AUTO, *DEVICES)


def find_device(name: str, key: str = "--device", to_train: bool = False) -> "torch.device":
    """Return the device of a name; of auto the first that there is. key: of the message.

    to_train: auto leaves out kinds whose training nobody has tried. Raises UserError for a device that is not there, or
    that cannot be trained on.
    """
    import torch

    if name == AUTO:
        kinds = [each for each in DEVICES.values() if each.trains_by_auto or not to_train]
        return torch.device(next(each.type for each in kinds if each.is_there()))
    named = f"{key} {name}" if key.startswith("--") else f"{key}={name}"
    if name not in DEVICES:
        raise UserError(f"{named}: unknown device; one of {', '.join(NAMES)}")
    kind = DEVICES[name]
    if not kind.is_there():
        raise UserError(f"{named}: PyTorch finds no {kind.title}; use cpu or auto")
    if to_train and not kind.precisions:
        raise UserError(f"{named}: Lightning cannot train on this device; use cpu or auto, and sample on {name}")
    return torch.device(kind.type)


def kind_of(device: "torch.device") -> DeviceKind:
    """Return the rules of a device. Raises UserError for one that no row is about."""
    found = [kind for kind in DEVICES.values() if kind.type == device.type]
    if not found:
        raise UserError(f"{device.type}: a device that is not known; known are {', '.join(DEVICES)}")
    return found[-1] if len(found) > 1 and _has_rocm() else found[0]


def check_precision(device: "torch.device", precision: str) -> None:
    """Raise UserError for a precision that training cannot have on a device; auto fits all."""
    kind = kind_of(device)
    if precision not in (AUTO, *kind.precisions):
        possible = " or ".join(reversed(kind.precisions))
        needs = "needs a GPU; on a CPU" if device.type == "cpu" else f"is not for an {kind.title};"
        raise UserError(f"train.precision={precision}: {needs} use {possible}")


def precision_of_large_models(device: "torch.device") -> str:
    """Return what train.precision=auto is for a large model: 16 bits, bfloat16 where the hardware has it.

    Else float32: most CPUs lose by casts more than they gain (not those with AMX).
    """
    if FLOAT16 not in kind_of(device).precisions:
        return FLOAT32
    return BFLOAT16 if has_bfloat16(device) else FLOAT16


def has_bfloat16(device: "torch.device") -> bool:
    """Return whether a GPU computes in bfloat16 itself; of NVIDIA's, those before Ampere do not."""
    import torch

    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _module(device: "torch.device") -> Any:
    """Return PyTorch's module of a kind of device: torch.cuda, torch.xpu, torch.mps, torch.cpu."""
    import torch

    return torch.get_device_module(device.type)


def device_name(device: "torch.device") -> str:
    """Return what a device is called, such as "NVIDIA H100"; its type where PyTorch knows no name."""
    name = None if device.type == "cpu" else getattr(_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))


def synchronize(device: "torch.device") -> None:
    """Wait until a device has done what it was given. A CPU has always."""
    if device.type != "cpu":
        _module(device).synchronize()


def release_memory() -> None:
    """Return memory that PyTorch keeps for later to the devices that there are."""
    import torch

    for kind in {each.type for each in DEVICES.values() if each.type != "cpu" and each.is_there()}:
        torch.get_device_module(kind).empty_cache()


def peak_bytes(device: "torch.device") -> int | None:
    """Return the most memory that tensors have taken of a device; None where it has none of its own to count."""
    count = getattr(_module(device), "max_memory_allocated", None)
    return None if count is None or device.type == "cpu" else int(count())


def total_bytes(device: "torch.device") -> int:
    """Return all the memory that a device has, or the machine where the device shares its memory."""
    if kind_of(device).has_own_memory:
        return int(_module(device).get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensors, instead of returning it to the system.

    Otherwise the system maps and clears the pages of every large tensor again in every step: about a tenth of a step's
    time where weights and activations have gigabytes. Peak memory rises by some MiB only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation is a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap is not cut at its end
