"""The process of one job of the studio: runs its commands as a terminal would, and writes down how they ended.

`python -m dreambooth.cli.studio_job FOLDER ATTEMPT`, which the studio alone calls.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from dreambooth.cli import main
from dreambooth.files import write_text
from dreambooth.studio.processes import JobFolder, write_result


def run(folder: JobFolder, attempt: int) -> int:
    """Run the commands of a job one after another until one does not end with 0; return and record its exit code."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # Lightning starts this module again, once a further device
    if is_first:
        write_text(folder.pid, str(os.getpid()))
    code = 0
    for argv, unless in json.loads(folder.commands.read_text(encoding="utf-8")):
        if unless and Path(unless).exists():
            continue
        code = _run_one(argv)
        if code:
            break
    if is_first:
        write_result(folder, attempt, code)
    return code


def _run_one(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 - whatever it is, the queue has to hear of it
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(run(JobFolder(Path(sys.argv[1])), int(sys.argv[2])))
