"""Describe what an image is held to (`--control KIND=IMAGE[:WEIGHT[:START-END]]`): edges, depth, a pose, or any map.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv 2302.05543). A control is a
ControlNet and a map that it reads. What can be known of both is reported here, before anything heavy is loaded.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreambooth.controlnets import CLASS, misfit
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.generation.inputs.image_refs import ImageRef, image_ref, read_image, ref_as_json, ref_of, with_digest
from dreambooth.home_folder import with_home, without_home

KINDS = ("canny", "depth", "pose")  # whose maps are made from a photo
MAP = "map:"  # before an image that is a map already
# Published ControlNets by their class, the width of the base (`controlnets.width_of`) and kind. The unions are used as
# any other (cards of Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0 and InstantX/Qwen-Image-ControlNet-Union).
PUBLISHED = {
    ("ControlNetModel", 768): {
        "canny": "lllyasviel/control_v11p_sd15_canny",
        "depth": "lllyasviel/control_v11f1p_sd15_depth",
        "pose": "lllyasviel/control_v11p_sd15_openpose",
    },
    ("ControlNetModel", 1024): {
        "canny": "thibaud/controlnet-sd21-canny-diffusers",
        "depth": "thibaud/controlnet-sd21-depth-diffusers",
        "pose": "thibaud/controlnet-sd21-openposev2-diffusers",
    },
    ("ControlNetModel", 2048): {
        "canny": "diffusers/controlnet-canny-sdxl-1.0",
        "depth": "diffusers/controlnet-depth-sdxl-1.0",
        "pose": "thibaud/controlnet-openpose-sdxl-1.0",
    },
    ("FluxControlNetModel", 3072): dict.fromkeys(KINDS, "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0"),
    ("SD3ControlNetModel", 2432): {  # of 3.5 large
        "canny": "stabilityai/stable-diffusion-3.5-large-controlnet-canny",
        "depth": "stabilityai/stable-diffusion-3.5-large-controlnet-depth",
    },
    ("QwenImageControlNetModel", 3072): dict.fromkeys(KINDS, "InstantX/Qwen-Image-ControlNet-Union"),
}
EMBEDDED = {"canny": "checkpoints/toyworld-controlnet"}  # for the base of the toy world's second edition
NUMBER = r"\d+(?:\.\d*)?|\.\d+"
SPAN = re.compile(rf"({NUMBER})-({NUMBER})")


@dataclass(frozen=True)
class ControlRef:
    """Hold one control. kind: canny, depth, pose or, of a map, any word.

    is_map: whether the image is the map itself. weight: of what the ControlNet adds; 0 is none. start, end: the part of
    the sampler's steps in which it acts, 0 to 1. network: folder or hub id of the ControlNet; None: the published one.
    weights: the fingerprint of that network, once it has been loaded.
    """

    kind: str
    image: ImageRef
    is_map: bool = False
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    network: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.is_map and self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"--control {self.kind}: not a kind that is made from a photo; {hint}use {', '.join(KINDS)}, or "
                f"{self.kind}={MAP}IMAGE for an image that is a map already"
            )
        if not 0 <= self.weight <= 10:
            raise UserError(f"--control {self.kind}: weight={self.weight}: must be from 0 to 10; 0.5 to 1 is usual")
        if not 0 <= self.start < self.end <= 1:
            raise UserError(
                f"--control {self.kind}: {self.start}-{self.end}: must be START-END with 0 <= START < END <= 1"
            )


def parse_control(text: str) -> ControlRef:
    """Return KIND=IMAGE[:WEIGHT[:START-END]]; `map:` before IMAGE says that it is a map. Raises UserError."""
    kind, equals, rest = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+", kind):
        raise UserError(f"--control {text}: write KIND=IMAGE[:WEIGHT[:START-END]], e.g. canny=pose.png:0.8")
    is_map = rest.startswith(MAP)
    file, weight, span = _split(rest.removeprefix(MAP), text)
    start, end = (0.0, 1.0) if span is None else span
    return ControlRef(kind, ImageRef(file), is_map, weight, start, end)


def _split(text: str, whole: str) -> tuple[str, float, tuple[float, float] | None]:
    """Return file, weight and span of IMAGE[:WEIGHT[:START-END]]; a file that is there stays whole."""
    span, weight = None, 1.0
    if Path(text).expanduser().exists():
        return text, weight, span
    before, _, last = text.rpartition(":")
    if before and (match := SPAN.fullmatch(last)) is not None:
        span, text = (float(match[1]), float(match[2])), before
        before, _, last = text.rpartition(":")
    if before and re.fullmatch(NUMBER, last):
        weight, text = float(last), before
    elif span is not None or (before and (not Path(text).suffix or Path(before).expanduser().exists())):
        raise UserError(
            f"--control {whole}: the weight {last!r} is no number from 0 to 10; write KIND=IMAGE:WEIGHT:START-END"
        )
    if not Path(text).expanduser().exists() and (before := text.rpartition(":")[0]) and Path(before).is_file():
        raise UserError(f"--control {whole}: write KIND=IMAGE:WEIGHT:START-END, e.g. canny=pose.png:0.8:0-0.5")
    return text, weight, span


def make_controls(
    controls: Sequence["str | ControlRef"], networks: Mapping[str, str] | None = None
) -> tuple[ControlRef, ...]:
    """Return controls with the hashes of their images and the networks that are named for their kinds.

    Raises UserError for an image that cannot be read, a kind without a control, or a map without a network.
    """
    named = dict(networks or {})
    found = []
    for each in controls:
        ref = parse_control(each) if isinstance(each, str) else each
        read_image(ref.image, "--control")
        found.append(replace(ref, image=with_digest(ref.image), network=named.get(ref.kind, ref.network)))
    if stray := sorted(set(named) - {each.kind for each in found}):
        raise UserError(f"--control-model {stray[0]}={named[stray[0]]}: there is no --control {stray[0]}=IMAGE")
    for each in found:
        if each.network is None and each.kind not in KINDS:
            raise UserError(
                f"--control {each.kind}: no ControlNet is known for this kind; name one: "
                f"--control-model {each.kind}=FOLDER_OR_HUB_ID"
            )
    return tuple(found)


def control_of_image(
    kind: str, image: Any, weight: float = 1.0, start: float = 0.0, end: float = 1.0, is_map: bool = False
) -> ControlRef:
    """Return the control of a file or a PIL image, for programs."""
    return ControlRef(kind, image_ref(image), is_map, weight, start, end)


def parse_networks(texts: Sequence[str]) -> dict[str, str]:
    """Return the ControlNets of KIND=FOLDER_OR_HUB_ID each. Raises UserError."""
    found = {}
    for text in texts:
        kind, equals, network = text.partition("=")
        if not equals or not kind or not network:
            raise UserError(f"--control-model {text}: write KIND=FOLDER_OR_HUB_ID")
        found[kind] = network
    return found


def check_controls(controls: Sequence[ControlRef], base: Mapping[str, Any] | None) -> None:
    """Raise ModelError for a folder that holds no ControlNet, or that of another family than the base.

    base: the config of its denoiser; None: not known before it is loaded.
    """
    for each in controls:
        if each.network is None or not Path(each.network).expanduser().is_dir():
            _check_may_be_hub_id(each)
            continue
        config = _config_in(Path(each.network).expanduser(), each.network)
        if (problem := misfit(each.kind, config, base)) is not None:
            raise ModelError(f"--control-model {each.kind}={escaped(each.network)}: {problem}")


def embedded_control(kind: str, base: Mapping[str, Any]) -> str | None:
    """Return the embedded ControlNet of a kind; None where there is none, or it does not fit the base's denoiser."""
    name = EMBEDDED.get(kind)
    if name is None or not (Path(name) / "config.json").is_file():
        return None
    return name if misfit(kind, _config_in(Path(name), name), base) is None else None


def _check_may_be_hub_id(control: ControlRef) -> None:
    network = control.network
    if network is not None and (network.startswith((".", "/", "~")) or network.count("/") != 1):
        raise ModelError(f"--control-model {control.kind}={escaped(network)}: there is no such folder")


def _config_in(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"--control-model {escaped(name)}: has no config.json of a ControlNet") from error
    kind = config.get(CLASS) if isinstance(config, dict) else None
    if "ControlNet" not in str(kind):
        raise ModelError(f"--control-model {escaped(name)}: its config.json is of {kind}, which is no ControlNet")
    return dict(config)


# -------------------------------------------------------------------------------- in a recipe


def as_json(controls: Sequence[ControlRef]) -> list[dict[str, Any]] | None:
    """Return controls as a recipe has them; None where there are none."""
    return [
        {
            "kind": each.kind,
            **ref_as_json(each.image),
            "is_map": each.is_map,
            "weight": each.weight,
            "start": each.start,
            "end": each.end,
            "network": None if each.network is None else without_home(each.network),
            "weights": each.weights,
        }
        for each in controls
    ] or None


def controls_of(found: Sequence[Mapping[str, Any]] | None) -> tuple[ControlRef, ...]:
    """Return the controls of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    return tuple(
        ControlRef(
            str(each["kind"]),
            ref_of(each),
            bool(each["is_map"]),
            float(each["weight"]),
            float(each["start"]),
            float(each["end"]),
            None if each["network"] is None else with_home(str(each["network"])),
            None if each["weights"] is None else str(each["weights"]),
        )
        for each in found or ()
    )
