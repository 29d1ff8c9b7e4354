"""A page in a real browser without a window: what it shows at the width of a phone and of a desk."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)
WIDTHS = (360, 1200)  # pixels
PROBE = """
<script>
addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)];
  parent.postMessage({
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    pictures: all("img").length,
    broken: all("img").filter(image => !image.complete || image.naturalWidth === 0).length,
    unnamed: all("img").filter(image => !image.alt).length,
    plots: all("svg").length,
    flat: all("svg").filter(svg => svg.getBoundingClientRect().height < 100).length,
    small: all(".pair img, .images img, .film img, .cells img")
      .filter(image => image.getBoundingClientRect().width < 80).length,
    enlarged: all(".zoom").filter(label => {
      const width = () => label.querySelector("img").getBoundingClientRect().width;
      const before = width();
      label.click();
      const enlarged = width();
      label.click();
      return before < innerWidth && enlarged >= innerWidth - 20 && width() === before;
    }).length,
  }, "*");
});
</script>
"""
# Windows narrower than 500 pixels are widened, frames are not.
FRAMES = """
<body data-found="[]">
<script>
addEventListener("message", event => {
  document.body.dataset.found = JSON.stringify([...JSON.parse(document.body.dataset.found), event.data]);
});
</script>
""" + "".join(f'<iframe src="probed.html" width="{width}" height="800"></iframe>\n' for width in WIDTHS)


def assert_is_shown(page: Path, work: Path, num_plots: int = 0) -> None:
    """Fail unless a browser shows a page without errors, whole at both widths, and each image can be enlarged.

    work: a folder for what the browser writes. num_plots: at least so many plots are there.
    """
    shot = work / "shot.png"
    opened = _chromium(page.as_uri(), work / "profile", f"--screenshot={shot}", "--window-size=1200,800")
    assert "CONSOLE" not in opened.stderr, opened.stderr
    assert len(Image.open(shot).convert("RGB").getcolors(2**24) or []) > 50, "the page is blank"
    num_pictures = page.read_text().count("<img")
    found = _probed(page.read_text(), work)
    assert sorted(each.pop("width") for each in found) == [*WIDTHS]
    for each in found:
        assert each.pop("plots") >= num_plots
        assert each.pop("overflow") <= 0, "the page has to be scrolled sideways"
        assert each.pop("enlarged") == num_pictures, "a click enlarges an image, another one takes it back"
        assert each == {"pictures": num_pictures, "broken": 0, "unnamed": 0, "flat": 0, "small": 0}


def _probed(text: str, work: Path) -> list[dict[str, Any]]:
    """Return what the probe finds at each width, in a copy that may run it; the page itself forbids scripts."""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", text)
    (work / "probed.html").write_text(text + PROBE)
    (work / "frames.html").write_text(FRAMES)
    probed = _chromium((work / "frames.html").as_uri(), work / "profile", "--dump-dom")
    found = re.search('data-found="([^"]*)"', probed.stdout)
    assert found, probed.stderr
    return list(json.loads(html.unescape(found[1])))


def _chromium(url: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    quiet = ("disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
    options = ["--headless", "--no-sandbox", *(f"--{option}" for option in quiet), f"--user-data-dir={profile}"]
    logging = ["--enable-logging=stderr", "--virtual-time-budget=5000"]
    return subprocess.run([CHROMIUM, *options, *logging, *arguments, url], capture_output=True, text=True, timeout=120)
