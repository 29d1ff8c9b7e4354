"""`train CONFIG.yaml [section.key=value ...]`."""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

from dreambooth.cli import loading_libraries
from dreambooth.config import Config, describe_config
from dreambooth.errors import UserError
from dreambooth.hints import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="the run's settings; configs/ holds examples")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="settings that replace the file's"
    )
    parser.add_argument(
        "--override", metavar="KEY", action="append", default=[], dest="accepted_changes",
        help="when resuming, accept this key's changed value, e.g. optim.lr (repeatable)",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="print at the end where the time of a step went")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"config keys:\n\n{describe_config()}"


def run(args: argparse.Namespace) -> int:
    from dreambooth.preflight.inputs import check_inputs
    from dreambooth.proposal.automatic import load_run_config

    config = load_run_config(args.config, args.overrides)
    run = Path(config.run.dir, config.run.name)
    before = _model_time(run)
    try:
        check_inputs(config)
    except UserError:  # a run that has taken all its steps needs its photos no more
        if before is None or not _is_over(config, args.accepted_changes):
            raise
    with loading_libraries():
        from dreambooth.distributed import is_first
        from dreambooth.engine import train
        from dreambooth.preflight.fitting import fit_to_memory

    config = fit_to_memory(config)
    code = train(config, args.profile, args.accepted_changes)
    if code == 0 and is_first():
        write_report(run, is_new=_model_time(run) != before)
    return code


def _is_over(config: Config, accepted_changes: Collection[str]) -> bool:
    """Return whether a run has taken all its steps. Raises UserError for settings that it cannot go on with."""
    from dreambooth.metrics.validation_log import ValidationLog
    from dreambooth.run.folder import RunFolder
    from dreambooth.run.resume import found_state, is_finished

    run = RunFolder(config)
    state = found_state(run, config, accepted_changes)
    return state is not None and is_finished(run, state, config, ValidationLog(run.scores, last_step=state.step))


def _model_time(run: Path) -> int | None:
    """Return when a run's model was written, in nanoseconds of its clock then; None where there is none."""
    card = run / "model" / "dreambooth.json"
    return card.stat().st_mtime_ns if card.is_file() else None


def write_report(run: Path, is_new: bool) -> None:
    """Put report.html beside a model that is newer. The run is done: what prevents it is only logged.

    is_new: the model was written just now, whatever the clock says of an earlier report.
    """
    from dreambooth.errors import DreamBoothError
    from dreambooth.report import build

    report, written = run / "report.html", _model_time(run)
    if not is_new and report.is_file() and (written is None or report.stat().st_mtime_ns >= written):
        return
    try:
        print(f"report: {build(run)}")
    except DreamBoothError as error:
        again = command_line("report", str(run))
        print(f"warning: no report: {error}. To write it later: {again}", file=sys.stderr)
