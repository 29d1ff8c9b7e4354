"""The commands: `python -m dreambooth COMMAND`, and what each exit code means.

A command is a module with `add_arguments(parser)` and `run(args) -> int` that imports nothing heavy before it runs, and
one row in `COMMANDS`. Those of plug-ins come after them.
"""

import argparse
import contextlib
import difflib
import gc
import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dreambooth.console import command_output
from dreambooth.errors import DreamBoothError, UserError
from dreambooth.hints import missing_environment
from dreambooth.plugins import Table, active
from dreambooth.status_line import STATUS_LINE
from dreambooth.version import __version__

OWN_COMMANDS: dict[str, tuple[Any, str]] = {
    "prepare": ("dreambooth.cli.prepare", "look at a subject's photos: what is wrong with them, before training"),
    "new": ("dreambooth.cli.new", "write a commented config for a folder of photos, and show the crops"),
    "train": ("dreambooth.cli.train", "learn a subject; the same command again goes on where it was interrupted"),
    "sweep": ("dreambooth.cli.sweep", "many runs from one file: subjects, settings, seeds; resumable, one table"),
    "check": ("dreambooth.cli.check", "what can be known of a run before it starts: findings with remedies"),
    "sample": ("dreambooth.cli.sample", "make images with a learned (or any) model"),
    "export": ("dreambooth.cli.export", "a result as a pipeline, a single file, a LoRA or a word for other tools"),
    "plan": ("dreambooth.cli.plan", "memory, disk and time that a run will need, and what would take less memory"),
    "clean": ("dreambooth.cli.clean", "list the files that a run can do without, and remove them"),
    "report": ("dreambooth.cli.report", "write what a run has learned, by images and scores, into one HTML file"),
    "evaluate": ("dreambooth.cli.evaluate", "the paper's protocol and measures on any models; resumable, one table"),
    "studio": ("dreambooth.cli.studio", "a web page and REST API: drop photos, train, generate; on this machine"),
    "describe": ("dreambooth.cli.describe", "captions, answers to questions and boxes for images; a search by text"),
    "toyworld": ("toyworld.cli", "the embedded base model: render its world, train it, judge it"),
    "lab": ("toyworld.lab.cli", "the paper's ablations on the embedded base; resumable, in parallel"),
}
COMMANDS = Table("commands", OWN_COMMANDS)
EXIT_CODES = (
    "exit codes: 0 done; 1 a bug; 2 a mistake in config, image or prompt; 3 the model or the network; 4 non-finite \
numbers; 130 / 143 / 138 after SIGINT / SIGTERM / SIGUSR1, with the state saved"
)


class Parser(argparse.ArgumentParser):
    """Read the arguments of a command, and report a mistake in one line, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        told = message.removeprefix("argument ")
        self.exit(UserError.exit_code, f"error: {told} ({self.prog} --help lists what there is)\n")


def console() -> int:
    """Run the console command `dreambooth`."""
    return main(sys.argv[1:])


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Run one command. `prog` names the script that stands for `argv[0]`, e.g. train.py."""
    try:
        return _main(argv, prog)
    except ModuleNotFoundError as error:
        if (hint := missing_environment(error)) is None:
            raise
        print(f"error: {hint}", file=sys.stderr)
        return UserError.exit_code


def _main(argv: Sequence[str], prog: str | None) -> int:
    name = argv[0] if argv and argv[0] in COMMANDS else None
    if prog is None or name is None:
        parser, arguments = _overview(), list(argv)
    else:
        parser, arguments = Parser(prog=prog), list(argv[1:])
        _fill(parser, name)
    with command_output():
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            args.parser.error(_unknown(args, unknown))
        return _run(args)


def _unknown(args: argparse.Namespace, arguments: Sequence[str]) -> str:
    """Return the message on arguments that a command does not take, with the option that the first is like."""
    actions = list(args.parser._actions)
    for action in args.parser._actions:  # `toyworld` has commands of its own
        if isinstance(action, argparse._SubParsersAction):
            actions += action.choices[getattr(args, action.dest)]._actions
    first = arguments[0].partition("=")[0]
    known = [option for action in actions for option in action.option_strings]
    near = difflib.get_close_matches(first, known, n=1) if first.startswith("-") else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unrecognized arguments: {' '.join(arguments)}{hint}"


def _run(args: argparse.Namespace) -> int:
    """Run a command, and report what a user can mend without a traceback."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with STATUS_LINE:
            return int(args.run(args))
    except DreamBoothError as error:
        from dreambooth.cli.option_names import with_option

        print(f"error: {with_option(str(error), args)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        active().blame(error)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def loading_libraries() -> Iterator[None]:
    """Pause garbage collection while the libraries load, which saves a fifth of the time.

    The million objects that they make stay for good, so the collector never looks at them again: .4 s each time.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _overview() -> argparse.ArgumentParser:
    prog = "dreambooth" if Path(sys.argv[0]).name == "dreambooth" else "python -m dreambooth"
    parser = Parser(prog=prog)
    parser.description = "Personalise a text-to-image diffusion model from a few images of a subject."
    parser.add_argument("--version", action="version", version=f"dreambooth {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in OWN_COMMANDS:
        _fill(commands.add_parser(name, help=COMMANDS[name][1]), name)
    for name in [each for each in COMMANDS if each not in OWN_COMMANDS]:
        active().try_row("commands", name, partial(_add_foreign, commands, name))
    parser.epilog = f"{EXIT_CODES}{_plugins_text()}"  # last: one that could not be loaded is not named
    return parser


def _add_foreign(commands: Any, name: str) -> None:
    """Add a plug-in's command, whose arguments are tried first: one that raises leaves the others as they are."""
    _fill(Parser(), name)
    _fill(commands.add_parser(name, help=COMMANDS[name][1]), name)


def _fill(parser: argparse.ArgumentParser, name: str) -> None:
    module, help_text = COMMANDS[name]
    command = importlib.import_module(module) if isinstance(module, str) else module
    parser.description = parser.description or help_text[0].upper() + help_text[1:] + "."
    parser.epilog = parser.epilog or EXIT_CODES
    command.add_arguments(parser)
    parser.epilog = f"{parser.epilog}{_plugins_text()}"
    parser.set_defaults(run=command.run, parser=parser)


def _plugins_text() -> str:
    """Return which plug-ins there are, for the end of a help; empty where there is none."""
    plugins = active().described
    return f"\n\nplug-ins: {', '.join(plugins)}" if plugins else ""
