"""Styles: named ones of lists, and that of an image, by shared attention or an IP-Adapter. Limits first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import dreambooth
from dreambooth.cli import main
from dreambooth.errors import UserError
from dreambooth.families.shared_attention import SharedAttention, adain, shared_attention
from dreambooth.families.unet import UNetFamily
from dreambooth.generation.images import generate, make_requests
from dreambooth.generation.inputs.from_images import FromImages
from dreambooth.generation.inputs.image_inputs import ImageInputs
from dreambooth.generation.inputs.image_refs import ImageRef
from dreambooth.generation.inputs.image_style import prepare_style
from dreambooth.generation.inputs.style_ref import StyleRef, check_reference, style_of
from dreambooth.generation.inputs.styles import NamedStyle, Styles, make_styles, read_styles, weighted
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.generation.options import ImageOptions
from dreambooth.generation.prompting.prompt_reading import encoder
from dreambooth.generation.prompting.weight_syntax import parse_weights
from dreambooth.generation.prompting.wildcards import Wildcards
from dreambooth.generation.request import read_recipe
from dreambooth.generation.sampler import noise_from_seeds, sample_latents
from dreambooth.generation.schedulers import make_scheduler
from dreambooth.generation.settings import SamplerSettings

SHAPE = (4, 8, 8)
SETTINGS = SamplerSettings(4, 3.0)
OPTIONS = ImageOptions("a dog", 1, 7, steps=4, guidance_scale=3.0)
WIDTH = 16  # of the tiny image encoder's embeddings


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Model:
    return load_model(str(tiny_base), "cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    noise_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise_HWC).save(path)
    return path


@pytest.fixture(scope="module")
def adapter(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an IP-Adapter of random weights for the tiny base, with its image encoder beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )
    encoder.save_pretrained(folder / "image_encoder")
    assert isinstance(model.family, UNetFamily)
    unet, texts = model.family.unet, model.family.unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(4 * texts, WIDTH),
        "image_proj.proj.bias": torch.randn(4 * texts),
        "image_proj.norm.weight": torch.ones(texts),
        "image_proj.norm.bias": torch.zeros(texts),
    }
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(hidden, texts)
    save_file(weights, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"


def made(model: Model, styles: Styles, num_images: int = 1) -> list[np.ndarray]:
    images = FromImages(style=styles.reference)
    options = styles.apply(replace(OPTIONS, num_images=num_images))
    requests = make_requests(model, [options], Wildcards(), images)
    return [np.asarray(image, int) for image in generate(model, requests, num_images)]


# an image's style, by shared attention


def test_a_weight_of_zero_equals_no_style(model: Model, photo: Path) -> None:
    (plain,) = made(model, Styles())
    (none,) = made(model, make_styles([f"{photo}:0"]))
    (styled,) = made(model, make_styles([str(photo)]))
    assert np.array_equal(plain, none)
    assert not np.array_equal(plain, styled)


def test_a_little_weight_is_near_none(model: Model, photo: Path) -> None:
    """At weight w the reference's positions count w times their own, and its deviations w parts."""
    plain, little, whole = (made(model, make_styles([f"{photo}:{weight}"]))[0] for weight in (0, 1e-6, 1))
    assert abs(little - plain).max() <= 1
    assert abs(whole - plain).max() > 1


def test_the_attention_is_as_it_was_afterwards(model: Model, photo: Path) -> None:
    assert isinstance(model.family, UNetFamily)
    before = dict(model.family.unet.attn_processors)
    made(model, make_styles([str(photo)]))
    after = model.family.unet.attn_processors
    assert all(after[name] is own for name, own in before.items())
    with shared_attention(model.family.unet, 1.0):
        assert any(isinstance(each, SharedAttention) for each in model.family.unet.attn_processors.values())


@torch.no_grad()
def test_a_sample_alone_has_its_own_attention(model: Model) -> None:
    """The reference attends to itself twice, which is once."""
    assert isinstance(model.family, UNetFamily)
    attention = model.family.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    hidden_1ND = torch.randn(1, 16, 16)
    for weight in (0.3, 1.0, 2.0):
        shared_1ND = SharedAttention(weight)(attention, hidden_1ND)
        torch.testing.assert_close(shared_1ND, AttnProcessor()(attention, hidden_1ND))


def test_aligned_features_have_the_references_statistics() -> None:
    features = torch.randn(3, 2, 50, 4) * 3 + 1
    aligned = adain(features, 1.0)
    for own in aligned:
        torch.testing.assert_close(own.mean(1), features[0].mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own.std(1), features[0].std(1), atol=1e-3, rtol=1e-3)
    assert torch.equal(adain(features, 0.0), features)


def test_neighbours_in_a_batch_do_not_change_a_styled_image(model: Model, photo: Path) -> None:
    alone, several = made(model, make_styles([str(photo)])), made(model, make_styles([str(photo)]), 3)
    assert abs(alone[0] - several[0]).max() <= 1


def test_style_and_image_to_image_join(tiny_xl_base: Path, photo: Path) -> None:
    """They do with XL too, whose conditioning has more fields."""
    model = dreambooth.load(tiny_xl_base, device="cpu")
    options = {"num_images": 1, "steps": 3, "init_image": photo, "strength": 0.7}
    (image,) = model.generate("a dog", styles=[photo], **options)
    (plain,) = model.generate("a dog", **options)
    assert not np.array_equal(np.asarray(image), np.asarray(plain))
    assert np.array_equal(np.asarray(image), np.asarray(model.reproduce(image)))


@pytest.mark.slow
def test_a_robot_comes_out_at_night_in_the_style_of_a_picture_at_night(shipped_base: Path) -> None:
    """Seen with six seeds and 20 steps: mean colours 102 levels from the reference's without it, 17 at weight 1."""
    model = load_model(str(shipped_base), "cpu")
    by_car = [ImageOptions("a photo of a blue car in the city at night", 1, 4, steps=12)]
    (night,) = generate(model, make_requests(model, by_car, Wildcards()), 1)

    def distance(weight: float) -> float:
        ref = StyleRef(ImageRef(None, pixels=night), weight)
        wanted = [ImageOptions("a photo of a red robot", 2, 0, steps=12)]
        requests = make_requests(model, wanted, Wildcards(), FromImages(style=ref))
        images = list(generate(model, requests, 2))
        means = [abs(np.asarray(image, float).mean((0, 1)) - np.asarray(night, float).mean((0, 1))) for image in images]
        return float(np.mean(means))

    assert distance(0) > 60
    assert distance(1) < 40


def test_the_reference_is_the_same_beside_a_prompt_of_two_parts(model: Model, photo: Path) -> None:
    """It looks at no other sample, so its own prediction shows whether its text was filled up with something."""
    style = prepare_style(model, make_styles([str(photo)]).reference, (64, 64))
    seen: list[torch.Tensor] = []
    handle = model.family.denoiser.register_forward_hook(lambda module, args, result: seen.append(result[0][0]))
    for prompt in ("a dog", "a dog " * 60):
        start, inputs = noise_from_seeds([3], SHAPE), ImageInputs(style=style)
        encode = encoder(model.family, "weighted")
        sample_latents(model.family, [prompt], start, SamplerSettings(1, 3.0), encode=encode, inputs=inputs)
    handle.remove()
    short, long = seen
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-5)


# an image's style, by an IP-Adapter


def test_an_ip_adapter_gives_the_latents_of_diffusers_own_pipeline(
    model: Model, tiny_base: Path, adapter: Path, photo: Path
) -> None:
    start = noise_from_seeds([3, 4], SHAPE)
    style = prepare_style(model, make_styles([f"{photo}:0.6"], str(adapter)).reference, (64, 64))
    inputs = ImageInputs(style=style)
    prompts = ["a dog", "a house"]
    ours = sample_latents(model.family, prompts, start, SETTINGS, inputs=inputs)
    unguided = sample_latents(model.family, prompts, start, SamplerSettings(4, 1.0), inputs=inputs)
    plain = sample_latents(model.family, prompts, start, SETTINGS)

    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_base, image_encoder=CLIPVisionModelWithProjection.from_pretrained(adapter.parent / "image_encoder")
    )
    pipeline.load_ip_adapter(str(adapter.parent), subfolder="", weight_name=adapter.name, image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(0.6)
    pipeline.scheduler = make_scheduler(model.family, "ddim")
    pipeline.set_progress_bar_config(disable=True)

    def theirs(scale: float) -> torch.Tensor:
        return pipeline(
            prompts,
            ip_adapter_image=Image.open(photo),
            latents=start.noise_BCHW.clone(),
            num_inference_steps=4,
            guidance_scale=scale,
            output_type="latent",
        ).images

    torch.testing.assert_close(ours, theirs(3.0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(unguided, theirs(1.0), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert torch.equal(plain, sample_latents(model.family, prompts, start, SETTINGS)), "the model is as it was"


def test_an_ip_adapter_stands_in_the_recipe_with_its_hash(
    tiny_base: Path, adapter: Path, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = dreambooth.load(tiny_base, device="cpu")
    own = tmp_path / adapter.name
    own.write_bytes(adapter.read_bytes())
    (tmp_path / "image_encoder").symlink_to(adapter.parent / "image_encoder")
    (image,) = model.generate("a dog", num_images=1, steps=2, styles=[f"{photo}:0.5"], ip_adapter=own)
    assert np.array_equal(np.asarray(image), np.asarray(model.reproduce(image)))
    assert "another file" not in caplog.text
    own.write_bytes(adapter.read_bytes() + b" ")
    assert check_reference(style_of(image.recipe["style"])).adapter_sha256 != image.recipe["style"]["adapter_sha256"]
    assert "another file than the image was made with" in caplog.text


# named styles


def test_every_style_that_ships_has_a_prompt_and_is_listed_once() -> None:
    styles = read_styles()
    assert len(styles) >= 15
    assert all(style.prompt.count("{prompt}") == 1 for style in styles.values())


def test_a_named_style_goes_around_the_prompt_and_its_settings_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = "mine:\n  prompt: 'my {prompt}, mine'\n  negative: theirs\n  settings: {guidance_scale: 5}\n"
    Path("styles.yaml").write_text(own)
    styles = make_styles(["mine", "ink"])
    ink = read_styles()["ink"]
    plain = ImageOptions("a dog", negative_prompt="a cat")
    drawn = styles.apply(plain)
    assert drawn.prompt == ink.prompt.replace("{prompt}", "my a dog, mine")
    assert drawn.negative_prompt == f"a cat, theirs, {ink.negative}"
    assert (drawn.guidance_scale, drawn.scheduler) == (5, None)
    assert styles.apply(replace(plain, guidance_scale=2.0)).guidance_scale == 2.0
    assert Styles((NamedStyle("bare"),)).apply(plain) == plain


def test_the_words_of_a_named_style_have_its_weight() -> None:
    style = NamedStyle("mine", "drawing of {prompt}, in ink ", "photo", steps=9)
    weak = weighted(style, 0.5)
    assert weak.prompt == "(drawing of:0.5) {prompt}(, in ink:0.5) "
    assert (weak.negative, weak.steps) == ("(photo:0.5)", 9)
    fragments = parse_weights(weak.prompt.replace("{prompt}", "a dog")).prompts[0].fragments
    assert [(each.text.strip(), each.weight) for each in fragments if each.text.strip()] == [
        ("drawing of", 0.5),
        ("a dog", 1.0),
        (", in ink", 0.5),
    ]
    assert weighted(style, 1) == style
    plain = ImageOptions("a dog")
    assert Styles((weighted(style, 0),)).apply(plain) == plain
    assert weighted(NamedStyle("bare"), 0.5) == NamedStyle("bare")


def test_the_words_of_a_named_style_go_into_each_prompt_of_a_blend() -> None:
    style = NamedStyle("mine", "drawing of {prompt}, in ink", "photo")
    blend = ImageOptions('("a dog", "a cat").blend(0.7, 0.3)', negative_prompt='("day", "sun").blend(1, 1)')
    drawn = Styles((style, weighted(style, 0))).apply(blend)
    assert drawn.prompt == '("drawing of a dog, in ink", "drawing of a cat, in ink").blend(0.7, 0.3)'
    assert drawn.negative_prompt == '("day, photo", "sun, photo").blend(1, 1)'
    assert [each.text for each in parse_weights(drawn.prompt).prompts] == [
        "drawing of a dog, in ink",
        "drawing of a cat, in ink",
    ]
    with pytest.raises(UserError, match="a prompt of a blend cannot hold a double quote"):
        Styles((NamedStyle("loud", 'a "loud" {prompt}'),)).apply(blend)


def test_a_recipe_has_its_own_ip_adapter_or_none(
    tiny_base: Path, adapter: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(tiny_base), "a dog", "--steps", "1", "--num-images", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--style", str(photo)]) == 0
    (image,) = (tmp_path / "out").iterdir()
    assert main(["sample", "--from-image", str(image), "--ip-adapter", str(adapter)]) == 2
    assert f"--ip-adapter {adapter}: {image} was made without one; leave it out" in capsys.readouterr().err


def test_a_recipe_of_styles_makes_its_picture_again_with_the_same_bits(
    tiny_base: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(tiny_base), "a dog", "--steps", "3", "--num-images", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--style", "ink", "--style", f"{photo}:0.5"]) == 0
    (first,) = (tmp_path / "out").iterdir()
    recipe = read_recipe(first)
    assert recipe["prompt"] == read_styles()["ink"].prompt.replace("{prompt}", "a dog")
    assert (recipe["style"]["file"], recipe["style"]["weight"]) == (str(photo), 0.5)
    assert main(["sample", "--from-image", str(first), "--out", str(tmp_path / "again")]) == 0
    (second,) = (tmp_path / "again").iterdir()
    assert first.read_bytes() == second.read_bytes()
    assert "another" not in capsys.readouterr().err


# wrong input


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--style", "watercolor"], 2, "--style watercolor: neither an image nor a style; did you mean watercolour?"),
        (["--style", "ink:9"], 2, "--style ink:9: weight=9.0: must be from 0 to 3"),
        (["--style", "ink:much"], 2, "the weight 'much' is no number; write ink:0.5, say"),
        (["--style", "{folder}/none.png"], 2, "--style {folder}/none.png: there is no such file"),
        (["--style", "{photo}:9"], 2, "weight=9.0: must be from 0 to 3"),
        (["--style", "{photo}:much"], 2, "the weight 'much' is no number"),
        (["--style", "{photo}", "--style", "{photo}:1"], 2, "a second image"),
        (["--ip-adapter", "x.safetensors"], 2, "--ip-adapter x.safetensors: there is no --style IMAGE"),
        (["--style", "{photo}", "--ip-adapter", "x.safetensors"], 3, "there is no such .safetensors file"),
        (["--style", "{photo}", "--ip-adapter", "{folder}/lora.safetensors"], 3, "no IP-Adapter (it has no"),
        (["--style", "{photo}", "--ip-adapter", "{folder}/xl.safetensors"], 3, "it writes 40 numbers a token"),
        (["--style", "{photo}", "--ip-adapter", "{folder}/bare.safetensors"], 3, "its image encoder belongs beside it"),
    ],
)
def test_wrong_input_is_reported_before_anything_heavy_is_loaded(
    options: list[str],
    code: int,
    named: str,
    photo: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The base has the UNet's config and no weights, which would be another error."""
    base = tmp_path / "base"
    (base / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/config.json"):
        (base / name).write_bytes((tiny_base / name).read_bytes())
    save_file({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    for name, width in (("bare", 16), ("xl", 40)):
        save_file({"ip_adapter.1.to_k_ip.weight": torch.zeros(8, width)}, tmp_path / f"{name}.safetensors")
    filled = [option.format(folder=tmp_path, photo=photo) for option in options]
    assert main(["sample", str(base), "a dog", "--out", str(tmp_path / "out"), *filled]) == code
    error = capsys.readouterr().err
    assert named.format(folder=tmp_path, photo=photo) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mine: {prompt: no place}", "mine: prompt='no place': must be a text with one {prompt}"),
        ("mine: {colour: red}", "mine: unknown key 'colour'; use prompt, negative, settings"),
        ("mine: {settings: {colour: 3}}", "mine: settings.colour: unknown; use steps, guidance_scale, scheduler"),
        ("mine: {settings: {guidance_scale: much}}", "mine: settings.guidance_scale=much: is of another type"),
        ("mine: {settings: {scheduler: dimm}}", "mine: settings.scheduler=dimm: unknown sampler; did you mean ddim?"),
        ("- mine", "must be names with prompt"),
        ("{", "not YAML"),
    ],
)
def test_a_damaged_list_is_named(text: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("styles.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        make_styles(["mine"])
    assert str(error.value).startswith("styles.yaml: ")
    assert named in str(error.value)
