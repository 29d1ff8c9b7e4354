"""Files that want to run code: none of it ever runs. A canary would be there if it did."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreambooth.cli import main
from dreambooth.errors import ModelError, UserError
from dreambooth.families import ModelSource, load_family
from dreambooth.metrics.encoders import load_clip, load_image_encoder

ROOT = Path(__file__).parent.parent
CODE = "from pathlib import Path\nPath({canary!r}).touch()\nclass Evil: pass\n"


class Payload:
    """Make the canary when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code out of a model's files was run"


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_canary_is_made_where_a_pickle_is_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("kind", ["torch", "pickle", "legacy"])
def test_pickled_weights_of_a_base_are_refused(base: Path, canary: Path, part: str, kind: str) -> None:
    weights = base / part / WEIGHTS[part]
    state = {**load_file(weights), "more": Payload(canary)}
    weights.unlink()
    path = base / part / ("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(canary)))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ModelError, match=rf"{part}: cannot be loaded: .*\.bin: not readable as plain weights"):
        load_family(str(base))


@pytest.mark.parametrize("part", WEIGHTS)
def test_plain_weights_in_the_old_format_are_read(base: Path, tiny_base: Path, part: str) -> None:
    weights = base / part / WEIGHTS[part]
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(weights), base / part / name)
    weights.unlink()
    one, other = (load_family(str(each)).pipeline().components[part].state_dict() for each in (base, tiny_base))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_pickle_beside_safetensors_or_under_their_name_is_not_read(base: Path, canary: Path, part: str) -> None:
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt", "training_args.bin"):
        torch.save({"x": Payload(canary)}, base / part / name)
    load_family(str(base))
    (base / part / WEIGHTS[part]).write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises(ModelError, match=rf"{part}: cannot be loaded: .*no \.safetensors"):
        load_family(str(base))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pkl", "model.safetensors"])
def test_a_single_file_that_is_a_pickle_is_refused(tmp_path: Path, canary: Path, name: str) -> None:
    torch.save({"state_dict": {"x": Payload(canary)}}, tmp_path / name)
    with pytest.raises(ModelError, match=rf"{name}: .*\.safetensors"):
        load_family(str(tmp_path / name))


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/model.ckpt",
        "https://huggingface.co/a/b/resolve/main/m.safetensors",
        "file:///etc",
        "s3://a/b",
    ],
)
def test_an_address_is_no_base(address: str) -> None:
    with pytest.raises(ModelError, match="an address; nothing is fetched from there"):
        load_family(address)


@pytest.mark.parametrize("family", ["auto", "sd"])
@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["pipeline", "Evil"]},
        {"unet": ["evil", "Evil"]},
        {"text_encoder": ["diffusers_modules.local.evil", "Evil"]},
        {"own_part": ["evil", "Evil"]},
    ],
)
def test_an_index_that_names_code_of_its_own_is_refused(
    base: Path, canary: Path, family: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (base, base / "unet", base / "text_encoder"):
        for name in ("pipeline.py", "evil.py"):
            (folder / name).write_text(CODE.format(canary=str(canary)))
    monkeypatch.chdir(base)  # where `python -m` looks for modules
    monkeypatch.syspath_prepend(str(base))
    edit(base / "model_index.json", **changes)
    with pytest.raises(ModelError, match="code of its own, which is not run here"):
        load_family(ModelSource(str(base), family))


def test_configs_of_a_single_file_that_name_code_of_their_own_are_refused(
    base: Path, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "evil.py").write_text(CODE.format(canary=str(canary)))
    monkeypatch.syspath_prepend(str(base))
    edit(base / "model_index.json", unet=["evil", "Evil"])
    single = tmp_path / "model.safetensors"
    shutil.copy(base / "unet" / WEIGHTS["unet"], single)
    with pytest.raises(ModelError, match="code of its own"):
        load_family(ModelSource(str(single), "sd", config=str(base)))


def test_configs_that_map_classes_to_code_beside_them_run_none_of_it(base: Path, canary: Path) -> None:
    for part, key in (("text_encoder", "AutoModel"), ("tokenizer", "AutoTokenizer"), ("unet", "AutoModel")):
        (base / part / "evil.py").write_text(CODE.format(canary=str(canary)))
        config = base / part / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
        edit(config, auto_map={key: "evil.Evil"})
    load_family(str(base))


@pytest.mark.parametrize(("load", "name"), [(load_image_encoder, "vit"), (load_clip, "clip")])
def test_an_encoder_that_brings_its_own_code_runs_none_of_it(
    canary: Path, tmp_path: Path, load: Any, name: str
) -> None:
    folder = Path(shutil.copytree(ROOT / "checkpoints" / "toyworld-encoders" / name, tmp_path / name))
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, model_type="evil")
    if name == "clip":  # a CLIP is loaded as one, whatever it says that it is
        assert type(load(str(folder)).model).__name__ == "CLIPModel"
    else:
        with pytest.raises(ModelError, match="no encoder to measure with"):
            load(str(folder))


@pytest.mark.parametrize("name", ["start.bin", "start.ckpt", "start.safetensors", "pytorch_lora_weights.bin"])
def test_a_start_that_is_a_pickle_is_refused(
    config_file: Path, tmp_path: Path, canary: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "start").mkdir()
    torch.save({"x": Payload(canary)}, tmp_path / "start" / name)
    start = tmp_path / "start" if name.startswith("pytorch") else tmp_path / "start" / name
    assert main(["train", str(config_file), "method.name=lora", f"method.start={start}"]) == 3
    assert "cannot be" in (said := capsys.readouterr().err)
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_a_start_at_an_address_is_refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = "method.start=https://example.com/lora.safetensors"
    assert main(["train", str(config_file), "method.name=lora", start]) == 2
    assert "method.start=https://example.com/lora.safetensors: no such file" in capsys.readouterr().err


def test_what_is_sampled_from_is_read_as_safely(
    base: Path, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": Payload(canary)}, tmp_path / "model.ckpt")
    (base / "model_index.json").write_text(json.dumps({"_class_name": ["evil", "Evil"]}))
    for model in (tmp_path / "model.ckpt", base, "https://example.com/model.ckpt"):
        assert main(["sample", str(model), "a dog", "--out", str(tmp_path / "out")]) == 3
        assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_users_mistake_and_a_models_have_their_own_types() -> None:
    assert (UserError.exit_code, ModelError.exit_code) == (2, 3)
