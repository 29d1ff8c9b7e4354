"""Tests that what the documents name is there, and that the commands in them work."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train.py": ["train"], "sample.py": ["sample"]}

# What makes a command cheap; its last word counts where it names an option twice.
QUICK_RUN = (
    "train.max_steps=2 validate.every_steps=2 validate.num_images=1 validate.num_inference_steps=1 "
    "prior.num_images=4 prior.num_inference_steps=1 log.tensorboard=false"
)
CHEAP = {
    "train": QUICK_RUN,
    "check": QUICK_RUN,  # of a run that is there the settings are compared
    "sample": "--steps 1 --num-images 1",
    "evaluate": "--steps 1 --num-images 1 --class-prompt-images 1",
    "toyworld evaluate": "--per-class 3",
    "toyworld outcome": "--num-images 4",
}


def code_lines(page: Path, fence: str = r"\w*") -> Iterator[str]:
    """Yield the lines of a page's fenced blocks whose language matches `fence`; of any language also indented ones."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(rf"^```{fence}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    if fence == r"\w*":
        yield from (line.strip() for line in re.findall(r"^ {4,}\S.*$", text, flags=re.MULTILINE))


def as_arguments(line: str) -> list[str] | None:
    """Return the arguments for `cli.main` of a command line in a document; None for other programs' lines."""
    if not re.match(r"(\S*/)?(dreambooth|python) ", line):
        return None
    words = shlex.split(line, comments=True)
    if "..." in words:
        return None
    program = Path(words[0]).name
    if program == "dreambooth":
        return words[1:]
    if program == "python" and words[1:3] == ["-m", "dreambooth"]:
        return words[3:]
    if program == "python" and len(words) > 1 and words[1] in SCRIPTS:
        return SCRIPTS[words[1]] + words[2:]
    return None


def commands(page: Path, fence: str = r"\w*") -> list[list[str]]:
    return [arguments for line in code_lines(page, fence) if (arguments := as_arguments(line)) is not None]


def test_every_test_that_proves_a_promise_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = sorted(name for name in named if f"def {name}(" not in sources)
    assert named
    assert not missing, f"docs/reliability.md names tests that are not there: {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to what is not there: {', '.join(missing)}"


def test_every_command_in_the_documents_is_one_that_the_program_takes() -> None:
    parser = cli._overview()
    found = [(page.name, arguments) for page in PAGES for arguments in commands(page)]
    assert len(found) > 15
    for name, arguments in found:
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{name}: `dreambooth {shlex.join(arguments)}` is not a command of this program")


def test_the_readme_fits_on_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_all_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks marked `sh`, page by page, in a folder like a fresh clone, with settings that make them cheap."""
    for name in (
        "configs",
        "data",
        "checkpoints/toyworld",
        "checkpoints/toyworld-encoders",
        "checkpoints/toyworld-second",
        "checkpoints/toyworld-second-encoders",
        "checkpoints/toyworld-controlnet",
        "checkpoints/toyworld-segmenter",
        "checkpoints/toyworld-blip2",
        "checkpoints/toyworld-kosmos2",
    ):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    first = ROOT / "docs" / "getting-started.md"  # its commands make the run that the other pages go on with
    for page in [first, *(page for page in PAGES if page != first)]:
        for arguments in commands(page, "sh"):
            key = " ".join(arguments[:2]) if arguments[0] == "toyworld" else arguments[0]
            code = cli.main([*arguments, *shlex.split(CHEAP.get(key, ""))])
            assert code == 0, f"{page.name}: `dreambooth {shlex.join(arguments)}` ends with {code}"
    assert (tmp_path / "checkpoints" / "toyworld-robot" / "report.html").is_file()
