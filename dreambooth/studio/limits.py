"""How much one client may ask for: requests a second, and bytes of a body that have to arrive in time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException

Receive = Callable[[], Awaitable[Any]]
MAX_CLIENTS = 10_000  # that are remembered


@dataclass
class RateLimit:
    """Hold how many requests each client has left. burst: at once; rate: that come back in a second."""

    rate: float
    burst: float
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, client: str) -> float:
        """Take one request of a client; return 0, or the seconds to wait where there is none left."""
        now = time.monotonic()
        left, then = self._left.get(client, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate)
        if left < 1:
            return (1 - left) / self.rate
        if len(self._left) >= MAX_CLIENTS:
            self._left = {each: kept for each, kept in self._left.items() if now - kept[1] < self.burst / self.rate}
        self._left[client] = left - 1, now
        return 0.0


class BodyError(HTTPException):
    """Report a body that is too large or too slow; the connection is closed. status: of the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason, {"Connection": "close"})


class LimitedBody:
    """Receive a request's body, up to a number of bytes, and no slower than a client may be.

    max_bytes: in all. pause_s: between two parts. min_rate: bytes a second, once the first `pause_s` are over.
    """

    def __init__(self, receive: Receive, max_bytes: int, pause_s: float, min_rate: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._pause_s = pause_s
        self._min_rate = min_rate
        self._started = time.monotonic()
        self._num_bytes = 0
        self._is_all = False

    async def __call__(self) -> Any:
        """Return the next message. Raises BodyError."""
        if self._is_all:
            return await self._receive()  # what comes now is that the client has left
        try:
            message = await asyncio.wait_for(self._receive(), self._pause_s)
        except TimeoutError as error:
            raise BodyError(408, f"nothing has come for {self._pause_s:g} s") from error
        self._num_bytes += len(message.get("body", b""))
        self._is_all = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise BodyError(413, f"the body is larger than {self._max_bytes} bytes")
        seconds = time.monotonic() - self._started - self._pause_s
        if not self._is_all and self._num_bytes < seconds * self._min_rate:
            raise BodyError(408, f"the body comes slower than {self._min_rate:g} bytes a second")
        return message
