"""`check CONFIG.yaml [section.key=value ...]`: what can be known of a run before it starts."""

import argparse

from dreambooth.cli import loading_libraries
from dreambooth.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="the run's settings")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="settings that go over the file's"
    )


def run(args: argparse.Namespace) -> int:
    from dreambooth.proposal.automatic import load_run_config

    try:
        config = load_run_config(args.config, args.overrides)
    except UserError as error:
        print(row("error", "config", str(error)))
        return error.exit_code
    with loading_libraries():
        from dreambooth.preflight.check import check

    findings = check(config)
    print("\n".join(row(finding.level, finding.about, finding.text) for finding in findings))
    return findings.exit_code


def row(level: str, about: str, text: str) -> str:
    """Return a finding as a line; further lines of its text are indented below."""
    indent = "\n" + " " * 26
    return f"{level:8}  {about:14}  {indent.join(line.strip() for line in text.splitlines())}"
