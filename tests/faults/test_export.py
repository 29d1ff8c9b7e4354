"""A result's folder is replaced as a whole: it is the old one, the new one, or for a moment none; never half of one."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.files import atomic_folder, remove_leftovers

SCRIPT = """
import os, signal, sys
from pathlib import Path
from dreambooth.files import atomic_folder

count, at, folder = 0, int(sys.argv[1]), sys.argv[2]

def hook(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree") or event == "open" and (
        (arguments[2] or 0) & os.O_CREAT and str(arguments[0]).startswith(folder)
    ):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
with atomic_folder(Path(folder)) as beside:
    beside.mkdir()
    for name in ("a", "b", "c"):
        (beside / name).write_text("new")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_every_operation_the_folder_is_never_there_by_half(tmp_path: Path) -> None:
    found = []
    for at in range(1, 30):
        folder = tmp_path / str(at) / "model"
        folder.mkdir(parents=True)
        for name in ("a", "b", "c"):
            (folder / name).write_text("old")
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(at), str(folder)], check=False)
        found.append({path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else None)
        assert found[-1] in (dict.fromkeys("abc", "old"), dict.fromkeys("abc", "new"), None), f"half: {found[-1]}"
        remove_leftovers(folder.parent)
        assert [path.name for path in folder.parent.iterdir()] in (["model"], [])
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert [contents is None for contents in found].count(True) == 1, "there is one moment with none"
    assert len(found) > 8


def test_what_fails_while_a_folder_is_made_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("old")
    with contextlib.suppress(RuntimeError), atomic_folder(folder) as beside:
        beside.mkdir()
        (beside / "a").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "a").read_text() == "old"
