"""Options of how a reader writes texts."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dreambooth.cli.option_names import is_given, option_of
from dreambooth.errors import UserError

if TYPE_CHECKING:
    from dreambooth.readers.text_options import TextOptions

# The fields of `TextOptions`, whose module is not imported for the help.
ARGUMENTS = (
    "max_tokens",
    "min_tokens",
    "beams",
    "temperature",
    "top_p",
    "repetition_penalty",
    "length_penalty",
    "seed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how texts are written")
    group.add_argument("--max-tokens", type=int, default=40, metavar="N", help="of a text, at most (default 40)")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="of a text, at least (default 0)")
    group.add_argument("--beams", type=int, default=1, metavar="N", help="texts followed at once, 1 (default) to 64")
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 writes the likeliest text (default); above, words are drawn, at 1 as likely as the model holds them",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest words of this probability (1: all)",
    )
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 repeats less")
    group.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="L", help="of --beams: above 1 texts are longer"
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn (default 0)")


def text_options(args: argparse.Namespace) -> "TextOptions":
    """Return how texts are written. Raises UserError for a value out of its range."""
    from dreambooth.readers.text_options import TextOptions

    if 1 <= args.max_tokens < args.min_tokens:
        raise UserError(f"--min-tokens {args.min_tokens}: more than --max-tokens {args.max_tokens}; change one of them")
    return TextOptions(**{name: getattr(args, name) for name in ARGUMENTS})


def given(args: argparse.Namespace, others: Iterable[str] = ()) -> list[str]:
    """Return which of these options, and of others, a command has with another value than without them."""
    return [option_of(name) for name in (*others, *ARGUMENTS) if is_given(args, name)]
