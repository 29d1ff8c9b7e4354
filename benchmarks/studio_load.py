"""How fast the studio answers while it trains: clients that poll jobs, a run and its images.

    python benchmarks/studio_load.py [--clients 50] [--seconds 30] [--period 1]

Starts the real server in a temporary workspace, queues a training of the toy robot, and has so many clients poll as the
page does. Prints the median, the 95th and 99th percentile and the longest time to an answer, in milliseconds.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
TRAIN = {
    "kind": "train",
    "subject": "robot",
    "class_noun": "robot",
    "base": "checkpoints/toyworld",
    "settings": {"train.max_steps": 2000, "log.tensorboard": False},
}
PATHS = ("/jobs", "/jobs/1", "/runs/robot", "/runs/robot/metrics?after=0", "/images", "/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0, help="of polling, once the training has begun")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between two requests of a client")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        shutil.copytree(ROOT / "data" / "robot", workspace / "data" / "robot")
        for name in ("toyworld", "toyworld-encoders"):
            shutil.copytree(ROOT / "checkpoints" / name, workspace / "checkpoints" / name)
        command = [sys.executable, "-m", "dreambooth", "studio", "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=workspace, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            try:
                asyncio.run(measure(address, args))
            finally:
                httpx.post(f"{address}/api/v1/jobs/1/cancel")
                while httpx.get(f"{address}/api/v1/jobs/1").json()["state"] == "running":
                    time.sleep(0.5)
                server.terminate()


async def measure(address: str, args: argparse.Namespace) -> None:
    """Poll, and print how long the answers took."""
    limits = httpx.Limits(max_connections=args.clients + 1, max_keepalive_connections=args.clients + 1)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", limits=limits, timeout=60) as client:
        answer = await client.post("/jobs", json=TRAIN)
        answer.raise_for_status()
        while not (job := (await client.get("/jobs/1")).json())["progress"]["step"]:
            if job["state"] not in ("queued", "running"):
                raise SystemExit(f"the training has ended: {job['error']}")
            await asyncio.sleep(0.5)
        end = time.monotonic() + args.seconds
        found = await asyncio.gather(*(poll(client, number, end, args.period) for number in range(args.clients)))
        job = (await client.get("/jobs/1")).json()
    times = sorted(each for one in found for each in one)
    step = job["progress"]["step"]
    print(f"{args.clients} clients, {len(times)} requests in {args.seconds:g} s, training at step {step}")
    cuts = statistics.quantiles(times, n=100)
    print(f"median {1000 * cuts[49]:.1f} ms, 95 % {1000 * cuts[94]:.1f} ms, 99 % {1000 * cuts[98]:.1f} ms, ", end="")
    print(f"longest {1000 * times[-1]:.1f} ms")


async def poll(client: httpx.AsyncClient, number: int, end: float, period: float) -> list[float]:
    """Return the seconds to each answer of one client, which begins at its own moment."""
    await asyncio.sleep(period * number / 50)
    found = []
    while time.monotonic() < end:
        begun = time.monotonic()
        answer = await client.get(PATHS[len(found) % len(PATHS)])
        if answer.status_code != 200:
            raise SystemExit(f"{answer.url}: {answer.status_code} {answer.text}")
        found.append(time.monotonic() - begun)
        await asyncio.sleep(max(0.0, period - found[-1]))
    return found


if __name__ == "__main__":
    main()
