"""Plan what a training takes with each of the studio's presets, as `new` and `plan` do.

`python -m dreambooth.cli.studio_plan`, which the studio alone calls, reads a `PlanRequest` as JSON and prints plans.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import DreamBoothError
from dreambooth.studio.plan import PRESETS, USUAL, Plan, PlanRequest

if TYPE_CHECKING:
    from dreambooth.config import Config

STEPS = "train.max_steps"


def plan_presets(request: PlanRequest) -> dict[str, Plan]:
    """Return what each preset comes to. Raises UserError for photos that cannot be used."""
    from dreambooth.data.image_folder import open_folder
    from dreambooth.data.near_duplicates import inspect_image
    from dreambooth.preflight.new_config import complete
    from dreambooth.proposal.draft import Request, first_draft, parsed

    asked = Request(Path(request.photos), request.class_noun, request.base, "sks", Path("config.yaml"))
    photos = open_folder(asked.photos)
    draft = first_draft(asked, photos, [inspect_image(path) for path in photos.images])
    config, warnings, costs = complete(draft, asked)
    steps = {each.name: max(1, round(config.train.max_steps * each.factor)) for each in PRESETS}
    if costs is None:
        return {name: Plan(number, problem=warnings[-1]) for name, number in steps.items()}
    return _planned({name: parsed({**draft, STEPS: (number, "")}, asked.out) for name, number in steps.items()})


def _planned(configs: "Mapping[str, Config]") -> dict[str, Plan]:
    """Return what configs come to that differ in their number of steps alone: one model is built for all."""
    from dreambooth.disk import size_in_words
    from dreambooth.preflight.costs import costs_of
    from dreambooth.preflight.memory_plan import Planner, device_memory, is_enough

    planner = Planner(configs[USUAL])
    memory = device_memory(configs[USUAL])[1]
    plans = {}
    for name, config in configs.items():
        costs = costs_of(planner, config)
        need, disk = costs.memory.total, sum(costs.disk.largest.values())
        time = costs.time.partition(" (")[0]
        plans[name] = Plan(
            config.train.max_steps, size_in_words(need), is_enough(need, memory), time, size_in_words(disk)
        )
    return plans


def main() -> None:
    """Print what the request on stdin comes to; a text in its place is what is wrong with it."""
    try:
        plans = plan_presets(PlanRequest(**json.load(sys.stdin)))
        answer: object = {name: asdict(plan) for name, plan in plans.items()}
    except DreamBoothError as error:
        answer = str(error)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
