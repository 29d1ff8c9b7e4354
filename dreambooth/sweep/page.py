"""A sweep's results as one HTML file in the look of a run's report: images side by side, nothing fetched, no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL.Image import Image

from dreambooth.data.image_files import load_image
from dreambooth.data.image_folder import list_images
from dreambooth.errors import UserError
from dreambooth.hints import command_line
from dreambooth.prompts import expand
from dreambooth.report import page as run_page
from dreambooth.report import words
from dreambooth.report.samples import Samples
from dreambooth.sweep.folder import trained_config
from dreambooth.sweep.results import CellResult, Results, best_overrides, quality_text, summary
from dreambooth.sweep.trained import config_of_run

FOLDER = Path(__file__).parent
MAX_IMAGES = 600  # cells that are shown with an image; each takes some 20 KB
IMAGE_SIDE = 256  # pixels


@dataclass(frozen=True)
class Shown:
    """Hold a cell with its image: of the first prompt with the subject, at the kept step, always of the same seed."""

    result: CellResult
    image: Image | None
    prompt: str


@dataclass(frozen=True)
class Row:
    """Hold a subject's cells by quality: those that have an image, and the others. photo: of the subject itself."""

    photo: Image | None
    drawn: Sequence[Shown]
    others: Sequence[CellResult]


def render(results: Results) -> str:
    """Return the page as HTML; the same results give the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([FOLDER, run_page.FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fitted": run_page.fitted, "data_uri": run_page.data_uri, "duration": words.duration}
    environment.filters |= {"quality": quality_text}
    shown = [shown_cell(results, each) for each in results.cells[:MAX_IMAGES]]
    overrides = best_overrides(results)
    command = command_line("train", str(trained_config(results.sweep)), *overrides) if results.best is not None else ""
    return environment.get_template("sweep.html").render(
        sweep=results,
        name=results.sweep.options.name,
        summary=summary(results),
        rows=_by_subject(results, shown),
        num_left_out=len(results.cells) - len(shown),
        command=command,
        most=IMAGE_SIDE,
        small=run_page.SMALL,
    )


def _by_subject(results: Results, shown: Sequence[Shown]) -> dict[str, Row]:
    """Return the cells of each subject, in the order of their quality."""
    rows = {}
    for name in sorted({each.result.cell.subject_name for each in shown}):
        own = [each for each in shown if each.result.cell.subject_name == name]
        others = [each.result for each in own if each.image is None]
        rows[name] = Row(_photo(results, own[0].result), [each for each in own if each.image is not None], others)
    return rows


def _photo(results: Results, result: CellResult) -> Image | None:
    """Return the first photo of a cell's subject; None where the photos cannot be read any more."""
    try:
        config = results.sweep.config_of(result.cell, trained_config(results.sweep))
        return load_image(list_images(config.subjects[0].images)[0])
    except UserError:
        return None


def shown_cell(results: Results, result: CellResult) -> Shown:
    """Return a cell with its image; without one where it has no grid yet, or its files cannot be read."""
    folder = result.status.folder
    if not (folder / "samples").is_dir():
        return Shown(result, None, "")
    try:
        config = config_of_run(results.sweep, result.cell)
        prompts = expand(config.validate.prompts, config.subjects)
        samples = Samples(folder / "samples", len(prompts), config.validate.num_images, config.data.resolution)
        number = next((number for number, prompt in enumerate(prompts) if prompt.kind == "subject"), None)
        steps = samples.steps()
        if number is None or not steps:
            return Shown(result, None, "")
        step = result.status.kept_step if result.status.kept_step in steps else steps[-1]
        return Shown(result, samples.rows(step)[number][0], prompts[number].filled)
    except UserError:
        return Shown(result, None, "")
