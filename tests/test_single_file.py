"""A base in the original Stable Diffusion layout, one `.safetensors`: loads, and is the same model."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.cli import main
from dreambooth.errors import ModelError
from dreambooth.families import Family, fingerprint, load_family

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
VAE = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def original_unet_key(key: str, per_block: int, attended: set[str]) -> str:
    """The name that a UNet weight has in the original layout. attended: the up blocks that have attention."""
    module, _, leaf = key.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    if found := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.*)", module):
        return f"{MIDDLE[found[1]]}.{RESNET.get(found[2], found[2])}.{leaf}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", module)
    assert found, key
    side, block, kind, layer, inner = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind in ("downsamplers", "upsamplers"):
        layer = per_block - 1 if side == "up" else per_block
        layer += side == "up"
    number = block * (per_block + 1) + layer + (side == "down")
    place = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if str(block) in attended else 1}[kind]
    inner = {"downsamplers": "op"}.get(kind, RESNET.get(inner, inner) if kind == "resnets" else inner)
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{inner}.{leaf}"


def original_vae_key(key: str, num_blocks: int) -> str:
    for pattern, replacement in VAE:
        key = re.sub(pattern, replacement, key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{num_blocks - 1 - int(m[1])}.block.", key)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{num_blocks - 1 - int(m[1])}.upsample", key)


def nested_text_encoder(base: Path) -> dict[str, torch.Tensor]:
    """The text encoder's weights under the names that published models use; transformers has since flattened them."""
    weights = load_file(next((base / "text_encoder").glob("*.safetensors")))
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}


@pytest.fixture
def single_file(tiny_base: Path, tmp_path: Path) -> Path:
    family = load_family(str(tiny_base))
    unet, vae = family.unet.state_dict(), family.vae.state_dict()
    attended = {key.split(".")[1] for key in unet if key.startswith("up_blocks") and "attentions" in key}
    text = nested_text_encoder(tiny_base)
    weights = {
        **{f"model.diffusion_model.{original_unet_key(key, 1, attended)}": value for key, value in unet.items()},
        **{f"first_stage_model.{original_vae_key(key, 4)}": value for key, value in vae.items()},
        **{f"cond_stage_model.transformer.{key}": value for key, value in text.items()},
    }
    assert len(weights) == len(unet) + len(vae) + len(text), "two weights got one name"
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
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
