"""Options of `sample` that name images: one to start from, what of it is redrawn, controls, and a style."""

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.cli import loading_libraries
from dreambooth.errors import UserError, escaped

if TYPE_CHECKING:
    from dreambooth.generation.inputs.control_ref import ControlRef
    from dreambooth.generation.inputs.from_images import FromImages
    from dreambooth.generation.inputs.init_image import InitImage
    from dreambooth.generation.inputs.style_ref import StyleRef
    from dreambooth.generation.inputs.styles import Styles


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of an image to start from, of controls and of styles."""
    group = parser.add_argument_group("from an image")
    group.add_argument("--init-image", metavar="I", help="start from this image instead of noise alone")
    group.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="how much of it is new: 0 nothing, 1 all (default 0.75; 1 with --expand)",
    )
    group.add_argument(
        "--mask",
        metavar="M",
        help="redraw only what is white in this image, as large as the first; or words for what is found in it: "
        'subject, background, "the hat"',
    )
    group.add_argument(
        "--mask-model",
        metavar="MODEL",
        help="what finds a --mask of words: hub id or folder of a CLIPSeg, SegFormer, SAM, SAM 2 or SAM 3 (default: "
        "the embedded one for the toy world, else CLIPSeg)",
    )
    group.add_argument(
        "--expand", metavar="LEFT,TOP,RIGHT,BOTTOM", help="add so many pixels at the image's sides, and draw them"
    )
    group.add_argument(
        "--feather",
        type=int,
        metavar="PIXELS",
        help="fade redrawn and kept parts into each other (default a 64th of the shorter side; 0: a hard border)",
    )
    group.add_argument(
        "--only-masked",
        action="store_true",
        help="cut out the part around the mask, redraw it at the model's own size and paste it back",
    )
    _add_controls_and_styles(group)


def _add_controls_and_styles(group: Any) -> None:
    group.add_argument(
        "--control",
        metavar="KIND=IMAGE[:WEIGHT[:START-END]]",
        action="append",
        default=[],
        help="hold the image to the edges (canny), depth or pose of another (repeatable); KIND=map:IMAGE names a map "
        "that is ready; WEIGHT scales it (default 1), START-END are the part of the steps in which it acts (0-1)",
    )
    group.add_argument(
        "--control-model",
        metavar="KIND=MODEL",
        action="append",
        default=[],
        help="the ControlNet of a kind: diffusers' folder or hub id (default: the published one of the base's kind)",
    )
    group.add_argument(
        "--style",
        metavar="NAME_OR_IMAGE[:WEIGHT]",
        action="append",
        default=[],
        help="draw in a style of the list (repeatable), or in that of an image; WEIGHT scales it (default 1)",
    )
    group.add_argument(
        "--ip-adapter",
        metavar="FILE",
        help="read the --style image by this IP-Adapter, with image_encoder/ beside it (default: by shared attention)",
    )


def _init_image(args: argparse.Namespace, ref: Any) -> "InitImage | None":
    """Return the image to start from, by the options. Raises UserError."""
    from dreambooth.generation.inputs.found_mask import is_words
    from dreambooth.generation.inputs.init_image import init_image, parse_margins

    margins = None if args.expand is None else parse_margins(args.expand)
    mask = args.mask
    if args.init_image is not None and is_words(mask):
        init_image(args.init_image, args.strength, None, margins, args.feather)  # what is wrong with it is told first
        mask = _write_found_mask(args, ref)
    elif args.mask_model is not None:
        raise UserError(f"--mask-model {args.mask_model}: belongs to a --mask of words, such as --mask subject")
    return init_image(args.init_image, args.strength, mask, margins, args.feather, args.only_masked)


def _write_found_mask(args: argparse.Namespace, ref: Any) -> str:
    """Find the mask that words name, and return its file, beside the images: a recipe names it. Raises UserError."""
    from dreambooth.devices import find_device
    from dreambooth.disk import check_writable, translate_write_errors
    from dreambooth.generation.inputs.found_mask import find_mask_of
    from dreambooth.generation.models.additions import learned_by
    from dreambooth.generation.models.location import default_folder, find_card

    folder, card = Path(args.out or default_folder(ref.name)), find_card(ref.name)
    check_writable(folder, "--out")
    subjects = (() if card is None else card.subjects) + learned_by(ref.loras)
    with loading_libraries():
        device = find_device(args.device).type
    mask = find_mask_of(args.mask, args.init_image, subjects, args.mask_model, device)
    path = folder / f"mask-{hashlib.sha256(mask.tobytes()).hexdigest()[:8]}.png"
    with translate_write_errors(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    print(path)
    return str(path)


def _recorded_init_image(args: argparse.Namespace, recorded: "InitImage | None") -> "InitImage | None":
    """Return the image to start from that a recipe has recorded, in files that --init-image and --mask name now."""
    from dreambooth.generation.inputs.init_image import checked

    mask = None if recorded is None else recorded.mask
    for option, named, own in (("--init-image", args.init_image, recorded), ("--mask", args.mask, mask)):
        if named is not None and own is None:
            made = f"{args.from_image or args.vary} was made without one"
            raise UserError(f"{option} {escaped(named)}: {made}; leave it out")
    if recorded is None:
        return None
    image = replace(recorded.image, file=args.init_image or recorded.image.file)
    mask = None if mask is None else replace(mask, file=args.mask or mask.file)
    return checked(replace(recorded, image=image, mask=mask))


def _controls(args: argparse.Namespace) -> "tuple[ControlRef, ...]":
    """Return the controls, by the options. Raises UserError."""
    from dreambooth.generation.inputs.control_ref import make_controls, parse_networks

    return make_controls(args.control, parse_networks(args.control_model))


def _recorded_controls(args: argparse.Namespace, recorded: "tuple[ControlRef, ...]") -> "tuple[ControlRef, ...]":
    """Return the controls that a recipe has recorded, in files that --control and --control-model name now."""
    from dreambooth.generation.inputs.control_ref import make_controls, parse_control, parse_networks

    given = [parse_control(each) for each in args.control]
    if given and [each.kind for each in given] != [each.kind for each in recorded]:
        kinds = ", ".join(each.kind for each in recorded)
        made = f"with --control {kinds}; name each, in this order" if recorded else "without one; leave it out"
        raise UserError(f"--control {', '.join(args.control)}: {args.from_image or args.vary} was made {made}")
    files = [each.image.file for each in given or recorded]
    moved = [replace(each, image=replace(each.image, file=file)) for each, file in zip(recorded, files, strict=True)]
    return make_controls(moved, parse_networks(args.control_model))


def _recorded_style(args: argparse.Namespace, recorded: "StyleRef | None") -> "StyleRef | None":
    """Return the style of an image that a recipe has recorded, in files that --style and --ip-adapter name now."""
    from dreambooth.generation.inputs.style_ref import check_reference
    from dreambooth.generation.inputs.styles import make_styles

    given = make_styles(args.style).reference
    if recorded is None or (args.style and given is None):
        if args.style or args.ip_adapter:
            told = f"--style {args.style[0]}" if args.style else f"--ip-adapter {args.ip_adapter}"
            made = "without the style of an image" if recorded is None else "with that of an image"
            raise UserError(f"{told}: {args.from_image or args.vary} was made {made}; leave it out")
        return None
    if args.ip_adapter and recorded.adapter is None:
        made = f"{args.from_image or args.vary} was made without one"
        raise UserError(f"--ip-adapter {escaped(args.ip_adapter)}: {made}; leave it out")
    image = recorded.image if given is None else replace(recorded.image, file=given.image.file)
    return check_reference(replace(recorded, image=image, adapter=args.ip_adapter or recorded.adapter))


def find_images(args: argparse.Namespace, recorded: "FromImages | None", ref: Any) -> "tuple[FromImages, Styles]":
    """Return what is taken from images, and all styles. ref: of the model.

    recorded: what a recipe takes; beside it the options say where its files lie now. None: the options alone count.
    Raises UserError for a file that cannot be read or does not fit, and for a style that no list has; ModelError for a
    ControlNet or an IP-Adapter that is not there or does not fit the model.
    """
    from dreambooth.generation.inputs.from_images import FromImages
    from dreambooth.generation.inputs.styles import Styles, make_styles

    if recorded is None:
        styles = make_styles(args.style, args.ip_adapter)
        controls = _controls(args)
        images = FromImages(None, controls, styles.reference)
        check_images(images, ref)
        images = replace(images, init=_init_image(args, ref))  # last, as a mask of words becomes a file
    else:
        styles = Styles()
        init, style = _recorded_init_image(args, recorded.init), _recorded_style(args, recorded.style)
        images = FromImages(init, _recorded_controls(args, recorded.controls), style)
    check_images(images, ref)
    return images, styles


def check_images(images: "FromImages", ref: Any) -> None:
    """Raise UserError or ModelError for a ControlNet or an IP-Adapter that does not fit a model."""
    from dreambooth.generation.inputs.control_ref import check_controls
    from dreambooth.generation.inputs.style_ref import check_adapter
    from dreambooth.generation.models.location import find_denoiser_config

    check_controls(images.controls, find_denoiser_config(ref) if images.controls else None)
    check_adapter(images.style, find_denoiser_config(ref, ["unet"]) if images.style is not None else None)
