"""The web server: uvicorn, which closes connections that send nothing, and ends its streams when it is told to end."""

import asyncio
import resource
import socket
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20  # seconds in which the head of a request has to arrive
MAX_CONNECTIONS = 2000  # at once; one more is answered with 503
NUM_FILES = 4096  # that a process may have open, where the system lets it: each connection is one
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MAX_HEAD = 32 * 1024  # bytes of a request's head


class PatientProtocol(H11Protocol):
    """Close a connection on which the head of a request does not arrive in time."""

    head_s: float = HEAD_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio leaves it out for a socket that was accepted from one of `socket.create_server`, whose protocol is 0.
        # Without it the body of an answer waits for the client to confirm its head: 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(FULL)
            transport.close()
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
    """Serve an application until a signal comes. head_s: seconds in which the head of a request has to arrive."""

    def __init__(self, app: FastAPI, head_s: float = HEAD_S) -> None:
        protocol = type("Protocol", (PatientProtocol,), {"head_s": head_s})
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._app = app
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = NUM_FILES if most == resource.RLIM_INFINITY else min(NUM_FILES, most)
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.is_closing.set()
        super().handle_exit(sig, frame)
