"""Grids: which images they have, that a cell is what `sample` makes, that only what is missing is made."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dreambooth
from dreambooth.cli import main
from dreambooth.cli.results import show_grid_scores
from dreambooth.errors import UserError
from dreambooth.evaluation.image_scores import GridScorer, ImageScore
from dreambooth.families import load_family
from dreambooth.generation.grids.axes import axes_of, cells_of, parse_axes, with_images
from dreambooth.generation.grids.grid_run import Grid, make_grid
from dreambooth.generation.inputs.control_ref import make_controls
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.init_image import init_image
from dreambooth.generation.inputs.styles import make_styles, read_styles
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.models.model_pool import ModelPool
from dreambooth.generation.models.reference import LoraRef, ModelRef
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import read_recipe
from dreambooth.methods.lora_files import module_names
from dreambooth.step_models import load_at_step

QUICK = ["--steps", "1", "--size", "64x64"]
DOG = ImageOptions("a dog")


@pytest.fixture(scope="module")
def loras(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of other modules, one of which both have."""
    folder = tmp_path_factory.mktemp("loras")
    unet = load_family(str(tiny_base)).denoiser
    names = [name for name, module in unet.named_modules() if name.endswith(("to_q", "to_k"))]
    generator = torch.Generator().manual_seed(0)
    for number, own in enumerate((names[:3], names[2:])):
        tensors = {}
        for name in own:
            weight = unet.get_parameter(f"{name}.weight")
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
        save_file(tensors, folder / f"{number}.safetensors")
    return sorted(folder.iterdir())


def test_axes_take_their_places_in_order_or_by_name() -> None:
    axes = parse_axes(["guidance_scale=3,5", "y=seed:0,1", 'prompt="a dog, asleep",a cat'])
    assert [(axis.place, axis.name, axis.values) for axis in axes] == [
        (0, "guidance_scale", ("3", "5")),
        (1, "seed", ("0", "1")),
        (2, "prompt", ("a dog, asleep", "a cat")),
    ]
    for turned in (["y=guidance-scale:3,5", "x=seed:0"], ["guidance-scale=3,5", "x=seed:0"]):
        assert [axis.name for axis in parse_axes(turned)] == ["seed", "guidance_scale"]


def test_there_is_a_cell_for_each_combination_column_by_column() -> None:
    cells = cells_of(parse_axes(["guidance_scale=3,5", "seed=0,1,2"]), ModelRef("m"), DOG)
    assert [cell.values for cell in cells] == [("3", "0"), ("5", "0"), ("3", "1"), ("5", "1"), ("3", "2"), ("5", "2")]
    assert cells[3].options == ImageOptions("a dog", 1, 1, guidance_scale=5.0)


def test_axes_of_models_say_which_model_is_loaded_and_how() -> None:
    ref = ModelRef("m", loras=(LoraRef("a.safetensors"),))
    axes = parse_axes(["lora_weight=0.5,1", "lora=none,b.safetensors:0.2", "model=m,n"])
    cells = cells_of(axes, ref, DOG)
    assert [cell.ref.name for cell in cells] == ["m"] * 4 + ["n"] * 4
    assert cells[0].ref.loras == (LoraRef("a.safetensors", 0.5),)
    assert cells[2].ref.loras == (LoraRef("a.safetensors", 0.5), LoraRef("b.safetensors", 0.5)), "one weight for all"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["guidance=3"], "unknown axis guidance; did you mean guidance_scale"),
        (["seed"], "write AXIS=V1,V2"),
        (["seed=1,,2"], "a value is missing"),
        (["seed=1,1"], "named twice"),
        (["seed=1", "seed=2"], "an axis of this name or place already"),
        (["seed=x"], "seed=x: must be a number"),
        (["steps=0"], "steps=0: must be from 1 to 1000"),
        (["lora_weight=1"], "there is no LoRA; name one"),
        (["step=last"], "step=last: must be a whole number"),
        (["step=80"], "step 80: m has no weights of this step; it is no run"),
        (["seed=1", "steps=1", "scheduler=ddim", "size=64x64"], "4 axes; 3 at most"),
    ],
)
def test_an_axis_that_is_none_is_refused_by_name(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells_of(parse_axes(texts), ModelRef("m"), DOG)


def test_a_grid_of_one_cell_is_what_sample_makes(tiny_base: Path, tmp_path: Path) -> None:
    command = ["sample", str(tiny_base), "a {dog|cat}", *QUICK, "--num-images", "1", "--guidance-scale", "3"]
    assert main([*command, "--seed", "4", "--out", str(tmp_path / "plain")]) == 0
    assert main([*command, "--grid", "seed=4", "--out", str(tmp_path / "grid")]) == 0
    (plain,) = (tmp_path / "plain").iterdir()
    assert (tmp_path / "grid" / "000-seed-4.png").read_bytes() == plain.read_bytes()


def test_a_repeated_grid_makes_what_is_missing_and_nothing_else(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--grid", "guidance_scale=1,4", "y=seed:0,1", "--out", str(tmp_path)]
    command = ["sample", str(tiny_base), "a dog", "a cat", *QUICK, *grid]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "grid: 2 x 2 x 2 = 8 images, 0 of them are there already" in told.err
    made = sorted(tmp_path.glob("0*.png"))
    assert [path.name for path in made[:2]] == [
        "000-guidance-scale-1-seed-0-prompt-a-dog.png",
        "001-guidance-scale-4-seed-0-prompt-a-dog.png",
    ]
    before = {path: path.read_bytes() for path in made}
    times = {path: path.stat().st_mtime_ns for path in made[:-1]}
    made[-1].unlink()
    assert main(command) == 0
    assert "7 of them are there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in made} == before
    assert {path: path.stat().st_mtime_ns for path in made[:-1]} == times

    sheet = Image.open(tmp_path / "grid.png")
    assert sheet.width >= 2 * 64
    assert sheet.height >= 4 * 64
    page = (tmp_path / "grid.html").read_text()
    assert page.count("<figure") == 8
    assert page.count('type="checkbox"') == 6
    assert "a cat" in page
    assert "http" not in page

    assert main([*command, "--steps", "2"]) == 2
    assert "made otherwise: num_inference_steps 1 -> 2" in capsys.readouterr().err


def test_scores_are_on_the_page_and_in_a_list_with_the_best_first(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = cells_of(parse_axes(["seed=0,1", "guidance_scale=1"]), ModelRef(str(tiny_base)), replace(DOG, steps=1))
    grid = Grid(parse_axes(["seed=0,1", "guidance_scale=1"]), cells, tmp_path)
    asked = []

    def score(ref: ModelRef, model: Model, paths: Sequence[Path]) -> list[float]:
        asked.append((ref.name, [path.name[:3] for path in paths]))
        return [0.25, 0.75]

    scorer = GridScorer("cpu")
    plain = list(make_grid(grid, partial(load_at_step, ModelPool("cpu")), Wildcards(()), 2))
    before = Image.open(tmp_path / "grid.png").convert("RGB").tobytes()
    list(make_grid(grid, partial(load_at_step, ModelPool("cpu")), Wildcards(()), 2, None, score))
    assert asked == [(str(tiny_base), ["000", "001"])]
    assert Image.open(tmp_path / "grid.png").convert("RGB").tobytes() != before, "the sheet shows no scores"
    page = (tmp_path / "grid.html").read_text()
    assert page.count("data-score") == 2, "one a cell"
    assert "score <b>0.750</b>" in page
    scorer.found = {plain[0]: ImageScore(0.25, None), plain[1]: ImageScore(0.75, None)}
    (tmp_path / "scores.jsonl").write_text("of an earlier time\n")
    show_grid_scores(scorer, tmp_path)
    assert capsys.readouterr().out.splitlines()[0].startswith(f"0.750  {plain[1]}")
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"][:3] for line in lines] == ["001", "000"]


def test_axes_of_a_program_are_those_of_the_command_line() -> None:
    values = {"guidance_scale": [3, 5.5], "size": [(64, 32)], "prompt": ['a "red" dog, asleep', "a cat"]}
    axes = axes_of(values)
    assert [axis.values for axis in axes] == [("3", "5.5"), ("64x32",), ('a "red" dog, asleep', "a cat")]
    assert cells_of(axes, ModelRef("m"), DOG)[0].options.size == (32, 64)


def test_a_cell_that_cannot_be_made_is_reported_before_any_is(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(tiny_base), "a dog", "--out", str(tmp_path / "out"), "--grid"]
    for axis, message in (
        ("size=64x64,60x64", "multiples of 8"),
        ("dtype=float32,float8", "--grid dtype=float8: must be one of float32, float16, bfloat16"),
        (f"model={tiny_base},./nowhere", "./nowhere: there is no such folder"),
        ("prompt=a dog,a (cat:x)", "the weight 'x' is no number"),
        ("lora=no.safetensors", "no.safetensors: there is no such file"),
        ("strength=0.5", "--grid strength=0.5: there is no image to start from; name one with --init-image"),
        ("feather=2", "--grid feather=2: there is no image to start from; name one with --init-image"),
        ("mask=the hat", "--grid mask=the hat: an axis takes files; words are read by --mask, for all images"),
        ("expand=4", "--grid expand=4: must be LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("control=canny", "--grid control=canny: write KIND=IMAGE"),
        ("control_weight=0.5", "--grid control_weight=0.5: there is no control; name one with --control KIND=IMAGE"),
        ("style=none,nowhere", "--grid style=nowhere: neither an image nor a style"),
        ("init_image=no.png", "--grid init_image=no.png: there is no such file"),
    ):
        assert main([*command, axis]) in (2, 3)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_grid_takes_images_strengths_control_weights_and_styles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    first, second = (str(tmp_path / f"{number}.png") for number in range(2))
    control = make_controls([f"canny=map:{first}"], {"canny": "x/y"})
    images = FromImages(init_image(first, feather=3), control)
    axes = parse_axes(["strength=0.2,1", f"init_image={second}", "style=none,ink"])
    plain, *_, last = cells_of(axes, ModelRef("m"), with_images(axes, DOG, images)[0])
    assert plain.options.prompt == "a dog"
    assert plain.options.images == replace(images, init=init_image(second, 0.2, feather=3))
    assert "a dog" in last.options.prompt
    assert "ink" in last.options.prompt
    assert last.options.images == replace(images, init=init_image(second, 1, feather=3))
    axes = parse_axes(["control_weight=0,0.5"])
    weights = [cell.options.images for cell in cells_of(axes, ModelRef("m"), with_images(axes, DOG, images)[0])]
    assert weights == [replace(images, controls=(replace(control[0], weight=weight),)) for weight in (0, 0.5)]
    axes = parse_axes([f"mask={first},{second}", "feather=1,2", 'expand="0,8,0,0"'])
    starts = [cell.options.images.init for cell in cells_of(axes, ModelRef("m"), with_images(axes, DOG, images)[0])]
    assert [each.mask.name for each in starts] == [first, second] * 2
    assert caplog.text.count("nothing in it is white") == 2, "one line a mask, not one a cell"
    assert [(each.feather, each.expand) for each in starts[::2]] == [(1, (0, 8, 0, 0)), (2, (0, 8, 0, 0))]
    axes = parse_axes([f"control=none,canny=map:{second}:0.5"])
    cells = cells_of(axes, ModelRef("m"), with_images(axes, DOG, images)[0])
    controls = [cell.options.images.controls for cell in cells]
    assert [[(each.weight, each.network) for each in own] for own in controls] == [[], [(0.5, "x/y")]]
    axes = parse_axes(["seed=1"])
    assert with_images(axes, DOG, images)[0] is DOG, "the folders of earlier grids keep their names"


def test_none_leaves_out_the_common_control_and_style_and_no_other_image(tiny_base: Path, tmp_path: Path) -> None:
    """The control's network is not there: nothing asks for it."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "teal").save(photo)
    common = ["--control", f"canny=map:{photo}", "--control-model", "canny=no/network", "--style", str(photo)]
    start = ["--init-image", str(photo), "--strength", "0.5"]
    grid = ["--grid", "control=none", f'style=none,"{photo}"', "--out", str(tmp_path / "grid")]
    assert main(["sample", str(tiny_base), "a dog", *QUICK, *common, *start, *grid]) == 0
    none, styled = (read_recipe(path) for path in sorted((tmp_path / "grid").glob("0*.png")))
    assert "controls" not in none
    assert "style" not in none
    assert none["init_image"]["file"] == str(photo)
    assert styled["style"]["file"] == str(photo)


def test_an_axis_of_style_images_keeps_the_common_ip_adapter(tmp_path: Path) -> None:
    photos = [tmp_path / "0.png", tmp_path / "1.png"]
    for number, photo in enumerate(photos):
        Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(photo)
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(b"an adapter")
    common = make_styles([photos[0]], str(adapter)).reference
    axes = parse_axes([f"style=none,ink,{photos[1]}:0.5"])
    cells = cells_of(axes, ModelRef("m"), with_images(axes, DOG, FromImages(style=common))[0])
    none, named, image = (cell.options.images.style for cell in cells if cell.options.images is not None)
    assert none is None
    assert named == common
    assert image == make_styles([f"{photos[1]}:0.5"], str(adapter)).reference
    assert image.adapter_sha256 is not None


def test_a_style_holds_for_the_prompts_and_negative_prompts_of_a_programs_grid(tiny_base: Path, tmp_path: Path) -> None:
    model, quick = dreambooth.load(tiny_base, device="cpu"), {"steps": 1, "size": (64, 64), "style": "ink"}
    axes = {"negative_prompt": ["people", "rain"]}
    made = model.grid(["a dog", "a cat"], axes, out=tmp_path / "grid", **quick)
    ink = read_styles()["ink"]
    assert [(each.recipe["prompt"], each.recipe["negative_prompt"]) for each in made.images] == [
        (ink.prompt.replace("{prompt}", prompt), f"{negative}, {ink.negative}")
        for prompt in ("a dog", "a cat")
        for negative in ("people", "rain")
    ]


def test_an_axis_of_expand_has_the_defaults_of_the_option(tmp_path: Path) -> None:
    photo = str(tmp_path / "photo.png")
    Image.new("RGB", (128, 128), "teal").save(photo)

    def starts(images: FromImages, *texts: str) -> list[tuple[float, int]]:
        axes = parse_axes(['expand="128,128,0,0"', *texts])
        cells = cells_of(axes, ModelRef("m"), with_images(axes, DOG, images)[0])
        inits = [cell.options.images.init for cell in cells if cell.options.images is not None]
        return [(init.strength, init.feather) for init in inits if init is not None]

    option = init_image(photo, expand=(128, 128, 0, 0))
    assert option is not None
    assert (option.strength, option.feather) == (1.0, 4)
    assert starts(FromImages(init_image(photo))) == [(1.0, 4)]
    assert starts(FromImages(), f"init_image={photo}") == [(1.0, 4)]
    assert starts(FromImages(init_image(photo, 0.75, feather=2))) == [(0.75, 2)], "as given, if the default's value"
    assert starts(FromImages(init_image(photo)), "strength=0.2,1") == [(0.2, 4), (1.0, 4)]
    assert starts(FromImages(init_image(photo)), "feather=1,9") == [(1.0, 1), (1.0, 9)]


def test_none_is_a_model_without_the_option() -> None:
    cells = cells_of(parse_axes(["quantize=none,int8"]), ModelRef("m", quantize="nf4"), DOG)
    assert [cell.ref.quantize for cell in cells] == [None, "int8"]


def test_a_cell_of_a_strength_is_the_image_that_sample_makes(tiny_base: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "photo.png")
    command = ["sample", str(tiny_base), "a dog", *QUICK, "--init-image", str(tmp_path / "photo.png")]
    single = ["--strength", "0.5", "--num-images", "1", "--out", str(tmp_path / "plain")]
    assert main([*command, *single]) == 0
    assert main([*command, "--grid", "strength=0.5", "--out", str(tmp_path / "grid")]) == 0
    (plain,) = (tmp_path / "plain").iterdir()
    assert (tmp_path / "grid" / "000-strength-0-5.png").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--offload", "parts"], "--offload parts: not for a grid"),
        (["--attention-slices"], "--attention-slices: not for a grid"),
        (["--prompts", "{file}"], "have another seed, steps each"),
    ],
)
def test_a_grid_refuses_what_it_would_leave_out(
    options: list[str], told: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a cat", "num_images": 2}\n{"prompt": "a cow", "steps": 3, "seed": 2}\n')
    given = [option.format(file=file) for option in options]
    assert (
        main(["sample", str(tiny_base), "a dog", "--out", str(tmp_path / "out"), *given, "--grid", "size=64x64"]) == 2
    )
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_loras_are_switched_without_loading_the_base_again(tiny_base: Path, loras: list[Path]) -> None:
    """To the bits of a model that is loaded with them."""
    pool = ModelPool("cpu")
    refs = [
        ModelRef(str(tiny_base), loras=tuple(LoraRef(str(path), weight) for path, weight in laid))
        for laid in ([(loras[0], 1.0), (loras[1], 0.5)], [(loras[0], 0.3)], [(loras[1], 2.0)])
    ]
    first = pool(refs[0])
    for ref in refs:
        switched, fresh = pool(ref), load_model(ref, "cpu")
        assert switched.family is first.family
        assert switched.ref == fresh.ref
        ours, theirs = switched.family.denoiser.state_dict(), fresh.family.denoiser.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    plain = pool(ModelRef(str(tiny_base)))
    assert plain.family is not first.family, "a plain model is loaded as it is"
    assert len(module_names(plain.family)) > 0


def test_the_recipe_of_a_cell_makes_it_again(tiny_base: Path, loras: list[Path], tmp_path: Path) -> None:
    grid = ["--grid", "lora_weight=0.2,1", "--lora", str(loras[0]), "--out", str(tmp_path / "a")]
    assert main(["sample", str(tiny_base), "a dog", *QUICK, *grid]) == 0
    cell = tmp_path / "a" / "001-lora-weight-1.png"
    assert json.loads(json.dumps(read_recipe(cell)["loras"]))[0]["weight"] == 1.0
    assert main(["sample", "--from-image", str(cell), "--out", str(tmp_path / "b")]) == 0
    (again,) = (tmp_path / "b").iterdir()
    assert again.read_bytes() == cell.read_bytes()
