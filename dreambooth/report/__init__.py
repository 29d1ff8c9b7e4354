"""The report of a run: `report.html`, one file with its images, scores, settings and costs, to open anywhere.

`content` reads the run folder, with `records` for its logs and `samples` for its grids; `words`, `tables` and `curves`
say what is to be read in them; `plots` draws; `page` lays out `template.html`.
"""

import logging
from pathlib import Path

from dreambooth.disk import check_writable, translate_write_errors
from dreambooth.errors import DreamBoothError, UserError, escaped

logger = logging.getLogger(__name__)


def build(run_folder: Path, out: Path | None = None) -> Path:
    """Write <run_folder>/report.html, or the file `out`, as a whole or not at all, and return its path.

    What the run does not have (scores, photos, a model) is said in its place. Raises UserError where the file cannot be
    written, for a folder that is no run, and for logs that cannot be read.
    """
    path = out or run_folder / "report.html"
    if path.is_dir():
        raise UserError(f"--out {escaped(path)}: is a folder; name a file, e.g. {escaped(path / 'report.html')}")
    check_writable(path.parent, "--out")
    from dreambooth.files import write_text
    from dreambooth.home_folder import hide_home
    from dreambooth.report import content, page

    text = hide_home(page.render(content.read(run_folder)))
    with translate_write_errors(path.parent, "--out"):
        write_text(path, text)
    return path


def build_or_warn(run_folder: Path) -> None:
    """Write report.html beside the model of a run that is done, so that an error is only a warning."""
    try:
        build(run_folder)
    except DreamBoothError as error:
        logger.warning(f"no report: {error}")
