"""Prompts of an evaluation: the paper's 25 for objects and 25 for live subjects, or a file of one's own.

The two sets are those published with the DreamBooth data set (Ruiz et al. 2023, google/dreambooth,
dataset/prompts_and_classes.txt); `{subject}` stands for '<identifier> <class noun>'.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from dreambooth.errors import UserError
from dreambooth.files import read_lines, read_text
from dreambooth.prompts import has_field, template_problem

_PLACES = (
    "a {subject} in the jungle",
    "a {subject} in the snow",
    "a {subject} on the beach",
    "a {subject} on a cobblestone street",
    "a {subject} on top of pink fabric",
    "a {subject} on top of a wooden floor",
    "a {subject} with a city in the background",
    "a {subject} with a mountain in the background",
    "a {subject} with a blue house in the background",
    "a {subject} on top of a purple rug in a forest",
)
_PLACES_OF_OBJECTS = (
    "a {subject} with a wheat field in the background",
    "a {subject} with a tree and autumn leaves in the background",
    "a {subject} with the Eiffel Tower in the background",
    "a {subject} floating on top of water",
    "a {subject} floating in an ocean of milk",
    "a {subject} on top of green grass with sunflowers around it",
    "a {subject} on top of a mirror",
    "a {subject} on top of the sidewalk in a crowded street",
    "a {subject} on top of a dirt road",
    "a {subject} on top of a white rug",
)
_OUTFITS = (
    "a {subject} wearing a red hat",
    "a {subject} wearing a santa hat",
    "a {subject} wearing a rainbow scarf",
    "a {subject} wearing a black top hat and a monocle",
    "a {subject} in a chef outfit",
    "a {subject} in a firefighter outfit",
    "a {subject} in a police outfit",
    "a {subject} wearing pink glasses",
    "a {subject} wearing a yellow shirt",
    "a {subject} in a purple wizard outfit",
)
_PROPERTIES = (
    "a red {subject}",
    "a purple {subject}",
    "a shiny {subject}",
    "a wet {subject}",
    "a cube shaped {subject}",
)
SETS = {
    "objects": _PLACES + _PLACES_OF_OBJECTS + _PROPERTIES,
    "live": _PLACES + _OUTFITS + _PROPERTIES,
}
AUTO = "auto"
SEEDS_A_PROMPT = 1000  # so that prompts share no noise, and more images later do not change the first ones
NUM_LISTED = 3  # wrong prompts that an error lists


def load_prompts(choice: str, is_live: bool | None) -> tuple[str, ...]:
    """Return the prompts of one subject: a set by name, `auto` (by the subject's kind), or a file.

    A subject of unknown kind counts as an object. Raises UserError for an unknown name, or with all errors of a file.
    """
    if choice == AUTO:
        return SETS["live" if is_live else "objects"]
    if choice in SETS:
        return SETS[choice]
    if not Path(choice).is_file():
        raise UserError(f"--prompts: {choice!r} is neither {', '.join(SETS)}, {AUTO} nor a file of prompts")
    return read_prompts(Path(choice))


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts from a YAML list, or from a text with a prompt a line.

    Empty lines and lines with # do not count. Raises UserError.
    """
    prompts = _yaml_list(path) if path.suffix in (".yaml", ".yml") else _lines(path)
    if not prompts:
        raise UserError(f"{path}: no prompts in it; write one a line, such as: a {{subject}} on the beach")
    problems = [f"{prompt!r}: {problem}" for prompt in prompts if (problem := template_problem(prompt, 1))]
    if without := [prompt for prompt in prompts if not template_problem(prompt) and not has_field(prompt, "subject")]:
        problems.append(f"{len(without)} of {len(prompts)} prompts have no {{subject}} in them: {_some(without)}")
    if twice := [prompt for number, prompt in enumerate(prompts) if prompt in prompts[:number]]:
        problems.append(f"named twice: {_some(twice)}")
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return tuple(prompts)


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_lines(path)]
    return [line for line in lines if line and not line.startswith("#")]


def _yaml_list(path: Path) -> list[str]:
    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        raise UserError(f"{path}: expected a list of texts: '- a photo of {{subject}} on the beach' and so on")
    return found


def _some(prompts: Sequence[str]) -> str:
    listed = ", ".join(repr(prompt) for prompt in prompts[:NUM_LISTED])
    return listed if len(prompts) <= NUM_LISTED else f"{listed} ..."
