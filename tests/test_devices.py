"""Devices by name: those that are here work, those that are not are refused in a line, and the rules are one table."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dreambooth import devices
from dreambooth.devices import AUTO, DEVICES, check_precision, find_device, kind_of
from dreambooth.errors import UserError

PAGE = Path(__file__).parent.parent / "docs" / "getting-started.md"


def let_there_be(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the table say that these devices are there, and no others."""
    rows = {name: replace(kind, is_there=partial(names.__contains__, name)) for name, kind in DEVICES.items()}
    monkeypatch.setattr(devices, "DEVICES", rows)


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_found_by_name_or_refused_in_one_line(name: str) -> None:
    kind = DEVICES[name]
    if kind.is_there():
        assert find_device(name).type == kind.type
        return
    for key, named in (("--device", f"--device {name}"), ("train.device", f"train.device={name}")):
        with pytest.raises(UserError) as caught:
            find_device(name, key)
        assert str(caught.value) == f"{named}: PyTorch finds no {kind.title}; use cpu or auto"


def test_auto_is_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    let_there_be(monkeypatch, *DEVICES)
    assert find_device(AUTO).type == "cuda"
    let_there_be(monkeypatch, "mps", "cpu")
    assert find_device(AUTO).type == "mps"
    assert find_device(AUTO, to_train=True).type == "cpu", "a training on a device that nobody has tried"


def test_what_lightning_cannot_train_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    let_there_be(monkeypatch, "xpu", "cpu")
    assert find_device("xpu").type == "xpu"
    with pytest.raises(UserError, match=r"train\.device=xpu: Lightning cannot train on this device; use cpu or auto"):
        find_device("xpu", "train.device", to_train=True)


@pytest.mark.parametrize("name", DEVICES)
def test_the_rules_of_a_device_are_found_by_its_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device(DEVICES[name].type)
    if name == "rocm":
        monkeypatch.setattr(devices, "_has_rocm", lambda: True)
    elif name == "cuda" and DEVICES["rocm"].is_there():
        pytest.skip("this build of PyTorch is AMD's")
    kind = kind_of(device)
    assert kind.title == DEVICES[name].title
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        if precision in kind.precisions:
            check_precision(device, precision)
        elif kind.precisions:
            with pytest.raises(UserError, match=f"train.precision={precision}"):
                check_precision(device, precision)


def test_the_cpus_rules_are_those_of_the_machine() -> None:
    cpu = torch.device("cpu")
    assert (devices.device_name(cpu), devices.peak_bytes(cpu)) == ("cpu", None)
    assert devices.precision_of_large_models(cpu) == "32-true"
    assert devices.total_bytes(cpu) > 2**28
    devices.synchronize(cpu)
    devices.release_memory()


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="unknown device; one of auto, cuda, rocm, xpu, mps, cpu"):
        find_device("tpu")


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (\w+) \| ([^|]*) \| (yes|no) \| (yes|no) \|$", PAGE.read_text(), re.M)
    expected = [
        (
            name,
            kind.dtype,
            ", ".join(kind.precisions),
            "yes" if kind.trains_by_auto else "no",
            "yes" if kind.is_tried else "no",
        )
        for name, kind in DEVICES.items()
    ]
    assert [(*row[:2], row[2] if DEVICES[row[0]].precisions else "", *row[3:]) for row in rows] == expected
