"""The layers of the package: a module imports what stands left of it or beside it, never what stands right."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth.cli import COMMANDS

# Left to right; a folder counts as one module. CONTRIBUTING.md tells what each layer is for.
LAYERS = (
    (
        "__init__",
        "errors",
        "files",
        "plain_yaml",
        "config",
        "schedules",
        "losses",
        "images",
        "buckets",
        "randomness",
        "captions",
        "prompts",
        "ranks",
    ),
    ("data", "families", "methods", "optim", "metrics"),
    ("sampling", "prior", "export", "formats"),
    ("module", "observers", "callbacks", "profiling", "checkpointing", "validation", "pictures"),
    ("parts", "planning", "runfolder", "troubles", "checking", "engine"),
    ("cli", "report", "evaluation", "__main__", "train.py", "sample.py"),
    ("toyworld",),  # extras: the core never imports them
)
# What a module must not see although the layers would allow it, and why.
FORBIDDEN = (
    ("losses", "dreambooth.config", "losses are functions of tensors"),
    ("schedules", "dreambooth.config", "schedules are functions of tensors"),
    ("data", "transformers", "data never sees a tokenizer"),
)
HEAVY = {"torch", "diffusers", "transformers", "pytorch_lightning", "numpy"}

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dreambooth"
SOURCES = sorted(PACKAGE.rglob("*.py")) + [path for name in ("train.py", "sample.py") if (path := ROOT / name).exists()]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


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


def names_in(path: Path) -> set[str]:
    return set(imported_names(path.read_text(encoding="utf-8"), list(path.parent.relative_to(ROOT).parts)))


def modules_in(names: set[str]) -> set[str]:
    """The modules of this package among dotted names; `from dreambooth import __version__` names none."""
    seconds = {name.split(".")[1] for name in names if name.startswith("dreambooth.")}
    return {name for name in seconds if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_has_a_place_in_a_layer():
    homeless = {module_of(path) for path in SOURCES} - set(RANK)
    assert not homeless, (
        f"{', '.join(sorted(homeless))}: not in LAYERS of tests/test_layers.py. Place it in the leftmost layer whose "
        "left neighbours hold all that it imports, and name it in CONTRIBUTING.md if a newcomer has to know it."
    )


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_imports_nothing_from_a_layer_right_of_its_own(path):
    own = module_of(path)
    if own not in RANK:
        pytest.skip(f"{own} has no place yet; the test above names it")
    wrong = sorted(module for module in modules_in(names_in(path)) if RANK.get(module, 0) > RANK[own])
    assert not wrong, (
        f"{name(path)} (layer {RANK[own]}) imports {', '.join(wrong)} (layer {max(RANK[module] for module in wrong)}), "
        "which stands right of it: pass what it needs as an argument, or move the shared part to the left."
    )


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        own = module_of(path)
        graph.setdefault(own, set()).update(modules_in(names_in(path)) - {own})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


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
        *[("-m", "dreambooth", command, "--help") for command in COMMANDS],
        ("train.py", "--help"),
        ("sample.py", "--help"),
    ],
    ids=" ".join,
)
def test_config_and_help_load_nothing_heavy(arguments):
    heavy = modules_loaded_by(*arguments) & HEAVY
    assert not heavy, f"python {' '.join(arguments)} loads {', '.join(sorted(heavy))}: import it where it is used."
