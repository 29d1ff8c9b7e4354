"""An image to start from: what of it is redrawn, and how much (`--init-image`, `--strength`, `--mask`, `--expand`).

Image to image is SDEdit (Meng et al. 2022, arXiv 2108.01073): the image with as much noise as its strength says, then
the sampler's remaining steps. What can be known of the files is reported here, before anything heavy is loaded.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import UserError
from dreambooth.generation.inputs.image_refs import ImageRef, image_ref, read_image, ref_as_json, ref_of, with_digest

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_STRENGTH = 0.75
FEATHER_PART = 64  # by default the border of a mask is this part of the image's shorter side
LIGHT = 128  # grey level of 255 that a mask has somewhere, if white was meant; pure red is 76, pure green 150

Margins = tuple[int, int, int, int]  # left, top, right, bottom, pixels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitImage:
    """Hold an image to start from.

    strength: 0 gives it back as the VAE has it, 1 ignores what is redrawn of it. mask: white is redrawn; None: all of
    it. expand: pixels added at its sides and redrawn. feather: pixels over which redrawn and kept parts fade into each
    other, outside of the mask's white. only_masked: the part around the mask is cut out, redrawn at the size of the
    request and pasted back into the whole. defaults: which of strength and feather nobody has named; of no recipe.
    """

    image: ImageRef
    strength: float = DEFAULT_STRENGTH
    mask: ImageRef | None = None
    expand: Margins = (0, 0, 0, 0)
    feather: int = 0
    only_masked: bool = False
    defaults: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not (0 <= self.strength <= 1):
            raise UserError(f"strength={self.strength}: must be from 0 (as it is) to 1 (all new); 0.5 to 0.8 is usual")
        if len(self.expand) != 4 or min(self.expand) < 0:
            raise UserError(f"expand={self.expand}: four numbers of pixels from 0 on: left, top, right, bottom")
        if self.feather < 0:
            raise UserError(f"feather={self.feather}: must be a number of pixels from 0 on")
        if self.only_masked and self.mask is None:
            raise UserError("only_masked=True: needs a mask, which says what to redraw")

    @property
    def is_partial(self) -> bool:
        """Return whether a part of the image is kept as it is."""
        return self.mask is not None or any(self.expand)


def init_image(
    image: "str | Path | Image.Image | None",
    strength: float | None = None,
    mask: "str | Path | Image.Image | None" = None,
    expand: Margins | None = None,
    feather: int | None = None,
    only_masked: bool = False,
) -> InitImage | None:
    """Return the image to start from with the hashes of its files, None where none is named.

    What is None has its default: strength 0.75, of an expanded image 1; feather a 64th of the shorter side. Warns of a
    mask without white. Raises UserError for a file that cannot be read, a mask of another size, or options that miss
    their image.
    """
    if image is None:
        _check_nothing_given(
            strength=strength,
            mask=None if mask is None else image_ref(mask).name,
            expand=None if expand is None else ",".join(map(str, expand)),
            feather=feather,
            only_masked=only_masked or None,
        )
        return None
    defaults = tuple(name for name, value in (("strength", strength), ("feather", feather)) if value is None)
    if strength is None:
        strength = 1.0 if expand is not None else DEFAULT_STRENGTH
    own_mask = None if mask is None else image_ref(mask)
    found = InitImage(image_ref(image), strength, own_mask, expand or (0, 0, 0, 0), feather or 0, only_masked, defaults)
    size = check_init_image(found)
    if feather is None:
        found = replace(found, feather=_usual_feather(size, found.expand))
    if own_mask is not None:
        warn_without_white(own_mask)
    return checked(found)


def with_margins(init: InitImage, expand: Margins) -> InitImage:
    """Return it expanded, with the strength and the feather that follow from that where nobody has named them.

    Raises UserError as `check_init_image`.
    """
    changes: dict[str, Any] = {"strength": 1.0, "feather": _usual_feather(check_init_image(init), expand)}
    return replace(init, expand=expand, **{name: changes[name] for name in init.defaults})


def _usual_feather(size: tuple[int, int], expand: Margins) -> int:
    """Return the feather of an image of a size (width, height) with such margins, pixels."""
    left, top, right, bottom = expand
    return max(1, round(min(size[0] + left + right, size[1] + top + bottom) / FEATHER_PART))


def _check_nothing_given(**options: Any) -> None:
    """Raise UserError for an option that is not None, where there is no image to start from."""
    for name, value in options.items():
        if value is not None:
            raise UserError(
                f"{name}={value}: belongs to an image to start from; name one with --init-image (init_image)"
            )


def check_init_image(init: InitImage) -> tuple[int, int]:
    """Return the image's (width, height), pixels. Raises UserError for a file that cannot be read or does not fit."""
    size = read_image(init.image, "--init-image").size
    if init.mask is not None and (own := read_image(init.mask, "--mask").size) != size:
        raise UserError(
            f"--mask {init.mask.name}: {own[0]}x{own[1]} pixels, but {init.image.name} has {size[0]}x{size[1]}; give "
            "the mask the image's size"
        )
    return size


def warn_without_white(mask: ImageRef) -> None:
    """Warn of a mask that is nowhere white, which redraws next to nothing. Raises UserError as `check_init_image`."""
    levels = read_image(mask, "--mask").convert("L").histogram()
    lightest = max(level for level, num_pixels in enumerate(levels) if num_pixels > 0)
    if lightest < LIGHT:
        changed = "nothing" if lightest == 0 else "little"
        logger.warning(
            f"--mask {mask.name}: nothing in it is white (its lightest grey is {lightest} of 255); white is redrawn "
            f"and black is kept, so {changed} of the image changes: paint white what is to be redrawn"
        )


def checked(init: InitImage) -> InitImage:
    """Return it with the hashes of its files as they are now, after a warning where a recipe recorded others.

    Raises UserError as `check_init_image`.
    """
    check_init_image(init)
    mask = None if init.mask is None else with_digest(init.mask)
    return replace(init, image=with_digest(init.image), mask=mask)


def parse_margins(text: str) -> Margins:
    """Return LEFT,TOP,RIGHT,BOTTOM in pixels. Raises UserError for another text."""
    parts = re.split(r"\s*,\s*", text.strip())
    if len(parts) != 4 or not all(re.fullmatch(r"\d{1,5}", part) for part in parts):
        raise UserError(f"--expand {text}: must be LEFT,TOP,RIGHT,BOTTOM in pixels, e.g. 128,0,128,0")
    left, top, right, bottom = map(int, parts)
    if not (left or top or right or bottom):
        raise UserError(f"--expand {text}: adds nothing; leave it out")
    return left, top, right, bottom


def fitted_size(own: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """Return the (width, height) of an image's shape that has about resolution^2 pixels, in multiples of `multiple`."""
    scale = resolution / math.sqrt(own[0] * own[1])
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in own)
    return width, height


def is_usual(own: tuple[int, int], resolution: int, multiple: int) -> bool:
    """Return whether a model of that resolution can draw a size: in its multiples, half to twice its pixels."""
    fits = all(side % multiple == 0 for side in own)
    return fits and 0.5 <= own[0] * own[1] / resolution**2 <= 2


# -------------------------------------------------------------------------------- in a recipe


def as_json(init: InitImage | None) -> dict[str, Any] | None:
    """Return it as a recipe has it; None where there is none."""
    if init is None:
        return None
    return {
        **ref_as_json(init.image),
        "strength": init.strength,
        "mask": None if init.mask is None else ref_as_json(init.mask),
        "expand": list(init.expand),
        "feather": init.feather,
        "only_masked": init.only_masked,
    }


def init_image_of(found: Mapping[str, Any] | None) -> InitImage | None:
    """Return the image to start from of a recipe. Raises KeyError or TypeError for what `as_json` has not written."""
    if found is None:
        return None
    left, top, right, bottom = found["expand"]
    mask = found["mask"]
    return InitImage(
        ref_of(found),
        float(found["strength"]),
        None if mask is None else ref_of(mask),
        (int(left), int(top), int(right), int(bottom)),
        int(found["feather"]),
        bool(found["only_masked"]),
    )
