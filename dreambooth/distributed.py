"""Several processes of one run: which of them this is, who speaks, and how they divide work among them.

Processes are started and counted by Lightning, torchrun or SLURM; here is only what has to be known before or beside
Lightning's trainer. The first process writes and speaks for all.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn


def is_first() -> bool:
    """Whether this is the process that writes; known before there is a trainer."""
    return cast(Any, rank_zero_only).rank == 0


def local_rank() -> int:
    """This process's number on its machine, and so that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def of_this_process() -> str:
    """For a message about what only this process can know: " of process 1", or nothing where a run has one alone."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return ""
    return f" of process {distributed.get_rank()}"


def end_with_first() -> None:
    """See that a process that Lightning has started ends when the first one does, however that dies.

    It may else wait for that one in the middle of a step, on a GPU for half an hour. Linux only.
    """
    is_started_here = "LOCAL_RANK" in os.environ and local_rank() > 0 and "TORCHELASTIC_RUN_ID" not in os.environ
    if is_started_here and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@rank_zero_only
def tell(text: str) -> None:
    """Say something to the user, once for all processes."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class WorkShare:
    """One of `world_size` processes that take the same steps. barrier: returns when all of them have come to it."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], Any] = lambda: None

    def global_indices(self, places: Sequence[int]) -> list[int]:
        """The places in the run of all processes' samples in the batch of which `places` are this one's."""
        ahead = [(other - self.rank) * len(places) for other in range(self.world_size)]
        return [place + by for by in ahead for place in places]


# -------------------------------------------------------------------------------- divided weights


def shard(network: nn.Module, mesh: Any) -> None:
    """Divide every weight among the processes of a mesh; a block's are put together while it computes.

    Fully sharded data parallelism, torch's second version (Zhao et al. 2023, arXiv 2304.11277): gradients and an
    optimizer's moments are divided with the weights.
    """
    from torch.distributed.fsdp import fully_shard

    cast(Any, network).to(memory_format=torch.contiguous_format)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The layers that a network has several of."""
    for child in network.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """A divided tensor put together, for which all processes must ask; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
