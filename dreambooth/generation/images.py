"""Pictures from a trained model to files: which model, which prompts, numbered PNGs that hold their own recipe."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from dreambooth.data.images import grid, to_images
from dreambooth.errors import ModelError, UserError, first_line
from dreambooth.export.subject_info import ExportCard, SubjectInfo, read_card
from dreambooth.families import Family, ModelSource, fingerprint, load_family, move
from dreambooth.files import atomic_file, with_home, without_home
from dreambooth.generation.sampler import cut_warning, sample_pixels
from dreambooth.generation.settings import SamplerSettings
from dreambooth.methods import find_method
from dreambooth.prompts import fill_prompt, has_field

RECIPE = "dreambooth"  # the PNG's text chunk
PATHS = ("model", "config", "base")  # of a recipe, in which ~ is the home folder


@dataclass(frozen=True)
class Model:
    """A model ready to sample, and what it has learned (None: a plain base).

    loaded_with: arguments of `load_model` that loading it again needs.
    """

    name: str
    family: Family
    card: SubjectInfo | None
    loaded_with: dict[str, str | None] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Side of the pictures it was trained at, pixels."""
        return self.card.resolution if self.card is not None else self.family.resolution

    def fill(self, prompt: str) -> str:
        """Replace {subject}, {class}, {subject_2} ... Raises UserError where the model does not say what that is."""
        if self.card is not None:
            return fill_prompt(prompt, self.card.subjects)
        if has_field(prompt):
            raise UserError(
                f"prompt {prompt!r}: {self.name} has learned no subject (it has no dreambooth.json); spell it out"
            )
        return prompt


@dataclass(frozen=True)
class Picture:
    """A picture and everything needed to make it again."""

    image: Image.Image
    recipe: dict[str, Any]


def load_model(
    model: str,
    config: str | None,
    device: str,
    dtype: str | None,
    base: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Model:
    """Load a run folder, pipeline folder, adapter folder, hub id or single file. Raises ModelError, UserError.

    config: for a single file, where its configs lie. base: for an adapter, its base model where that is elsewhere now.
    revision: of a hub id; variant: of the weights; of an adapter both are its base's.
    """
    folder = model_folder(model)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda is wished, but torch sees no GPU; use cpu or auto")
    picked = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    card = read_card(folder)
    if card is not None and find_method(card.method).is_adapter:
        family = load_adapted(folder, card, base, revision, variant)
    else:
        place = str(folder) if folder.exists() else model
        family = load_family(ModelSource(place, config=config, revision=revision, variant=variant))
    move(family, picked)
    dtype = dtype or ("float16" if picked.type == "cuda" else "float32")
    for part in (family.denoiser, *family.text_encoders):
        part.eval().to(getattr(torch, dtype))
    return Model(
        model, family, card, {"config": config, "dtype": dtype, "base": base, "revision": revision, "variant": variant}
    )


def model_folder(model: str) -> Path:
    """The folder with the result, of a run folder as well. Raises ModelError for a run without one."""
    folder = Path(model)
    if not (folder / "config.yaml").is_file() or (folder / "model_index.json").is_file():
        return folder
    if not (folder / "model").is_dir():
        raise ModelError(f"{model}: this run has no model yet; let its training end (the same train command goes on)")
    return folder / "model"


def find_card(model: str) -> ExportCard | None:
    """What a run or model folder has learned. Raises ModelError for a run without a model."""
    return read_card(model_folder(model))


def load_adapted(
    folder: Path, card: SubjectInfo, base: str | None, revision: str | None = None, variant: str | None = None
) -> Family:
    """The base model with an adapter's files laid over it; what is None is as in its run. Raises ModelError."""
    method = find_method(card.method)
    assert method.load is not None
    if base is None:
        base, revision, variant = card.base, revision or card.base_revision, variant or card.base_variant
    try:
        family = load_family(ModelSource(str(base), config=card.base_config, revision=revision, variant=variant))
    except ModelError as error:
        raise ModelError(f"{folder}: a {card.method} of the base {base}, which cannot be loaded: {error}") from error
    method.load(family, folder)
    return family


def make(
    model: Model,
    prompts: Sequence[str],
    num_images: int,
    seed: int,
    size: tuple[int, int],
    settings: SamplerSettings,
    batch_size: int,
) -> Iterator[Picture]:
    """Yield `num_images` pictures a prompt; picture i of each is made from seed + i. size: (height, width), pixels.

    Warns of a prompt that is longer than the model reads. Raises UserError where that cuts off an identifier.
    """
    identifiers = [] if model.card is None else [subject.identifier for subject in model.card.subjects]
    for prompt in dict.fromkeys([*prompts, settings.negative_prompt]):
        if (warning := cut_warning(model.family, f"prompt {prompt!r}", prompt, identifiers)) is not None:
            print(f"warning: {warning}", file=sys.stderr)
    everything = [(prompt, seed + number) for prompt in prompts for number in range(num_images)]
    batches = sample_pixels(
        model.family, [p for p, _ in everything], [s for _, s in everything], size, settings, batch_size
    )
    images = (image for pixels_BCHW in batches for image in to_images(pixels_BCHW))
    common = {**asdict(settings), "model": model.name, "width": size[1], "height": size[0], **model.loaded_with}
    common |= {name: without_home(str(common[name])) for name in PATHS if common.get(name) is not None}
    common |= {"weights": fingerprint(model.family)}
    common |= {package: version(package) for package in ("torch", "diffusers")}
    progress = tqdm(images, total=len(everything), unit="picture", disable=not sys.stderr.isatty())
    for (prompt, picture_seed), image in zip(everything, progress, strict=True):
        yield Picture(image, {"prompt": prompt, "seed": picture_seed, **common})


def write(made: Iterator[Picture], folder: str | Path, columns: int) -> Iterator[Path]:
    """Write PNGs numbered on from what the folder holds, and a grid of them all; yield each path once it is there."""
    folder, images, paths = Path(folder), [], []
    for picture in made:
        images.append(picture.image)
        paths.append(take_number(folder))
        try:
            yield write_png(paths[-1], picture.image, picture.recipe)
        finally:
            if not paths[-1].stat().st_size:
                paths[-1].unlink()
    yield write_png(folder / f"grid-{paths[0].name}", grid(images, columns), {})


def take_number(folder: Path) -> Path:
    """The next free number of a picture, taken by an empty file: of two processes each gets its own."""
    folder.mkdir(parents=True, exist_ok=True)
    number = next_number(folder)
    while True:
        path = folder / f"{number:05d}.png"
        try:
            path.open("xb").close()
            return path
        except FileExistsError:
            number += 1


def write_png(path: Path, image: Image.Image, recipe: dict[str, Any]) -> Path:
    """Write one PNG; the recipe lies in an iTXt chunk, as JSON."""
    info = PngInfo()
    if recipe:
        info.add_itxt(RECIPE, json.dumps(recipe))
    with atomic_file(path) as file:
        image.save(file, format="PNG", pnginfo=info)
    return path


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe of a picture that `write_png` wrote. Raises UserError for any other file."""
    try:
        with Image.open(path) as image:
            recipe = json.loads(image.info[RECIPE])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a picture of sample.py (no recipe in it): {first_line(error)}") from error
    return recipe | {name: with_home(recipe[name]) for name in PATHS if recipe.get(name) is not None}


def reproduce(recipe: Mapping[str, Any], model: Model) -> Iterator[Picture]:
    """The picture of a recipe, the same but for rounding: at most one level of 255.

    A model that has other weights now than when the picture was made is told, not refused.
    """
    if recipe["weights"] != fingerprint(model.family):
        print(f"warning: {model.name} has other weights now; this will be another picture", file=sys.stderr)
    known = {each.name: recipe[each.name] for each in fields(SamplerSettings) if each.name in recipe}
    settings = SamplerSettings(**known)  # older pictures do not name all
    return make(model, [recipe["prompt"]], 1, recipe["seed"], (recipe["height"], recipe["width"]), settings, 1)


def next_number(folder: Path) -> int:
    """One more than the highest number of a picture in the folder."""
    numbers = [int(match[1]) for path in folder.glob("*.png") if (match := re.fullmatch(r"(\d+)\.png", path.name))]
    return max(numbers, default=-1) + 1


def default_folder(model: str) -> Path:
    return Path("outputs") / (Path(model.rstrip("/")).stem or "model")
