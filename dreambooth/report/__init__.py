"""The report of a run: `report.html`, one file with its pictures, scores, settings and costs, to open anywhere.

`content` reads the run folder, with `records` for its logs and `samples` for its grids; `words`, `tables` and `curves`
say what is to be read in them; `plots` draws; `page` lays out `template.html`.
"""

from pathlib import Path


def build(run_folder: Path) -> Path:
    """Write <run_folder>/report.html, as a whole or not at all, and return its path.

    What the run does not have (scores, photos, a model) is said in its place. Raises UserError for a folder that is no
    run, and for logs that cannot be read.
    """
    from dreambooth.files import hide_home, write_text
    from dreambooth.report import content, page

    path = run_folder / "report.html"
    write_text(path, hide_home(page.render(content.read(run_folder))))
    return path
