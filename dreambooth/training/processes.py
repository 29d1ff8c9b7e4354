"""A run's processes for Lightning: this one's rank, and the address where they connect. Nothing is guessed."""

import os
import signal

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only

from dreambooth.distributed import Process


class OwnProcesses(LightningEnvironment):
    """Describe one process alone, or several on this machine of which the first starts the others."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    @property
    def creates_processes_externally(self) -> bool:
        return self._process.rank > 0

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Return the port where the processes connect: a free one, which the first passes on to the others."""
        if self._main_port == -1:
            is_started = self._process.rank > 0
            self._main_port = int(os.environ["MASTER_PORT"]) if is_started else find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        return self._process.local_rank

    def node_rank(self) -> int:
        return 0


class SlurmStep(SLURMEnvironment):
    """Describe the processes that one srun has started; `find_process` has compared their number with the config."""

    def __init__(self) -> None:
        ClusterEnvironment.__init__(self)  # SLURM's own would judge by the allocation, and hint at srun
        self.auto_requeue = False
        self.requeue_signal = getattr(signal, "SIGUSR1", None)  # Lightning asks for one, and then does not use it

    def world_size(self) -> int:
        return int(os.environ["SLURM_STEP_NUM_TASKS"])

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass


def cluster_environment(process: Process) -> ClusterEnvironment:
    """Return what Lightning's trainer asks for ranks, address and port."""
    rank_zero_only.rank = process.rank  # type: ignore[attr-defined]  # Lightning has guessed it when it was imported
    if process.launcher == "torchrun":
        return TorchElasticEnvironment()
    return SlurmStep() if process.launcher == "slurm" else OwnProcesses(process)
