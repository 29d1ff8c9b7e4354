"""Pull the plug at random, again and again: does the run come to the same bits as one that was left in peace?

    python benchmarks/chaos.py --count 200 --seed 0                 # on a tiny Stable Diffusion with random weights
    python benchmarks/chaos.py --count 40 --base checkpoints/toyworld --scored    # with scores, and a best step
    python benchmarks/chaos.py --count 20 --processes 2             # of two processes one is killed or told to stop

A round is a run that is started, killed and started again, up to --kills times, and then left to finish. Each kill is
one of: SIGKILL, SIGTERM, SIGINT, or SIGINT twice, at a random time; SIGKILL just before a random operation on the run's
files, or half-way through a random piece of a state. Rounds differ in whether data is loaded by workers and in where
TMPDIR is. With --processes, these are real train.py, one process is signalled and all have to end within 30 s.
Afterwards weights, moments, figures, scores, pictures, the chosen step and the model have to be equal, and
nothing half made may lie about; whatever a tool could load has to be whole at any moment.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

from conftest import CONFIG  # noqa: E402
from crashes import SETTINGS, assert_equal_runs, assert_whole, wait_for  # noqa: E402
from tiny import make_pictures, make_tiny_base  # noqa: E402
from warm import Warm  # noqa: E402

from dreambooth.config import load_config  # noqa: E402
from dreambooth.metrics.validation_log import ValidationLog  # noqa: E402
from dreambooth.run.folder import RunFolder  # noqa: E402

ENCODERS = ROOT / "checkpoints" / "toyworld-encoders"
SCORED = (
    f"validate.dino={ENCODERS / 'vit'}",
    f"validate.clip={ENCODERS / 'clip'}",
    f"subject.images={ROOT / 'data' / 'robot'}",
    "subject.class_noun=robot",
    "optim.schedule=constant",
    "data.buckets=false",
    "prior.source=none",
    "train.accumulate=1",
    "train.max_steps=15",
    "validate.every_steps=5",
    "validate.num_images=2",
    "validate.num_inference_steps=4",
    "validate.guidance_scale=2",
    'validate.prompts=["a photo of {subject} on the moon", "a photo of a {class}", "a photo of a fish"]',
)
TIMED = {"SIGKILL": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,), "SIGINT": (signal.SIGINT,)}
TIMED["SIGINT twice"] = (signal.SIGINT, signal.SIGINT)
AT_OPERATIONS = {f"{one.name} before a file operation": one for one in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)}
WAYS = (*TIMED, *AT_OPERATIONS, "SIGKILL within a state's write")
# -SIGTERM: it came before Python had imported anything, or after all was done.
ENDS = {0, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT}

KILLED_ANOTHER = 2  # of the process that is told that another one has died


class Chaos:
    """Hold runs of one config, and what has been done to them."""

    def __init__(self, folder: Path, warm: Warm, args: argparse.Namespace) -> None:
        self.folder, self.warm, self.real, self.num_processes = folder, warm, args.real, args.processes
        self.dice = random.Random(args.seed)
        self.settings = [*SETTINGS, *(SCORED if args.scored else ())]
        if args.processes > 1:
            self.settings += [f"train.devices={args.processes}", "train.batch_size=1", "train.save_every_steps=1"]
        self.config_file = folder / "config.yaml"
        base = args.base or make_tiny_base(folder / "base")
        text = CONFIG.format(runs=folder / "runs", base=base, pictures=make_pictures(folder / "pictures"))
        self.config_file.write_text(text)
        self.kills: Counter[str] = Counter()
        self.seconds, self.num_operations, self.num_pieces = 0.0, 100, 600

    def run(self, name: str) -> RunFolder:
        return RunFolder(load_config(self.config_file, [f"run.name={name}", *self.settings]))

    def command(self, name: str, *more: str) -> list[str]:
        return ["train", str(self.config_file), f"run.name={name}", *self.settings, *more]

    def leave_in_peace(self) -> None:
        started = time.monotonic()
        if self.num_processes > 1:
            assert start_script(self.command("whole"), log := self.folder / "whole.log", {}).wait() == 0, (
                log.read_text()
            )
            return
        code = self.warm.run(self.command("whole"), self.folder / "whole.log", die_at=(0, str(self.folder / "runs")))
        assert code == 0, (self.folder / "whole.log").read_text()
        self.seconds = time.monotonic() - started
        self.num_operations = (self.folder / "whole.log").read_text().count("\noperation ")

    def round(self, number: int, num_kills: int) -> None:
        name, workers = f"round-{number}", number % 2
        log, env = self.folder / f"{name}.log", {"TMPDIR": "/dev/shm" if number % 3 == 0 else "/tmp"}
        command = self.command(name, f"data.num_workers={workers}")
        for _ in range(num_kills):
            way = self.dice.choice(WAYS)
            code = self.disturbed(way, command, log, env)
            self.check(code, log)
            assert_whole(self.run(name))
            if code == 0:
                break
            self.kills[f"{way}: {code}"] += 1
        else:
            self.check(self.warm.run(command, log, env=env) or 0, log)
        assert_equal_runs(self.run("whole"), self.run(name))

    def sweep(self, stride: int) -> None:
        """Run to the end with processes that die before their 1st operation on its files, the (1 + stride)-th ..."""
        log, number = self.folder / "sweep.log", 1
        while code := self.warm.run(self.command("sweep"), log, die_at=(number, str(self.run("sweep").path))):
            self.check(code, log)
            assert_whole(self.run("sweep"))
            self.kills[f"SIGKILL before ever later file operations: {code}"] += 1
            number += stride
        assert_equal_runs(self.run("whole"), self.run("sweep"))

    def disturbed(self, way: str, command: list[str], log: Path, env: dict[str, str]) -> int:
        if way in AT_OPERATIONS:
            place = (self.dice.randint(1, self.num_operations), str(self.folder / "runs"), AT_OPERATIONS[way])
            return self.warm.run(command, log, env=env, die_at=place)
        if way == "SIGKILL within a state's write":
            return self.warm.run(command, log, env=env, die_in_write=self.dice.randint(1, self.num_pieces))
        wait = self.dice.uniform(0, 0.5 * self.seconds)
        if self.dice.random() < self.real:
            return self.signalled_script(command, log, env, wait + 8, TIMED[way])
        pid = self.warm.start(command, log, env=env)
        time.sleep(wait)
        for number in TIMED[way]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(self.dice.uniform(0, 0.2))
        return self.warm.wait()

    def signalled_script(
        self, command: list[str], log: Path, env: dict[str, str], wait: float, numbers: tuple[int, ...]
    ) -> int:
        """Start a real train.py, and signal its process group as a terminal does."""
        process = start_script(command, log, env)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait)
        for number in numbers:
            if process.poll() is None:
                os.killpg(process.pid, number)
        self.kills["(of which real train.py)"] += process.poll() != 0
        return process.wait(timeout=240)

    def round_of_several(self, number: int, num_kills: int) -> None:
        """Signal one process of a run of several at a random time after the first step, again and again."""
        name, log = f"round-{number}", self.folder / f"round-{number}.log"
        for _ in range(num_kills):
            way, rank = self.dice.choice([*TIMED]), self.dice.randrange(self.num_processes)
            log.unlink(missing_ok=True)
            process = start_script(self.command(name), log, {})
            while process.poll() is None and "% step " not in log.read_text():
                time.sleep(0.002)
            time.sleep(self.dice.uniform(0, 1))
            for number_of_signal in TIMED[way]:
                with contextlib.suppress(ProcessLookupError, StopIteration):
                    os.kill(process_of(process, rank), number_of_signal)
            code = process.wait(timeout=30)
            assert code in ENDS | {KILLED_ANOTHER}, f"exit code {code}:\n{log.read_text()[-4000:]}"
            wait_for(lambda group=process.pid: not living(group), seconds=30)
            assert_whole(self.run(name))
            if code == 0:
                break
            self.kills[f"{way} to process {rank} of {self.num_processes}: {code}"] += 1
        else:
            assert start_script(self.command(name), log, {}).wait(timeout=240) == 0, log.read_text()[-4000:]
        assert_equal_runs(self.run("whole"), self.run(name))

    def check(self, code: int, log: Path) -> None:
        text = log.read_text()
        assert code in ENDS, f"exit code {code}:\n{text[-4000:]}"
        at_exit = text.count("Exception ignored in atexit")  # Ctrl-C when all is done
        assert text.count("Traceback") == at_exit, text[-4000:]


def start_script(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a real train.py, in a session of its own."""
    line = [sys.executable, str(ROOT / "train.py"), *command[1:]]
    own = {**os.environ, **env, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "a", encoding="utf-8") as said:
        return subprocess.Popen(line, stdout=said, stderr=said, env=own, start_new_session=True)


def process_of(process: subprocess.Popen[bytes], rank: int) -> int:
    """Return its id. Raises StopIteration where there is none any more."""
    if rank == 0:
        return process.pid
    wanted = f"LOCAL_RANK={rank}".encode()
    return next(pid for pid in living(process.pid) if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def living(group: int) -> list[int]:
    """Return the processes of a group, without those that only wait to be reaped."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == group and (folder / "exe").exists():
                found.append(int(folder.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills in all")
    parser.add_argument("--sweep", type=int, help="first one run that is killed at every so many-th file operation")
    parser.add_argument("--kills", type=int, default=8, help="kills a round at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", help="another base than a tiny one with random weights")
    parser.add_argument("--scored", action="store_true", help="validations score by the embedded base's encoders")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    parser.add_argument("--real", type=float, default=0.1, help="share of timed kills that go to a real train.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Warm() as warm:
        chaos = Chaos(Path(folder), warm, args)
        chaos.leave_in_peace()
        best = ValidationLog(chaos.run("whole").scores).best
        print(f"best step: {best and best.step}", file=sys.stderr)
        if args.sweep:
            chaos.sweep(args.sweep)
        number, done = 0, chaos.kills.total()
        while done < args.count:
            disturb = chaos.round if args.processes == 1 else chaos.round_of_several
            disturb(number, min(args.kills, args.count - done))
            number, done = number + 1, sum(n for way, n in chaos.kills.items() if not way.startswith("("))
            print(f"round {number}: {done} kills, all equal: {dict(chaos.kills)}", file=sys.stderr, flush=True)
    print(f"{done} kills in {number} runs, which all came to the same. Kills by kind and exit code:")
    for way, count in sorted(chaos.kills.items()):
        print(f"  {count:4d}  {way}")


if __name__ == "__main__":
    main()
