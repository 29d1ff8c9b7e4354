"""One image as a request, and the recipe in a PNG by which the request is made again.

An image is a function of its request and of the model's weights. `sample.py`, `evaluate` and the Python interface all
make requests, and this is the only place that writes or reads a recipe. Nothing heavy is imported here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from dreambooth.errors import UserError, escaped, first_line
from dreambooth.files import atomic_file
from dreambooth.generation import variation
from dreambooth.generation.infotext import (
    PARAMETERS,
    USER_COMMENT,
    Infotext,
    parse_infotext,
    user_comment,
    write_infotext,
)
from dreambooth.generation.inputs import from_images
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.models.additions import as_json, embeddings_of, loras_of
from dreambooth.generation.models.reference import ModelRef
from dreambooth.generation.refining import refinement
from dreambooth.generation.refining.refinement import Refinement
from dreambooth.generation.settings import SamplerSettings
from dreambooth.generation.variation import Variation
from dreambooth.home_folder import with_home, without_home
from dreambooth.plugins import active

RECIPE = "dreambooth"  # the PNG's text chunk
PATHS = ("model", "config", "base", "vae")  # of a recipe, in which ~ is the home folder
PACKAGES = ("torch", "diffusers")  # whose versions a recipe names
PLAIN = "plain"  # prompts are read as in training; recipes do not name it
WEIGHTS_DIGITS = 16  # of the fingerprint, in recipes that earlier versions of `evaluate` wrote


@dataclass(frozen=True)
class ImageRequest:
    """Hold what one image is made from.

    prompt: as the model gets it, with nothing left to fill in. height, width: pixels. text_encoding: how prompts are
    read: plain, as in training, or weighted (`prompt_reading`). variations: of this seed's noise, one after another.
    images: what it takes from others. refinement: what is done to it once it is made; height and width are before.
    """

    model: ModelRef
    prompt: str
    seed: int
    height: int
    width: int
    settings: SamplerSettings
    text_encoding: str = PLAIN
    variations: tuple[Variation, ...] = ()
    images: FromImages = FromImages()
    refinement: Refinement | None = None

    @property
    def num_pixels(self) -> int:
        """Return how many pixels the image has in the end, about."""
        factor = 1.0 if self.refinement is None else self.refinement.factor
        return round(self.height * self.width * factor**2)


def make_recipe(request: ImageRequest, weights: str) -> dict[str, Any]:
    """Return the recipe of an image. weights: `families.fingerprint` of the model that makes it."""
    model = asdict(request.model)
    model |= {"loras": as_json(request.model.loras), "embeddings": as_json(request.model.embeddings)}
    name = model.pop("name")
    if request.model.quantize is None:  # a key that recipes of plain models do not have
        del model["quantize"]
    recipe = {"prompt": request.prompt, "seed": request.seed, **asdict(request.settings)}
    recipe |= {"model": name, "width": request.width, "height": request.height, **model, "weights": weights}
    recipe |= from_images.as_json(request.images)
    recipe |= {"text_encoding": request.text_encoding} if request.text_encoding != PLAIN else {}
    recipe |= {"variations": variation.as_json(request.variations)} if request.variations else {}
    recipe |= {} if request.refinement is None else {"refinement": refinement.as_json(request.refinement)}
    recipe |= {key: without_home(str(recipe[key])) for key in PATHS if recipe[key] is not None}
    recipe |= {"plugins": active().changing} if active().changing else {}
    return recipe | {package: version(package) for package in PACKAGES}


def request_of(recipe: Mapping[str, Any]) -> ImageRequest:
    """Return the request that a recipe is of; what earlier versions did not name has its default.

    Raises UserError for a recipe that lacks what every version wrote, or holds it in another type.
    """
    try:
        texts = [each.name for each in fields(ModelRef) if each.name not in ("name", "loras", "embeddings")]
        ref = {name: _text_or_none(recipe, name) for name in texts}
        ref |= {key: with_home(path) for key in PATHS if (path := ref.get(key)) is not None}
        loras, embeddings = loras_of(recipe.get("loras")), embeddings_of(recipe.get("embeddings"))
        settings = {each.name: recipe[each.name] for each in fields(SamplerSettings) if each.name in recipe}
        return ImageRequest(
            ModelRef(with_home(str(recipe["model"])), **ref, loras=loras, embeddings=embeddings),
            str(recipe["prompt"]),
            int(recipe["seed"]),
            int(recipe["height"]),
            int(recipe["width"]),
            SamplerSettings(**settings),
            str(recipe.get("text_encoding", PLAIN)),
            variation.variations_of(recipe.get("variations", ())),
            from_images.from_images_of(recipe),
            refinement.from_json(recipe.get("refinement")),
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the recipe cannot be read: {type(error).__name__}: {first_line(error)}") from error


def _text_or_none(recipe: Mapping[str, Any], key: str) -> str | None:
    value = recipe.get(key)
    return None if value is None else str(value)


def has_weights(recipe: Mapping[str, Any], weights: str) -> bool:
    """Return whether a recipe's weights fingerprint is this one; a recipe without one always matches."""
    own = str(recipe.get("weights", ""))
    return not own or (len(own) >= WEIGHTS_DIGITS and weights.startswith(own))


def recipe_changes(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return `key old -> new` for what differs between an image's own recipe and the wanted one.

    Keys that earlier versions did not write differ from nothing but a value that is set.
    """
    own = {**own, **{key: without_home(str(own[key])) for key in PATHS if own.get(key) is not None}}
    changed = [key for key in {**wanted, **own} if own.get(key) != wanted.get(key)]
    if has_weights(own, str(wanted["weights"])):
        changed = [key for key in changed if key != "weights"]
    return [f"{key} {own.get(key)!r} -> {wanted.get(key)!r}" for key in changed]


class GeneratedImage(Image.Image):
    """A PIL image with the recipe that makes it again, which its PNG keeps.

    attention: where asked for, a sheet that shows where each word of the prompt acted.
    """

    recipe: dict[str, Any]
    attention: Image.Image | None = None

    @classmethod
    def from_image(cls, image: Image.Image, recipe: dict[str, Any]) -> "GeneratedImage":
        """Return a copy of an image that holds its recipe, in `info` too, as one that is opened from a file does."""
        own = cls()
        own.__setstate__(image.__getstate__())
        own.recipe = recipe
        own.info[RECIPE] = json.dumps(recipe)
        return own

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002 - PIL's own name
        """Save as `PIL.Image.Image.save`; a PNG gets the recipe."""
        is_png = (format or Path(str(fp)).suffix).lower().removeprefix(".") == "png"
        if is_png and "pnginfo" not in params:
            params["pnginfo"] = _png_info(self.recipe)
        super().save(fp, format, **params)


def write_png(path: Path, image: Image.Image, recipe: Mapping[str, Any] | None = None) -> Path:
    """Write one PNG, whole or not at all; the recipe lies in an iTXt chunk, as JSON."""
    with atomic_file(path) as file:
        image.save(file, format="PNG", pnginfo=_png_info(recipe))
    return path


def _png_info(recipe: Mapping[str, Any] | None) -> PngInfo:
    info = PngInfo()
    if recipe:
        info.add_itxt(RECIPE, json.dumps(recipe))
    if recipe and "num_inference_steps" in recipe:
        info.add_text(PARAMETERS, write_infotext(recipe))
    return info


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the recipe in an image's file. Raises UserError where there is none."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            recipe = json.loads(image.info.get(RECIPE, "null"))
    except UnidentifiedImageError as error:
        raise UserError(f"{escaped(path)}: not an image") from error
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{escaped(path)}: cannot be read as an image with a recipe ({first_line(error)})") from error
    if isinstance(recipe, dict):
        return recipe
    raise UserError(f"{escaped(path)}: an image without a recipe; {_grid_hint(path)}")


def read_infotext(path: str | Path) -> Infotext | None:
    """Return what another program says of its image in a file; None where it says nothing, or the file has a recipe.

    Raises UserError for a file that is no image, and for a value that is not allowed here.
    """
    try:
        with Image.open(path) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(USER_COMMENT, b"")
            text = image.info.get(PARAMETERS) or (user_comment(comment) if isinstance(comment, bytes) else "")
            has_recipe = RECIPE in image.info
    except UnidentifiedImageError as error:
        raise UserError(f"{escaped(path)}: not an image") from error
    except OSError as error:
        raise UserError(f"{escaped(path)}: cannot be read ({first_line(error)})") from error
    return None if has_recipe else parse_infotext(str(text))


def _grid_hint(path: Path) -> str:
    """Return which image to take for one that has no recipe: of a grid, one of those that it shows."""
    number = path.stem.removeprefix("grid-")
    shown = sorted(path.parent.glob(f"{number}*.png")) if path.stem.startswith("grid-") and number.isdigit() else []
    if shown:
        return f"it is a grid of several: take one of those that it shows, from {shown[0].name} on"
    return "name one that sample.py or evaluate has made (a grid has none, each of its images has)"
