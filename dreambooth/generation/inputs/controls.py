"""Controls made ready: ControlNets loaded beside a model, and the maps that they read.

Shapes: B batch, C channels, H/W latent height and width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from dreambooth.controlnets import CLASS, misfit, width_of
from dreambooth.data.images import resize_and_crop, to_tensor
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.families import Conditioning, DenoiserInputs, Family, digest_weights
from dreambooth.families.control import joined, load_control
from dreambooth.families.protocols import ControlledDenoiser
from dreambooth.generation.inputs.canny import canny
from dreambooth.generation.inputs.control_ref import PUBLISHED, ControlRef, embedded_control
from dreambooth.generation.inputs.image_refs import read_image
from dreambooth.generation.inputs.map_models import depth_map, pose_map
from dreambooth.generation.models.loading import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Control:
    """Hold a ControlNet and what it reads of its map; it acts from `start` to `end`, parts of the sampler's steps."""

    network: Any
    condition: Conditioning
    weight: float
    start: float
    end: float

    def acts(self, step: int, num_steps: int) -> bool:
        """Return whether it adds something in a step, 0 the first, of so many."""
        return self.weight != 0 and self.start <= step / num_steps and (step + 1) / num_steps <= self.end


def control_fields(
    family: Family, controls: Sequence[Control], inputs: DenoiserInputs, num_images: int
) -> Conditioning:
    """Return what controls add, for each sample; without fields where there are none.

    num_images: samples with a prompt, the last ones; before them come as many without it where there is guidance.
    """
    if not controls:
        return Conditioning({})
    assert isinstance(family, ControlledDenoiser), "checked by attach_controls"
    num_halves = len(inputs) // num_images
    alone = family.controls_read_prompts and num_halves > 1
    if alone:
        inputs = inputs.last(num_images)
    rows = [0] * len(inputs)
    parts = [family.control(each.network, each.condition.select(rows), each.weight, inputs) for each in controls]
    return joined(parts).select([*range(num_images)] * num_halves) if alone else joined(parts)


def attach_controls(model: Model, refs: Sequence[ControlRef]) -> tuple[ControlRef, ...]:
    """Load the ControlNets of controls beside a model, and return the refs with their names and fingerprints.

    Raises UserError for a model whose family has none, ModelError for one that is missing, damaged or does not fit.
    """
    if refs and not isinstance(model.family, ControlledDenoiser):
        raise UserError(f"--control {refs[0].kind}: {model.name} is of a family that ControlNets are not read for")
    return tuple(_attached(model, each) for each in refs)


def _attached(model: Model, ref: ControlRef) -> ControlRef:
    name = ref.network or _published(model, ref.kind)
    network, fingerprint = _network(model, name, ref.kind)
    if ref.weights not in (None, fingerprint):
        logger.warning(f"{escaped(name)}: has other weights than when the image was made; this will be another image")
    del network
    return replace(ref, network=name, weights=fingerprint)


def _published(model: Model, kind: str) -> str:
    """Return the published or embedded ControlNet of a kind for a model. Raises UserError where none is known."""
    width = width_of(_config_of(model.family.denoiser))
    name = PUBLISHED.get(width, {}).get(kind) if width is not None else None
    name = name or embedded_control(kind, _config_of(model.family.denoiser))
    if name is None:
        raise UserError(
            f"--control {kind}: no published ControlNet is known for {model.name}; name one: "
            f"--control-model {kind}=FOLDER_OR_HUB_ID"
        )
    return name


def _config_of(network: Any) -> dict[str, Any]:
    """Return a network's config as its file has it, with its class."""
    return {**network.config, CLASS: type(network).__name__}


def _network(model: Model, name: str, kind: str) -> tuple[Any, str]:
    """Return a ControlNet, loaded once a model, and the fingerprint of its weights. Raises ModelError."""
    family = model.family
    assert isinstance(family, ControlledDenoiser), "checked by attach_controls"
    if name not in model.networks:
        weight = next(family.denoiser.parameters())
        network = load_control(name, weight.dtype, family.control_class)
        fingerprint = digest_weights([network.state_dict()])
        model.networks[name] = (network.to(weight.device), fingerprint)
    found: tuple[Any, str] = model.networks[name]
    if (problem := misfit(kind, _config_of(found[0]), _config_of(family.denoiser))) is not None:
        raise ModelError(f"--control-model {kind}={escaped(name)}: {problem}")
    return found


@torch.no_grad()
def prepare_controls(model: Model, refs: Sequence[ControlRef], size: tuple[int, int]) -> tuple[Control, ...]:
    """Return controls with their maps at a size (width, height). Raises UserError as `attach_controls`."""
    found = []
    for ref in attach_controls(model, refs):
        network, _ = _network(model, str(ref.network), ref.kind)
        assert isinstance(model.family, ControlledDenoiser), "checked by attach_controls"
        condition = model.family.control_condition(network, ref.kind, to_tensor(make_map(ref, size))[None])
        weight = next(model.family.denoiser.parameters())
        found.append(Control(network, condition.to(weight.device, weight.dtype), ref.weight, ref.start, ref.end))
    return tuple(found)


def make_map(ref: ControlRef, size: tuple[int, int]) -> Image.Image:
    """Return the map of a control at a size (width, height), RGB: made from its image, or that image itself."""
    image = resize_and_crop(read_image(ref.image, "--control"), size)
    if ref.is_map:
        return image
    if ref.kind == "canny":
        return canny(image)
    make = depth_map if ref.kind == "depth" else pose_map
    with torch.no_grad():
        return make(image)
