"""Several processes of one run: which of them this is, who speaks, and how they divide work among them.

Processes are started and counted by Lightning, torchrun or SLURM; here is only what has to be known before or beside
Lightning's trainer. The first process writes and speaks for all.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pytorch_lightning.utilities import rank_zero_only


def is_first() -> bool:
    """Whether this is the process that writes; known before there is a trainer."""
    return cast(Any, rank_zero_only).rank == 0


def local_rank() -> int:
    """This process's number on its machine, and so that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


@rank_zero_only
def tell(text: str) -> None:
    """Say something to the user, once for all processes."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Turns:
    """One of `world_size` processes that take the same steps. barrier: returns when all of them have come to it."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], Any] = lambda: None

    def places_of_all(self, places: Sequence[int]) -> list[int]:
        """The places in the run of all processes' samples in the batch of which `places` are this one's."""
        ahead = [(other - self.rank) * len(places) for other in range(self.world_size)]
        return [place + by for by in ahead for place in places]
