"""Report options of `sample` that count for nothing: a recipe says them itself, or what they belong to is not there."""

import argparse
from typing import Any

from dreambooth.errors import UserError, escaped

# What an image's recipe says itself, by argument, and the value of one that is not given.
OF_RECIPES: dict[str, Any] = {
    "prompts": [],
    "prompt_file": None,
    "steps": None,
    "guidance_scale": None,
    "scheduler": None,
    "negative_prompt": "",
    "size": None,
    "strength": None,
    "expand": None,
    "feather": None,
    "only_masked": False,
    "mask_model": None,
    "upscale": None,
    "upscale_strength": None,
    "detail": None,
}
# What the recipe says of the model; of another program's picture these options count.
OF_OWN_RECIPES = ("config", "revision", "variant", "dtype", "quantize")
NAMES = {"prompts": "PROMPT", "prompt_file": "--prompts"}  # of arguments that are not called as their option


def check_recipe_options(args: argparse.Namespace, is_own: bool) -> None:
    """Raise UserError for an option that the recipe of --from-image or --vary says itself, and for a stray strength.

    is_own: whether the image holds a recipe of ours, and not another program's text.
    """
    if args.variation_strength is not None and not args.vary:
        raise UserError(f"--variation-strength {args.variation_strength}: belongs to --vary IMAGE")
    option, image = ("--vary", args.vary) if args.vary else ("--from-image", args.from_image)
    if image is None:
        return
    if args.vary and args.from_image:
        raise UserError(f"--vary {escaped(args.vary)}: not together with --from-image; name one of them")
    of_noise = {} if args.vary else {"seed": 0, "num_images": 4}
    for name, usual in (OF_RECIPES | of_noise | dict.fromkeys(OF_OWN_RECIPES if is_own else ())).items():
        if (value := getattr(args, name)) != usual:
            told = NAMES.get(name, f"--{name.replace('_', '-')}")
            text = "" if value is True else f" {' '.join(value) if isinstance(value, list) else value}"
            raise UserError(
                f"{told}{escaped(text)}: {option} {escaped(image)} has it from the image's recipe; leave it out, or "
                "sample MODEL PROMPT"
            )
