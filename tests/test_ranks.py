"""Several processes of one run: they take the steps that one would, share the work, write once, and end together.

Real processes on gloo, started by Lightning, by torchrun, and, as a cluster's launcher does, each by itself.
"""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from crashes import spoil_class_picture
from safetensors.torch import load_file
from test_interruptions import assert_equal_runs
from test_training import assert_same_but_for_rounding
from tiny_flow import make_tiny_qwen_image_base
from torch import Tensor
from warm import Warm

from dreambooth.checkpointing import find_state
from dreambooth.config import Config, load_config
from dreambooth.distributed import LAUNCHER, Process, WorkShare, find_process
from dreambooth.engine import train
from dreambooth.errors import UserError
from dreambooth.generation.class_prior import GeneratedPrior
from dreambooth.run.folder import RunFolder
from dreambooth.run.lock import RunLock

ROOT = Path(__file__).parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SETTINGS = (
    "train.max_steps=6",
    "train.accumulate=2",
    "prior.num_images=14",
    "validate.every_steps=3",
    "data.buckets=true",  # the processes then also differ in which shapes their batches hold
    "data.bucket_step=16",
)
TWO = (*SETTINGS, "train.devices=2", "train.batch_size=1")


def arguments(config_file: Path, name: str, *more: str) -> list[str]:
    return [str(config_file), f"run.name={name}", *TWO, *more]


def command(config_file: Path, name: str, starter: Sequence[str] = (sys.executable,)) -> list[str]:
    return [*starter, str(ROOT / "train.py"), *arguments(config_file, name)]


def run_of(config_file: Path, name: str) -> RunFolder:
    return RunFolder(load_config(config_file, [f"run.name={name}"]))


def start_pair(warm: Warm, config_file: Path, name: str, *more: str) -> tuple[list[int], list[Path]]:
    """Start both processes of a run; their ids and logs."""
    logs = [config_file.with_name(f"{name}-{rank}.log") for rank in range(2)]
    return warm.start_pair(["train", *arguments(config_file, name, *more)], logs), logs


def finish(warm: Warm, config_file: Path, name: str, *more: str) -> str:
    """Run both processes to their end; what they said."""
    pids, logs = start_pair(warm, config_file, name, *more)
    codes, said = [warm.wait(pid) for pid in pids], "".join(log.read_text() for log in logs)
    assert codes == [0, 0], said
    return said


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    from conftest import CONFIG

    folder = tmp_path_factory.mktemp("ranks")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", base=tiny_base, pictures=pictures))
    return path


@pytest.fixture(scope="module")
def pair(config_file: Path, warm: Warm) -> RunFolder:
    """A run of two processes, left in peace."""
    said = finish(warm, config_file, "pair")
    assert said.count(f"training {run_of(config_file, 'pair').path}") == 1, "both processes speak"
    return run_of(config_file, "pair")


def figures(run: RunFolder) -> list[dict[str, str]]:
    with open(run.metrics, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_processes_take_the_steps_of_one(pair: RunFolder, config_file: Path) -> None:
    """The same samples, noise and timesteps: equal losses, weights, class pictures and validations but for rounding."""
    assert train(load_config(config_file, ["run.name=alone", *SETTINGS, "train.batch_size=2"])) == 0
    alone = run_of(config_file, "alone")
    assert_equal_but_for_rounding(alone, pair)
    blocks = [{path.name: path.read_bytes() for path in run.prior.glob("*/*.safetensors")} for run in (alone, pair)]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) == 7


LOHA = ("method.name=loha", "method.dropout=0.5")
QWEN = ("method.name=lora", "method.train_text_encoder=false", "prior.source=none", "data.buckets=false")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LOHA, QWEN], ids=["dropped modules", "the last text of Qwen-Image"])
def test_two_processes_train_where_some_weights_get_no_gradient(
    config_file: Path, warm: Warm, tmp_path: Path, settings: Sequence[str]
) -> None:
    base = [f"model.base={make_tiny_qwen_image_base(tmp_path)}"] if settings is QWEN else []
    finish(warm, config_file, f"idle-{settings[0][-4:]}", *base, *settings, "validate.every_steps=0")


@pytest.mark.slow
def test_parts_of_a_batch_in_turn_are_averaged_over_processes_too(config_file: Path, warm: Warm) -> None:
    short = ("train.max_steps=3", "validate.every_steps=0")
    finish(warm, config_file, "parts", *short, "train.micro_batch_size=1")
    assert train(load_config(config_file, ["run.name=whole", *SETTINGS, *short, "train.batch_size=2"])) == 0
    assert_equal_but_for_rounding(run_of(config_file, "whole"), run_of(config_file, "parts"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_that_see_as_many_samples(config_file: Path, warm: Warm) -> None:
    quick = ("optim.schedule=constant", "optim.warmup_steps=0", "validate.every_steps=0")
    one, short, longer = (*SETTINGS, *quick, "train.batch_size=2"), "train.max_steps=2", "train.max_steps=4"
    assert train(load_config(config_file, ["run.name=one", *one, longer])) == 0
    assert train(load_config(config_file, ["run.name=one-two", *one, short])) == 0
    finish(warm, config_file, "one-two", *quick, longer)
    finish(warm, config_file, "two-one", *quick, short)
    assert train(load_config(config_file, ["run.name=two-one", *one, longer])) == 0
    for name in ("one-two", "two-one"):
        assert_equal_but_for_rounding(run_of(config_file, "one"), run_of(config_file, name))


@pytest.mark.slow
def test_divided_weights_train_as_whole_ones_and_so_after_an_interruption(config_file: Path, warm: Warm) -> None:
    """Fully sharded: what is saved and exported is whole again."""
    run, squares = run_of(config_file, "divided"), "data.buckets=false"
    assert train(load_config(config_file, ["run.name=undivided", *SETTINGS, squares, "train.batch_size=2"])) == 0
    pids, logs = start_pair(warm, config_file, "divided", "train.strategy=fsdp", squares)
    wait_for_step(run, 1, pids[0])
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert [warm.wait(pid) for pid in pids] == [128 + signal.SIGINT, 0], logs[0].read_text()
    assert 1 <= find_state(run.state).step < 6
    finish(warm, config_file, "divided", "train.strategy=fsdp", squares)
    assert_equal_but_for_rounding(run_of(config_file, "undivided"), run)
    saved = torch.load(run.state, weights_only=True)["state_dict"]
    exported = load_file(run.model / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in exported.items():
        assert torch.equal(weight, saved[f"trained.denoiser.{name}"]), name


def assert_equal_but_for_rounding(first: RunFolder, second: RunFolder) -> None:
    for one, two in zip(figures(first), figures(second), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            found = float(two[name] or 0)
            assert found == pytest.approx(float(one[name] or 0), rel=1e-4, abs=1e-6), (one["step"], name)
    assert_same_but_for_rounding(*(torch.load(run.state, weights_only=True)["state_dict"] for run in (first, second)))


@pytest.mark.slow
def test_torchrun_and_lightnings_own_launcher_start_the_same_run_and_end_with_a_killed_process(
    pair: RunFolder, config_file: Path, tmp_path: Path
) -> None:
    """The tests beside this one fork such processes, with the environment that torchrun gives."""
    line = command(config_file, "launched", starter=TORCHRUN)
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(pair, run_of(config_file, "launched"))
    run, log = run_of(config_file, "own-launcher"), tmp_path / "log"
    with started(command(config_file, "own-launcher"), log) as process:  # Lightning starts the second process
        wait_for_step(run, 2, process.pid)
        os.kill(second_of(process), signal.SIGKILL)
        assert process.wait(timeout=60) != 0, "the job outlived one of its processes"
    assert re.search(r"another process of this run has died|terminated with code -9", log.read_text())
    with started(command(config_file, "own-launcher"), log) as process:
        assert process.wait(timeout=240) == 0, log.read_text()
    assert_equal_runs(pair, run)


@pytest.mark.slow
def test_a_run_under_torchrun_saves_on_a_signal_that_comes_to_both_and_goes_on_to_the_same_bits(
    pair: RunFolder, config_file: Path, warm: Warm, tmp_path: Path
) -> None:
    """SLURM signals all processes of a job at once, and torchrun sends its own a second signal."""
    run, log = run_of(config_file, "signalled"), tmp_path / "log"
    with started(command(config_file, "signalled", starter=TORCHRUN), log) as process:
        wait_for_step(run, 2, process.pid)
        children = children_of(process.pid)
        for pid in children:
            os.kill(pid, signal.SIGTERM)
        while "SIGTERM: saving after this step" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)
        for pid in (*children, process.pid):  # as torchrun does, only sooner
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=120) != 0
    assert 2 <= find_state(run.state).step < 6
    finish(warm, config_file, "signalled")
    assert_equal_runs(pair, run)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_a_killed_one_ends_the_job(
    pair: RunFolder, config_file: Path, warm: Warm
) -> None:
    """After all that the same command goes on, and comes to the weights and figures of a run left in peace."""
    run = run_of(config_file, "disturbed")
    pids, logs = start_pair(warm, config_file, "disturbed")
    wait_for_step(run, 1, pids[0])
    os.kill(pids[1], signal.SIGTERM)
    assert [warm.wait(pid) for pid in pids] == [128 + signal.SIGTERM, 0], logs[0].read_text()
    step = find_state(run.state).step
    assert step < 5
    pids, logs = start_pair(warm, config_file, "disturbed")
    said = logs[0].stat().st_size if logs[0].exists() else 0
    while f"step {step + 1}/" not in logs[0].read_text()[said:]:  # that step's metrics may be there from before
        assert Path(f"/proc/{pids[0]}/exe").exists(), logs[0].read_text()
        time.sleep(0.002)
    os.kill(pids[0], signal.SIGKILL)
    assert warm.wait(pids[0]) == -signal.SIGKILL
    assert warm.wait(pids[1], timeout=30) != 0, "the second process ended as if all were well"
    assert find_state(run.state).step < 6
    assert "resuming" in finish(warm, config_file, "disturbed")
    assert_equal_runs(pair, run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_all_before_the_step(config_file: Path, warm: Warm) -> None:
    """That process names the sample; the state of the step before is whole and finite."""
    more = ("train.save_every_steps=1", "validate.every_steps=0", "train.max_steps=4")
    pids, logs = start_pair(warm, config_file, "wrong", *more)
    assert [warm.wait(pid) for pid in pids] == [0, 0], logs[0].read_text()
    run = run_of(config_file, "wrong")
    spoil_class_picture(run, 13)  # the second process's in the first half of step 4
    for path in (run.state, run.previous, run.metrics):
        path.unlink(missing_ok=True)
    pids, logs = start_pair(warm, config_file, "wrong", *more)
    codes, said = [warm.wait(pid) for pid in pids], "".join(log.read_text() for log in logs)
    assert codes[0] == 4, said
    assert codes[1] != 0, said
    assert "step 4: train/loss is nan" in said
    assert re.search(r"samples of process 1 whose loss is not finite: class image 13 \(timestep \d+\)", said), said
    assert re.search(r"samples of process 0 of this step, each of finite loss: \d\.png", said), said
    assert find_state(run.state).step == 3
    weights = torch.load(run.state, weights_only=True)["state_dict"].values()
    assert all(bool(weight.isfinite().all()) for weight in weights)


@contextlib.contextmanager
def started(line: list[str], log: Path = Path(os.devnull)) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as said:
        process = subprocess.Popen(line, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_step(run: RunFolder, step: int, pid: int) -> None:
    deadline = time.monotonic() + 200
    while last_step(run) < step:
        assert Path(f"/proc/{pid}/exe").exists(), "the run ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def last_step(run: RunFolder) -> int:
    lines = run.metrics.read_text().splitlines()[1:] if run.metrics.is_file() else []
    return int(lines[-1].split(",")[0]) if lines else 0


def second_of(process: subprocess.Popen[bytes]) -> int:
    """The process that Lightning has started as the second."""
    children = children_of(process.pid)
    return next(pid for pid in children if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes())


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_class_pictures_are_shared_out_and_none_is_made_twice(tmp_path: Path) -> None:
    """Three processes (threads here) with batches of one: each makes blocks, all get the same latents."""
    meeting, asked = threading.Barrier(3), [list[int]() for _ in range(3)]
    results: list[list[Tensor]] = [[] for _ in range(3)]

    def make_for(rank: int) -> None:
        def make(indices: list[int]) -> Tensor:
            asked[rank] += indices
            return torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)

        prior = GeneratedPrior(make, 10, 2, tmp_path / "prior", ["a photo of a dog"])
        prior.divide(WorkShare(rank, 3, lambda: meeting.wait(timeout=60)))
        results[rank] = [prior.samples([batch * 3 + rank])[0].latents_CHW for batch in range(8)]

    threads = [threading.Thread(target=make_for, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for made in asked for index in made) == list(range(10)), "some were made twice, or not at all"
    assert [len(made) for made in asked] == [4, 4, 2], "the work is not shared"
    for rank in range(3):
        assert [int(latents.mean()) for latents in results[rank]] == [(b * 3 + rank) % 10 for b in range(8)]


CLUSTER = {  # what jobs put into the environment of a process: a batch script, a step of srun, torchrun, a pod
    "batch script": {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"},
    "step": {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    "torchrun": {
        "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"
    },
    "pod": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "elsewhere"},
}  # fmt: skip


@pytest.mark.parametrize("job", CLUSTER)
def test_a_run_of_one_process_inside_a_job_is_a_plain_run(job: str) -> None:
    assert find_process(1, 1, CLUSTER[job]) == Process()


def test_the_config_says_how_many_belong_together_and_one_launcher_which_is_which() -> None:
    assert find_process(2, 1, {}) == Process(world_size=2)
    assert find_process(2, 1, CLUSTER["torchrun"]) == Process(1, 1, 0, 2, "torchrun")
    assert find_process(2, 1, CLUSTER["step"]) == Process(1, 1, 0, 2, "slurm")
    for started_nothing in ("batch script", "pod"):
        assert find_process(2, 1, CLUSTER[started_nothing]) == Process(world_size=2)
    own = {**CLUSTER["pod"], LAUNCHER: str(os.getppid()), "LOCAL_RANK": "1"}
    assert find_process(2, 1, own) == Process(1, 1, 0, 2)
    assert find_process(2, 1, {**own, LAUNCHER: "1"}) == Process(world_size=2), "another run's child, or its grandchild"


@pytest.mark.parametrize(
    ("devices", "num_nodes", "job", "said"),
    [
        (3, 1, "torchrun", "3 x 1 processes are requested, but torchrun started 2"),
        (2, 2, "step", "2 x 2 processes are requested, but slurm started 2"),
        (1, 2, "step", "slurm started 2, number 1 of them on this machine"),
        (1, 2, "batch script", "train.num_nodes=2: several machines need a launcher"),
    ],
)
def test_another_number_of_processes_than_requested_is_refused(
    devices: int, num_nodes: int, job: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        find_process(devices, num_nodes, CLUSTER[job])


def test_a_run_inside_a_job_trains_writes_and_locks_as_any_other(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning alone would take it for the second of several, which writes nothing."""
    for name, value in {**CLUSTER["step"], **CLUSTER["pod"], "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    config.train.max_steps, config.validate.every_steps = 2, 0
    assert train(config) == 0
    run = RunFolder(config)
    assert [row["step"] for row in figures(run)] == ["1", "2"]
    assert run.model.is_dir()
    with RunLock(run), pytest.raises(UserError, match=r"several processes were started.*set train\.devices"):
        train(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.devices=1"], "divides the weights among processes; set train.devices"),
        (["train.devices=2", "method.name=lora"], "fsdp is for method full"),
        (["train.devices=2", "optim.identifier_lr=1e-3"], "optim.identifier_lr: not possible with train.strategy fsdp"),
    ],
)
def test_what_divided_weights_cannot_do_is_told(config_file: Path, settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(config_file, ["train.strategy=fsdp", *settings])


def test_a_number_of_processes_that_sees_more_samples_a_step_is_refused(pair: RunFolder, config_file: Path) -> None:
    with pytest.raises(UserError, match=r"train\.devices: 2 -> 1"):
        train(load_config(config_file, ["run.name=pair", *TWO, "train.devices=1", "train.max_steps=7"]))
