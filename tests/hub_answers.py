"""A server of this process in the hub's place: its client's real requests are answered and kept."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, takes every file inline, and keeps what it was sent."""

    received: list[tuple[str, Any]]
    refuses: str | None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = [json.loads(line) for line in body.splitlines()]
        type(self).received.append((self.path, lines if self.path.endswith("/commit/main") else lines[0]))
        if self.refuses is not None and self.path.startswith(self.refuses):
            self.answer(403, {"error": "You have no right to do this"})
            return
        host = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            self.answer(200, {"url": f"{host}/me/robot"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            self.answer(200, {"commitUrl": f"{host}/me/robot/commit/0", "commitOid": "0" * 40})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer(404, {"error": "There is nothing here"})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Say what HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE=0 would; the client has read its environment already."""
    handler = type("Answers", (Hub,), {"received": [], "refuses": None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    yield handler
    server.shutdown()
    server.server_close()
