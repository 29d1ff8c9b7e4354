"""The result: a line per image (scores.csv), and one table as Markdown, CSV and JSON, the paper's rows below ours."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.evaluation import paper
from dreambooth.evaluation.protocol import CLASS_PROMPT, SamplingSpec, Task
from dreambooth.evaluation.rows import ALL, OURS, PAPER, Row
from dreambooth.evaluation.scoring import MEASURES, Scored
from dreambooth.evaluation.verdicts import ModelVerdict
from dreambooth.files import write_text
from dreambooth.metrics.estimates import Estimate
from dreambooth.metrics.log_names import find_metric, is_read

TITLES = {
    "dino": "DINO ↑",
    "clip_i": "CLIP-I ↑",
    "clip_t": "CLIP-T ↑",
    "div": "DIV ↑",
    "pres": "PRES ↓",
    "class_div": "class DIV ↑",
    "drift": "drift ↓",
}
MEANINGS = {
    "dino": "mean cosine of an image to the subject's photos; real images: among the photos",
    "clip_i": "the same by CLIP",
    "clip_t": "cosine of an image to its prompt without the identifier",
    "div": "mean distance among the images of one prompt with the subject",
    "pres": "mean cosine of an image of the class prompt to the subject's photos: what has leaked into the class",
    "class_div": "mean distance among the images of the class prompt: whether the class has collapsed",
    "drift": "1 - cosine of an image of the class prompt to the base's of the same seed",
}


@dataclass(frozen=True)
class Report:
    """Hold the table's rows, and all that a reader must know beside them.

    plain_bases: the models that have learned no subject. base: drift is measured from it. verdicts: in plain words.
    """

    rows: list[Row]
    tasks: Sequence[Task]
    sampling: SamplingSpec
    measured_by: dict[str, str]
    plain_bases: Sequence[str]
    base: str | None
    verdicts: Sequence[ModelVerdict] = ()

    @property
    def measures(self) -> list[str]:
        """Return the measures that were taken; the paper's others are left out."""
        return [name for name in self.columns if any(name in row.estimates for row in self.rows if row.source == OURS)]

    @property
    def columns(self) -> list[str]:
        """Return the measures of the CSV files: the usual ones and, where models read the images, theirs."""
        return [*MEASURES, *filter(is_read, self.measured_by)]


def title_of(measure: str) -> str:
    """Return a measure's title with an arrow towards the better end."""
    metric = find_metric(f"eval/{measure}")
    return TITLES.get(measure, f"{metric.title} {metric.better}")


def meaning_of(measure: str) -> str:
    return MEANINGS.get(measure, find_metric(f"eval/{measure}").meaning)


def markdown(report: Report) -> str:
    """Return the table, the paper's rows below a dividing line, how it was made, and a table by subject."""
    whole = ALL if len(report.tasks) > 1 else report.tasks[0].subject.name
    ours = [row for row in report.rows if row.source == OURS and row.subject == whole]
    papers = [row for row in report.rows if row.source == PAPER and set(row.estimates) & set(report.measures)]
    lines = ["# Evaluation", "", _about(report), "", *_head("model", report.measures)]
    lines += [_line(row.model, row, report.measures) for row in ours]
    lines.append(f"| **{paper.MARK}** |" + " |" * len(report.measures))
    lines += [_line(f"*paper:* {row.model}", row, report.measures) for row in papers]
    lines += ["", f"Paper: {paper.SOURCE}. {paper.DATA}.", "", *_legend(report), "", *_verdict_lines(report)]
    if len(report.tasks) > 1:
        each = [row for row in report.rows if row.source == OURS and row.subject != ALL]
        lines += ["", "## By subject", "", *_head("subject: model", report.measures)]
        lines += [_line(f"{row.subject}: {row.model}", row, report.measures) for row in each]
    return "\n".join(lines) + "\n"


def _about(report: Report) -> str:
    sampling, settings, num = report.sampling, report.sampling.settings, len(report.tasks)
    subjects = ", ".join(f"{task.subject.name} ({task.class_noun})" for task in report.tasks)
    counts = sorted({len(task.prompts) for task in report.tasks})
    of_class = f", and {sampling.num_class_images} of '{CLASS_PROMPT}'" if sampling.num_class_images else ""
    over = "prompts (PRES and drift: images)" if counts[-1] > 1 else "images"
    text = (
        f"{num} subject{'s' if num > 1 else ''}: {subjects}. {' or '.join(map(str, counts))} prompts a subject, "
        f"{sampling.num_images} images a prompt{of_class}. Sampled by {settings.scheduler}, "
        f"{settings.num_inference_steps} steps, guidance {settings.guidance_scale:g}, "
        f"{sampling.size[1]}x{sampling.size[0]} pixels, seed {sampling.seed}. "
        f"± or (from to): the 95 % interval over {'subjects' if num > 1 else over}, within the score's range."
    )
    bases = ", ".join(report.plain_bases)
    return text + (f" Without an identifier, as it has learned no subject: {bases}." if bases else "")


def _verdict_lines(report: Report) -> list[str]:
    if not report.verdicts:
        missing = [] if report.base is not None else ["name the untouched base as --base and among the models"]
        missing += [] if report.sampling.num_class_images else ["ask for --class-prompt-images"]
        return [f"No verdict: {' and '.join(missing) or 'name the untouched base among the models, too'}."]
    return [f"- **{one.model}**, {one.subject}: {one.verdict}." for one in report.verdicts]


def _legend(report: Report) -> list[str]:
    lines = ["| measure | by | what it is |", "|---|---|---|"]
    for measure in report.measures:
        meaning = meaning_of(measure) + (f" (base: {report.base})" if measure == "drift" else "")
        lines.append(f"| {_cell(title_of(measure))} | {_cell(_encoder(report, measure))} | {_cell(meaning)} |")
    return lines


def _encoder(report: Report, measure: str) -> str:
    if measure == "class_div":
        return f"cosine distance, {report.measured_by['pres']}"
    return report.measured_by[measure]


def _head(first: str, measures: Sequence[str]) -> list[str]:
    titles = [_cell(title_of(name)) for name in measures]
    return [f"| {first} | " + " | ".join(titles) + " |", "|---" * (len(measures) + 1) + "|"]


def _line(name: str, row: Row, measures: Sequence[str]) -> str:
    cells = [str(row.estimates[measure]) if measure in row.estimates else "" for measure in measures]
    cells = [cell.replace("-0.000", "0.000") for cell in cells]  # a cosine's rounding: the base's drift from itself
    return f"| {_cell(name)} | " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table_csv(report: Report) -> str:
    """Return the rows as CSV: of each measure mean, low and high end of the 95 % interval, and number of samples."""
    parts = ("", "_low", "_high", "_num")
    head = ["source", "model", "subject", *(f"{name}{part}" for name in report.columns for part in parts)]
    lines = []
    for row in report.rows:
        cells: list[Any] = [row.source, row.model, row.subject]
        for name in report.columns:
            cells += _numbers(row.estimates[name]) if name in row.estimates else [""] * len(parts)
        lines.append(cells)
    return _csv(head, lines)


def _numbers(found: Estimate) -> list[Any]:
    return [found.mean, *("" if math.isnan(end) else end for end in (found.low, found.high)), found.num or ""]


def table_json(report: Report) -> str:
    """Return the table as JSON, with how it was sampled, what measured it, and the source of the paper's rows."""
    settings = report.sampling.settings
    content = {
        "measured_by": {name: _encoder(report, name) for name in report.measures},
        "subjects": {
            task.subject.name: {"class_noun": task.class_noun, "prompts": list(task.prompts)} for task in report.tasks
        },
        "num_images": report.sampling.num_images,
        "num_class_images": report.sampling.num_class_images,
        "class_prompt": CLASS_PROMPT,
        "sampled": {**vars(settings), "width": report.sampling.size[1], "height": report.sampling.size[0]},
        "seed": report.sampling.seed,
        "plain_bases": list(report.plain_bases),
        "base": report.base,
        "paper": {"source": paper.SOURCE, "data": paper.DATA, "note": paper.MARK},
        "rows": [
            {"source": row.source, "model": row.model, "subject": row.subject, "scores": _score_dicts(row)}
            for row in report.rows
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _score_dicts(row: Row) -> dict[str, dict[str, float | None]]:
    keys = ("mean",) if row.source == PAPER else ("mean", "low", "high", "num")
    return {name: {key: _or_null(getattr(found, key)) for key in keys} for name, found in row.estimates.items()}


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def scores_csv(measures: Sequence[str], scored: Sequence[Scored], out: Path) -> str:
    """Return each image's scores as CSV; empty where a measure does not apply."""
    head = ["subject", "model", "prompt", "seed", *measures, "file"]
    return _csv(head, ([
        one.image.subject, one.image.row, one.image.prompt, one.image.seed,
        *(one.scores.get(name, "") for name in measures), one.image.path.relative_to(out).as_posix(),
    ] for one in scored))  # fmt: skip


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def write(report: Report, scored: Sequence[Scored], out: Path) -> list[Path]:
    """Write table.md, table.csv, table.json and scores.csv; returns where they are."""
    texts = {
        "table.md": markdown(report),
        "table.csv": table_csv(report),
        "table.json": table_json(report),
        "scores.csv": scores_csv(report.columns, scored, out),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]
