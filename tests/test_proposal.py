"""Settings that suit a base and photos: their rules, a config that says `auto`, and what the user set."""

import shutil
from pathlib import Path

import pytest

from dreambooth.config import config_fields, describe_config, load_config, to_dict
from dreambooth.config.fields import AUTOMATIC
from dreambooth.config.plain_yaml import parse
from dreambooth.config.values import problem_of
from dreambooth.data.image_folder import open_folder
from dreambooth.data.near_duplicates import inspect_image
from dreambooth.errors import UserError
from dreambooth.methods import FACTS
from dreambooth.proposal.automatic import load_run_config
from dreambooth.proposal.draft import Request, encoder_settings, first_draft, parsed, render
from dreambooth.proposal.facts import BaseFacts, base_facts
from dreambooth.proposal.rules import FIXED, RULES, Case, choices
from dreambooth.sweep.axes import read_axis

ROOT = Path(__file__).parents[1]
BASES = {
    "toy": BaseFacts("sd", 64),
    "toy_flow": BaseFacts("z_image", 64),
    "sd": BaseFacts("sd", 512),
    "sdxl": BaseFacts("sdxl", 1024),
    "z_image": BaseFacts("z_image", 1024),
    "flux2_klein": BaseFacts("flux2_klein", 1024),
    "qwen_image": BaseFacts("qwen_image", 1024),
    "krea2": BaseFacts("krea2", 1024),
    "flux1": BaseFacts("flux1", 1024),
    "sd3": BaseFacts("sd3", 1024),
}


def write(folder: Path, *settings: str) -> Path:
    """A config whose required keys are there, with these lines of sections."""
    path = folder / "config.yaml"
    required = f"run: {{name: auto-run, dir: {folder}}}\nmodel: {{base: checkpoints/toyworld}}\n"
    subject = "subject: {images: data/robot, class_noun: robot}\n"
    path.write_text(required + subject + "\n".join(settings) + "\n")
    return path


def test_every_rule_gives_a_value_that_its_key_allows_with_a_reason():
    assert set(RULES) == set(AUTOMATIC)
    assert set(FIXED) == set(BASES)
    for name, base in BASES.items():
        for method in FACTS:
            for key, (value, reason) in choices(Case(base, [5], method)).items():
                assert problem_of(key, value) is None, (name, method, key, value)
                assert reason, (name, method, key)


def test_the_embedded_flow_base_gets_the_values_of_its_own_config():
    """`configs/toyworld-flow.yaml` is what the laboratory measured."""
    base = base_facts(str(ROOT / "checkpoints" / "toyworld-flow"))
    assert base == BASES["toy_flow"]
    proposed = {**choices(Case(base, [5])), **FIXED["toy_flow"]}
    sections = to_dict(load_config(ROOT / "configs" / "toyworld-flow.yaml"))
    flat = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    assert {key: value for key, (value, _) in proposed.items()} == {key: flat[key] for key in proposed}
    assert choices(Case(base, [5, 5]))["train.max_steps"][0] == 2 * flat["train.max_steps"]
    assert choices(Case(base, [5], has_class=False))["prior.source"][0] == "none"


def test_auto_takes_the_rule_and_leaves_what_the_user_set(tmp_path):
    path = write(tmp_path, "train: {max_steps: auto, batch_size: 3}", "optim: {lr: auto}", "prior: {weight: auto}")
    config = load_run_config(path, ["prior.source=auto"])
    assert (config.train.max_steps, config.train.batch_size) == (240, 3)
    assert (config.optim.lr, config.prior.weight, config.prior.source) == (4e-4, 2, "teacher")
    assert config.optim.identifier_lr is None  # not asked for
    asked = ["optim.identifier_lr=auto", "method.name=full", "method.start_word=null"]
    assert load_run_config(path, asked).optim.identifier_lr == 4e-3
    assert load_run_config(path, [*asked[:2], "method.start_word=red"]).optim.identifier_lr is None


def test_auto_looks_at_the_base_the_method_and_the_photos(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        shutil.copy(ROOT / "data" / "robot" / "00.png", photos / f"{number}.png")
    path = write(tmp_path, "train: {max_steps: auto}", "optim: {lr: auto}", "method: {rank: auto, name: full}")
    real = ["model.base=someone/theirs", f"subject.images={photos}"]
    config = load_run_config(path, real)
    assert (config.train.max_steps, config.optim.lr) == (800 + 3 * 150, 2e-6)
    lora = load_run_config(path, [*real, "method.name=lora", "model.family=qwen_image"])
    assert (lora.train.max_steps, lora.optim.lr, lora.method.rank) == (1000 + 3 * 150, 5e-5, 16)
    whole = load_run_config(path, [*real, "model.family=z_image"])
    assert whole.optim.lr == 1e-6
    alone = load_run_config(path, [*real, "method.train_text_encoder=false"])
    assert alone.optim.lr == 5e-6


def test_auto_of_a_run_that_has_begun_is_what_it_began_with(tmp_path):
    path = write(tmp_path, "train: {max_steps: auto}")
    began = tmp_path / "auto-run"
    began.mkdir()
    (began / "config.yaml").write_text("train: {max_steps: 77}\n")
    assert load_run_config(path).train.max_steps == 77
    assert load_run_config(path, ["run.resume=never"]).train.max_steps == 240


def test_auto_of_a_key_without_a_rule_and_without_photos_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"optim.weight_decay: 'auto' is not allowed; expected number"):
        load_run_config(write(tmp_path, "optim: {weight_decay: auto}"))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_run_config(write(tmp_path, "train: {max_steps: auto}"), ["subject.images=nowhere"])


def test_auto_is_a_value_of_a_sweep_and_is_never_left_open(tmp_path):
    assert read_axis("train.max_steps", ["auto", 40]).values == ("auto", 40)
    with pytest.raises(UserError, match=r"train.max_steps: auto is filled in where a run starts; name a value"):
        load_config(write(tmp_path, "train: {max_steps: auto}"))


def test_the_help_says_which_keys_take_auto():
    lines = [line for line in describe_config().splitlines() if " or auto;" in line]
    assert len(lines) == len(AUTOMATIC)
    assert set(AUTOMATIC) <= set(config_fields())


@pytest.mark.parametrize(
    ("base", "facts"),
    [
        ("checkpoints/toyworld", ("sd", 64)),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", ("sd", 512)),
        ("stabilityai/stable-diffusion-2-1", ("sd", 768)),
        ("stabilityai/stable-diffusion-2-1-base", ("sd", 512)),
        ("stabilityai/stable-diffusion-xl-base-1.0", ("sdxl", 1024)),
        ("Tongyi-MAI/Z-Image", ("z_image", 1024)),
        ("Qwen/Qwen-Image", ("qwen_image", 1024)),
        ("black-forest-labs/FLUX.2-klein-base-4B", ("flux2_klein", 1024)),
        ("black-forest-labs/FLUX.1-Krea-dev", ("flux1", 1024)),
        ("krea/Krea-2-Raw", ("krea2", 1024)),
        ("stabilityai/stable-diffusion-3.5-medium", ("sd3", 1024)),
    ],
)
def test_a_base_is_known_by_its_files_or_its_name(base, facts):
    assert base_facts(base) == BaseFacts(*facts)


def test_a_base_that_is_here_is_known_by_its_files(tiny_base, tmp_path):
    renamed = tmp_path / "an-xl-by-name"
    renamed.symlink_to(tiny_base)
    assert base_facts(str(renamed)) == BaseFacts("sd", 64)


@pytest.mark.parametrize("edition", ["toyworld", "toyworld-second"])
def test_a_copy_of_a_toy_base_gets_the_encoders_of_its_edition(edition, tmp_path):
    """They are told by their words: neither the folder's name nor which encoders come first decides."""
    for name in ("toyworld-encoders", "toyworld-second-encoders"):
        (tmp_path / name).symlink_to(ROOT / "checkpoints" / name)
    (tmp_path / "mine").symlink_to(ROOT / "checkpoints" / edition)
    found = {key: Path(value) for key, (value, _) in encoder_settings(str(tmp_path / "mine")).items()}
    own = tmp_path / f"{edition}-encoders"
    assert found == {"validate.dino": own / "vit", "validate.clip": own / "clip"}


@pytest.mark.parametrize("base", ["a/sd", "a/sdxl", "a/z-image", "a/qwen-image", "a/klein", "checkpoints/toyworld"])
def test_a_draft_is_a_config_whose_values_are_the_rules(base, tmp_path):
    folder = open_folder(ROOT / "data" / "robot")
    images = [inspect_image(path) for path in folder.images]
    request = Request(folder.path, "robot", base, "sks", tmp_path / "a.yaml")
    draft = first_draft(request, folder, images)
    assert all(reason for _, reason in draft.values())
    config = parsed(draft, request.out)
    raw, _ = parse(render(draft))
    written = {f"{section}.{key}": value for section, own in raw.items() for key, value in own.items()}
    assert written["train.max_steps"] == draft["train.max_steps"][0]
    assert not request.out.exists()
    shipped = {"a/z-image": "z-image", "a/qwen-image": "qwen-image", "a/klein": "flux2-klein", "a/sdxl": "sdxl"}
    if base in shipped:
        of_file = to_dict(load_config(ROOT / "configs" / f"{shipped[base]}-lora.yaml"))
        own = to_dict(config)
        for section, name in (("optim", "lr"), ("method", "rank"), ("train", "max_steps"), ("prior", "source")):
            assert own[section][name] == of_file[section][name], (section, name)
