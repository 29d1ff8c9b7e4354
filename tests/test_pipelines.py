"""Pipeline folders: drawn with by plain diffusers in any dtype, and readable to versions before today's."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from dreambooth.exporting.pipeline import save_pipeline
from dreambooth.families import fingerprint, load_family


def draw(folder: Path) -> torch.Tensor:
    """Draw with all that a newcomer types."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a photo of a dog", height=64, width=64, num_inference_steps=1, output_type="pt").images


@pytest.fixture(params=["tiny_base", "tiny_xl_base"], ids=["sd", "xl"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pipeline_in_16_bits_draws_with_bare_from_pretrained(base: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    save_pipeline(load_family(str(base)).pipeline().to(dtype=dtype), tmp_path)
    assert bool(draw(tmp_path).isfinite().all())
    for part in ("unet", "text_encoder"):
        (file,) = (tmp_path / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}, part


def test_the_embedded_base_draws_with_bare_from_pretrained(shipped_base: Path) -> None:
    assert bool(draw(shipped_base).isfinite().all())


@pytest.mark.parametrize("folder", ["written", "embedded"])
def test_the_text_encoder_and_tokenizer_have_the_names_that_every_version_reads(
    folder: str, base: Path, tmp_path: Path, shipped_base: Path
) -> None:
    """transformers before 5.6 wants the level "text_model", before 5 vocab.json and merges.txt."""
    path = tmp_path if folder == "written" else shipped_base
    family = load_family(str(base if folder == "written" else shipped_base))
    if folder == "written":
        save_pipeline(family.pipeline(), tmp_path)
        assert fingerprint(load_family(str(tmp_path))) == fingerprint(family)
    for part in path.glob("text_encoder*"):
        names = load_file(part / "model.safetensors").keys()
        assert {name.split(".")[0] for name in names} <= {"text_model", "text_projection"}
    for part in path.glob("tokenizer*"):
        vocab = json.loads((part / "vocab.json").read_text(encoding="utf-8"))
        lines = (part / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
        plain = CLIPTokenizer(vocab=vocab, merges=merges)
        assert plain("a photo of sks dog").input_ids == family.tokenizer("a photo of sks dog").input_ids


def test_a_learned_word_is_where_versions_before_5_look_for_it(base: Path, tmp_path: Path) -> None:
    family = load_family(str(base))
    ids = family.add_word("<sks>", 2, "dog")[0]
    save_pipeline(family.pipeline(), tmp_path)
    for part in tmp_path.glob("tokenizer*"):
        added = json.loads((part / "added_tokens.json").read_text(encoding="utf-8"))
        assert [added["<sks>"], added["<sks>_1"]] == ids
