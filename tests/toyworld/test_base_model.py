"""The toy world's promises: identity apart from scene, a tokenizer for it, and a shipped base that draws it."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.cli import main
from dreambooth.errors import NonFiniteError, UserError
from toyworld import captions, world
from toyworld.latents import fit_codec, to_images, to_pixels
from toyworld.palette import COLOURS, MIN_CONTRAST, contrast
from toyworld.scenes import PHRASES
from toyworld.tokenizer import COMMON_WORDS, MAX_LENGTH, RARE_WORDS, build_tokenizer

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "checkpoints" / "toyworld"
SUBJECTS = {"robot": 21, "dog": 1}  # class noun and seed of data/robot and data/dog


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def shipped():
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(SHIPPED, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def judge():
    from toyworld.judge import Judge

    return Judge.load(SHIPPED / "judge")


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


# --- the renderer


def test_the_world_is_as_rich_as_promised():
    assert len(world.CLASSES) >= 10
    assert len(world.PLACES) >= 9
    assert len(COLOURS) >= 12
    assert len(world.PATTERNS) >= 3


def test_a_seed_gives_the_same_sample_and_picture_every_time():
    for seed in range(20):
        first, second = world.sample(seed), world.sample(seed)
        assert first == second
        assert world.render(*first[:2]).tobytes() == world.render(*second[:2]).tobytes()


def test_different_seeds_give_different_pictures():
    images = {world.render(*world.sample(seed)[:2]).tobytes() for seed in range(100)}
    assert len(images) == 100


def test_a_picture_does_not_depend_on_what_was_drawn_before():
    spec, scene, _ = world.sample(3)
    alone = world.render(spec, scene).tobytes()
    for seed in range(30):
        world.render(*world.sample(seed)[:2])
    assert world.render(spec, scene).tobytes() == alone


@pytest.mark.parametrize("class_noun", world.CLASSES)
def test_every_class_is_drawn_within_the_picture_in_every_scene(class_noun):
    rng = random.Random(class_noun)
    for _ in range(40):
        mask = pixels_of(world.object_mask(world.random_spec(rng, class_noun), world.random_scene(rng)))
        assert 0.08 < (mask > 127).mean() < 0.6, "an object fills a fair part of the picture"
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert (border > 127).mean() < 0.02, "an object does not leave the picture"


@pytest.mark.parametrize("class_noun", world.CLASSES)
def test_identity_does_not_depend_on_the_scene(class_noun):
    """The colours of an object's own pixels are the same wherever it stands."""
    rng = random.Random(class_noun)
    spec = world.random_spec(rng, class_noun)

    def own_colours(place: str) -> np.ndarray:
        scene = replace(world.random_scene(random.Random(5), place), pose=(0.5, 0.5), tilt=0.0)
        inside = pixels_of(world.object_mask(spec, scene)) == 255
        return pixels_of(world.render(spec, scene))[inside]

    for place in world.PLACES[1:]:
        assert np.array_equal(own_colours(place), own_colours(world.PLACES[0]))


@pytest.mark.parametrize("class_noun", world.CLASSES)
def test_a_mirrored_scene_shows_the_same_object_facing_the_other_way(class_noun):
    spec = world.random_spec(random.Random(class_noun), class_noun)
    scene = replace(world.random_scene(random.Random(2)), shift_x=0.0)
    ahead, back = (pixels_of(world.object_mask(spec, replace(scene, mirrored=flag))) for flag in (False, True))
    assert np.abs(ahead[:, ::-1] - back).mean() < 6  # of 255: the edges' rounding differs


@pytest.mark.parametrize("field", ["main", "second", "accent", "pattern", "proportions", "accessories"])
def test_every_part_of_an_identity_shows(field):
    rng = random.Random(field)
    for class_noun in world.CLASSES:
        spec = replace(world.random_spec(rng, class_noun), pattern="striped")
        scene = world.random_scene(rng, "studio")
        other = {
            "main": "teal" if spec.main != "teal" else "red",
            "second": "pink" if spec.second != "pink" else "green",
            "accent": "white" if spec.accent != "white" else "black",
            "pattern": "spotted",
            "proportions": tuple((value + 0.5) % 1.0 for value in spec.proportions),
            "accessories": tuple((value + 1) % 3 for value in spec.accessories),
        }[field]
        changed = world.render(replace(spec, **{field: other}), scene)
        difference = np.abs(pixels_of(changed) - pixels_of(world.render(spec, scene))).max(-1)
        assert (difference > 40).sum() >= 12, f"{field} of a {class_noun} cannot be seen"


def test_a_place_looks_the_same_whatever_stands_in_it():
    rng = random.Random(0)
    scene = world.random_scene(rng, "beach")
    views = []
    for class_noun in world.CLASSES:
        spec = world.random_spec(rng, class_noun)
        views.append(pixels_of(world.render(spec, scene))[:8, :8])
    assert all(np.array_equal(view, views[0]) for view in views)


def test_stripes_and_spots_always_contrast_with_the_body():
    rng = random.Random(1)
    for _ in range(300):
        spec = world.random_spec(rng)
        assert contrast(spec.main, spec.accent) > MIN_CONTRAST
        assert len({spec.main, spec.second, spec.accent}) == 3


def test_an_unknown_class_or_place_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"'dragon'.*robot"):
        world.random_spec(random.Random(0), "dragon")
    with pytest.raises(UserError, match=r"'volcano'.*beach"):
        world.random_scene(random.Random(0), "volcano")


# --- held-out subjects


def test_no_training_sample_shows_a_class_in_the_colours_of_one_of_its_subjects():
    reserved = {(s.class_noun, s.main, s.second) for s in (world.subject("robot", i) for i in range(50))}
    reserved |= {(s.class_noun, s.main, s.second) for s in (world.subject("dog", i) for i in range(50))}
    assert len(reserved) > 10
    seen = {(s.class_noun, s.main, s.second) for s, _, _ in (world.sample(seed) for seed in range(4000))}
    assert not seen & reserved


def test_subjects_are_patterned_fixed_by_their_seed_and_differ_between_seeds():
    robots = [world.subject("robot", seed) for seed in range(20)]
    assert robots == [world.subject("robot", seed) for seed in range(20)]
    assert len(set(robots)) == 20
    assert all(spec.class_noun == "robot" and spec.pattern != "plain" for spec in robots)


@pytest.mark.parametrize(("class_noun", "seed"), SUBJECTS.items())
def test_the_example_pictures_are_what_the_documented_command_makes(class_noun, seed, tmp_path):
    command = ["toyworld", "subject", "--edition", "first", "--class", class_noun, "--seed", str(seed)]
    assert main([*command, "--out", str(tmp_path)]) == 0
    made = sorted(tmp_path.glob("*.png"))
    assert len(made) == 5
    for path in made:
        shipped_picture = Image.open(REPOSITORY / "data" / class_noun / path.name)
        assert pixels_of(Image.open(path)).tolist() == pixels_of(shipped_picture).tolist()


# --- captions and tokenizer


def test_captions_name_the_class_always_and_everything_else_sometimes():
    samples = [world.sample(seed) for seed in range(1500)]
    counts = dict.fromkeys(("main", "second", "pattern", "place"), 0)
    for spec, scene, text in samples:
        assert spec.class_noun in text.split()
        counts["main"] += f" {spec.main} " in text
        counts["second"] += f"and {spec.second} " in text
        counts["pattern"] += any(word in text for word in ("striped", "spotted", "stripes", "spots"))
        counts["place"] += any(phrase in text for phrase in PHRASES[scene.place])
    fractions = {name: count / len(samples) for name, count in counts.items()}
    assert all(0.2 < fraction < 0.95 for fraction in fractions.values()), fractions


def test_captions_say_nothing_untrue():
    for seed in range(500):
        spec, scene, text = world.sample(seed)
        words = set(text.split())
        named_colours = words & set(COLOURS)
        assert named_colours <= {spec.main, spec.second, spec.accent}
        assert not words & (set(world.CLASSES) - {spec.class_noun})
        if "striped" in words or "stripes" in words:
            assert spec.pattern == "striped"
        if "spotted" in words or "spots" in words:
            assert spec.pattern == "spotted"
        elsewhere = {phrase for place, phrases in PHRASES.items() if place != scene.place for phrase in phrases}
        assert not any(text.endswith(phrase) for phrase in elsewhere)


def test_every_word_of_the_world_and_every_rare_word_is_one_token(tokenizer):
    words = captions.vocabulary() | set(RARE_WORDS) | set(COMMON_WORDS)
    assert {word for word in words if len(tokenizer.tokenize(word)) != 1} == set()
    assert len(RARE_WORDS) >= 10
    assert "sks" in RARE_WORDS


def test_no_caption_uses_a_rare_word():
    assert not captions.vocabulary() & set(RARE_WORDS)
    for seed in range(2000):
        words = set(world.sample(seed)[2].split())
        assert words <= captions.vocabulary()


def test_unknown_words_fall_into_pieces_and_come_back_whole(tokenizer):
    text = "a xylophone éß on the beach"
    assert len(tokenizer.tokenize("xylophone")) > 1
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_every_caption_fits(tokenizer):
    longest = max(len(tokenizer(world.sample(seed)[2]).input_ids) for seed in range(1000))
    assert longest < MAX_LENGTH


# --- latents


def test_linear_latents_have_unit_deviation_and_their_best_inverse():
    pixels = to_pixels([world.render(*world.sample(seed)[:2]) for seed in range(300)])
    codec = fit_codec(pixels, channels=8, patch=4)
    latents = codec.encode(pixels)
    assert latents.shape == (300, 8, 16, 16)
    assert latents.std().item() == pytest.approx(1.0, abs=0.02)
    again = codec.encode(codec.decode(latents))
    assert torch.allclose(again, latents, atol=1e-3)


def test_pictures_survive_the_way_to_pixels_and_back():
    image = world.render(*world.sample(0)[:2])
    assert to_images(to_pixels([image]))[0].tobytes() == image.tobytes()


# --- training


def tiny_plan(seconds: float):
    from toyworld.training import Budget, Plan

    return Plan(
        "test",
        Budget(minutes=seconds / 60),
        peak_lr=0.05,
        muon_lr=0.02,
        muon_prefix="unet.",
        warmup_steps=1,
        save_every_seconds=0.0,
    )


def test_a_resumed_training_goes_on_where_it_was(tmp_path):
    from toyworld.training import Run

    def module():
        torch.manual_seed(0)
        return torch.nn.ModuleDict({"unet": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))})

    def advance(run, num_steps):
        for _ in range(num_steps):
            inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(run.step))
            run.update((run.module["unet"](inputs) - inputs[:, :2]).pow(2).mean(), lr_factor=1.0)

    whole = Run(module(), tiny_plan(1.0), tmp_path / "whole.pt")
    advance(whole, 8)
    first = Run(module(), tiny_plan(1.0), tmp_path / "parts.pt")
    advance(first, 5)
    first.save()
    second = Run(module(), tiny_plan(1.0), tmp_path / "parts.pt")
    second.restore()
    assert second.step == 5
    advance(second, 3)
    for expected, got in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(expected, got)
    for expected, got in zip(whole.average.shadow, second.average.shadow, strict=True):
        assert torch.equal(expected, got)


def test_a_gradient_that_is_not_finite_stops_training_and_leaves_the_state_as_it_was(tmp_path):
    from toyworld.training import fit

    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)

    def loss_at(step):
        return module.weight.sum() * (float("nan") if step == 3 else 1.0)

    with pytest.raises(NonFiniteError, match="step 3"):
        fit(module, loss_at, tiny_plan(60.0), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["module"].values())


def test_the_learning_rate_warms_up_stays_and_falls():
    from toyworld.training import Budget, Plan, lr_factor

    plan = Plan("test", Budget(minutes=1.0), peak_lr=1.0, decay_fraction=0.3, warmup_steps=10)
    assert lr_factor(plan, step=0, spent=0.0) == pytest.approx(0.1)
    assert lr_factor(plan, step=500, spent=0.7) == pytest.approx(1.0)
    assert lr_factor(plan, step=900, spent=0.85) == pytest.approx(0.5)
    assert 0 < lr_factor(plan, step=1000, spent=1.0) < 0.05


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_muon_moves_all_directions_of_a_matrix_at_about_the_same_speed(shape):
    from toyworld.muon import orthogonalise

    torch.manual_seed(0)
    gradient = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    singular_values = torch.linalg.svdvals(orthogonalise(torch.stack([gradient, 100 * gradient])))
    assert singular_values.max() < 1.3
    assert singular_values.min() > 0.3


# --- the shipped base


@pytest.mark.parametrize(
    ("name", "denoiser", "megabytes"),
    [("toyworld", "unet", 20), ("toyworld-second", "unet", 25), ("toyworld-flow", "transformer", 15)],
)
def test_each_shipped_base_is_small_and_complete(name, denoiser, megabytes):
    folder = SHIPPED.with_name(name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= megabytes * 1_000_000
    names = {path.relative_to(folder).parts[0] for path in files}
    parts = {denoiser, "vae", "text_encoder", "tokenizer", "scheduler", "judge"}
    assert parts | {"model_index.json", "README.md"} <= names
    assert not any(path.suffix in {".bin", ".pt", ".ckpt"} for path in files), "weights are safetensors only"


def test_the_shipped_base_loads_with_plain_diffusers_and_draws(shipped):
    assert shipped.safety_checker is None
    settings = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 4.0}
    first, second = (
        shipped("a photo of a red robot", generator=torch.Generator().manual_seed(0), **settings).images[0]
        for _ in range(2)
    )
    assert first.size == (64, 64)
    assert first.tobytes() == second.tobytes()
    assert np.asarray(first).std() > 10


def test_the_shipped_tokenizer_is_the_one_that_the_code_builds(shipped, tokenizer):
    assert shipped.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert shipped.tokenizer.model_max_length == MAX_LENGTH == shipped.text_encoder.config.max_position_embeddings
    assert shipped.text_encoder.config.vocab_size == len(tokenizer)
    text = "a photo of a sks robot on the moon"
    assert shipped.tokenizer(text).input_ids == tokenizer(text).input_ids


def test_the_shipped_autoencoder_returns_pictures_it_never_saw(shipped):
    from toyworld.vae import fresh_pixels, psnr, round_trip

    pixels = fresh_pixels(40)
    assert psnr(pixels, round_trip(shipped.vae, pixels)) >= 28.0


def test_shipped_latents_have_unit_deviation_once_scaled(shipped):
    from toyworld.vae import fresh_pixels

    with torch.no_grad():
        latents = shipped.vae.encode(fresh_pixels(40)).latent_dist.mean * shipped.vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1.0, abs=0.05)
    assert shipped.vae.config.scaling_factor != 1.0


def test_the_judge_reads_fresh_renders(judge):
    from toyworld.judge import accuracy

    fractions = accuracy(judge, num_objects=100)
    assert fractions["class_noun"] >= 0.98
    assert fractions["main"] >= 0.95
    assert fractions["pattern"] >= 0.93
    assert fractions["place"] >= 0.98
    assert fractions["same object nearest"] >= 0.75


@pytest.mark.parametrize(("class_noun", "seed"), SUBJECTS.items())
def test_the_judge_tells_a_subject_from_others_of_its_class(judge, class_noun, seed):
    rng = random.Random(seed)
    spec = world.subject(class_noun, seed)
    subject_pictures = [world.render(spec, world.random_scene(rng)) for _ in range(12)]
    others = [world.render(world.random_spec(rng, class_noun), world.random_scene(rng)) for _ in range(40)]
    own, other = judge(subject_pictures).embedding_BD, judge(others).embedding_BD
    assert torch.allclose(own.norm(dim=-1), torch.ones(12), atol=1e-4)
    assert (own @ own.T).mean() > 0.6
    assert (own @ other.T).mean() < 0.4


def test_a_folder_without_a_judge_is_named(tmp_path):
    from toyworld.judge import Judge

    with pytest.raises(UserError, match=r"no judge in .*model\.safetensors"):
        Judge.load(tmp_path)


def test_weights_are_half_precision_and_finite():
    from safetensors.torch import load_file

    for path in SHIPPED.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), f"{name} in {path}"
            assert tensor.dtype == torch.float16 or not tensor.is_floating_point(), f"{name} in {path}"


def test_the_model_index_names_no_class_beyond_diffusers_and_transformers():
    index = json.loads((SHIPPED / "model_index.json").read_text())
    libraries = {value[0] for value in index.values() if isinstance(value, list)}
    assert libraries <= {"diffusers", "transformers", None}


@pytest.mark.slow
def test_the_base_draws_what_the_prompt_says():
    from toyworld.evaluate import measure, table

    metrics = measure(SHIPPED, per_class=12, sheet=None)
    print(table(metrics))
    by_name = {metric.name: metric.value for metric in metrics}
    assert by_name["class right"] >= 94
    assert by_name["place right, where named"] >= 97
    assert by_name["main colour right, where named"] >= 94
    assert by_name["pattern right, where named"] >= 80


@pytest.mark.slow
def test_the_documented_command_trains_every_stage_and_goes_on_when_run_again(tmp_path):
    from diffusers import DiffusionPipeline

    command = [sys.executable, "-m", "dreambooth", "toyworld", "train", "--num-samples", "300"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "base")]

    def steps_after(minutes: str) -> dict[str, int]:
        subprocess.run([*command, "--minutes", minutes], check=True, cwd=REPOSITORY, capture_output=True)
        states = {path.stem: torch.load(path, weights_only=True) for path in (tmp_path / "work").glob("*.pt")}
        return {name: state["step"] for name, state in states.items()}

    first = steps_after("0.1")
    assert set(first) == {"decoder", "encoder", "judge", "base"}
    assert steps_after("0.1") == first, "what is done is not done again"
    further = steps_after("0.3")
    assert all(further[name] > first[name] for name in first)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert pipeline("a robot", height=64, width=64, num_inference_steps=2).images[0].size == (64, 64)
    assert (tmp_path / "base" / "judge" / "model.safetensors").is_file()


# --- the command


def test_the_command_answers_without_loading_torch():
    code = "import sys; import toyworld.cli; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert answer.stdout.split() == ["False", "False"]


def test_render_writes_a_contact_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["toyworld", "render", "--count", "24", "--out", str(sheet)]) == 0
    assert Image.open(sheet).size == (12 * 130, 2 * 130)
