"""Name options in messages as they were typed: the field `strength=2` of Python and of files is `--strength 2`."""

import argparse
import re

from dreambooth.generation.options import SETTINGS

FIELD = re.compile(r"(?:model\.(?P<key>\w+)[=:]|(?P<name>\w+)=)\s*(?:True(?=:))?")
ARGUMENTS = {field: name for name, field in SETTINGS.items()}  # of fields that have another name than their argument


def option_of(argument: str) -> str:
    """Return the option that sets an argument: num_images -> --num-images."""
    return f"--{argument.replace('_', '-')}"


def is_given(args: argparse.Namespace, argument: str) -> bool:
    """Return whether a command has an argument, and it is another than without its option."""
    return hasattr(args, argument) and getattr(args, argument) != args.parser.get_default(argument)


def with_option(message: str, args: argparse.Namespace) -> str:
    """Return a message that begins with a field, `strength=2: ...`, with the option in its place, `--strength 2: ...`.

    The same message where no option has set that field: it is of a file of prompts, a recipe or a run.
    """
    field = FIELD.match(message)
    if field is None:
        return message
    name = field["key"] or field["name"]
    argument = ARGUMENTS.get(name, name)
    if not is_given(args, argument):
        return message
    value = message[field.end() :]
    return f"{option_of(argument)}{'' if value.startswith(':') else ' '}{value}"
