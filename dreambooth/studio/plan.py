"""Plan what a training takes with each preset, in a process of its own: the server loads no library.

The process is `python -m dreambooth.cli.studio_plan`, which knows what the commands `new` and `plan` know.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from dreambooth.errors import DreamBoothError
from dreambooth.studio.processes import PACKAGE

TIMEOUT_S = 300.0
PLANNER = (sys.executable, "-m", "dreambooth.cli.studio_plan")


@dataclass(frozen=True)
class Preset:
    """Hold a choice of how thoroughly to train. factor: of the usual number of steps."""

    name: str
    title: str
    text: str
    factor: float


PRESETS = (
    Preset("quick", "Quick look", "Half the usual steps: enough to see whether the photos are good.", 0.5),
    Preset("balanced", "Balanced", "The usual number of steps for so many photos. Take this one.", 1.0),
    Preset("thorough", "Thorough", "Twice the steps, for a likeness that comes late. The best step is kept.", 2.0),
)
USUAL = "balanced"


@dataclass(frozen=True)
class PlanRequest:
    """Hold a training to plan: a folder of photos and a base, as commands name them."""

    photos: str
    class_noun: str
    base: str


@dataclass(frozen=True)
class Plan:
    """Hold what a preset comes to. memory, disk: in words; fits: into the memory of this machine; time: in words."""

    max_steps: int
    memory: str = ""
    fits: bool | None = None
    time: str = ""
    disk: str = ""
    problem: str = ""


def plan_in_process(request: PlanRequest, workspace: Path) -> dict[str, Plan]:
    """Return `plan_presets` of a process in the workspace's folder. Raises DreamBoothError with what it reports."""
    paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        PLANNER,
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        input=json.dumps(asdict(request)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise DreamBoothError(f"the plan could not be made: {done.stderr.strip()[-300:]}") from None
    if isinstance(answer, str):
        raise DreamBoothError(answer)
    return {name: Plan(**plan) for name, plan in answer.items()}
