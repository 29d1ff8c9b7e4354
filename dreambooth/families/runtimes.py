"""Graphs of ONNX Runtime and OpenVINO: one network of an export, as a function of arrays.

Nothing of both libraries is imported before a graph is loaded.
"""

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreambooth.errors import DreamBoothError, ModelError, UserError, first_line

Run = Callable[[Mapping[str, Any]], Any]  # arrays by the names of the graph's inputs -> its first output
PROVIDER = "DREAMBOOTH_PROVIDER"  # of the environment: ONNX Runtime's execution provider, or OpenVINO's device
SLOW_TO_START = "TensorrtExecutionProvider"  # builds an engine for minutes: only where it is named


class Graph(nn.Module):
    """Stand in the place of a network. Takes and returns tensors on any device; what it computes on, the runtime says.

    config: the network's own. digest: SHA-256 of the graph's files, of which a fingerprint is made.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__()
        self.config = config
        self._run, files = load_graph(folder)
        digest = hashlib.sha256(b"".join(_digest(path) for path in files)).digest()
        self.register_buffer("sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # has the device and dtype that others ask for

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the graph's first output, float32."""
        arrays = {name: _as_array(tensor) for name, tensor in inputs.items()}
        return torch.from_numpy(np.array(self._run(arrays), dtype=np.float32)).to(self.device)


def _as_array(tensor: Tensor) -> Any:
    """Return an array in the main memory; numpy has no bfloat16."""
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_graph(folder: Path) -> tuple[Run, list[Path]]:
    """Return a folder's graph as a function, and its files. Raises ModelError, and UserError without the library."""
    for name, load in (("model.onnx", _load_onnx), ("openvino_model.xml", _load_openvino)):
        path = folder / name
        if path.is_file():
            try:
                return load(path), sorted(folder.glob(f"{path.stem}.*"))
            except DreamBoothError:
                raise
            except (RuntimeError, ValueError, OSError) as error:
                raise ModelError(f"{path}: cannot be loaded: {first_line(error)}") from error
    raise ModelError(f"{folder}: has neither model.onnx nor openvino_model.xml")


def import_extra(library: str, extra: str) -> Any:
    """Import a library of an extra. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(f'{library} is not installed; install it with: pip install "dreambooth[{extra}]"') from error


def _load_onnx(path: Path) -> Run:
    runtime = import_extra("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    there = runtime.get_available_providers()
    named = os.environ.get(PROVIDER)
    if named and named not in there:
        raise UserError(f"{PROVIDER}={named}: this ONNX Runtime has {', '.join(there)}")
    providers = [named, *there] if named else [each for each in there if each != SLOW_TO_START]
    try:
        session = runtime.InferenceSession(str(path), options, providers=list(dict.fromkeys(providers)))
    except Exception as error:  # its errors share no class
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
    kinds = {each.name: _NUMPY[each.type] for each in session.get_inputs()}

    def run(arrays: Mapping[str, Any]) -> Any:
        return session.run(None, {name: array.astype(kinds[name]) for name, array in arrays.items()})[0]

    return run


# The types of inputs that graphs of diffusion models have.
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def _load_openvino(path: Path) -> Run:
    openvino = import_extra("openvino", "openvino")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    device = os.environ.get(PROVIDER, "CPU")
    model = openvino.Core().compile_model(str(path), device, settings if device == "CPU" else {})
    kinds = {each.get_any_name(): each.get_element_type().to_dtype() for each in model.inputs}

    def run(arrays: Mapping[str, Any]) -> Any:
        return model({name: array.astype(kinds[name]) for name, array in arrays.items()})[0]

    return run
