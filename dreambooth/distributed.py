"""Several processes of one run: which of them this is, and how they divide work among them.

The config decides how many processes belong together (train.devices x train.num_nodes) and one launcher which is which:
this program, torchrun or SLURM. `join_run` decides it once; ranks that a cluster job or a sweep has put into the
environment of a run of one process are ignored. The first process writes and reports for all.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dreambooth.errors import UserError

LAUNCHER = "DREAMBOOTH_LAUNCHER"  # set for processes that the run itself starts, to the first one's process id


@dataclass(frozen=True)
class Process:
    """Hold the ranks of one process of a run. local_rank: its number on its machine, and so of its GPU."""

    rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    world_size: int = 1
    launcher: Literal["run", "torchrun", "slurm"] = "run"


_this = Process()


def this_process() -> Process:
    """Return which process of the run this is; the only one, before a run has been joined."""
    return _this


def is_first() -> bool:
    """Return whether this is the process that writes and reports."""
    return _this.rank == 0


def join_run(devices: int, num_nodes: int) -> Process:
    """Decide which process of a run of `devices` processes on each of `num_nodes` machines this is.

    From then on the library reports in the first process alone. Raises UserError where a launcher has started another
    number of processes, or several machines have none.
    """
    global _this
    _this = find_process(devices, num_nodes, os.environ)
    if _this.rank > 0:
        logging.getLogger("dreambooth").setLevel(logging.CRITICAL)
    if _this.launcher == "run" and _this.world_size > 1:
        if _this.rank == 0:
            os.environ[LAUNCHER] = str(os.getpid())
        else:
            _end_with_first()
    return _this


def find_process(devices: int, num_nodes: int, environment: Mapping[str, str]) -> Process:
    """Return which process of a run this is, by the variables of its launcher. Raises UserError as `join_run` does."""
    world_size = devices * num_nodes
    if world_size == 1:
        return Process()
    if environment.get(LAUNCHER) == str(os.getppid()):
        rank = int(environment.get("LOCAL_RANK", "0"))
        return Process(rank, rank, 0, world_size)
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher: Literal["torchrun", "slurm"] = "torchrun"
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":  # an allocation (SLURM_NTASKS) has started nothing yet
        launcher = "slurm"
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS")
    elif num_nodes == 1:
        return Process(world_size=world_size)
    else:
        raise UserError(
            f"train.num_nodes={num_nodes}: several machines need a launcher; start one process a device on each by "
            "torchrun or srun, or set train.num_nodes=1"
        )
    rank, local_rank, node_rank, started = (int(environment[name]) for name in names)
    if started != world_size or local_rank >= devices:
        raise UserError(
            f"train.devices={devices}, train.num_nodes={num_nodes}: {devices} x {num_nodes} processes are requested, "
            f"but {launcher} started {started}, number {local_rank} of them on this machine; make both the same"
        )
    return Process(rank, local_rank, node_rank, started, launcher)


def num_started(environment: Mapping[str, str]) -> int:
    """Return how many processes the launcher of this one has started; 1 without a launcher."""
    return max(int(environment.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def of_this_process() -> str:
    """Return " of process 1" for messages on what only this process can know; "" where a run has one process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return ""
    return f" of process {distributed.get_rank()}"


def _end_with_first() -> None:
    """Let this process, which the first one has started, end when that one dies.

    Else it may wait for it in the middle of a step, on a GPU for half an hour. Linux only.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class WorkShare:
    """Hold this process's part of the work of `world_size` processes. barrier: waits until all of them call it."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], Any] = lambda: None

    def global_indices(self, sample_indices: Sequence[int]) -> list[int]:
        """Return the sample indices of all processes for a batch in which this one has `sample_indices`."""
        offsets = [(other - self.rank) * len(sample_indices) for other in range(self.world_size)]
        return [index + offset for offset in offsets for index in sample_indices]


# -------------------------------------------------------------------------------- sharded weights


def shard(network: nn.Module, mesh: Any) -> None:
    """Shard every weight over the processes of a mesh; a block's weights are gathered while it computes.

    Fully sharded data parallelism, torch's second version (Zhao et al. 2023, arXiv 2304.11277): gradients and an
    optimizer's moments are sharded with the weights.
    """
    from torch.distributed.fsdp import fully_shard

    cast(Any, network).to(memory_format=torch.contiguous_format)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: the entries of its module lists."""
    for child in network.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered whole, for which all processes must call this; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
