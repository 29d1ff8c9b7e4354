"""Exports as graphs of ONNX Runtime and OpenVINO: the same images, and what graphs cannot do is refused by name."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.cli import main
from dreambooth.config import Config
from dreambooth.errors import ModelError, UserError
from dreambooth.exporting import graphs
from dreambooth.exporting.formats import check_layout, find_format
from dreambooth.exporting.tools import ExportedFiles
from dreambooth.exporting.verify import expected_model, verify
from dreambooth.families import ModelSource, load_family
from dreambooth.families.runtimes import load_graph
from dreambooth.generation.models.loading import Model, load_model
from dreambooth.subject_info import ExportCard, LearnedSubject

LEARNED = LearnedSubject("sks", "dog", "a photo of {subject}", "a photo of a {class}")
CARD = ExportCard((LEARNED,), 64, 2, 2.0, 0)
CLOSE = 0.01  # of 1
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}


@pytest.fixture(scope="module", params=[pytest.param(form, marks=pytest.mark.slow) for form in LIBRARIES])
def folder(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny base as graphs. Tracing takes half a minute, so what needs it is slow."""
    for library in ("onnxscript", LIBRARIES[request.param]):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("graphs") / request.param
    folder.mkdir()
    graphs.write(request.param, load_family(str(tiny_base)), CARD, folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(str(folder), "cpu")


def sampled(model: Path, out: Path, *options: str) -> list[Image.Image]:
    command = ["sample", str(model), *options, "--guidance-scale", "2", "--seed", "3", "--out", str(out)]
    assert main(command) == 0
    return [Image.open(path) for path in sorted(out.glob("0*.png"))]


@pytest.mark.parametrize(
    "options",
    [
        ["a photo of sks dog", "--num-images", "3", "--steps", "2"],
        ["a (photo:1.3) of sks dog", "--num-images", "1", "--steps", "2", "--size", "64x128", "--scheduler", "dpm++"],
        ["a dog " * 60, "--num-images", "2", "--steps", "1", "--negative-prompt", "a cat"],
    ],
    ids=["a batch", "weights and another size", "a long prompt"],
)
def test_graphs_make_the_images_of_the_networks(
    options: list[str], folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    ours, theirs = (sampled(path, tmp_path / path.name, *options) for path in (tiny_base, folder))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        apart = np.abs(np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32)) / 255
        assert apart.max() <= CLOSE


def test_an_image_to_start_from_goes_through_the_graphs(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB").save(photo)
    options = ["a dog", "--num-images", "1", "--steps", "2", "--init-image", str(photo), "--strength", "0.5"]
    ours, theirs = (sampled(path, tmp_path / path.name, *options)[0] for path in (tiny_base, folder))
    apart = np.abs(np.asarray(ours, dtype=np.float32) - np.asarray(theirs, dtype=np.float32)) / 255
    assert apart.max() <= CLOSE


def test_the_folder_holds_no_weights_and_knows_its_subject(folder: Path, model: Model) -> None:
    assert not list(folder.rglob("*.safetensors"))
    assert model.fill("a photo of {subject}") == "a photo of sks dog"
    assert model.resolution == 64


def test_an_export_is_verified_by_its_image(folder: Path, tiny_base: Path, tiny_base_v: Path) -> None:
    files = ExportedFiles(folder.name, "tiny", CARD)
    found = verify(folder, files, expected_model(load_family(str(tiny_base))), ModelSource(str(tiny_base)), "float32")
    assert found.image < 1e-4
    with pytest.raises(ModelError, match="not the model that was trained"):
        verify(folder, files, load_family(str(tiny_base_v)), ModelSource(str(tiny_base)), "float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention-maps"], "holds graphs, whose attention nobody sees"),
        (["--lora", "photo.safetensors"], "holds graphs, over which nothing can be laid"),
        (["--decoding", "tiles"], "this model's VAE is a graph, which decodes whole"),
        (["--quantize", "int8"], "holds graphs, whose weights are stored as they were exported"),
        (["--style", "photo.png"], "is of a family whose attention cannot be shared"),
        (["--vae", "photo.png"], "holds graphs, its VAE among them"),
        (["--control", "canny=photo.png"], "of a family that ControlNets are not read for"),
    ],
)
def test_what_changes_a_networks_inside_is_refused(
    options: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from safetensors.torch import save_file
    from torch import zeros

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("photo.png")
    save_file({"unet.a.lora_A.weight": zeros(1, 1), "unet.a.lora_B.weight": zeros(1, 1)}, "photo.safetensors")
    assert main(["sample", str(folder), "a dog", "--steps", "1", "--num-images", "1", *options]) == 2
    assert message in capsys.readouterr().err


def test_graphs_are_not_trained(folder: Path, config: Config) -> None:
    from dreambooth import build

    config.model.base = str(folder)
    with pytest.raises(ModelError, match="graphs of an export, which can be sampled alone"):
        build.load_base(config)


def test_a_missing_library_and_a_damaged_file_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = LIBRARIES[folder.name]
    source = next(path for path in (folder / "vae_decoder").iterdir() if path.suffix in (".onnx", ".xml"))
    (tmp_path / source.name).write_text("nothing of the kind")
    with pytest.raises(ModelError, match="cannot"):
        load_graph(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf'{library} is not installed; install it with: pip install "dreambooth'):
        load_graph(folder / "unet")


def test_a_missing_library_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for form in LIBRARIES:
        with pytest.raises(UserError, match=rf'onnxscript is not installed; .* pip install "dreambooth\[{form}\]"'):
            find_format(form, "full")


def test_other_families_are_refused_by_name(tiny_xl_base: Path) -> None:
    with pytest.raises(UserError, match="--format: onnx is not written for a stable-diffusion-xl"):
        check_layout("onnx", load_family(str(tiny_xl_base)))
