"""The web server: uvicorn, which closes connections that send nothing, and ends its streams when it is told to end."""

import asyncio
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20  # seconds in which the head of a request has to arrive
MAX_CONNECTIONS = 512  # at once; one more is answered with 503
MAX_HEAD = 32 * 1024  # bytes of a request's head


class PatientProtocol(H11Protocol):
    """Close a connection on which the head of a request does not arrive in time."""

    head_s: float = HEAD_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.head_s, self._close_if_silent, None, False)

    def _close_if_silent(self, cycle: object, has_waited: bool) -> None:
        """Close it if no request has come since the last look, at which none was being answered either."""
        if self.transport.is_closing():
            return
        waits = self.conn.their_state is h11.IDLE
        if waits and self.cycle is cycle and (has_waited or cycle is None):
            self.transport.close()
            return
        self.loop.call_later(self.head_s, self._close_if_silent, self.cycle, waits)


class StudioServer(uvicorn.Server):
    """Serve an application until a signal comes."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.is_closing.set()
        super().handle_exit(sig, frame)
