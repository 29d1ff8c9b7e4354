"""Read runs as the pages show them: a line of each for lists, and one whole with its curves, samples and verdict."""

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from dreambooth.config import Config, flatten, load_config, to_dict
from dreambooth.config.values import as_number
from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.errors import DreamBoothError
from dreambooth.metrics.selection import Quality
from dreambooth.metrics.validation_log import ValidationLog
from dreambooth.metrics.verdict import Verdict
from dreambooth.prompts import expand, subject_phrase
from dreambooth.report import curves, gallery, records, tables, words
from dreambooth.report.samples import Samples
from dreambooth.run.savings import written
from dreambooth.studio.jobs import Job
from dreambooth.studio.pages import charts
from dreambooth.studio.problems import MissingError
from dreambooth.studio.routes.runs import is_trained_elsewhere
from dreambooth.subject_info import SubjectInfo, read_card

SMALL = 128  # pixels; up to here an image is a toy's, and is sent as it is
SIDE = 1024  # pixels of the longer side of a sample, at most
SIDE_OF_CARD = 384  # pixels of the longer side of an image on a run's card
NO_IMAGE = Path(__file__).parents[1] / "static" / "no-image.svg"
NO_VERDICT = Verdict("not validated", "it has drawn no images yet", "")
STATES_OF_JOBS = {"queued": "queued", "running": "running", "paused": "stopped", "cancelled": "stopped"}


@dataclass(frozen=True)
class RunLine:
    """Hold a run as lists show it.

    state: running, queued, stopped, failed, finished. job: the newest one that trains it, None where a terminal does.
    step: the last one that was logged. changed: seconds since 1970. side: of its images, pixels.
    """

    name: str
    subjects: str
    base: str
    method: str
    state: str
    step: int
    max_steps: int
    verdict: Verdict
    changed: float
    side: int
    job: Job | None = None

    @property
    def tone(self) -> str:
        """Return how good the verdict is, in a word of the style sheet."""
        return words.tone(self.verdict)

    @property
    def is_toy(self) -> bool:
        """Return whether its images are a toy's, which are shown in hard squares."""
        return self.side <= SMALL


@dataclass(frozen=True)
class RunPage:
    """Hold a whole run.

    prompts: of its validations, as sampled. steps: those with samples. qualities: by step; quality: of the
    kept one. choice: which step is kept
    and why. losses: the newest, by name.
    """

    line: RunLine
    config: Config
    prompts: Sequence[gallery.ShownPrompt]
    num_images: int
    steps: Sequence[int]
    best_step: int | None
    qualities: Mapping[int, float]
    quality: Quality | None
    choice: words.Choice | None
    plots: Sequence[charts.Plot]
    losses: Mapping[str, float]
    changed_settings: Sequence[tables.Setting]
    sessions: Sequence[records.Session]
    has_report: bool
    has_model: bool

    @property
    def side(self) -> int:
        """Return the side of its samples, pixels."""
        return self.config.data.resolution


def list_runs(runs: Path, jobs: Sequence[Job]) -> list[RunLine]:
    """Return the runs in a folder, the one that changed last first; what cannot be read is left out."""
    found = []
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        if (folder / "config.yaml").is_file() and not folder.name.startswith("."):
            try:
                found.append(read_line(folder, jobs))
            except DreamBoothError:
                continue
    return sorted(found, key=lambda line: (line.state != "running", -line.changed))


def read_line(folder: Path, jobs: Sequence[Job]) -> RunLine:
    """Return a run as lists show it. jobs: the newest first. Raises UserError for a config that cannot be read."""
    config = read_config(folder)
    card = read_card(folder / "model")
    job = next((each for each in jobs if each.kind == "train" and each.output == f"checkpoints/{folder.name}"), None)
    step = max(last_logged_step(folder), card.last_step or card.step if card is not None else 0)
    return RunLine(
        name=folder.name,
        subjects=", ".join(map(subject_phrase, config.subjects)),
        base=config.model.base,
        method=config.method.name,
        state=_state(folder, card, step, job),
        step=step,
        max_steps=_max_steps(config, job),
        verdict=_verdict(folder, card),
        changed=_changed(folder),
        side=config.data.resolution,
        job=job,
    )


def _state(folder: Path, card: SubjectInfo | None, step: int, job: Job | None) -> str:
    is_finished = card is not None and card.is_of_run_at(step)
    if job is not None and job.state in ("queued", "running"):
        return job.state
    if is_trained_elsewhere(folder):
        return "running"
    if is_finished:
        return "finished"
    return "failed" if job is not None and job.state == "failed" else "stopped"


def _max_steps(config: Config, job: Job | None) -> int:
    """Return how far the run goes: an open job may ask for more than its config says yet, or for `auto`."""
    asked = None if job is None or job.state == "done" else job.request.get("settings", {}).get("train.max_steps")
    steps = as_number(int, asked)
    return steps if isinstance(steps, int) else config.train.max_steps


@functools.lru_cache(maxsize=256)
def _parsed_config(path: Path, changed_ns: int) -> Config:
    return load_config(path)


def read_config(folder: Path) -> Config:
    """Return a run's config, read again only where its file has changed. Raises UserError, MissingError."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise MissingError(f"{folder.name}: there is no such run")
    return _parsed_config(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _parsed_log(path: Path, changed_ns: int) -> ValidationLog:
    return ValidationLog(path)


def read_validation_log(folder: Path) -> ValidationLog:
    """Return a run's validations, read again only where their file has changed."""
    path = folder / "logs" / "scores.jsonl"
    return _parsed_log(path, path.stat().st_mtime_ns) if path.is_file() else ValidationLog(path)


def _verdict(folder: Path, card: SubjectInfo | None) -> Verdict:
    log = read_validation_log(folder)
    return log.verdict_on(None if card is None else card.step) if log.entries else NO_VERDICT


def _changed(folder: Path) -> float:
    there = [folder / "config.yaml", folder / "logs" / "metrics.csv", folder / "model"]
    return max(path.stat().st_mtime for path in there if path.exists())


def last_logged_step(folder: Path) -> int:
    """Return the step of the last whole line of metrics.csv, whose end alone is read."""
    path = folder / "logs" / "metrics.csv"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        head = file.readline().decode().rstrip().split(",")
        file.seek(max(file.tell(), path.stat().st_size - 65536))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    column = head.index("step") if "step" in head else 0
    texts = (line.split(",")[column] for line in reversed(lines) if line.count(",") >= column)
    return next((int(text) for text in texts if text.isdigit()), 0)


# -------------------------------------------------------------------------------- one run


def read_run(folder: Path, jobs: Sequence[Job], with_plots: bool = True) -> RunPage:
    """Return all that the page of a run shows. Raises UserError for files that cannot be read, MissingError.

    with_plots: with its curves, which take most of the time.
    """
    config, line = read_config(folder), read_line(folder, jobs)
    log = read_validation_log(folder)
    metrics = records.read_metrics(folder / "logs" / "metrics.csv")
    samples = samples_of(folder)
    best_step = log.best.step if log.best is not None else None
    changed, _ = tables.settings(config)
    return RunPage(
        line=line,
        config=config,
        prompts=_prompts(config),
        num_images=config.validate.num_images,
        steps=samples.steps(),
        best_step=best_step,
        qualities=log.qualities,
        quality=log.best.quality if log.best is not None else None,
        choice=words.choice(log, line.step),
        plots=_plots(log, metrics, max(line.step, 1)) if with_plots else [],
        losses=dict(_newest(metrics, ("train/loss", "train/loss_instance", "train/loss_prior", "optim/lr"))),
        changed_settings=changed,
        sessions=records.read_sessions(folder / "logs" / "sessions.jsonl"),
        has_report=(folder / "report.html").is_file(),
        has_model=read_card(folder / "model") is not None,
    )


@dataclass(frozen=True)
class Shown:
    """Hold one image of a run: of the prompt with this number, at a step. url: where it is."""

    url: str
    step: int


@dataclass(frozen=True)
class Comparison:
    """Hold two runs side by side.

    images: by prompt, of each run the kept step's or the newest. settings: that differ: key, and each run's value.
    """

    one: RunPage
    two: RunPage
    images: Sequence[tuple[str, Shown, Shown]]
    settings: Sequence[tuple[str, str, str]]


def compare(one: RunPage, two: RunPage) -> Comparison:
    """Return what two runs have in common and what not. Prompts are the same if their texts are."""
    numbers = {prompt.text: number for number, prompt in enumerate(two.prompts)}
    images = [
        (prompt.text, _shown(one, number), _shown(two, numbers[prompt.text]))
        for number, prompt in enumerate(one.prompts)
        if prompt.text in numbers and one.steps and two.steps
    ]
    ours, theirs = (flatten(to_dict(run.config)) for run in (one, two))
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and not key.startswith("run.")]
    settings = [(key, _written(ours.get(key)), _written(theirs.get(key))) for key in differing]
    return Comparison(one, two, images, settings)


def _written(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else written(value)


def _shown(run: RunPage, prompt: int) -> Shown:
    step = run.best_step if run.best_step in run.steps else run.steps[-1]
    assert step is not None
    return Shown(f"/runs/{quote(run.line.name)}/samples/{step}/{prompt}/0", step)


def _plots(log: ValidationLog, metrics: Mapping[str, records.Series], last_step: int) -> list[charts.Plot]:
    """Return the curves, that of the training loss first: it begins with the first step."""
    panels = sorted(curves.panels(log, metrics), key=lambda panel: panel.title != "Training loss")
    best_step = log.best.step if log.best is not None else None
    return [charts.draw(panel, last_step, best_step) for panel in panels]


def _newest(metrics: Mapping[str, records.Series], names: Sequence[str]) -> Iterator[tuple[str, float]]:
    for name in names:
        series = metrics.get(name)
        if series is not None and len(series.values):
            yield name, float(series.values[-1])


def _prompts(config: Config) -> list[gallery.ShownPrompt]:
    expanded = expand(config.validate.prompts, config.subjects)
    return [gallery.ShownPrompt(each.filled, each.kind, each.subjects) for each in expanded]


def samples_of(folder: Path) -> Samples:
    """Return the sample grids of a run."""
    config = read_config(folder)
    return Samples(folder / "samples", len(_prompts(config)), config.validate.num_images, config.data.resolution)


def sample(folder: Path, step: int, prompt: int, seed: int) -> Image.Image:
    """Return one image of a run's grid. Raises MissingError where there is none, UserError for a damaged file."""
    samples = samples_of(folder)
    path = samples.folder / f"step-{step:06d}.png"
    if step not in samples.steps():
        raise MissingError(f"{folder.name}: has no samples at step {step}")
    rows = _rows(folder, step, path.stat().st_mtime_ns)
    if not (0 <= prompt < len(rows) and 0 <= seed < len(rows[prompt])):
        raise MissingError(f"{folder.name}: has no image {seed} of prompt {prompt}")
    return rows[prompt][seed]


@functools.lru_cache(maxsize=12)
def _rows(folder: Path, step: int, changed_ns: int) -> list[list[Image.Image]]:
    return samples_of(folder).rows(step)


def highlight(folder: Path) -> Image.Image | None:
    """Return the image of a run that is most like the photos, at the kept step or else the newest; None: none yet."""
    config, samples = read_config(folder), samples_of(folder)
    log, steps = read_validation_log(folder), samples.steps()
    if not steps:
        return None
    step = log.best.step if log.best is not None and log.best.step in steps else steps[-1]
    found = gallery.highlight(samples, _prompts(config), log, step, 0)
    return samples.rows(step)[0][0] if found is None else found.image


def first_photo(folder: Path, root: Path) -> Image.Image | None:
    """Return the first photo that a run learns from, None where it is no longer there. root: the workspace."""
    try:
        paths = list_images(root / Path(read_config(folder).subjects[0].images).expanduser())
        return load_image(paths[0])
    except DreamBoothError:
        return None


def fitted(image: Image.Image, most: int) -> tuple[bytes, str]:
    """Return an image with no side over `most` pixels as a file, and its media type: lossless if small, else WebP."""
    image = image.convert("RGB")
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(file, format="PNG")
        return file.getvalue(), "image/png"
    image.save(file, format="WEBP", quality=88)
    return file.getvalue(), "image/webp"
