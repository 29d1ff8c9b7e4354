"""Another VAE in the place of a base's own: where it may lie, what it changes, what is said where it does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import run_model_card

from dreambooth import build
from dreambooth.cli import main
from dreambooth.config import Config
from dreambooth.engine import train
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting.original import original_state, vae_state
from dreambooth.families import Family, ModelSource, load_family
from dreambooth.families.vae import load_other_vae, vae_configs
from dreambooth.generation.models.loading import load_model
from dreambooth.generation.models.reference import ModelRef
from dreambooth.randomness import Randomness
from dreambooth.run.fingerprints import base_fingerprints, input_fingerprints


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """A VAE of other weights, in every form that people have one."""
    folder = tmp_path_factory.mktemp("vae")
    pipeline = Path(shutil.copytree(tiny_base, folder / "pipeline"))
    weights = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(3)
    changed = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    original = vae_state(load_family(str(pipeline)).vae)
    save_file({name: tensor.contiguous() for name, tensor in original.items()}, folder / "plain.safetensors")
    inner = {f"first_stage_model.{name}": tensor.contiguous() for name, tensor in original.items()}
    save_file(inner, folder / "inner.safetensors")
    return {
        "pipeline": pipeline,
        "folder": Path(shutil.copytree(pipeline / "vae", folder / "alone")),
        "original names": folder / "plain.safetensors",
        "original names of a whole model": folder / "inner.safetensors",
        "diffusers' names": Path(shutil.copy(weights, folder / "diffusers.safetensors")),
    }


FORMS = ("pipeline", "folder", "original names", "original names of a whole model", "diffusers' names")


def decoded(family: Family) -> torch.Tensor:
    return family.decode_latents(torch.ones(1, 4, 8, 8))


@pytest.fixture(scope="module")
def images(other: dict[str, Path], tiny_base: Path) -> dict[str, torch.Tensor]:
    """Return what the VAE of the base and the other one make of the same latents."""
    return {"own": decoded(load_family(str(tiny_base))), "other": decoded(load_family(str(other["pipeline"])))}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_vae_is_the_same_vae(
    form: str, other: dict[str, Path], images: dict[str, torch.Tensor], tiny_base: Path
) -> None:
    vae = load_other_vae(str(other[form]), str(tiny_base))
    with torch.no_grad():
        image = vae.decode(torch.ones(1, 4, 8, 8) / vae.config.scaling_factor).sample
    torch.testing.assert_close(image, images["other"])
    assert not torch.allclose(image, images["own"])
    assert not vae.config.get("_name_or_path")


def without_vae(base: Path, path: Path) -> Path:
    state = original_state(load_family(str(base)))
    save_file({name: t for name, t in state.items() if not name.startswith("first_stage_model.")}, path)
    return path


@pytest.mark.parametrize(("base_name", "form"), [("tiny_base", "folder"), ("tiny_xl_base", "original names")])
def test_a_checkpoint_without_a_vae_names_the_remedy_and_that_is_one(
    base_name: str, form: str, other: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(base_name)
    bare = without_vae(base, tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match=r"bare\.safetensors: holds no VAE; name one with model\.vae \(--vae\)"):
        load_family(ModelSource(str(bare), config=str(base)))
    found = load_family(ModelSource(str(bare), config=str(base), vae=str(other[form])))
    assert torch.isfinite(decoded(found)).all()


def test_a_folder_without_a_vae_names_the_remedy(other: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny_base, tmp_path / "bare", ignore=shutil.ignore_patterns("vae")))
    with pytest.raises(ModelError, match=r"has no vae/; name a VAE with model\.vae \(--vae\)"):
        load_family(str(bare))
    assert torch.isfinite(decoded(load_family(ModelSource(str(bare), vae=str(other["folder"]))))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "model.vae .--vae.: .*there is no such folder or file"),
        ("pickle", "must be .safetensors"),
        ("lora", "cannot be read as a VAE of this base: .*Weights for this component appear to be missing"),
        ("taesd", "is of an AutoencoderTiny; use an AutoencoderKL"),
        ("empty", "holds no VAE"),
    ],
)
def test_what_is_no_vae_is_told(
    change: str, message: str, other: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    named = {name: tmp_path / name for name in ("taesd", "empty")}
    named |= {"missing": tmp_path / "no.safetensors", "pickle": tmp_path / "a.pt", "lora": tmp_path / "a.safetensors"}
    named["pickle"].touch()
    named["empty"].mkdir()
    save_file({"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4)}, named["lora"])
    shutil.copytree(other["folder"], named["taesd"])
    (named["taesd"] / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(ModelError, match=message):
        load_other_vae(str(named[change]), str(tiny_base))


def test_a_vae_of_another_scale_gets_a_word(
    other: dict[str, Path], tiny_xl_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_other_vae(str(other["folder"]), str(tiny_xl_base))
    assert "its scaling_factor is 0.5, the base's own VAE has 0.13025: is it another family's?" in caplog.text


def test_a_run_is_known_by_its_vae(other: dict[str, Path], config: Config) -> None:
    """Its content is what resuming compares. Without model.vae class latents are found where they always were."""
    family, names, identities = build.load_base(config), [], []
    for vae in (None, str(other["folder"]), str(other["original names"])):
        config.model.vae = vae
        if vae is not None:
            family.vae = load_other_vae(vae, config.model.base)  # type: ignore[misc]
        made = build.make_generated_prior(
            family, family, ["a dog"], [(4, 8, 8)], Path(config.run.dir), config, Randomness(0), "base"
        )
        names.append(made.folder.name)
        identities.append(
            input_fingerprints(base_fingerprints(family), [[]], [[]], None, None, None, config)["autoencoder"]
        )
    assert names[0] == "5411d061f7e63d4e", "the fingerprint of a run without model.vae"
    assert names[0] != names[1] == names[2]
    assert identities[0] != identities[1] == identities[2]


@pytest.mark.parametrize(("name", "channels"), [("sd1", 4), ("flux1", 16), ("sd3.5-medium", 16), ("z-image", 16)])
def test_a_single_file_vae_is_read_with_its_familys_config(name: str, channels: int, tmp_path: Path) -> None:
    with vae_configs(tmp_path, name) as configs:
        assert json.loads((configs / "vae" / "config.json").read_text())["latent_channels"] == channels


def test_class_latents_of_another_noise_schedule_are_others(config: Config) -> None:
    config.prior.num_images = 2
    family, names = build.load_base(config), []
    for config.loss.zero_terminal_snr in (False, True):
        made = build.make_generated_prior(
            family, family, ["a dog"], [(4, 8, 8)], Path(config.run.dir), config, Randomness(0), "base"
        )
        names.append(made.folder.name)
    assert names[0] != names[1]


def test_the_card_of_an_adapter_has_its_vae_and_another_one_goes_over_it(
    other: dict[str, Path], images: dict[str, torch.Tensor], config: Config, tiny_base: Path
) -> None:
    config.model.vae, config.method.name = str(other["folder"]), "lora"
    config.train.max_steps, config.optim.warmup_steps, config.validate.every_steps = 1, 0, 0
    config.prior.source = "none"
    assert train(config) == 0
    run = Path(config.run.dir) / config.run.name
    own, written = load_model(str(run), "cpu"), (run / "config.yaml").read_bytes()
    assert own.card is not None
    assert own.card.base_vae == str(other["folder"])
    torch.testing.assert_close(decoded(own.family), images["other"])
    bases = load_model(ModelRef(str(run), vae=str(tiny_base)), "cpu")
    torch.testing.assert_close(decoded(bases.family), images["own"])
    config.model.vae = str(tiny_base / "vae")
    with pytest.raises(UserError, match="autoencoder: changed"):
        train(config)
    config.model.vae = str(other["original names"])
    assert train(config) == 0, "the same VAE in another file"
    assert (run / "config.yaml").read_bytes() == written, "the run was finished"
    assert main(["export", str(run), "--format", "lora", "--out", str(run / "lora")]) == 0
    as_the_card_says = run_model_card(run / "lora", end="image =")["pipeline"]
    with torch.no_grad():
        image = as_the_card_says.vae.decode(torch.ones(1, 4, 8, 8) / as_the_card_says.vae.config.scaling_factor).sample
    torch.testing.assert_close(image, images["other"])
