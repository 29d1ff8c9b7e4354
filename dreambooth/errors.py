"""Errors that a user can cause or mend, each with the exit code that commands return.

A message is one or two lines: the file or the key, its value, what is allowed and what to do.
"""


class DreamBoothError(ValueError):
    """Name what a user can mend; a command prints it without a traceback."""

    exit_code = 1


class UserError(DreamBoothError):
    """Report a mistake of the user: a setting, an image, a prompt."""

    exit_code = 2


class ModelError(DreamBoothError):
    """Report a problem with the base model or the network: missing, incomplete, of an unknown kind."""

    exit_code = 3


class NonFiniteError(DreamBoothError):
    """Report a loss or gradient that is infinite or not a number. Weights and last checkpoint are as they were."""

    exit_code = 4


def first_line(error: BaseException) -> str:
    """Return the first line of a library's exception; its class name where it has no text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def escaped(name: object) -> str:
    """Return a file's name for a message, with what a terminal would act on or cannot show as its code (`\\x1b`)."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(name))
