"""The studio as people use it, in a browser: photos dropped, a training watched and cut off, images made and shared."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="the extra 'studio' is not installed")

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]
MINUTES = 60_000.0  # milliseconds, of Playwright's limits
SHOTS = os.environ.get("STUDIO_SHOTS")  # a folder for screenshots to look at


class Server:
    """Start and kill a studio on a workspace, always at the same port."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "dreambooth", "studio", "--workspace", str(self.workspace), "--devices", "cpu"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, f"the studio says {line!r}"
        self.port = int(found[1])

    def kill(self) -> None:
        """Kill it at once, as a power cut does; jobs go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shipped_base: Path) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("studio")
    for name in ("toyworld", "toyworld-encoders"):
        shutil.copytree(shipped_base.with_name(name), workspace / "checkpoints" / name)
    server = Server(workspace)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def open_page(browser: Any, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """Return a page of a user of its own, and the list of what its console reports."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(2 * MINUTES)
    return page, errors


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def wait(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.3)


def drop(page: Any, selector: str, files: list[Path]) -> None:
    """Drop files on an element, as from a file manager."""
    content = [{"name": path.name, "bytes": list(path.read_bytes())} for path in files]
    data = page.evaluate_handle(
        """files => {
            const data = new DataTransfer();
            for (const each of files)
                data.items.add(new File([new Uint8Array(each.bytes)], each.name, { type: "image/png" }));
            return data;
        }""",
        content,
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": data})


PAGES = ("/", "/new", "/new?subject=my-robot", "/runs/my-robot", "/generate", "/gallery", "/queue", "/models")

# In this order: each goes on with what the one before has left in the workspace.


def test_photos_dropped_become_a_run_that_outlives_the_server(server: Server, browser: Any) -> None:
    page, errors = open_page(browser)
    page.goto(f"{server.url}/new")
    drop(page, ".drop", sorted((ROOT / "data" / "robot").glob("*.png")))
    page.locator(".photo").nth(4).wait_for()
    assert page.locator(".findings li").count() >= 5
    shoot(page, "new")
    page.fill("#class-noun", "robot")
    page.get_by_text("Quick look").click()
    page.locator(".preset dd", has_text="MiB").first.wait_for()  # its costs stand beside it
    page.click("#begin")
    page.wait_for_url("**/runs/my-robot")
    page.locator("#status .pill.running").wait_for(timeout=4 * MINUTES)
    metrics = server.workspace / "checkpoints" / "my-robot" / "logs" / "metrics.csv"
    wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 5)
    shoot(page, "training")
    assert errors == []
    server.kill()
    server.start()
    page.reload()
    page.locator("#status .pill.done").wait_for(timeout=10 * MINUTES)
    jobs = json.loads(page.request.get(f"{server.url}/api/v1/jobs").text())["jobs"]
    assert [(job["kind"], job["state"], job["attempts"]) for job in jobs] == [("train", "done", 1)], (
        "adopted, not rerun"
    )
    page.locator(".film button").nth(1).click()
    assert page.locator("[data-caption]").inner_text().startswith("step")
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert "base" in page.locator("[data-caption]").inner_text()
    shoot(page, "run")


def test_images_are_made_varied_recalled_and_redrawn_under_a_mask(server: Server, browser: Any) -> None:
    page, errors = open_page(browser)
    page.goto(f"{server.url}/generate?model=checkpoints/my-robot")
    page.fill("#prompt", "a photo of {subject} in the snow")
    page.fill("#num-images", "2")
    page.fill("#seed", "11")
    page.keyboard.press("Control+Enter")
    page.locator(".batch .tile").nth(1).wait_for(timeout=5 * MINUTES)
    shoot(page, "generate")
    page.locator(".tile .open").first.click()
    page.get_by_role("button", name="Vary a little").click()
    page.locator(".batch").nth(1).wait_for()
    page.locator(".batch").first.locator(".tile").nth(3).wait_for(timeout=5 * MINUTES)
    made = sorted((server.workspace / "outputs").glob("job-*/*.png"))
    page.get_by_text("Recall an image's recipe").click()
    drop(page, ".drop:has([name=recall])", made[:1])
    page.locator("#seed[value='11']").wait_for()
    assert page.input_value("#prompt").startswith("a photo of")
    page.get_by_text("Start from an image, paint a mask").click()
    drop(page, ".drop:has([name=init_image])", made[:1])
    canvas = page.locator(".canvas canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.evaluate("document.querySelector('input[name=mask]').files.length") == 1
    shoot(page, "mask")
    page.click("#go")
    page.locator(".batch").nth(2).locator(".tile").first.wait_for()
    page.locator(".batch").first.locator(".tile").first.wait_for(timeout=5 * MINUTES)
    assert errors == []


def test_two_users_do_not_disturb_each_other_and_a_shared_page_needs_no_server(server: Server, browser: Any) -> None:
    (one, errors), (other, other_errors) = open_page(browser), open_page(browser, width=390, scheme="dark")
    one.goto(f"{server.url}/gallery")
    other.goto(f"{server.url}/gallery?search=snow")
    one.locator(".tile").first.hover()
    one.locator(".pick").first.check()
    one.get_by_role("button", name="Share").click()
    one.fill("#share-name", "trip")
    one.get_by_role("button", name="Make the folder").click()
    shared = server.workspace / "shared" / "trip" / "index.html"
    wait(shared.is_file)
    assert other.input_value("#search") == "snow"
    assert other.locator("#picked").is_hidden()
    alone, alone_errors = open_page(browser)
    alone.goto(shared.as_uri())
    assert alone.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert (errors, other_errors, alone_errors) == ([], [], [])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_is_accessible_and_needs_no_sideways_scrolling(
    server: Server, browser: Any, width: int, scheme: str
) -> None:
    axe_module = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    axe = (Path(axe_module.__file__).parent / "axe.min.js").read_text()
    page, errors = open_page(browser, width, scheme)
    for address in (
        "/",
        "/new",
        "/new?subject=my-robot",
        "/runs/my-robot",
        "/generate",
        "/gallery",
        "/queue",
        "/models",
    ):
        page.goto(f"{server.url}{address}")
        page.locator(".now :first-child").first.wait_for(state="attached")
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        shoot(page, f"{address.strip('/').partition('?')[0].replace('/', '-') or 'home'}-{width}-{scheme}")
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa'] })")
        wrong = [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]
        assert wrong == [], f"{address} at {width} pixels"
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{address} is {overflow} pixels too wide at {width}"
    assert errors == []
