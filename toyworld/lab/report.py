"""Rewrite the laboratory's section of benchmarks/RESULTS.md from the results; the rest of the file stays."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

from dreambooth.files import write_text
from toyworld.lab import plots
from toyworld.lab.experiments import EXPERIMENTS, SUBJECTS, Base
from toyworld.lab.plan import Workspace
from toyworld.lab.store import Result, Store
from toyworld.lab.tables import VariantResults, collect, experiment_text

START, END = "<!-- laboratory -->", "<!-- end of laboratory -->"


def _on(base: Base) -> str:
    """Return the names of the experiments on a base."""
    return " and ".join(f"`{name}`" for name, experiment in EXPERIMENTS.items() if experiment.base == base)


HOW = f"""\
DreamBooth on the embedded bases: {_on("flow")} on the flow base, {_on("first")} on the first edition's,
`checkpoints/toyworld`, all others on the second edition's, `checkpoints/toyworld-second`, which is the demo's. Nothing
here was measured on a large model.

- **Trials.** A trial is a variant of the settings, a subject and a seed. The subjects are
  {", ".join(str(subject) for subject in SUBJECTS)} of the toy world, in pairs of colours that the base never saw on
  them; six trials are the first three with seeds 0 and 1. In the second edition they also have heads, eyes and clothes.
  The settings of `configs/toyworld.yaml` were first chosen on the first edition's robot.
- **Images.** 24 of "a photo of {{subject}} ..." over four places that no photo shows, 24 of "a photo of a {{class}}";
  20 DDIM steps, guidance 4, the same noise in every variant.
- **Measures.** DINO, PRES, DIV and drift are cosines of the shipped ViT of the edition, CLIP-I and CLIP-T of its CLIP
  (`checkpoints/toyworld-second-encoders`, `checkpoints/toyworld-encoders`). They are not on the paper's scale: compare
  directions, not values. A *way* is
  the position between renderings of other objects of the class (0) and unseen renderings of the subject (1), both
  against its five photos; the base's own class images may already be above 0, so PRES is also measured from those.
  Places, colours and the judge's similarities come from a network that was trained on the renderer's truth.
- **Metrics.** The mean over trials ± half of its 95 % interval over subjects (Student's t; it holds the differences
  between subjects), then the smallest – the largest trial. Variants are compared on the same subject and seed.
  Seconds are CPU seconds of one thread."""


def refresh(
    workspace: Workspace, store: Store, results_file: Path, shown: Sequence[str] = tuple(EXPERIMENTS)
) -> list[Path]:
    """Write the section, and a plot for each experiment beside the results. Returns the files written."""
    collected = {name: collect(name, workspace, store) for name in shown}
    measured = {name: rows for name, rows in collected.items() if any(row.results for row in rows)}
    if not measured:
        return []
    written = [results_file]
    for name, rows in measured.items():
        written.append(store.path.parent / f"{name}.png")
        plots.plot(EXPERIMENTS[name], rows, written[-1])
    write_section(results_file, section(measured, store.path))
    return written


def section(measured: dict[str, list[VariantResults]], results: Path) -> str:
    """Return everything between the marks."""
    parts = ["## The laboratory", HOW, _provenance(measured, results)]
    for name, rows in measured.items():
        parts += [experiment_text(name, rows), f"![{EXPERIMENTS[name].title}](lab/{name}.png)"]
    return "\n\n".join(parts)


def _provenance(measured: dict[str, list[VariantResults]], results: Path) -> str:
    used: list[Result] = [result for rows in measured.values() for row in rows for result in row.results.values()]
    dates = sorted({result.date for result in used})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    cores = " and ".join(str(number) for number in sorted({result.cores for result in used}))
    torch = " and ".join(sorted({result.torch for result in used}))
    return (
        f"Measured {when} on {cores} CPU cores ({platform.machine()}), torch {torch}, by\n"
        f"`python -m dreambooth lab all`, which resumes where it was stopped; every trial is a line of\n"
        f"[`{results.name}`](lab/{results.name})."
    )


def write_section(path: Path, text: str) -> None:
    """Put `text` between the marks, at the end of the file where it has none yet."""
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    marked = f"{START}\n{text}\n{END}"
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    new = pattern.sub(lambda _: marked, old) if pattern.search(old) else f"{old.rstrip()}\n\n{marked}\n"
    write_text(path, new)
