"""The examples of docs/python.md are run, block by block, as a notebook runs its cells."""

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
ENCODERS = ROOT / "checkpoints" / "toyworld-encoders"
# What makes the examples cheap; everything else is as the page has it.
CHEAP = {
    '"train.max_steps": 240': '"train.max_steps": 3, "validate.every_steps": 0, "prior.source": "none", '
    '"log.tensorboard": False',
    "num_images=2,": "num_images=2, steps=1,",
    'out="grid", steps=8': 'out="grid", steps=1',
    "num_images=1)": f'num_images=1, num_class_images=0, dino="none", clip="{ENCODERS}/clip")',
}


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "data", "checkpoints"):
        (tmp_path / name).mkdir()
        for path in (ROOT / name).iterdir():
            (tmp_path / name / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "toyworld-prompts.yaml").unlink()
    (tmp_path / "data" / "toyworld-prompts.yaml").write_text("- a photo of {subject} on the beach\n")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.DOTALL | re.M)
    source = "\n".join(blocks)
    for text, cheaper in CHEAP.items():
        assert text in source, f"docs/python.md has no {text!r} any more"
        source = source.replace(text, cheaper)
    names: dict[str, object] = {}
    exec(compile(source, "docs/python.md", "exec"), names)
    assert Image.open("beach.png").size == (64, 64)
    assert len(list(Path("grid").glob("0*.png"))) == 4
    assert list(Path("checkpoints/robot/exports/kohya").glob("*.safetensors"))
    assert not Path("checkpoints/stopped/model").exists()
