"""Encoders against a reference computation: the plain transformers classes, one picture or text at a time."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from dreambooth.errors import ModelError
from dreambooth.metrics import encoders
from dreambooth.metrics.encoders import load_clip, load_image_encoder
from toyworld.tokenizer import build_tokenizer

TRANSFORMER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TRANSFORMER, "image_size": 32, "patch_size": 8, "initializer_range": 0.5}  # 0.02 embeds all pictures alike
SQUARE = {"height": 32, "width": 32}
TEXTS = ["a photo of a dog", "a robot on the beach", "a red and blue striped teapot in the snow at night"]


def make_vit(folder: Path) -> Path:
    """Write what DINO is: a ViT; here tiny, with random weights."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VISION), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size=SQUARE).save_pretrained(folder)
    return folder


def make_dinov2(folder: Path) -> Path:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)).save_pretrained(folder)
    # DINOv2's own preprocessing, which is of BiT's class: resize, then crop the centre.
    CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE).save_pretrained(folder)
    return folder


def make_clip(folder: Path, eos_token_id: int | None = None) -> Path:
    """A tiny CLIP on the toy world's words. eos_token_id: as in the config; published CLIPs say 2 there, wrongly."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = {
        **TRANSFORMER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # CLIP's weights start at a spread of its own, times this factor.
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12, initializer_factor=1.0)
    model = CLIPModel(config)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(0.4 / weights.std())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE).save_pretrained(folder)
    return folder


def make_pictures(num: int, size: tuple[int, int] = (48, 48)) -> list[Image.Image]:
    """Coarse noise, each other than the rest."""
    coarse = np.random.default_rng(0).integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC) for levels in coarse]


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).double().numpy()


def told_apart(embeddings: np.ndarray) -> bool:
    """Whether the embeddings differ so much that a mix-up would be seen."""
    cosines = embeddings @ embeddings.T
    return bool(cosines[~np.eye(len(cosines), dtype=bool)].max() < 0.99)


@pytest.mark.parametrize("make", [make_vit, make_dinov2])
@torch.no_grad()
def test_an_image_encoder_embeds_as_the_plain_model_does(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder, pictures = make(tmp_path / "encoder"), make_pictures(3)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    expected = np.stack(
        [unit(model(**processor(picture, return_tensors="pt")).last_hidden_state[0, 0]) for picture in pictures]
    )
    assert told_apart(expected)
    found = load_image_encoder(str(folder)).images(pictures)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("eos_token_id", [None, 2], ids=["its own end token", "the published configs' end token"])
@torch.no_grad()
def test_clip_embeds_pictures_and_texts_as_the_plain_model_does(eos_token_id: int | None, tmp_path: Path) -> None:
    folder, pictures = make_clip(tmp_path / "clip", eos_token_id), make_pictures(3)
    model: Any = AutoModel.from_pretrained(folder).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = [
        model(**processor(picture, return_tensors="pt"), **tokenizer(text, return_tensors="pt"))
        for picture, text in zip(pictures, TEXTS, strict=True)
    ]
    clip = load_clip(str(folder))
    for found, key in ((clip.images(pictures), "image_embeds"), (clip.texts(TEXTS), "text_embeds")):
        expected = np.stack([unit(pair[key][0]) for pair in pairs])
        assert told_apart(expected), key
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, err_msg=key)
    cosine = (clip.images(pictures[:1]) @ clip.texts(TEXTS[:1]).T).item()
    assert pairs[0].logits_per_image.item() == pytest.approx(cosine * model.logit_scale.exp().item(), abs=1e-3)


@pytest.mark.parametrize("load", [load_image_encoder, load_clip])
def test_a_picture_that_is_not_square_counts_by_its_centre_for_every_encoder(load: Any, tmp_path: Path) -> None:
    encoder = load(str(make_vit(tmp_path) if load is load_image_encoder else make_clip(tmp_path)))
    (wide,) = make_pictures(1, size=(96, 48))
    squares = [wide.crop((24, 0, 72, 48)), wide.resize((48, 48))]
    found, centre, squashed = encoder.images([wide, *squares])
    assert torch.equal(found, centre)
    assert not torch.allclose(found, squashed, atol=1e-2)


def test_batches_change_no_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, pictures = load_clip(str(make_clip(tmp_path))), make_pictures(5)
    whole = clip.images(pictures), clip.texts([*TEXTS, *TEXTS[:2]])
    monkeypatch.setattr(encoders, "BATCH_SIZE", 2)
    for one, other in zip(whole, (clip.images(pictures), clip.texts([*TEXTS, *TEXTS[:2]])), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("load", "make"), [(load_image_encoder, make_vit), (load_clip, make_clip)])
def test_missing_weights_are_told_by_name_and_not_made_up(load: Any, make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if key.endswith("norm1.weight") or key.endswith("layernorm_before.weight"))
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"encoder: not a whole .*{gone.partition('0.')[2]}"):
        load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no encoder to measure with"):
        load(str(folder))


@pytest.mark.parametrize("load", [load_image_encoder, load_clip])
@pytest.mark.parametrize("name", ["./nowhere", "nobody/nothing", "a/b/c"])
def test_a_name_that_is_nothing_is_told(load: Any, name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name}: no encoder to measure with"):
        load(name)


def test_an_encoder_of_the_other_kind_is_told(tmp_path: Path) -> None:
    vit, clip = make_vit(tmp_path / "vit"), make_clip(tmp_path / "clip")
    with pytest.raises(ModelError, match="a CLIPModel is no vision transformer"):
        load_image_encoder(str(clip))
    with pytest.raises(ModelError, match="not a whole CLIPModel"):
        load_clip(str(vit))


def test_an_encoder_without_its_preprocessing_is_told(tmp_path: Path) -> None:
    folder = make_vit(tmp_path / "vit")
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(ModelError, match="no encoder to measure with"):
        load_image_encoder(str(tmp_path / "bare"))


@pytest.mark.parametrize(("load", "make"), [(load_image_encoder, make_vit), (load_clip, make_clip)])
def test_damaged_weights_are_told(load: Any, make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "encoder") / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(ModelError, match="no encoder to measure with"):
        load(str(path.parent))
    path.write_bytes(whole)
    weights = load_file(path)
    weights[next(iter(weights))].fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        load(str(path.parent))


def test_a_clip_without_its_tokenizer_is_told_and_reads_no_text_by_another(tmp_path: Path) -> None:
    folder = make_clip(tmp_path / "clip")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer has 2 tokens, the text encoder \d+"):
        load_clip(str(folder))
