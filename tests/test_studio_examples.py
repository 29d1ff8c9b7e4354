"""The examples of docs/studio.md are run, block by block, against a running server."""

import re
import sys
from pathlib import Path

import pytest
from studio_workspace import RECORDED, ROOT, make_workspace, serving

from dreambooth.studio.processes import RUNNER

ADDRESS = "http://127.0.0.1:7870"
# What a training and a sampling leave behind, without their minute: what earlier ones have left, recorded.
RECORDED_RUNNER = f"""
import json, os, shutil, sys
folder, attempt = sys.argv[1:]
*_, (argv, _) = json.load(open(f"{{folder}}/commands.json"))
if argv[0] == "train":
    run = "checkpoints/" + next(part for part in argv if part.startswith("run.name=")).removeprefix("run.name=")
    shutil.copytree({str(RECORDED / "expected" / "interrupted")!r}, run)
    shutil.copy({str(RECORDED / "interrupted" / "config.yaml")!r}, run)
else:
    out = next(part for part in argv if part.startswith("--out=")).removeprefix("--out=")
    os.makedirs(out)
    shutil.copy({str(ROOT / "tests" / "data" / "recipes" / "sample.png")!r}, f"{{out}}/00000.png")
with open(f"{{folder}}/exit-{{attempt}}.json", "w") as file:
    json.dump({{"exit_code": 0}}, file)
"""


@pytest.mark.parametrize(
    "is_real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["recorded", "with a training"]
)
def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_real: bool
):
    workspace = make_workspace(tmp_path, has_weights=is_real)
    monkeypatch.chdir(workspace.root)
    text = (ROOT / "docs" / "studio.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    runner = RUNNER if is_real else (sys.executable, "-I", "-S", "-c", RECORDED_RUNNER)
    with serving(workspace, runner=runner) as address:
        source = "\n".join(blocks).replace(ADDRESS, address).replace('"train.max_steps": 240', '"train.max_steps": 8')
        assert address in source
        names: dict[str, object] = {}
        exec(compile(source, "docs/studio.md", "exec"), names)
    said = capsys.readouterr().out
    assert "'stored': ['00.png', '01.png', '02.png'], 'refused': []" in said
    assert "python -m dreambooth train configs/my-robot.yaml" in said
    assert re.search(r"^outputs/job-2/00000\S*.png a photo of .* 7$", said, re.MULTILINE)
    assert said.endswith("done 1.0\n")
