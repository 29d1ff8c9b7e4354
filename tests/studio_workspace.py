"""A workspace as a studio finds it, of what the repository ships: photos, a base, a recorded run, images."""

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth.studio.app import create_app
from dreambooth.studio.guard import Access
from dreambooth.studio.server import StudioServer
from dreambooth.studio.workspace import Workspace

logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request, of which there are thousands
ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "data" / "run-of-0.1"
SECRET = "a line that nobody may read"  # outside the workspace

# What stands for the commands where a test is not about them: it says how far it is, and ends well.
QUIET = "import json, sys; print('sampling  50% image 1/2, step 3/6, 1:05 left'); "
QUIET += "open(f'{sys.argv[1]}/exit-{sys.argv[2]}.json', 'w').write(json.dumps({'exit_code': 0}))"
QUIET_RUNNER = (sys.executable, "-I", "-S", "-c", QUIET)


def make_workspace(folder: Path, has_weights: bool = False) -> Workspace:
    """Fill a folder; return the workspace in it. Beside it lies a file that must not be reached.

    has_weights: whether the base models and the encoders can be used, or only be seen.
    """
    root = folder / "work"
    for name in ("robot", "second-robot"):
        shutil.copytree(ROOT / "data" / name, root / "data" / name)
    run = root / "checkpoints" / "robot"
    shutil.copytree(RECORDED / "expected" / "interrupted", run)
    shutil.copy(RECORDED / "interrupted" / "config.yaml", run)
    ignored = None if has_weights else shutil.ignore_patterns("*.safetensors")
    for name in ("toyworld", "toyworld-encoders", "toyworld-second", "toyworld-second-encoders"):
        shutil.copytree(ROOT / "checkpoints" / name, root / "checkpoints" / name, ignore=ignored)
    for number, name in enumerate(("sample.png", "evaluate.png")):
        place = root / "outputs" / "job-0" / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / "data" / "recipes" / name, place)
    (folder / "secret.txt").write_text(SECRET)
    shutil.copy(ROOT / "data" / "robot" / "00.png", folder / "secret.png")
    made = Workspace(root)
    made.prepare()
    return made


@contextmanager
def serving(
    workspace: Workspace, access: Access | None = None, runner: Any = QUIET_RUNNER, head_s: float = 20.0
) -> Iterator[str]:
    """Serve a workspace on a free port, in a thread; yield its address."""
    import socket

    app = create_app(workspace, access, runner=runner)
    server = StudioServer(app, head_s)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            app.state.is_closing.set()
            server.should_exit = True
            thread.join()


def wait_until(is_so: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something is so. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError("it never was")
        time.sleep(0.01)


def events_in(text: str) -> list[tuple[str, Any]]:
    """Return name and data of the events in a stream."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found
