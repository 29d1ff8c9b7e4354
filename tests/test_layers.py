"""The rooms of the house: a room imports only from rooms above it in its own list, or from the ground."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest

from dreambooth.cli import COMMANDS

# From the ground up; CONTRIBUTING.md tells what each room is for. Rooms in one row do not see each other.
ROOMS: tuple[tuple[str, ...], ...] = (
    (
        "__init__",
        "version",
        "errors",
        "console",
        "files",
        "home_folder",
        "hub",
        "looks",
        "randomness",
        "timesteps",
        "schedules",
        "losses",
        "distributed",
        "prompts",
        "disk",
        "hints",
        "prompt_weights",
        "prompt_words",
        "status_line",
        "subject_info",
        "plugins",
        "questions",
        "devices",
        "checkpointing",
        "controlnets",
    ),  # the ground
    ("config",),
    ("data",),
    ("readers", "families"),
    ("methods",),
    ("metrics", "proposal"),
    ("generation",),
    ("exporting",),
    ("training",),
    ("run",),
    ("build",),
    ("preflight",),
    ("engine", "step_models"),
    ("report", "evaluation"),
    ("prepare",),
    ("sweep", "studio"),
    ("api",),
    ("cli",),
    ("__main__", "train.py", "sample.py"),
)
MAX_FLOORS = 10  # rooms in the longest chain of imports, from the ground to a script
# What a room must not see although the rooms would allow it, and why.
FORBIDDEN = (
    ("losses", "dreambooth.config", "losses are functions of tensors"),
    ("schedules", "dreambooth.config", "schedules are functions of tensors"),
    ("data", "transformers", "data never sees a tokenizer"),
    *[
        (room, "dreambooth.config", "build/ is the only room between the config and the rest")
        for room in ("data", "families", "methods", "metrics", "generation", "training")
    ],
)
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "pytorch_lightning",
    "numpy",
    "pluggy",
}  # pluggy: where there is a plug-in

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dreambooth"
SOURCES = sorted(PACKAGE.rglob("*.py")) + [path for name in ("train.py", "sample.py") if (path := ROOT / name).exists()]
RANK = {room: rank for rank, row in enumerate(ROOMS) for room in row}


def module_of(path: Path) -> str:
    """dreambooth/families/sd.py -> families, dreambooth/losses.py -> losses, train.py -> train.py."""
    if not path.is_relative_to(PACKAGE):
        return path.name
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_names(source: str, package: list[str]) -> Iterator[str]:
    """Every dotted name that `source`, which lies in `package`, imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{start}.{alias.name}" for alias in node.names)


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    return frozenset(imported_names(path.read_text(encoding="utf-8"), list(path.parent.relative_to(ROOT).parts)))


def modules_in(names: Set[str]) -> set[str]:
    """The modules of this package among dotted names; `from dreambooth import __version__` names none."""
    seconds = {name.split(".")[1] for name in names if name.startswith("dreambooth.")}
    return {name for name in seconds if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_is_in_a_room():
    homeless = {module_of(path) for path in SOURCES} - set(RANK)
    assert not homeless, (
        f"{', '.join(sorted(homeless))}: not in ROOMS of tests/test_layers.py. Place it in the lowest row whose "
        "lower neighbours hold all that it imports, and name it in CONTRIBUTING.md if a newcomer has to know it."
    )


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_room_imports_only_from_lower_rooms(path):
    own = module_of(path)
    if own not in RANK:
        pytest.skip(f"{own} has no place yet; the test above names it")
    if own == "__init__":
        pytest.skip("the package gives the names of api, which it loads when one of them is first used")
    wrong = sorted(
        room for room in modules_in(names_in(path)) - {own, "__init__"} if RANK.get(room, 0) >= (RANK[own] or 1)
    )
    assert not wrong, (
        f"{name(path)} (row {RANK[own]}) imports {', '.join(wrong)} (row {max(RANK[module] for module in wrong)}), "
        "which is not below it: pass what it needs as an argument, or move the shared part down."
    )


def test_no_room_takes_a_name_of_the_package_itself():
    """It stands on the api, the highest room but one."""
    for path in SOURCES:
        own = [each for each in names_in(path) if each.startswith("dreambooth.") and not modules_in({each})]
        assert not own, (
            f"{name(path)} imports {', '.join(own)}: name the module that has it, such as dreambooth.version"
        )


def test_the_core_never_imports_the_toy_world():
    wrong = [name(path) for path in SOURCES if any(each.split(".")[0] == "toyworld" for each in names_in(path))]
    assert not wrong, f"{', '.join(wrong)}: the toy world stands beside the core, which must work without it."


def imports_by_room() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        own = module_of(path)
        graph.setdefault(own, set()).update(modules_in(names_in(path)) - {own})
    return graph


def test_no_modules_import_each_other_in_a_circle():
    try:
        graphlib.TopologicalSorter(imports_by_room()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def file_of(dotted: str) -> Path | None:
    """The file that a dotted name is, or is defined in; None for a package, which hands names of its files on."""
    parts = dotted.split(".")
    files = (ROOT.joinpath(*parts[:end]).with_suffix(".py") for end in (len(parts), len(parts) - 1))
    return next((path for path in files if path.is_relative_to(PACKAGE) and path.is_file()), None)


def test_no_files_import_each_other_in_a_circle():
    graph = {path: {file_of(each) for each in names_in(path)} - {None, path} for path in SOURCES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(map(name, error.args[1]))}")


def test_no_chain_of_imports_has_more_rooms_than_a_newcomer_can_follow():
    graph = imports_by_room()

    @functools.cache
    def longest(room: str) -> tuple[str, ...]:
        """Return the longest chain from the ground up to this room."""
        return (*max(map(longest, sorted(graph[room])), key=len, default=()), room)

    chain = max(map(longest, graph), key=len)
    assert len(chain) <= MAX_FLOORS, f"{len(chain)} floors, {MAX_FLOORS} at most: {' <- '.join(chain)}"


@pytest.mark.parametrize(("module", "forbidden", "reason"), FORBIDDEN)
def test_a_module_does_not_see_what_it_has_no_business_with(module, forbidden, reason):
    names = set().union(*(names_in(path) for path in SOURCES if module_of(path) == module))
    wrong = sorted(name for name in names if f"{name}.".startswith(f"{forbidden}."))
    assert not wrong, f"dreambooth/{module} imports {', '.join(wrong)}, but {reason}."


def test_imports_are_found_in_every_form_they_can_take():
    source = (
        "import dreambooth.a.b\n"
        "from dreambooth import c\n"
        "from dreambooth.d import thing\n"
        "from . import e\n"
        "from .f import thing\n"
        "from ..g import thing\n"
        "def later():\n    from dreambooth.h import thing\n"
    )
    found = set(imported_names(source, ["dreambooth", "families"]))
    assert found == {
        "dreambooth.a.b",
        "dreambooth.c",
        "dreambooth.d.thing",
        "dreambooth.families.e",
        "dreambooth.families.f.thing",
        "dreambooth.g.thing",
        "dreambooth.h.thing",
    }


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ALL_SOURCES = [*SOURCES, *sorted((ROOT / "toyworld").rglob("*.py"))]


@functools.cache
def all_definitions() -> tuple[tuple[str, int, Any], ...]:
    """Return (file and name, lines, node) of every class and function, however deep."""
    found: list[tuple[str, int, Any]] = []
    for path in ALL_SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
                found.append((f"{name(path)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1, node))
    return tuple(found)


def definitions(*kinds: type[ast.AST]) -> Iterator[tuple[str, int, Any]]:
    """Yield (file and name, lines, node) of every class or function of these kinds."""
    yield from (each for each in all_definitions() if isinstance(each[-1], kinds))


def test_no_class_owns_everything():
    for title, num_lines, node in definitions(ast.ClassDef):
        num_methods = sum(isinstance(each, FUNCTIONS) for each in node.body)
        assert num_methods <= 20, f"{title} has {num_methods} methods, 20 at most: look for the second job in it."
        assert num_lines <= 250, f"{title} has {num_lines} lines, 250 at most: look for the second job in it."


def test_a_function_fits_on_a_screen():
    lengths = {title: num_lines for title, num_lines, _ in definitions(*FUNCTIONS)}
    too_long = [f"{title} ({num_lines})" for title, num_lines in lengths.items() if num_lines > 60]
    assert not too_long, f"{', '.join(too_long)}: over 60 lines: look for the second job in it."
    p90 = sorted(lengths.values())[len(lengths) * 9 // 10]
    assert p90 <= 20, f"one function in ten has over {p90} lines; 20 at the 90th percentile"


def modules_loaded_by(*arguments: str) -> set[str]:
    """Top-level names of all that `python ARGUMENTS` imports until it exits, as the interpreter reports it."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert result.returncode == 0, "\n".join([f"python {' '.join(arguments)} exits with {result.returncode}:", *errors])
    return set(re.findall(r"^import time:[\d |]+\| +(\w+)", result.stderr, flags=re.MULTILINE))


def test_the_interpreter_reports_a_heavy_import_where_there_is_one():
    assert "numpy" in modules_loaded_by("-c", "import numpy")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import dreambooth"),
        ("-c", "import dreambooth.config"),
        ("-m", "dreambooth", "--help"),
        ("train.py", "--help"),
        ("sample.py", "--help"),
    ],
    ids=" ".join,
)
def test_config_and_help_load_nothing_heavy(arguments):
    heavy = modules_loaded_by(*arguments) & HEAVY
    assert not heavy, f"python {' '.join(arguments)} loads {', '.join(sorted(heavy))}: import it where it is used."


HELP_OF_ALL = """
import contextlib, io, sys
from dreambooth.cli import COMMANDS, main
for command in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert not end.code, (command, end.code)
    print(command, len(said.getvalue()), *sys.modules)
"""


def test_the_help_of_a_command_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(COMMANDS)
    for command, num_letters, *modules in lines:
        assert int(num_letters) > 100, f"{command} --help says next to nothing"
        heavy = HEAVY & set(modules)
        assert not heavy, f"{command} --help loads {', '.join(sorted(heavy))}: import it where it is used."
