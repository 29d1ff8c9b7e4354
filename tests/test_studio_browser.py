"""The studio as people use it, in a browser: photos dropped, a training watched and cut off, images made and shared.

One story of two users at once, one at a desk and one with a phone. It is a single test because each part goes on with
what the one before has made: a training is too dear to be repeated.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="the extra 'studio' is not installed")
axe_module = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]
MINUTES = 60_000.0  # milliseconds, of Playwright's limits
SHOTS = os.environ.get("STUDIO_SHOTS")  # a folder for screenshots to look at
DESK, PHONE, HEIGHT = 1280, 390, 844  # pixels
SCHEMES = {DESK: "light", PHONE: "dark"}
RUN = "my-robot"  # as the page names it
# As little as shows everything: two validations, an image a prompt, and steps enough to be cut off in the middle.
SHORT = """\
train.max_steps=24
train.save_every_steps=6
validate.every_steps=12
validate.num_images=1
validate.num_inference_steps=2
prior.num_images=8
prior.num_inference_steps=2
log.tensorboard=False
"""
# Adds up how far parts of the page move without somebody having asked for it.
WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
    for (const each of list.getEntries())
        if (!each.hadRecentInput && each.value > 0)
            window.shifts.push([each.value, ...each.sources.map((source) => source.node?.outerHTML?.slice(0, 80))]);
}).observe({ type: "layout-shift", buffered: true });
"""
# Whether a canvas has the size of the image under it.
IS_FITTED = """name => {
    const canvas = document.querySelector(name);
    return canvas && canvas.width === canvas.previousElementSibling.naturalWidth;
}"""
MOST_SHIFT = 0.02  # of one page; 0.1 is what web.dev calls good (https://web.dev/articles/cls)


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


@pytest.fixture
def server(tmp_path: Path, shipped_base: Path) -> Iterator[Server]:
    workspace = tmp_path / "work"
    for name in ("toyworld", "toyworld-encoders"):
        shutil.copytree(shipped_base.with_name(name), workspace / "checkpoints" / name)
    server = Server(workspace)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class User:
    """Hold somebody with a browser of their own. errors: what the page's console reports."""

    page: Any
    width: int
    errors: list[str] = field(default_factory=list)

    def shoot(self, name: str) -> None:
        """Keep a screenshot of the whole page, if somebody wants to look at it."""
        if SHOTS:
            height = self.page.evaluate("document.documentElement.scrollHeight")
            self.page.set_viewport_size({"width": self.width, "height": max(HEIGHT, min(height, 3000))})
            self.page.screenshot(path=Path(SHOTS) / f"{name}-{self.width}.png")
            self.page.set_viewport_size({"width": self.width, "height": HEIGHT})


def user_of(browser: Any, width: int) -> User:
    """Return a new user, whose page reports what goes wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=SCHEMES[width])
    context.add_init_script(WATCH_SHIFTS)
    context.set_default_timeout(10 * MINUTES)
    context.set_default_navigation_timeout(10 * MINUTES)
    page = context.new_page()
    user = User(page, width)
    wrong = ("error", "warning")
    page.on("console", lambda message: user.errors.append(message.text) if message.type in wrong else None)
    page.on("pageerror", lambda error: user.errors.append(str(error)))
    return user


def wait(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.2)


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


def paint(page: Any, selector: str) -> None:
    """Paint a stroke on a canvas."""
    page.wait_for_function(IS_FITTED, arg=selector)
    canvas = page.locator(selector)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=4)
    page.mouse.up()


def jobs_of(page: Any, server: Server) -> list[dict[str, Any]]:
    """Return all jobs, the newest first."""
    found: list[dict[str, Any]] = json.loads(page.request.get(f"{server.url}/api/v1/jobs").text())["jobs"]
    return found


def logged_steps(folder: Path) -> int:
    metrics = folder / "logs" / "metrics.csv"
    return metrics.read_text().count("\n") - 1 if metrics.is_file() else 0


def bring_photos(server: Server, user: User) -> None:
    """Drop photos, see what is found in them, paint a mask, write a caption, and see what a training costs."""
    page = user.page
    page.goto(f"{server.url}/new")
    drop(page, ".drop", sorted((ROOT / "data" / "robot").glob("*.png")))
    page.locator(".photo").nth(4).wait_for()
    assert page.locator(".photo .findings li").count() >= 5
    page.fill("#class-noun", "robot")
    page.get_by_text("Quick look").click()
    page.get_by_role("button", name="Paint a mask: photo 1").click()
    paint(page, "#look canvas")
    page.get_by_role("button", name="Save the mask").click()
    page.get_by_role("button", name="Change the mask: photo 1").wait_for()
    assert page.input_value("#class-noun") == "robot", "what was typed stays when the photos are shown anew"
    page.fill("#caption-1", "a photo of {subject} on grass")
    page.keyboard.press("Tab")
    page.get_by_text("Caption saved.").wait_for()
    page.locator(".preset dd", has_text="MiB").first.wait_for()
    assert page.locator("input[name=preset]:checked").get_attribute("value") == "quick", "and what was chosen"
    user.shoot("new-photos")


def learn(server: Server, user: User, other: User) -> None:
    """Start a training, kill the server in the middle of it, and watch to the end, as somebody else does."""
    page, run = user.page, server.workspace / "checkpoints" / RUN
    page.get_by_text("Other settings").click()
    page.fill("#more", SHORT)
    page.click("#begin")
    page.wait_for_url(f"**/runs/{RUN}")
    page.locator("#status .pill.running").wait_for()
    wait(lambda: logged_steps(run) >= 1)
    other.page.goto(f"{server.url}/runs/{RUN}")
    assert (user.errors, other.errors) == ([], [])
    server.kill()
    assert not (run / "model").exists(), "the training was over before the server was killed"
    server.start()
    for each in (user, other):
        each.page.reload()
        each.errors.clear()  # that the server was gone
    for each in (user, other):
        watch(each)
    job = jobs_of(page, server)[0]
    assert (job["kind"], job["state"], job["attempts"]) == ("train", "done", 1), "adopted, not rerun"


def watch(user: User) -> None:
    """See a training come to its end, and look at its steps."""
    page = user.page
    page.locator("#status .pill.done").wait_for()
    page.locator(".film button").nth(2).wait_for()
    page.locator(".film button").nth(1).click()
    assert page.locator("[data-caption]").inner_text().startswith("step 12")
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert "base" in page.locator("[data-caption]").inner_text()
    page.keyboard.press("ArrowRight")
    page.locator("#figures .plot").first.wait_for()
    user.shoot("run")
    assert user.errors == []


def draw(server: Server, user: User) -> None:
    """Generate images with the keyboard, and vary one."""
    page = user.page
    page.goto(f"{server.url}/generate?model=checkpoints/{RUN}")
    page.fill("#prompt", "a photo of {subject} in the snow")
    page.fill("#num-images", "2")
    page.fill("#seed", "11")
    page.get_by_text("More settings").click()
    page.fill("#steps", "4")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    newest = page.locator(".batch").first
    newest.locator(".tile").nth(1).wait_for()
    newest.locator(".tile .open").first.click()
    page.get_by_role("button", name="Vary a little").wait_for()
    user.shoot("look")
    page.get_by_role("button", name="Vary a little").click()
    page.locator(".batch").nth(1).wait_for()
    newest.locator(".tile").nth(3).wait_for()
    user.shoot("varied")
    assert user.errors == []


def redraw(server: Server, user: User) -> None:
    """Recall an image's recipe from its PNG, and have a part of it drawn anew under a mask."""
    page, number = user.page, len(jobs_of(user.page, server))
    made = sorted((server.workspace / "outputs").glob("job-*/00000-*.png"))[:1]
    page.goto(f"{server.url}/generate")
    page.fill("#seed", "5")
    page.get_by_text("Recall an image's recipe").click()
    drop(page, ".drop:has([name=recall])", made)
    page.locator("#seed[value='11']").wait_for()
    assert page.input_value("#prompt").startswith("a photo of")
    assert page.input_value("#steps") == "4"
    page.get_by_text("Start from an image, paint a mask").click()
    drop(page, ".drop:has([name=init_image])", made)
    paint(page, ".compose .canvas canvas")
    assert page.evaluate("document.querySelector('input[name=mask]').files.length") == 1
    user.shoot("mask")
    batches = page.locator(".batch").count()
    page.click("#go")
    page.locator(".batch").nth(batches).wait_for()
    page.locator(".batch").first.locator(".tile").first.wait_for()
    job = jobs_of(page, server)[0]
    assert job["id"] == number + 1
    (image,) = job["progress"]["images"]
    recipe = json.loads(page.request.get(f"{server.url}/api/v1/images/{image}/recipe").text())
    assert recipe["seed"] == 11
    assert recipe["init_image"]["mask"], "what was painted is in the recipe"
    assert user.errors == []


def share(server: Server, user: User, other: User) -> None:
    """Share an image, delete it and bring it back, while somebody else looks on undisturbed."""
    page = user.page
    page.goto(f"{server.url}/gallery")
    other.page.goto(f"{server.url}/gallery?search=snow")
    number = page.locator(".tile").count()
    page.locator(".tile").first.hover()
    page.locator(".pick").first.check()
    page.get_by_role("button", name="Share").click()
    page.fill("#share-name", "trip")
    page.get_by_role("button", name="Make the folder").click()
    wait((server.workspace / "shared" / "trip" / "index.html").is_file)
    assert other.page.input_value("#search") == "snow"
    assert other.page.locator("#picked").is_hidden()
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("1 image deleted.").wait_for()
    assert page.locator(".tile").count() == number - 1
    page.get_by_role("button", name="Undo").click()
    page.locator(".tile").nth(number - 1).wait_for()
    assert (user.errors, other.errors) == ([], [])


def open_what_was_shared(server: Server, user: User) -> None:
    """Open the shared page from the disk."""
    user.page.goto((server.workspace / "shared" / "trip" / "index.html").as_uri())
    user.page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    user.shoot("shared")
    assert user.errors == []


PAGES = (
    "",
    "new",
    "new?subject=photos-1",
    f"runs/{RUN}",
    f"runs/{RUN}/compare",
    "generate",
    "gallery",
    "queue",
    "models",
)


def look_at_every_page(server: Server, user: User) -> None:
    """Find each page accessible by the rules of axe-core, standing still, and no wider than the window."""
    page, axe = user.page, (Path(axe_module.__file__).parent / "axe.min.js").read_text()
    for address in PAGES:
        where = f"/{address} at {user.width} pixels"
        page.goto(f"{server.url}/{address}")
        page.locator(".now :first-child").first.wait_for(state="attached")
        page.wait_for_timeout(300)  # milliseconds, for the first events
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        print(f"{where}: loaded in {loaded:.0f} ms")
        shifts = page.evaluate("window.shifts")
        assert sum(each[0] for each in shifts) <= MOST_SHIFT, f"{where} moves: {shifts}"
        user.shoot(re.sub(r"\W+", "-", address) or "home")
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa'] })")
        wrong = [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]
        assert wrong == [], where
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{where} is {overflow} pixels too wide"
    assert user.errors == []


def test_from_photos_to_shared_pictures(server: Server, browser: Any) -> None:
    desk, phone = user_of(browser, DESK), user_of(browser, PHONE)
    bring_photos(server, desk)
    learn(server, desk, phone)
    bring_photos(server, phone)
    draw(server, desk)
    for user in (desk, phone):
        redraw(server, user)
    share(server, desk, phone)
    shutil.copytree(server.workspace / "checkpoints" / RUN, server.workspace / "checkpoints" / "other")
    for user in (desk, phone):
        open_what_was_shared(server, user)
        look_at_every_page(server, user)
