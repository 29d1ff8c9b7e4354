"""Masks that a model proposes for a subject's photos: which models there are, and what a `prepare` job has found."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth.studio.jobs import Job
from dreambooth.studio.pages.queue import JobLine, job_line
from dreambooth.studio.routes import subjects as subject_routes
from dreambooth.studio.state import Studio

# By the model type of a config.json: those of `readers.masks.FINDERS`, which would load torch.
KINDS = ("clipseg", "segformer", "sam", "sam2", "sam3")
HUB_MODELS = ("CIDAS/clipseg-rd64-refined",)
MASKS = "masks"  # in the folder of a job


@dataclass(frozen=True)
class Proposal:
    """Hold what is proposed. masks: images in the workspace, by the stem of their photos; none: nothing was found."""

    job: JobLine
    is_open: bool
    masks: Mapping[str, str]


def find_models(studio: Studio) -> list[str]:
    """Return the models that find a subject: folders of the workspace, then well-known ones of the hub."""
    return [*_local(studio), *HUB_MODELS]


def _local(studio: Studio) -> Iterator[str]:
    for folder in (studio.workspace.runs, studio.workspace.models):
        for config in sorted(folder.glob("*/config.json")):
            if _type_in(config) in KINDS:
                yield studio.workspace.relative(config.parent)


def _type_in(config: Path) -> str:
    try:
        return str(json.loads(config.read_bytes())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def proposal_for(studio: Studio, subject: str) -> Proposal | None:
    """Return what the newest search for a subject has come to; None where there was none, or it was decided on."""
    job = newest_search(studio, subject)
    if job is None:
        return None
    folder = studio.workspace.root / job.output / MASKS
    masks = {path.stem: studio.workspace.relative(path) for path in sorted(folder.glob("*.png"))}
    is_open = job.state in ("queued", "running")
    if not is_open and not masks and (folder.is_dir() or job.state in ("paused", "cancelled")):
        return None
    return Proposal(job_line(studio.board.view(job)), is_open, masks)


def newest_search(studio: Studio, subject: str) -> Job | None:
    """Return the newest job that looks for masks of a subject."""
    jobs = studio.store.find(kinds=("prepare",), limit=100)
    wanted = (job for job in jobs if job.request.get("subject") == subject and job.request.get("mask_model"))
    return next(wanted, None)


def accept(studio: Studio, subject: str) -> int:
    """Write the proposed masks of photos that have none; return how many.

    Raises ConflictError for photos that would share one, as `prepare` does.
    """
    proposal = proposal_for(studio, subject)
    masks = {} if proposal is None else proposal.masks
    without = [each["image"] for each in subject_routes.show(studio, subject)["photos"] if not each["has_mask"]]
    photos = [path for path in map(studio.workspace.root.joinpath, without) if {path.stem, path.name} & masks.keys()]
    for path in photos:
        subject_routes.check_own_mask(path)
    for path in photos:
        mask = masks[path.stem if path.stem in masks else path.name]
        subject_routes.store_mask(path, (studio.workspace.root / mask).read_bytes())
    decline(studio, subject)
    return len(photos)


def decline(studio: Studio, subject: str) -> None:
    """Remove the proposed masks; an empty folder in their place says that they were decided on."""
    job = newest_search(studio, subject)
    if job is not None:
        folder = studio.workspace.root / job.output / MASKS
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
