"""The form of the generate page: read from what was sent, or recalled from an image's recipe."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dreambooth.errors import UserError
from dreambooth.generation.options import parse_size
from dreambooth.generation.refining.refinement import USUAL_STRENGTH
from dreambooth.home_folder import with_home
from dreambooth.studio.requests import GenerateRequest
from dreambooth.studio.workspace import Workspace

MAX_SEED = 2**31  # of those that are drawn here; typed ones may be larger
DEFAULT_STRENGTH = 0.75
VARIATION = "the variation"
# Fields of the form by how they are read.
TEXTS = (
    "model prompt negative_prompt seed steps guidance_scale scheduler size style init_image mask control control_image "
    "style_image upscale detail"
)
NUMBERS = "strength control_weight style_weight"
MIX, AXIS = "mix:", "grid-"  # how the names of fields begin that there are several of
# Keys of a recipe that no field of the form stands for, in words.
NO_FIELDS = {"variations": VARIATION, "embeddings": "embeddings", "base": "another base", "vae": "another VAE"}
NO_FIELDS |= {"config": "another config", "revision": "a revision", "variant": "a variant", "quantize": "quantization"}
SIDE_STEP = 16  # pixels; any model can draw an image whose sides are multiples of it


@dataclass(frozen=True)
class Form:
    """Hold what the form shows. Texts as they are typed; empty: as the run sampled its own images.

    prompt: one a line. mix: weight of each other model that is laid over. seed: empty draws one. init_image, mask,
    control_image, style_image: paths in the workspace. left_out: what of a recipe has no field here, in words.
    """

    model: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    num_images: int = 4
    seed: str = ""
    steps: str = ""
    guidance_scale: str = ""
    scheduler: str = ""
    size: str = ""
    style: str = ""
    mix: Mapping[str, float] = field(default_factory=dict)
    init_image: str = ""
    strength: float = DEFAULT_STRENGTH
    mask: str = ""
    only_masked: bool = False
    control: str = "canny"
    control_image: str = ""
    control_weight: float = 1.0
    style_image: str = ""
    style_weight: float = 1.0
    upscale: str = ""
    detail: str = ""
    attention_maps: bool = False
    grid: Sequence[str] = ()
    left_out: Sequence[str] = ()


def form_of(recipe: Mapping[str, Any], workspace: Workspace) -> Form:
    """Return the form that makes an image of this recipe again, but for what it leaves out.

    Raises UserError for a recipe that cannot be read.
    """
    try:
        form = _with_images(_settings_of(recipe, workspace), recipe, workspace)
        return replace(form, left_out=_left_out(recipe))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the recipe cannot be read: {type(error).__name__}: {error}") from error


def _settings_of(recipe: Mapping[str, Any], workspace: Workspace) -> Form:
    refinement = recipe.get("refinement") or {}
    factor, detail = float(refinement.get("factor", 1)), float(refinement.get("detail", 0))
    return Form(
        model=_inside(workspace, str(recipe.get("model", ""))),
        prompt=str(recipe["prompt"]),
        negative_prompt=str(recipe.get("negative_prompt", "")),
        num_images=1,
        seed=str(recipe.get("seed", "")),
        steps=str(recipe.get("num_inference_steps", "")),
        guidance_scale=_number(recipe.get("guidance_scale", "")),
        scheduler=str(recipe.get("scheduler", "")),
        size=f"{recipe['width']}x{recipe['height']}" if "width" in recipe else "",
        mix={_inside(workspace, str(each["file"])): float(each["weight"]) for each in recipe.get("loras") or ()},
        upscale=_number(factor) if factor > 1 else "",
        detail=_number(detail) if detail else "",
    )


def _with_images(form: Form, recipe: Mapping[str, Any], workspace: Workspace) -> Form:
    """Return the form with the images that the recipe takes something from."""
    init, controls, style = recipe.get("init_image"), recipe.get("controls") or (), recipe.get("style")
    if init:
        mask = _inside(workspace, str(init["mask"]["file"])) if init.get("mask") else ""
        form = replace(form, init_image=_inside(workspace, str(init["file"])), strength=float(init["strength"]))
        form = replace(form, mask=mask, only_masked=bool(init.get("only_masked")))
    if controls:
        first = controls[0]
        form = replace(form, control=str(first["kind"]), control_image=_inside(workspace, str(first["file"])))
        form = replace(form, control_weight=float(first.get("weight", 1)))
    if style:
        image = _inside(workspace, str(style["file"]))
        form = replace(form, style_image=image, style_weight=float(style.get("weight", 1)))
    return form


def _left_out(recipe: Mapping[str, Any]) -> list[str]:
    """Return what of a recipe has no field in the form, in words."""
    init, controls = recipe.get("init_image") or {}, recipe.get("controls") or ()
    refinement, style = recipe.get("refinement") or {}, recipe.get("style") or {}
    first = {"start": 0, "end": 1, "is_map": False, "network": None} | (controls[0] if controls else {})
    others = {
        "added sides": any(init.get("expand") or ()),
        "more controls": len(controls) > 1,
        "the steps of the control": (first["start"], first["end"]) != (0, 1),
        "a control that is a map": first["is_map"],
        "another ControlNet": first["network"],
        "an IP-Adapter": style.get("adapter"),
        "the strength of the upscale": refinement.get("strength", USUAL_STRENGTH) != USUAL_STRENGTH,
    }
    return [words for key, words in NO_FIELDS.items() if recipe.get(key)] + [each for each in others if others[each]]


def enlarged(form: Form, image: str, size: tuple[int, int], factor: str) -> Form:
    """Return the form that makes an image itself larger. form: of its recipe; size: of the image, pixels.

    It starts from the image and draws nothing of it anew, so what the recipe has beside the form does not count.
    """
    width, height = (max(SIDE_STEP, side // SIDE_STEP * SIDE_STEP) for side in size)
    form = replace(form, size=f"{width}x{height}", init_image=image, strength=0, mask="")
    return replace(form, control_image="", style_image="", detail="", upscale=factor, left_out=())


def _inside(workspace: Workspace, path: str) -> str:
    """Return a path of a recipe as the workspace names it, if it lies there."""
    return with_home(path).removeprefix(f"{workspace.root}/")


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def form_from(sent: Mapping[str, Any]) -> Form:
    """Return what was sent. Raises UserError for a number that is none."""
    known = {name: str(sent[name]).strip() for name in asdict(Form()) if isinstance(sent.get(name), str)}
    values: dict[str, Any] = {name: known[name] for name in TEXTS.split() if name in known}
    try:
        values |= {name: float(known[name]) for name in NUMBERS.split() if known.get(name)}
        values["num_images"] = int(known.get("num_images") or 4)
        weights = {name.removeprefix(MIX): float(value) for name, value in sent.items() if name.startswith(MIX)}
    except ValueError as error:
        raise UserError(f"a number of the form cannot be read: {error}") from error
    values |= {name: True for name in ("only_masked", "attention_maps") if name in known}
    values["mix"] = {name: weight for name, weight in weights.items() if weight}
    values["grid"] = [
        axis for name, value in sorted(sent.items()) if name.startswith(AXIS) and (axis := str(value).strip())
    ]
    return Form(**values)


def request_of(form: Form) -> GenerateRequest:
    """Return the job that a form asks for. Raises UserError for a value that is not allowed."""
    prompts = [line.strip() for line in form.prompt.splitlines() if line.strip()]
    if not prompts:
        raise UserError("prompt: is empty; write what to draw, e.g. a photo of {subject} on the beach")
    values: dict[str, Any] = {
        "kind": "generate",
        "model": form.model,
        "prompts": prompts,
        "num_images": form.num_images,
        "seed": int(form.seed) if form.seed.isdigit() else secrets.randbelow(MAX_SEED),
        "negative_prompt": form.negative_prompt,
    }
    values |= _sampling(form) | _from_images(form)
    if form.mix:
        values["loras"] = [{"file": file, "weight": weight} for file, weight in form.mix.items()]
    if form.style:
        values["styles"] = [form.style]
    if form.grid:
        values["grid"] = list(form.grid)
    if form.attention_maps:
        values["attention_maps"] = True
    return GenerateRequest.model_validate(values)


def _sampling(form: Form) -> dict[str, Any]:
    """Return the sampler's settings that are filled in."""
    values: dict[str, Any] = {}
    for name, read in (
        ("steps", int),
        ("guidance_scale", float),
        ("scheduler", str),
        ("upscale", float),
        ("detail", float),
    ):
        if text := getattr(form, name):
            try:
                values[name] = read(text)
            except ValueError:
                raise UserError(f"{name}={text}: must be a number") from None
    if form.size:
        try:
            height, width = parse_size(form.size)
        except ValueError as error:
            raise UserError(f"size={form.size}: {error}") from error
        values["size"] = f"{width}x{height}"
    return values


def _from_images(form: Form) -> dict[str, Any]:
    """Return what is taken from images."""
    values: dict[str, Any] = {}
    if form.init_image:
        values |= {"init_image": form.init_image, "strength": form.strength}
        if form.mask:
            values |= {"mask": form.mask, "only_masked": form.only_masked}
    if form.control_image:
        control = {"kind": form.control, "image": form.control_image, "weight": form.control_weight}
        values["controls"] = [control]
    if form.style_image:
        values |= {"style_image": form.style_image, "style_weight": form.style_weight}
    return values


def drawn_seed() -> str:
    """Return a new seed."""
    return str(secrets.randbelow(MAX_SEED))
