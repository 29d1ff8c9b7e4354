"""The studio's queue: no job is lost and none runs twice, whoever is killed and whenever."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dreambooth.cli import studio_job
from dreambooth.studio import processes
from dreambooth.studio.jobs import Command, Job, JobStore, NewJob
from dreambooth.studio.problems import ConflictError, MissingError
from dreambooth.studio.worker import LIGHT_DEVICE, MAX_DEATHS, Worker, find_devices
from dreambooth.studio.workspace import Workspace

# A job's process without the toolkit: waits for a file, fails, or is killed, as its command says.
RUNNER = """
import json, os, signal, sys, time
folder, attempt = sys.argv[1:]
def end(code):
    with open(f"{folder}/exit-{attempt}.json.new", "w") as file:
        json.dump({"exit_code": code}, file)
    os.replace(f"{folder}/exit-{attempt}.json.new", f"{folder}/exit-{attempt}.json")
    os._exit(code)
signal.signal(signal.SIGTERM, lambda *_: end(143))
with open(f"{folder}/began", "a") as file:
    file.write(f"{attempt} {os.getpid()}\\n")
((what, *rest), _), = json.load(open(f"{folder}/commands.json"))
if what == "fail":
    print("some line", "error: run.name=x: is wrong", "last line", sep="\\n", flush=True)
    end(2)
if what == "see":
    with open(f"{folder}/gpus", "w") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"])
    end(0)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(f"{folder}/began", "a") as file:
        file.write("deaf\\n")
while not os.path.exists(rest[0]):
    time.sleep(0.005)
end(0)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    made.prepare()
    (tmp_path / "runner.py").write_text(RUNNER)
    return made


class Server:
    """Stand for the part of a server that looks after jobs: a store and a worker, whose thread is the test itself."""

    def __init__(self, workspace: Workspace, devices: tuple[str, ...] = ("cpu",), grace_s: float = 60.0) -> None:
        self.store = JobStore(workspace.database)
        runner = (sys.executable, "-I", "-S", str(workspace.root / "runner.py"))
        self.worker = Worker(workspace, self.store, devices, runner, grace_s)

    def until(self, is_so: Callable[[], object], seconds: float = 20.0) -> None:
        """Look after the jobs until something is so."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, [(job.id, job.state, job.error) for job in self.store.find()]
            self.worker.tick()
            time.sleep(0.005)

    def state(self, job: Job) -> str:
        return self.store.get(job.id).state

    def pid(self, job: Job) -> int:
        """Return the process of a job that has begun."""
        began = self.worker.folder(job).path / "began"
        self.until(lambda: began.is_file() and began.read_text().endswith("\n"))
        return int(began.read_text().split()[-1])

    def attempts(self, job: Job) -> list[str]:
        began = self.worker.folder(job).path / "began"
        return [line.split()[0] for line in began.read_text().splitlines()]


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Server]:
    made = Server(workspace)
    yield made
    for job in made.store.find(("running",)):
        processes.tell(made.worker.folder(job), signal.SIGKILL)


def job(*argv: str, kind: str = "train", output: str = "", **values: object) -> NewJob:
    output = output or f"checkpoints/{time.monotonic_ns()}"
    return NewJob(kind, "a job", {}, (Command(argv),), output, **values)  # type: ignore[arg-type]


def test_jobs_start_by_priority_and_then_in_order(workspace: Workspace):
    store = JobStore(workspace.database)
    first, second, urgent = (store.add(job("x", priority=priority)) for priority in (0, 0, 5))
    assert [each.id for each in store.queue()] == [urgent.id, first.id, second.id]
    store.move(second.id, before=urgent.id)
    assert [each.id for each in store.queue()] == [second.id, urgent.id, first.id]
    store.move(urgent.id, before=None)
    assert [each.id for each in store.queue()] == [second.id, first.id, urgent.id]
    taken = store.take_next(("train",), "cpu")
    assert taken is not None
    assert (taken.id, taken.state, taken.attempts) == (second.id, "running", 1)
    last = store.add(job("x"))
    assert [each.id for each in store.queue()] == [first.id, urgent.id, last.id]
    with pytest.raises(ConflictError, match="only queued jobs have a place"):
        store.move(second.id, before=None)


def test_two_open_jobs_never_write_to_one_folder(workspace: Workspace):
    store = JobStore(workspace.database)
    first = store.add(job("x", output="checkpoints/dog"))
    with pytest.raises(ConflictError, match=f"checkpoints/dog: job {first.id}, which is queued, writes there"):
        store.add(job("x", output="checkpoints/dog"))
    store.change(first.id, ("queued",), "cancelled")
    second = store.add(job("x", output="checkpoints/dog"))
    with pytest.raises(ConflictError, match=f"job {second.id}"):
        store.queue_again(first.id, ("cancelled",))


def test_a_job_gets_its_number_in_its_own_folder_and_nowhere_else(workspace: Workspace):
    store = JobStore(workspace.database)
    made = store.add(job("sample", "--out=outputs/job-{number}", "a {number}", output="outputs/job-{number}"))
    assert made.output == f"outputs/job-{made.id}"
    assert made.commands == (Command(("sample", f"--out=outputs/job-{made.id}", "a {number}")),)
    store.change(made.id, ("queued",), "cancelled")
    store.delete(made.id)
    assert store.add(job("x")).id > made.id, "a number is not used again: its folder may be there"
    with pytest.raises(MissingError):
        store.get(made.id)


def test_a_device_has_one_job_at_a_time_and_light_ones_run_beside_it(workspace: Workspace, server: Server):
    go = str(workspace.root / "go")
    heavy = [server.store.add(job("wait", go)) for _ in range(2)]
    light = [server.store.add(job("wait", go, kind="prepare")) for _ in range(2)]
    server.pid(heavy[0]), server.pid(light[0])
    assert [server.state(each) for each in (*heavy, *light)] == ["running", "queued", "running", "queued"]
    assert [server.store.get(each.id).device for each in (heavy[0], light[0])] == ["cpu", LIGHT_DEVICE]
    Path(go).touch()
    server.until(lambda: all(server.state(each) == "done" for each in (*heavy, *light)))
    assert {server.store.get(each.id).exit_code for each in (*heavy, *light)} == {0}


def test_each_gpu_is_a_device_and_none_is_the_cpu(monkeypatch: pytest.MonkeyPatch):
    for named, expected in (("0,2", ["cuda:0", "cuda:2"]), ("", ["cpu"]), ("-1", ["cpu"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert find_devices() == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert all(re.fullmatch(r"cuda:\d+|auto", each) for each in find_devices()), "the CPU is for who asks for it"


@pytest.mark.parametrize(
    ("devices", "heavy", "light"),
    [
        (("cpu",), "", ""),
        (("cuda:1",), "1", "1"),
        (("cuda:1", "cuda:0"), "1", "1,0"),
        (("cpu", "cuda:1"), "", "1"),
        (("auto",), "as before", "as before"),
    ],
)
def test_a_job_sees_the_gpus_of_its_device_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], heavy: str, light: str
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as before")
    server = Server(workspace, devices)
    for kind, expected in (("train", heavy), ("prepare", light)):
        made = server.store.add(job("see", kind=kind))
        server.until(lambda made=made: server.state(made) == "done")
        assert (server.worker.folder(made).path / "gpus").read_text() == expected


def test_a_job_that_fails_says_why(server: Server):
    made = server.store.add(job("fail"))
    server.until(lambda: server.state(made) == "failed")
    ended = server.store.get(made.id)
    assert (ended.exit_code, ended.error) == (2, "run.name=x: is wrong")
    server.store.queue_again(made.id, ("failed",))
    server.until(lambda: server.state(made) == "failed")
    assert server.attempts(made) == ["1", "2"]


@pytest.mark.parametrize(("asked", "state"), [("pause", "paused"), ("cancel", "cancelled"), ("timeout", "failed")])
def test_a_job_that_is_stopped_can_go_on(workspace: Workspace, server: Server, asked: str, state: str):
    go = str(workspace.root / "go")
    made = server.store.add(job("wait", go))
    server.pid(made)
    if asked == "timeout":
        server.store.set(made.id, timeout_s=0.05)
    else:
        server.store.set(made.id, asked=asked)
    server.until(lambda: server.state(made) == state)
    assert server.store.get(made.id).exit_code == 143, "it got SIGTERM, and saved its state"
    Path(go).touch()
    server.store.queue_again(made.id, (state,), timeout_s=None)  # type: ignore[arg-type]
    server.until(lambda: server.state(made) == "done")
    assert server.attempts(made) == ["1", "2"]


def test_a_job_that_does_not_stop_in_time_is_killed(workspace: Workspace):
    server = Server(workspace, grace_s=0.1)
    made = server.store.add(job("deaf", str(workspace.root / "never")))
    began = server.worker.folder(made).path / "began"
    server.until(lambda: began.is_file() and "deaf" in began.read_text())
    server.store.set(made.id, asked="cancel")
    server.until(lambda: server.state(made) == "cancelled")
    assert server.store.get(made.id).exit_code is None


def test_a_job_that_is_killed_goes_on_and_one_that_dies_each_time_fails(workspace: Workspace, server: Server):
    go = str(workspace.root / "go")
    made = server.store.add(job("wait", go))
    os.kill(server.pid(made), signal.SIGKILL)
    server.until(lambda: server.attempts(made) == ["1", "2"])
    Path(go).touch()
    server.until(lambda: server.state(made) == "done")
    doomed = server.store.add(job("die"))
    server.until(lambda: server.state(doomed) == "failed")
    assert server.attempts(doomed) == ["1", "2", "3"][:MAX_DEATHS]
    assert "killed 3 times" in server.store.get(doomed.id).error


def test_a_server_that_comes_back_adopts_what_still_runs(workspace: Workspace, server: Server):
    go = str(workspace.root / "go")
    made = server.store.add(job("wait", go))
    pid = server.pid(made)
    after = Server(workspace)  # the one before is gone: nobody calls it any more
    after.until(lambda: after.state(made) == "running")
    after.worker.tick()
    assert after.state(made) == "running"
    assert after.attempts(made) == ["1"]
    assert after.pid(made) == pid
    Path(go).touch()
    after.until(lambda: after.state(made) == "done")
    assert after.store.get(made.id).exit_code == 0, "known although the server is not its parent"


def test_a_server_that_comes_back_can_stop_what_it_has_adopted(workspace: Workspace, server: Server):
    made = server.store.add(job("wait", str(workspace.root / "never")))
    server.pid(made)
    after = Server(workspace)
    after.store.set(made.id, asked="pause")
    after.until(lambda: after.state(made) == "paused")
    assert after.store.get(made.id).exit_code == 143


def test_what_ended_while_there_was_no_server_is_known_afterwards(workspace: Workspace, server: Server):
    go = str(workspace.root / "go")
    made = server.store.add(job("wait", go))
    server.pid(made)
    Path(go).touch()
    result = server.worker.folder(made).result(1)
    end = time.monotonic() + 20
    while not result.is_file() and time.monotonic() < end:
        time.sleep(0.005)
    after = Server(workspace)
    after.until(lambda: after.state(made) == "done")
    assert after.attempts(made) == ["1"], "it did not run twice"


def test_a_job_that_was_killed_with_its_server_goes_on_with_the_next(workspace: Workspace, server: Server):
    made = server.store.add(job("wait", str(workspace.root / "go")))
    os.kill(server.pid(made), signal.SIGKILL)
    while processes.is_alive(server.worker.folder(made)):
        time.sleep(0.005)
    (workspace.root / "go").touch()
    after = Server(workspace)
    after.until(lambda: after.state(made) == "done")
    assert after.attempts(made) == ["1", "2"]
    assert after.store.get(made.id).deaths == 0, "a machine that went down is not held against the job"


def test_a_server_killed_between_its_note_and_the_process_loses_nothing(workspace: Workspace):
    before = JobStore(workspace.database)
    made = before.add(job("wait", str(workspace.root / "go")))
    before.take_next(("train",), "cpu")
    (workspace.root / "go").touch()
    after = Server(workspace)
    after.until(lambda: after.state(made) == "done")
    assert after.attempts(made) == ["2"]


def test_a_server_killed_before_it_noted_the_process_starts_no_second_one(workspace: Workspace, server: Server):
    made = server.store.add(job("wait", str(workspace.root / "go")))
    server.pid(made)
    server.worker.folder(made).pid.unlink()
    after = Server(workspace)
    after.worker.tick()
    assert after.state(made) == "running"
    assert after.attempts(made) == ["1"]
    (workspace.root / "go").touch()
    after.until(lambda: after.state(made) == "done")
    assert after.attempts(made) == ["1"]


def test_images_of_an_attempt_that_was_killed_are_not_there_twice(workspace: Workspace, server: Server):
    go = str(workspace.root / "go")
    made = server.store.add(job("wait", go, kind="generate", output="outputs/job-{number}"))
    grid = server.store.add(job("wait", go, "--grid=seed=1,2", kind="generate", output="outputs/job-{number}"))
    for each in (made, grid):
        image = workspace.root / each.output / "00000.png"
        image.parent.mkdir(parents=True)
        image.touch()
        server.store.change(each.id, ("queued",), "cancelled", attempts=1)
        server.store.queue_again(each.id, ("cancelled",))
    Path(go).touch()
    server.until(lambda: all(server.state(each) == "done" for each in (made, grid)))
    assert not (workspace.root / made.output).exists()
    assert (workspace.root / grid.output / "00000.png").exists(), "a grid makes what is missing"


def test_the_lock_of_a_process_keeps_a_second_one_from_starting(workspace: Workspace, server: Server):
    made = server.store.add(job("wait", str(workspace.root / "go")))
    server.pid(made)
    folder = server.worker.folder(made)
    with pytest.raises(BlockingIOError):
        processes.start(folder, 2, made.commands, workspace.root, {}, ("false",))
    assert json.loads(folder.commands.read_bytes()) == [[["wait", str(workspace.root / "go")], ""]]


def test_the_process_of_a_job_runs_its_commands_until_one_fails(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workspace.root)
    folder = processes.JobFolder(workspace.jobs / "7")
    folder.path.mkdir()
    wrong, unnecessary = ["studio", "--port", "99999"], [["new", "nowhere", "--class", "dog"], "runner.py"]
    for number, (commands, code) in enumerate(
        [([unnecessary], 0), ([unnecessary, [wrong, ""]], 2), ([[["studio", "--no-such-option"], ""]], 2)]
    ):
        folder.commands.write_text(json.dumps(commands))
        assert studio_job.run(folder, number) == code
        assert processes.read_result(folder, number) == code
    assert folder.pid.read_text() == str(os.getpid())


def test_the_error_of_a_job_is_its_last_one_and_not_how_the_command_is_used(tmp_path: Path):
    folder = processes.JobFolder(tmp_path)
    folder.log.write_text("usage: python -m dreambooth [-h]\npython -m dreambooth sample: error: --seed: wrong\n")
    assert processes.error_in_log(folder) == "--seed: wrong"
    folder.log.write_text("error: first\nerror: second\na hint\n")
    assert processes.error_in_log(folder) == "second"
    folder.log.write_text("no error\n")
    assert processes.error_in_log(folder) == "no error"
