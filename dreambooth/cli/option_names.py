"""Name options in messages as they were typed: the field `strength=2` of Python and of files is `--strength 2`."""

import argparse
import re

from dreambooth.generation.options import SETTINGS

FIELD = re.compile(r"(?:^|(?<=, ))(?P<model>model\.)?(?P<name>\w+)(?P<equals>=True$|=|$)")
ARGUMENTS = {field: name for name, field in SETTINGS.items()}  # of fields that have another name than their argument


def option_of(argument: str) -> str:
    """Return the option that sets an argument: num_images -> --num-images."""
    return f"--{argument.replace('_', '-')}"


def is_given(args: argparse.Namespace, argument: str) -> bool:
    """Return whether a command has an argument, and it is another than without its option."""
    return hasattr(args, argument) and getattr(args, argument) != args.parser.get_default(argument)


def with_option(message: str, args: argparse.Namespace) -> str:
    """Return a message that begins with a field, `strength=2: ...`, with the option in its place, `--strength 2: ...`.

    So each of several fields, and a key of the section `model`. The same message where no option has set the field: it
    is of a file of prompts, a recipe or a run.
    """

    def in_its_place(field: re.Match[str]) -> str:
        argument = ARGUMENTS.get(field["name"], field["name"])
        is_field = field["model"] or field["equals"]  # a word alone may be anything, such as a folder
        if not is_field or not is_given(args, argument):
            return field[0]
        return option_of(argument) + (" " if field["equals"] == "=" else "")

    fields, colon, problem = message.partition(": ")
    return FIELD.sub(in_its_place, fields) + colon + problem
