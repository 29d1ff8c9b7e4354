"""A sweep's results as table.csv, table.json and table.md, best.yaml, and the page report.html."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dreambooth.files import write_text
from dreambooth.home_folder import hide_home
from dreambooth.metrics.estimates import Estimate
from dreambooth.sweep import page
from dreambooth.sweep.results import (
    CellResult,
    Group,
    Results,
    best_config,
    best_overrides,
    differing_keys,
    page_path,
    quality_text,
    setting_texts,
    summary,
)

MEASURES = ("dino", "clip_i", "clip_t", "pres", "div", "drift")
HEAD = ("cell", "subject", "setting", "seed", "state", "step", "kept_step", "quality", "interval", *MEASURES)
TAIL = ("seconds", "memory_mib", "exit_code", "error")


def write(results: Results) -> list[Path]:
    """Write all files of a sweep's results into its folder, each as a whole; returns their paths."""
    folder = results.sweep.folder
    texts = {"table.csv": as_csv(results), "table.json": as_json(results), "table.md": as_markdown(results)}
    if (config := best_config(results)) is not None:
        texts["best.yaml"] = yaml.safe_dump(config, sort_keys=False)
    texts[page_path(results.sweep).name] = hide_home(page.render(results))
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def as_csv(results: Results) -> str:
    """Return a line for each cell, those of highest quality first; a column for each key that differs."""
    keys = differing_keys(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEAD, *keys, *TAIL])
    for each in results.cells:
        row = _row(each)
        own = [*(row[name] for name in HEAD), *setting_texts(each, keys), *(row[name] for name in TAIL)]
        writer.writerow(["" if value is None else value for value in own])
    return text.getvalue()


def as_json(results: Results) -> str:
    """Return cells, settings and subjects with their numbers, and the best setting."""
    content = {
        "sweep": results.sweep.options.name,
        "cells": [{**_row(each), "settings": each.cell.point.settings} for each in results.cells],
        "settings": [_group_dict(group) for group in results.by_setting],
        "subjects": [_group_dict(group) for group in results.by_subject],
        "best": None if results.best is None else {"setting": results.best.name, "overrides": best_overrides(results)},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def as_markdown(results: Results) -> str:
    """Return the tables by setting, by subject and of all cells, and what failed."""
    lines = [f"# {results.sweep.options.name}", "", summary(results), ""]
    lines += ["## By setting", "", "| setting | finished | quality |", "|---|---|---|"]
    lines += [_group_line(group, str(group.quality or "–")) for group in results.by_setting]
    if len(results.by_subject) > 1:
        lines += ["", "## By subject", "", "| subject | finished | mean quality | best setting | its quality |"]
        lines += ["|---|---|---|---|---|"]
        lines += [_group_line(group, str(group.quality or "–"), *_best_words(group)) for group in results.by_subject]
    measured = [name for name in MEASURES if any(name in each.scores for each in results.cells)]
    lines += ["", "## Cells", "", f"| cell | state | step | quality | {' | '.join([*measured, 'seconds'])} |"]
    lines += ["|---" * (5 + len(measured)) + "|"]
    lines += [_cell_line(each, measured) for each in results.cells]
    if results.failed:
        lines += ["", "## Failed", ""]
        lines += [
            f"- **{_escaped(each.cell.name)}** ({each.status.exit_code}): {each.status.error}"
            for each in results.failed
        ]
    return "\n".join(lines) + "\n"


def _row(each: CellResult) -> dict[str, Any]:
    status = each.status
    return {
        "cell": each.cell.name, "subject": each.cell.subject_name, "setting": each.setting, "seed": each.cell.seed,
        "state": status.state, "step": status.step, "kept_step": status.kept_step, "quality": status.quality,
        "interval": each.interval, **{name: each.scores.get(name) for name in MEASURES},
        "seconds": each.seconds, "memory_mib": each.memory_mib, "exit_code": status.exit_code, "error": status.error,
    }  # fmt: skip


def _group_dict(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "cells": len(group.cells),
        "finished": group.num_finished,
        "quality": None if group.quality is None else _numbers(group.quality),
        "best_cell": None if group.best is None else group.best.cell.name,
    }


def _numbers(found: Estimate) -> dict[str, float | None]:
    ends = {"low": found.low, "high": found.high}
    return {"mean": found.mean, **{name: None if math.isnan(end) else end for name, end in ends.items()}}


def _group_line(group: Group, *texts: str) -> str:
    words = [group.name, f"{group.num_finished} of {len(group.cells)}", *texts]
    return f"| {' | '.join(map(_escaped, words))} |"


def _best_words(group: Group) -> tuple[str, str]:
    return ("–", "–") if group.best is None else (group.best.setting, quality_text(group.best))


def _cell_line(each: CellResult, measured: Sequence[str]) -> str:
    scores = [f"{each.scores[name]:.3f}" if name in each.scores else "–" for name in measured]
    words = [
        each.cell.name,
        each.status.state,
        str(each.status.step),
        quality_text(each),
        *scores,
        f"{each.seconds:.0f}",
    ]
    return f"| {' | '.join(map(_escaped, words))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
