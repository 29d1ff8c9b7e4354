"""The studio's running server: events, crowds, slow clients, bodies without end."""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from filelock import FileLock
from studio_workspace import ROOT, events_in, make_workspace, serving, wait_until

from dreambooth.cli import main
from dreambooth.studio import state
from dreambooth.studio.guard import Access
from dreambooth.studio.server import PatientProtocol
from dreambooth.studio.workspace import Workspace

WAITING = """
import json, os, sys, time
while not os.path.exists(f"{sys.argv[1]}/../go"):
    time.sleep(0.01)
with open(f"{sys.argv[1]}/exit-{sys.argv[2]}.json", "w") as file:
    json.dump({"exit_code": 0}, file)
"""
GENERATE = {"kind": "generate", "model": "checkpoints/robot", "prompts": ["x"]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def address(workspace: Workspace) -> Iterator[str]:
    with serving(workspace, Access(pause_s=0.3, burst=5000), head_s=0.3) as found:
        yield found


def connect(address: str) -> socket.socket:
    place = urlsplit(address)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """Return what a server sends until it closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def test_events_follow_a_job_to_its_end(address: str):
    with httpx.Client(base_url=f"{address}/api/v1", timeout=30) as client:
        number = client.post("/jobs", json=GENERATE).json()["id"]
        text = ""
        with client.stream("GET", "/events", params={"job": number}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for part in stream.iter_text():
                text += part
                if '"state": "done"' in text:
                    break
        found = events_in(text)
        assert {name for name, _ in found} == {"job"}
        assert {job["id"] for _, job in found} == {number}
        assert found[-1][1]["progress"]["fraction"] == 1.0
        polled = client.get(f"/jobs/{number}").json()
        assert polled == found[-1][1], "polling tells the same"
        assert (polled["exit_code"], polled["progress"]["text"]) == (0, "image 1/2, step 3/6, 1:05 left")


def test_events_tell_the_end_of_a_job_that_many_newer_ones_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state, "NUM_RECENT", 2)
    workspace = make_workspace(tmp_path)
    runner = (sys.executable, "-I", "-S", "-c", WAITING)
    with serving(workspace, runner=runner) as address, httpx.Client(base_url=f"{address}/api/v1", timeout=10) as client:
        first, *newer = (client.post("/jobs", json=GENERATE).json()["id"] for _ in range(5))
        text = ""
        with client.stream("GET", "/events") as stream:
            parts = stream.iter_text()
            while f'"id": {newer[-1]},' not in text:
                text += next(parts)
            for number in newer:
                client.post(f"/jobs/{number}/cancel")
            (workspace.jobs / "go").touch()
            while '"state": "done"' not in text:
                text += next(parts)
            client.delete(f"/jobs/{first}")
            while f'data: {{"id": {first}}}' not in text:
                text += next(parts)
    found = events_in(text)
    assert [job["id"] for name, job in found if name == "gone"] == [first], "an old job is not gone"
    states = {job["id"]: job["state"] for name, job in found if name == "job"}
    assert states == {first: "done", **dict.fromkeys(newer, "cancelled")}


def test_the_body_of_an_answer_does_not_wait_until_its_head_is_confirmed(workspace: Workspace):
    with serving(workspace) as address, httpx.Client(base_url=address) as client:
        client.get("/api/v1/status")
        found = [each for each in gc.get_objects() if isinstance(each, PatientProtocol)]
        sockets = [each.transport.get_extra_info("socket") for each in found if not each.transport.is_closing()]
        assert sockets
        assert all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)


def test_a_connection_that_says_nothing_is_closed(address: str):
    with connect(address) as silent, connect(address) as torn:
        torn.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        assert read_all(silent) == b""
        assert read_all(torn) == b""


def test_a_body_that_does_not_come_is_given_up(address: str):
    with connect(address) as connection:
        connection.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 408")


def test_a_body_without_end_is_cut_off(address: str):
    with connect(address) as connection:
        connection.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                connection.sendall(chunk)
        assert b" 413 " in read_all(connection).split(b"\r\n")[0]


def test_what_is_no_http_is_answered_and_a_head_without_end_is_cut_off(address: str):
    with connect(address) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert read_all(connection)[:12] == b"HTTP/1.1 400"
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(2000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"x" * 100))
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")


def test_a_text_in_an_image_that_unpacks_to_megabytes_is_not_read(address: str):
    head = (64).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    text = b"dreambooth\x00\x00" + zlib.compress(bytes(4 * 2**20))
    image = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"zTXt", text), (b"IDAT", zlib.compress(bytes(65 * 64))), (b"IEND", b"")):
        image += len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    answer = httpx.post(f"{address}/api/v1/images", content=image)
    assert (answer.status_code, "not an image" in answer.text) == (422, True), answer.text


@pytest.mark.slow
def test_a_thousand_requests_at_once_are_all_answered(workspace: Workspace):
    async def crowd(address: str) -> Counter[int]:
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as client:
            answers = await asyncio.gather(*(client.get("/api/v1/jobs") for _ in range(1000)), return_exceptions=True)
        return Counter(each.status_code if isinstance(each, httpx.Response) else 0 for each in answers)

    with serving(workspace) as address:
        found = asyncio.run(crowd(address))
        print(f"\n1,000 requests at once: {dict(found)}")
        assert set(found) <= {200, 429, 503}, "answered, or told to come back"
        assert found[200] > 200
        assert httpx.get(f"{address}/api/v1/status").status_code == 200, "and it is as well as before"


@pytest.mark.slow
def test_slow_clients_keep_nobody_else_waiting(workspace: Workspace):
    with serving(workspace, Access(pause_s=2.0), head_s=2.0) as address:
        slow = [connect(address) for _ in range(300)]
        for connection in slow:
            connection.sendall(b"POST /api/v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999\r\n\r\nx")
        assert httpx.get(f"{address}/api/v1/status", timeout=10).status_code == 200
        assert all(read_all(connection).startswith(b"HTTP/1.1 408") for connection in slow)


def test_one_workspace_has_one_server(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    with FileLock(workspace.own / "server.lock"):
        assert main(["studio", "--workspace", str(workspace.root), "--port", "0"]) == 2
    assert "another studio works there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "99999"], "--port 99999: must be 0 to 65535"),
        (["--workspace", "nowhere"], "--workspace nowhere: there is no such folder"),
        (["--devices", "gpu"], "write auto, cpu, or cuda:0,cuda:1"),
        (["--host", "203.0.113.1"], "--host 203.0.113.1 --port 7870: "),
    ],
)
def test_wrong_options_are_named(options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    place = [] if "--workspace" in options else ["--workspace", str(tmp_path)]
    assert main(["studio", *place, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_token_is_shown_once_where_others_can_reach_the_server(workspace: Workspace):
    assert [start_for_others(workspace).count("token: ") for _ in range(2)] == [1, 0]


def start_for_others(workspace: Workspace) -> str:
    """Start a server that others can reach, see that it asks for a token, and return what it has printed."""
    command = [sys.executable, "-m", "dreambooth", "studio", "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=workspace.root, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = ""
        while "studio: " not in said:
            said += server.stdout.readline()
        port = int(said.rpartition(" (")[0].rpartition(":")[2])
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/api/v1/status").status_code == 401)
        server.terminate()
    return said
