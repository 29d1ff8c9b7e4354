"""A base in the original Stable Diffusion layout, one `.safetensors`: loads, and is the same model."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.cli import main
from dreambooth.errors import ModelError
from dreambooth.families import Family, fingerprint, load_family
from dreambooth.formats.original import original_state


def nested_text_encoder(base: Path) -> dict[str, torch.Tensor]:
    """The text encoder's weights under the names that published models use; transformers has since flattened them."""
    weights = load_file(next((base / "text_encoder").glob("*.safetensors")))
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}


@pytest.fixture
def single_file(tiny_base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(original_state(load_family(str(tiny_base))), path)
    return path


def same_prediction(first: Family, second: Family) -> bool:
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 800])
    with torch.no_grad():
        one, other = (family.predict(noisy, t, family.condition(["a dog", "a cat"])) for family in (first, second))
    return torch.allclose(one, other, atol=1e-6)


def test_a_single_file_is_the_same_model_as_its_folder(single_file: Path, tiny_base: Path) -> None:
    loaded, expected = load_family(str(single_file), config=str(tiny_base)), load_family(str(tiny_base))
    assert same_prediction(loaded, expected)
    assert fingerprint(loaded) == fingerprint(expected)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.encode_images(pixels), expected.encode_images(pixels))
    assert loaded.scheduler_config["_class_name"] == "DDIMScheduler"


def test_a_single_file_can_be_trained_and_sampled(single_file: Path, tiny_base: Path, config_file: Path) -> None:
    base = [f"model.base={single_file}", f"model.config={tiny_base}"]
    assert main(["train", str(config_file), *base, "train.max_steps=3", "validate.every_steps=0"]) == 0
    out = str(single_file.parent / "out")
    arguments = ["--config", str(tiny_base), "--steps", "1", "--num-images", "1", "--out", out]
    assert main(["sample", str(single_file), "a dog", *arguments]) == 0


def test_a_file_that_is_no_model_is_told_in_a_line(tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"nothing": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"model\.safetensors: holds no Stable Diffusion model"):
        load_family(str(path), config=str(tiny_base))
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_family(str(path), config=str(tiny_base))


def test_without_its_configs_and_without_the_network_a_single_file_says_what_to_do(single_file: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.config, --config"):
        load_family(str(single_file))


def test_a_text_encoder_saved_by_an_older_transformers_is_read_whole(tiny_base: Path, tmp_path: Path) -> None:
    """As in the published Stable Diffusion 1.5: nested names, and a table of positions that is no weight any more."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "published"))
    weights = nested_text_encoder(tiny_base)
    weights["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(weights, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(load_family(str(folder))) == fingerprint(load_family(str(tiny_base)))
