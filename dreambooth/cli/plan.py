"""`plan CONFIG.yaml [section.key=value ...]`: memory, disk and time of a run, and what takes less memory."""

import argparse
from typing import TYPE_CHECKING

from dreambooth.cli import loading_libraries
from dreambooth.cli.new import memory_bytes
from dreambooth.disk import GIB

if TYPE_CHECKING:
    from dreambooth.preflight.memory_plan import Need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="the run's settings")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="settings that go over the file's"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="what there is (default: what this device has)")


def run(args: argparse.Namespace) -> int:
    from dreambooth.proposal.automatic import load_run_config

    given = memory_bytes(args.memory)
    config = load_run_config(args.config, args.overrides)
    with loading_libraries():
        from dreambooth.preflight import memory_plan
        from dreambooth.preflight.costs import costs_of

    device, memory = memory_plan.device_memory(config)
    if given is not None:
        device, memory = "what there is", given
    planner = memory_plan.Planner(config)
    if planner.note is not None:
        print(f"model.base={config.model.base}: {planner.note}\n")
    costs = costs_of(planner, config)
    print(table(costs.memory))
    print(f"\ndisk: {costs.disk}\ntime: {costs.time}")
    print(f"\n{device}: {memory / GIB:.1f} GiB; leave a tenth of it, and 1 GiB for the libraries")
    for change, _, need in memory_plan.with_savings(planner, config):
        fits = memory_plan.is_enough(need.total, memory)
        print(f"  {need.total / GIB:6.2f} GiB  {'fits  ' if fits else 'too much'}  {change}")
    return 0


def table(need: "Need") -> str:
    from dreambooth.preflight.memory_plan import WORDS

    lines = [f"{getattr(need, name) / GIB:8.2f} GiB  {words}" for name, words in WORDS.items()]
    return "\n".join([*lines, f"{need.total / GIB:8.2f} GiB  at most together (of the last three the largest)"])
