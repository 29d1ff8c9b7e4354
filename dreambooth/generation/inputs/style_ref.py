"""The image whose style is taken (`--style IMAGE[:WEIGHT]`), and an IP-Adapter that may read it.

What can be known of either is reported here, before anything heavy is loaded.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.generation.inputs.image_refs import ImageRef, read_image, ref_as_json, ref_of, with_digest
from dreambooth.home_folder import with_home, without_home
from dreambooth.subject_info import read_header

logger = logging.getLogger(__name__)

MAX_WEIGHT = 3.0
ADAPTER_KEY = "ip_adapter.1.to_k_ip.weight"  # of every IP-Adapter: its first layer reads tokens of an image


@dataclass(frozen=True)
class StyleRef:
    """Hold an image whose style is taken. weight: 0 is none, 1 as much of it as of the image itself.

    adapter: file of an IP-Adapter, with its hash once it has been read; None: attention is shared with the image.
    """

    image: ImageRef
    weight: float = 1.0
    adapter: str | None = None
    adapter_sha256: str | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight, self.image.name)


def check_weight(weight: float, whole: str) -> None:
    """Raise UserError for the weight of a style that is out of range."""
    if not 0 <= weight <= MAX_WEIGHT:
        raise UserError(f"--style {whole}: weight={weight}: must be from 0 to {MAX_WEIGHT:g}")


def check_reference(ref: StyleRef) -> StyleRef:
    """Return the ref with the hashes of its files, after a warning where a recipe recorded others.

    Raises UserError for an image that cannot be read.
    """
    read_image(ref.image, "--style")
    own = None
    if ref.adapter is not None and Path(ref.adapter).expanduser().is_file():
        own = with_digest(ImageRef(ref.adapter)).sha256
        if ref.adapter_sha256 not in (None, own):
            logger.warning(
                f"{escaped(ref.adapter)}: another file than the image was made with; this will be another image"
            )
    return replace(ref, image=with_digest(ref.image), adapter_sha256=own)


def check_adapter(ref: StyleRef | None, unet_config: Mapping[str, Any] | None) -> None:
    """Raise ModelError for an IP-Adapter that is not there, is none, or belongs to another family than the base.

    unet_config: of the base; None: not known before it is loaded.
    """
    if ref is None or ref.adapter is None:
        return
    path, named = Path(ref.adapter).expanduser(), f"--ip-adapter {escaped(ref.adapter)}"
    if not path.is_file() or path.suffix != ".safetensors":
        raise ModelError(f"{named}: there is no such .safetensors file")
    header = read_header(path)
    if ADAPTER_KEY not in header:
        raise ModelError(f"{named}: no IP-Adapter (it has no {ADAPTER_KEY})")
    width = header[ADAPTER_KEY]["shape"][-1]
    if unet_config is not None and width != (base := unet_config.get("cross_attention_dim")):
        raise ModelError(f"{named}: of another family: it writes {width} numbers a token, this base reads {base}")
    if not (path.parent / "image_encoder" / "config.json").is_file():
        raise ModelError(f"{named}: its image encoder belongs beside it, in {escaped(path.parent / 'image_encoder')}")


def as_json(ref: StyleRef | None) -> dict[str, Any] | None:
    """Return the image whose style is taken as a recipe has it; None where there is none."""
    if ref is None:
        return None
    adapter = None if ref.adapter is None else without_home(ref.adapter)
    digests = {"adapter": adapter, "adapter_sha256": ref.adapter_sha256}
    return {**ref_as_json(ref.image), "weight": ref.weight, **digests}


def style_of(found: Mapping[str, Any] | None) -> StyleRef | None:
    """Return the image of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    if found is None:
        return None
    adapter, sha256 = found["adapter"], found["adapter_sha256"]
    if adapter is None:
        return StyleRef(ref_of(found), float(found["weight"]))
    return StyleRef(ref_of(found), float(found["weight"]), with_home(str(adapter)), sha256 and str(sha256))
