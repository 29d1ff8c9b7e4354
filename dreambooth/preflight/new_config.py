"""A first config for a folder of photos: what was found there, settings that suit the base, what the run will cost.

`python -m dreambooth new FOLDER --class NOUN` writes it; each line says why it is there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth import build
from dreambooth.config import Config, flatten, to_dict
from dreambooth.data.buckets import Size, make_buckets, nearest_bucket
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import ImageFolder, open_folder
from dreambooth.data.images import grid, resize_and_crop
from dreambooth.data.near_duplicates import ImageInfo, inspect_image
from dreambooth.disk import GIB, check_writable
from dreambooth.errors import ModelError, UserError, escaped
from dreambooth.preflight.costs import Costs, costs_of
from dreambooth.preflight.fitting import is_possible
from dreambooth.preflight.memory_plan import Planner, device_memory, is_enough, with_savings
from dreambooth.proposal.draft import Request, first_draft, parsed, render, write_once
from dreambooth.proposal.rules import Draft

THUMBNAIL = 256  # pixels a side of a crop in the grid
MAX_SHOWN = 64  # crops


@dataclass(frozen=True)
class NewRun:
    """Hold a config that was written, its text, and its warnings. costs: None where the base is not there."""

    config: Config
    crops: Image.Image
    found: str
    warnings: list[str]
    costs: Costs | None


def write_new_config(request: Request) -> NewRun:
    """Write a config for a folder of photos. Raises UserError for what cannot be used, and for a file that is there."""
    if request.out.exists():
        raise UserError(f"{escaped(request.out)}: is there already; name another file with --out, or remove it")
    check_writable(request.out.parent, "--out")
    folder = open_folder(request.photos)
    images = [inspect_image(path) for path in folder.images]
    draft = first_draft(request, folder, images)
    config, warnings, costs = complete(draft, request)
    warnings += photo_warnings(images, config)
    crops = crops_grid(folder.images, config)
    write_once(request.out, render(draft))
    return NewRun(config, crops, found_words(folder, config), warnings, costs)


# -------------------------------------------------------------------------------- the settings


def complete(draft: Draft, request: Request) -> tuple[Config, list[str], Costs | None]:
    """Make a draft one that a run can be started from here; return its config, warnings, and what it takes.

    What a run would refuse is left out, and savings are added until it fits into the memory; what it takes is None
    where the base is not there. Raises UserError for photos that cannot be used.
    """
    warnings = drop_unusable(draft, request.out)
    costs = None
    try:
        costs = fit(draft, request, warnings)
    except ModelError as error:
        warnings.append(f"memory, disk and time are not known, as the base is not there: {error}")
    return parsed(draft, request.out), warnings, costs


def drop_unusable(draft: Draft, out: Path) -> list[str]:
    """Leave captions and masks out of the draft if a run would refuse them; return the reasons. Raises UserError."""
    try:
        build.load_subject_data(parsed(draft, out))
    except UserError as error:
        dropped = [key for key in ("data.captions", "data.mask", "data.crop") if draft.pop(key, None) is not None]
        if not dropped:
            raise
        return [f"{', '.join(dropped)} left out: {error}"]
    return []


# -------------------------------------------------------------------------------- what it costs


def fit(draft: Draft, request: Request, warnings: list[str]) -> Costs:
    """Add the savings to the draft that the run needs to fit into the memory; return what it then takes.

    Raises ModelError where the base cannot be had.
    """
    config = best = parsed(draft, request.out)
    planner = Planner(config)
    if planner.note is not None:
        warnings.append(f"model.base={request.base}: {planner.note}; training downloads it")
    memory, needed = request.memory or device_memory(config)[1], 0
    here = (is_possible,) if request.memory is None else ()  # else it may be for another machine
    for _, changed, need in with_savings(planner, config, *here):
        best, needed = changed, need.total
        if is_enough(needed, memory):
            break
    else:
        warnings.append(f"{needed / GIB:.1f} GiB are needed at least, of {memory / GIB:.3g} GiB; take a smaller base")
    before, after = flatten(to_dict(config)), flatten(to_dict(best))
    for key in after:
        if after[key] != before.get(key):
            draft[key] = (after[key], f"so that it fits into {memory / GIB:.3g} GiB")
    return costs_of(planner, best)


# -------------------------------------------------------------------------------- what is said


def photo_warnings(images: Sequence[ImageInfo], config: Config) -> Iterator[str]:
    """Yield what to know of the photos before training."""
    if len(images) == 1:
        yield (
            "one photo: its place and light are learned with the subject; take 3 to 5 more in other places, from "
            "other sides"
        )
    yield from build.image_warnings(images, _sizes(config), config.data.resolution)


def _sizes(config: Config) -> list[Size]:
    side = config.data.resolution
    return make_buckets(side, config.data.bucket_step) if config.data.buckets else [(side, side)]


def crops_grid(paths: Sequence[Path], config: Config) -> Image.Image:
    """Return the photos as training will see them, in a grid; each stands on a grey square."""
    crops = []
    for path in paths[:MAX_SHOWN]:
        image = load_image(path)
        crop = resize_and_crop(image, nearest_bucket(image.size, _sizes(config)))
        crop.thumbnail((THUMBNAIL, THUMBNAIL))
        square = Image.new("RGB", (min(THUMBNAIL, config.data.resolution),) * 2, "gray")
        square.paste(crop, ((square.width - crop.width) // 2, (square.height - crop.height) // 2))
        crops.append(square)
    return grid(crops, columns=min(len(crops), 8))


def found_words(folder: ImageFolder, config: Config) -> str:
    """Return what a folder was found to hold, in words."""
    parts = [f"{len(folder.images)} photo{'s' * (len(folder.images) != 1)}"]
    parts += ["captions"] * config.data.captions + [f"masks ({config.data.mask})"] * (config.data.mask is not None)
    return ", ".join(parts)
