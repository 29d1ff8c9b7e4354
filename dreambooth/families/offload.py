"""Keep frozen weights in main memory, and bring those of a part to the device when that part computes.

`parts`: the denoiser, and the encoder and the decoder of the VAE: one of them is on the device at a time.
`blocks`: each block of the denoiser; while one computes, the next one's weights are already on their way.

A weight is the same on its way there and back, so results are the same bits. Weights that train stay on the device. In
backward a block's weights come back when the first gradient reaches it; diffusers' group offloading takes them away
behind forward, as it is made for sampling. What autograd keeps of a block in forward keeps its weights there too: with
gradient checkpointing that is nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dreambooth.families.protocols import Family
from dreambooth.families.quantization import QuantizedLinear

_WAITING: WeakKeyDictionary[nn.Module, Callable[[], None]] = WeakKeyDictionary()  # what brings the weights of a module


class Offload:
    """Hold the frozen weights of some modules off a device, but for those of one that computes.

    ahead: whether the next one's are brought there meanwhile; modules are in the order in which they compute. What is
    computed past the modules' own calls finds NaN in the place of weights.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, ahead: bool) -> None:
        self.device, self.ahead = device, ahead
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._weights = [[(weight, self._host(weight)) for weight in frozen_weights(module)] for module in modules]
        self._arrived: dict[int, Any] = {}  # by the number of a module that is there: the end of its copy
        self._last, self._way = -1, 1
        for number, module in enumerate(modules):
            module.register_state_dict_post_hook(partial(self._as_they_are, number, names_of(module)))
            self._leave(number)
            _WAITING[module] = partial(self.bring, number)
            module.register_forward_pre_hook(partial(self._before, number))
            module.register_forward_hook(partial(self._after, number))

    def _host(self, weight: Tensor) -> Tensor:
        """Return a weight's numbers in main memory, from where a GPU can fetch them while it computes."""
        host = weight.data.to("cpu")
        return host.pin_memory() if self._copies is not None else host

    def _as_they_are(
        self, number: int, names: dict[int, str], module: nn.Module, state: Any, prefix: str, _: Any
    ) -> None:
        """Put the weights in main memory into a state dict."""
        for weight, host in self._weights[number]:
            state[prefix + names[id(weight)]] = host

    def _before(self, number: int, module: nn.Module, inputs: Any) -> None:
        self.bring(number)

    def _after(self, number: int, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Bring the weights back when the first gradient reaches the module."""
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: self.bring(number))

    def bring(self, number: int) -> None:
        """Have the weights of a module on the device, and those of no other but the next one."""
        if number != self._last:
            self._way = 1 if number > self._last else -1
            self._last = number
        coming = number + self._way
        stays = {number, coming} if self.ahead else {number}
        for other in set(self._arrived) - stays:
            self._leave(other)
        self._fetch(number)
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_event(self._arrived[number])
        if self.ahead and 0 <= coming < len(self._weights):
            self._fetch(coming)

    def _fetch(self, number: int) -> None:
        if number in self._arrived:
            return
        if self._copies is None:
            for weight, host in self._weights[number]:
                weight.data = host.to(self.device, copy=True)
            self._arrived[number] = None
            return
        computes = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            for weight, host in self._weights[number]:
                weight.data = host.to(self.device, non_blocking=True)
                weight.data.record_stream(computes)
            self._arrived[number] = self._copies.record_event()

    def _leave(self, number: int) -> None:
        """Let go of a module's weights on the device: one number stands for all, with their shape, dtype and device."""
        self._arrived.pop(number, None)
        for weight, host in self._weights[number]:
            nothing = float("nan") if host.is_floating_point() else 0
            weight.data = torch.full((), nothing, dtype=host.dtype, device=self.device).expand(host.shape)


def bring(module: nn.Module) -> None:
    """Have a module's weights on its device, if they wait elsewhere, for what uses a part of it past its own call."""
    if module in _WAITING:
        _WAITING[module]()


def frozen_weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of a module that do not train, and the codes of quantized ones."""
    yield from (weight for weight in module.parameters() if not weight.requires_grad)
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            yield from (layer.codes, layer.scales)


def names_of(module: nn.Module) -> dict[int, str]:
    """Return the names of a module's parameters and buffers, by identity."""
    return {id(weight): name for name, weight in (*module.named_parameters(), *module.named_buffers())}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network in order: the members of its lists of modules, of nested ones the outermost."""
    if isinstance(network, nn.ModuleList):
        return list(network)
    return [block for child in network.children() for block in blocks_of(child)]


def offload(family: Family, how: str, device: torch.device, text_too: bool = False) -> None:
    """Keep the frozen weights of a family's parts or blocks off the device from now on. how: `parts` or `blocks`.

    text_too: whether text encoders take turns with the other parts, as in sampling, where they are asked once.
    """
    parts: list[nn.Module] = [family.vae.encoder, family.vae.decoder, *(family.text_encoders if text_too else [])]
    if how == "parts":
        Offload([family.denoiser, *parts], device, ahead=False)
        return
    Offload(blocks_of(family.denoiser), device, ahead=True)
    if text_too:
        Offload(parts, device, ahead=False)
