"""A studio whose server and trainings are killed at any moment: real processes, and the same bits in the end."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from studio_workspace import ROOT, wait_until

from dreambooth.studio.jobs import Command, JobStore, NewJob
from dreambooth.studio.workspace import Workspace

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {
    "train.max_steps": 24, "train.save_every_steps": 4, "validate.every_steps": 12, "validate.num_images": 1,
    "validate.num_inference_steps": 2, "prior.num_images": 8, "prior.num_inference_steps": 2, "log.tensorboard": False,
    "train.keep_states": True,
}  # fmt: skip
TRAIN = {"kind": "train", "subject": "robot", "class_noun": "robot", "base": "checkpoints/toyworld"}


class Studio:
    """Start and kill the real server in a workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "data" / "robot", folder / "data" / "robot")
        for name in ("toyworld", "toyworld-encoders"):
            shutil.copytree(ROOT / "checkpoints" / name, folder / "checkpoints" / name)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "dreambooth", "studio", "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.server.stdout is not None
        address = self.server.stdout.readline().split()[1]
        self.client = httpx.Client(base_url=f"{address}/api/v1", timeout=60)
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return self.client.get("/status").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.server.kill()
        self.server.wait()

    def end(self) -> None:
        self.server.terminate()
        self.server.wait()

    def job(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/jobs/{number}").json()
        return found

    def pid(self, number: int) -> int:
        return int((self.folder / ".studio" / "jobs" / str(number) / "pid").read_text())

    def train(self, name: str) -> int:
        answer = self.client.post("/jobs", json={**TRAIN, "name": name, "settings": SETTINGS})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def until(self, number: int, is_so: Callable[[dict[str, Any]], object], seconds: float = 600) -> dict[str, Any]:
        wait_until(lambda: is_so(self.job(number)), seconds)
        return self.job(number)

    def until_done(self, number: int) -> dict[str, Any]:
        job = self.until(number, lambda each: each["state"] not in ("queued", "running"))
        assert job["state"] == "done", job["error"]
        return job

    def until_step(self, number: int, step: int) -> None:
        self.until(number, lambda job: (job["progress"]["step"] or 0) >= step or job["state"] == "failed")

    def weights(self, run: str) -> str:
        files = sorted((self.folder / "checkpoints" / run / "model").rglob("*.safetensors"))
        assert files
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.timeout(1800)
def test_killed_at_any_moment_a_training_comes_to_the_same_bits(tmp_path: Path):
    studio = Studio(tmp_path)
    undisturbed = studio.train("undisturbed")
    assert studio.until_done(undisturbed)["attempts"] == 1
    number = studio.train("killed")
    behind = studio.train("behind")

    # The server alone: the training goes on by itself, and is adopted.
    studio.until_step(number, 2)
    pid = studio.pid(number)
    studio.kill()
    os.kill(pid, 0)
    studio.start()
    assert studio.job(number)["state"] == "running"
    assert (studio.pid(number), studio.job(number)["attempts"]) == (pid, 1)

    # The training alone: it goes on from its last state.
    studio.until_step(number, 6)
    os.kill(studio.pid(number), signal.SIGKILL)
    studio.until(number, lambda job: job["attempts"] == 2)

    # Both at once, with another job in the queue.
    studio.until_step(number, 14)
    studio.kill()
    os.kill(studio.pid(number), signal.SIGKILL)
    studio.start()
    studio.until(number, lambda job: job["attempts"] == 3)
    job = studio.job(behind)
    assert (job["state"], job["attempts"]) == ("queued", 0), "it was not lost, and has not begun"
    studio.client.post(f"/jobs/{behind}/cancel")

    # Paused in the studio, taken on in a terminal, and known to the studio as finished.
    studio.until_step(number, 18)
    studio.client.post(f"/jobs/{number}/pause")
    job = studio.until(number, lambda each: each["state"] != "running")
    assert (job["state"], job["exit_code"]) == ("paused", 143)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dreambooth", "train", "checkpoints/killed/config.yaml"]
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 0
    assert studio.weights("killed") == studio.weights("undisturbed")
    run = studio.client.get("/runs/killed").json()
    assert (run["step"], run["is_finished"]) == (24, True)
    studio.end()


# A server of a queue and its worker alone, with jobs that say when they begin and end.
SERVER = """
import sys, time
from pathlib import Path
from dreambooth.studio.jobs import JobStore
from dreambooth.studio.worker import Worker
from dreambooth.studio.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
worker = Worker(workspace, JobStore(workspace.database), ("a", "b"), (sys.executable, "-I", "-S", sys.argv[2]))
print("up", flush=True)
while True:
    worker.tick()
    time.sleep(0.01)
"""
JOB = """
import json, os, sys, time
folder, attempt = sys.argv[1:]
def say(what):
    with open(os.path.join(folder, "said"), "a") as file:
        file.write(what + "\\n")
say("begins")
time.sleep(0.15)
say("ends")
with open(f"{folder}/exit-{attempt}.json.new", "w") as file:
    json.dump({"exit_code": 0}, file)
os.replace(f"{folder}/exit-{attempt}.json.new", f"{folder}/exit-{attempt}.json")
"""


def test_no_job_is_lost_and_none_runs_twice_however_often_the_server_is_killed(tmp_path: Path):
    workspace = Workspace(tmp_path)
    workspace.prepare()
    script = tmp_path / "job.py"
    script.write_text(JOB)
    store = JobStore(workspace.database)
    jobs = [store.add(NewJob("train", "x", {}, (Command(("x",)),), f"checkpoints/{number}")) for number in range(60)]
    delays = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    while any(job.state != "done" for job in store.find()):
        assert kills < 100
        command = [sys.executable, "-c", SERVER, str(tmp_path), str(script)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            time.sleep(delays.uniform(0, 0.6))
            server.kill()
        kills += 1
    said = {job.id: (workspace.jobs / str(job.id) / "said").read_text().split() for job in jobs}
    print(f"\n{len(jobs)} jobs, the server killed {kills} times")
    assert set(map(tuple, said.values())) == {("begins", "ends")}
    assert kills > 5
