"""Report options of `sample` that count for nothing: a recipe says them itself, or what they belong to is not there."""

import argparse

from dreambooth.cli.option_names import is_given, option_of
from dreambooth.errors import UserError, escaped

# Arguments that an image's recipe says itself.
OF_RECIPES = (
    "prompts",
    "prompt_file",
    "steps",
    "guidance_scale",
    "scheduler",
    "negative_prompt",
    "size",
    "strength",
    "expand",
    "feather",
    "only_masked",
    "mask_model",
    "upscale",
    "upscale_strength",
    "detail",
)
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
    of_noise = () if args.vary else ("seed", "num_images")
    for name in (*OF_RECIPES, *of_noise, *(OF_OWN_RECIPES if is_own else ())):
        if is_given(args, name):
            value, told = getattr(args, name), NAMES.get(name, option_of(name))
            text = "" if value is True else f" {' '.join(value) if isinstance(value, list) else value}"
            raise UserError(
                f"{told}{escaped(text)}: {option} {escaped(image)} has it from the image's recipe; leave it out, or "
                "sample MODEL PROMPT"
            )
