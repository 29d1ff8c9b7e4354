"""Models: what there is to begin a training from, or to make images with."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from dreambooth.errors import DreamBoothError
from dreambooth.generation.models.location import kind_of_file, model_folder
from dreambooth.proposal.facts import base_facts
from dreambooth.studio import pictures
from dreambooth.studio.jobs import STATES
from dreambooth.studio.state import StudioOf
from dreambooth.studio.workspace import Workspace, is_name
from dreambooth.subject_info import SubjectInfo, find_card
from dreambooth.version import __version__

router = APIRouter()
HUB_BASES = (  # one of each family that `new` has settings for
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "Tongyi-MAI/Z-Image",
    "black-forest-labs/FLUX.2-klein-base-4B",
    "Qwen/Qwen-Image",
    "krea/Krea-2-Raw",
    "black-forest-labs/FLUX.1-dev",
    "stabilityai/stable-diffusion-3.5-medium",
)


@router.get("/models", tags=["models"], summary="List models")
def models(studio: StudioOf) -> dict[str, list[dict[str, Any]]]:
    """Return runs with a result, pipelines and files in checkpoints/ and models/, and bases that the hub has."""
    hub = [{"model": name, "kind": "hub", "resolution": base_facts(name).resolution} for name in HUB_BASES]
    return {"models": list(_local(studio.workspace)), "hub": hub}


@router.get("/status", tags=["status"], summary="Look at the studio itself")
async def status(studio: StudioOf) -> dict[str, Any]:
    """Return version, devices, numbers of jobs by state, and what is free on the disk."""
    if not studio.board.is_fresh:
        await run_in_threadpool(studio.board.views)
    counts = Counter(studio.board.states.values())
    disk = shutil.disk_usage(studio.workspace.root)
    return {
        "version": __version__,
        "workspace": studio.workspace.root.name,
        "devices": studio.worker.devices,
        "jobs": {state: counts[state] for state in STATES},
        "disk_free": disk.free,
        "disk_total": disk.total,
    }


def _local(workspace: Workspace) -> Iterator[dict[str, Any]]:
    for folder in (workspace.runs, workspace.models):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_name(path.name) and (found := _about(path)) is not None:
                yield {"model": workspace.relative(path), **found}


def _about(path: Path) -> dict[str, Any] | None:
    """Return what a file or folder is; None for one that is no model."""
    try:
        if path.is_file():
            kind = kind_of_file(path)
            return None if kind is None else {"kind": kind, "bytes": path.stat().st_size, **_card(find_card(path))}
        if (path / "model_index.json").is_file() and not (path / "config.yaml").is_file():
            return {"kind": "pipeline", "bytes": pictures.num_bytes(path), **_pipeline(path)}
        if (card := find_card(model_folder(str(path)))) is not None:
            return {"kind": "run", "bytes": pictures.num_bytes(path), **_card(card)}
    except DreamBoothError:  # it is not finished, or damaged; its run says so
        return None
    return None


def _card(card: SubjectInfo | None) -> dict[str, Any]:
    if card is None:
        return {"subjects": []}
    subjects = [f"{each.identifier} {each.class_noun}" for each in card.subjects]
    about = {"resolution": card.resolution, "step": card.step, "method": card.method, "base": card.base}
    return {**about, "subjects": subjects, "scores": card.scores}


def _pipeline(path: Path) -> dict[str, Any]:
    """Return what is known of a pipeline's folder; its card, where it is a result, goes over the rest."""
    return {"resolution": base_facts(str(path)).resolution, **_card(find_card(path))}
