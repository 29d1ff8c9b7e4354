"""The folder of a run: what lies where, whether it can be written to, and how it is made ready to go on."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from dreambooth.checkpointing import FoundState
from dreambooth.config import PROVENANCE, Config, to_dict
from dreambooth.errors import UserError
from dreambooth.files import remove_leftovers, write_text
from dreambooth.run.provenance import provenance


class RunFolder:
    """Name the files and folders of a run: <run.dir>/<run.name>."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.dir) / config.run.name
        self.config = self.path / "config.yaml"
        self.state = self.path / "state" / "last.ckpt"
        self.previous = self.path / "state" / "previous.ckpt"
        self.best = self.path / "state" / "best.ckpt"
        self.removed = (
            self.path / "state" / "removed.json"
        )  # what last.json was, once `clean --all` has taken the states
        self.lock = self.path / "state" / "lock"
        self.steps = self.path / "steps"  # the weights of validations, where they are kept, and models made of them
        self.model = self.path / "model"
        self.samples = self.path / "samples"
        self.cut_mix = self.path / "cut-mix.png"  # some of the images that data.cut_mix makes
        self.sample_now = self.path / "sample-now"  # whoever makes this file gets images after the step
        self.logs = self.path / "logs"
        self.metrics = self.logs / "metrics.csv"
        self.scores = self.logs / "scores.jsonl"
        self.sessions = self.logs / "sessions.jsonl"
        self.prior = self.path / "prior"
        self.prompts = self.path / "prompts"  # encoded, where the base's text encoder never trains

    @property
    def folders(self) -> tuple[Path, ...]:
        """Return those that training writes to."""
        return self.path, self.state.parent, self.logs, self.samples, self.prior


def check_folders(run: RunFolder) -> None:
    """Raise UserError where a file is in the place of a folder, or the folder is a sweep's."""
    if (run.path / "sweep.yaml").is_file():
        raise UserError(f"{run.path}: is the folder of a sweep, with its config and report; choose another run.name")
    for folder in (*run.folders, run.model):
        there = _nearest(folder)
        if not there.is_dir():
            raise UserError(f"{there}: is a file where the run needs a folder; move it, or choose another run.name")


def _nearest(folder: Path) -> Path:
    """Return the nearest folder above a path that exists, or the path itself."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(run: RunFolder) -> None:
    """Raise UserError where the run could not write."""
    for there in dict.fromkeys(map(_nearest, (*run.folders, run.model))):
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise UserError(
                f"{there}: cannot be written to ({error.strerror}); repair that, or choose another run.dir"
            ) from error


def set_aside(run: RunFolder) -> None:
    """Rename the folder of an old run, to make room for one of the same name: run.old-1, run.old-2 ..."""
    number = next(n for n in range(1, 10**6) if not run.path.with_name(f"{run.path.name}.old-{n}").exists())
    run.path.rename(run.path.with_name(f"{run.path.name}.old-{number}"))


def drop_later_than(run: RunFolder, state: FoundState | None) -> None:
    """Remove the grids of steps after a state, which are taken again, and what a killed process left half made."""
    remove_half_written(run)
    for grid in run.samples.glob("step-*.png"):
        if int(grid.stem.removeprefix("step-")) > (0 if state is None else state.step):
            grid.unlink()


def write_config(
    run: RunFolder, config: Config, accepted: Iterable[str] = (), start_words: list[str] | None = None
) -> None:
    """Write the config with what it runs on, and with the changes that were accepted, now and before.

    start_words: that were chosen as the run began, a text for each subject; None: it goes on, and they are told.
    """
    before = _told_before(run)
    told = {
        "overridden": list(dict.fromkeys([*before.get("overridden", []), *accepted])),
        "start_words": before.get("start_words", []) if start_words is None else start_words,
    }
    about = {**provenance(), **{name: texts for name, texts in told.items() if texts}}
    write_text(run.config, yaml.safe_dump({**to_dict(config), PROVENANCE: about}, sort_keys=False))


def remove_half_written(run: RunFolder) -> None:
    """Remove what a killed process has left half written."""
    for folder in own_folders(run):
        remove_leftovers(folder)


def own_folders(run: RunFolder) -> list[Path]:
    """Return the folders that the run alone writes to: class latents behind a link may be others' too."""
    prior = [run.prior, *run.prior.glob("*")]
    prompts = [run.prompts] if run.prompts.is_dir() else []
    return [
        folder for folder in (*run.folders, *prompts, *prior[1:]) if not (run.prior.is_symlink() and folder in prior)
    ]


def _told_before(run: RunFolder) -> dict[str, list[str]]:
    """Return what the run's config holds beside the settings."""
    if not run.config.is_file():
        return {}
    return dict(yaml.safe_load(run.config.read_text(encoding="utf-8")).get(PROVENANCE, {}))
