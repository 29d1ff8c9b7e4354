"""Check what a request passes first: Host, origin, token, rate, size; and set the headers of answers."""

import ipaddress
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreambooth.studio.limits import BodyError, LimitedBody, RateLimit
from dreambooth.studio.pictures import MAX_BYTES, MAX_TOTAL
from dreambooth.studio.token import Keys, TokenFile

COOKIE = "dreambooth_studio"
LOGIN = "/api/v1/login"
OPEN = ("/login", "/static/", LOGIN)  # what can be had without a token: a page to show it on
SAFE = ("GET", "HEAD", "OPTIONS")
MAX_BODY = 2**20  # bytes of a request that brings no image
UPLOADS = {"photos": MAX_TOTAL, "images": MAX_TOTAL, "mask": MAX_BYTES}  # bytes of forms, by the end of their path
ONE_IMAGE = "/api/v1/images"  # whose body is one image
PAUSE_S, MIN_RATE = 20.0, 1024.0  # of a body
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
# A run's report brings its own style and script; it may do nothing else, and has no access to the studio.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
FOREIGN = ("/report", "/page")  # how the paths end of pages that commands have written
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Access:
    """Hold who may use a studio. token: None: whoever is on this machine. hosts: names that a Host header may have."""

    token: TokenFile | None = None
    hosts: Sequence[str] = field(default_factory=tuple)
    rate: float = 200.0  # requests a second of one client
    burst: float = 1000.0
    wrong_tokens: float = 10.0  # that a client may show at once; one more every six seconds
    pause_s: float = PAUSE_S


class RefusedError(HTTPException):
    """Hold the answer to a request that goes no further."""


class Guard:
    """Refuse what must not reach the application (ASGI middleware)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._rate = RateLimit(access.rate, access.burst)
        self._wrong = RateLimit(1 / 6, access.wrong_tokens)
        self._keys = None if access.token is None else Keys(access.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                _add_headers(message, scope["path"])
            await send(message)

        try:
            if scope["type"] != "http":
                raise RefusedError(400, "only HTTP is spoken here")
            await self._check(scope)
            body = self._limited(scope, receive)
            if scope["path"] == LOGIN and scope["method"] == "POST":
                await self._log_in(scope, body, send_guarded)
                return
            await self._app(scope, body, send_guarded)
        except (RefusedError, BodyError) as refusal:
            if not has_begun:
                await _answer(send_guarded, refusal.status_code, refusal.detail, dict(refusal.headers or {}))

    async def _check(self, scope: Scope) -> None:
        headers, client = Headers(scope=scope), _client(scope)
        if (seconds := self._rate.take(client)) > 0:
            raise RefusedError(429, "too many requests; wait a little", {"Retry-After": str(math.ceil(seconds))})
        host = _name_in(headers.get("host", ""))
        if not self._is_own(host):
            raise RefusedError(421, "Host: this is not the name of this server; open it by the address that it printed")
        if scope["method"] not in SAFE:
            self._check_origin(headers)
        if self._keys is not None and not scope["path"].startswith(OPEN) and not await self._is_known(headers, client):
            if not scope["path"].startswith("/api/") and "text/html" in headers.get("accept", ""):
                raise RefusedError(303, "show the token first", {"Location": "/login"})
            raise RefusedError(401, "token: is missing or wrong; send it as `Authorization: Bearer TOKEN`", _CHALLENGE)

    def _is_own(self, host: str) -> bool:
        """Return whether a Host is this server's. Addresses are as well: no other site's name leads here then."""
        if host in self._access.hosts or host in ("localhost", "127.0.0.1", "::1"):
            return True
        return self._access.token is not None and _is_address(host)

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what another site's page has sent: browsers name it in Origin, or say so in Sec-Fetch-Site."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        is_foreign = origin is not None and urlsplit(origin).netloc != headers.get("host", "")
        if is_foreign or site not in (None, "same-origin", "none"):
            raise RefusedError(403, "Origin: another site's page cannot change anything here")

    async def _is_known(self, headers: Headers, client: str) -> bool:
        keys = self._keys
        if keys is None or keys.has_session(_cookie(headers)):
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and await self._is_token(token.strip(), client)

    async def _is_token(self, token: str, client: str) -> bool:
        """Return whether a token is right; a client that has shown too many wrong ones has to wait."""
        keys = self._keys
        if keys is None or keys.knows(token):
            return True
        if (seconds := self._wrong.take(client)) > 0:
            raise RefusedError(429, "too many wrong tokens; wait a little", {"Retry-After": str(math.ceil(seconds))})
        return await run_in_threadpool(keys.check, token)

    def _limited(self, scope: Scope, receive: Receive) -> LimitedBody:
        """Return a request's body with its limits; one that says it is too large is not received."""
        path = scope["path"]
        max_bytes = MAX_BYTES if path == ONE_IMAGE else UPLOADS.get(path.rpartition("/")[2], MAX_BODY)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > max_bytes:
            raise BodyError(413, f"the body is larger than {max_bytes} bytes")
        return LimitedBody(receive, max_bytes, self._access.pause_s, MIN_RATE)

    async def _log_in(self, scope: Scope, receive: LimitedBody, send: Any) -> None:
        """Take a token as JSON, {"token": ...}, and give the browser the cookie of a session."""
        if self._keys is None:
            await _answer(send, 200, "no token is needed here", {})
            return
        token = _token_in(await _read(receive))
        if not await self._is_token(token, _client(scope)):
            raise RefusedError(401, "token: is wrong", _CHALLENGE)
        key = self._keys.open_session()
        cookie = f"{COOKIE}={key}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200"
        is_encrypted = Headers(scope=scope).get("origin", "").startswith("https:")  # up to the proxy before this server
        secure = "; Secure" if is_encrypted else ""
        await _answer(send, 200, "logged in", {"Set-Cookie": cookie + secure})


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _add_headers(message: Message, path: str) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Content-Security-Policy", REPORT_POLICY if path.endswith(FOREIGN) else POLICY)
    if path.startswith("/api/"):
        headers.setdefault("Cache-Control", "no-store")


async def _answer(send: Any, status: int, detail: str, headers: dict[str, str]) -> None:
    body = json.dumps({"detail": detail}).encode()
    own = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in own.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: LimitedBody) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def _token_in(body: bytes) -> str:
    try:
        return str(json.loads(body)["token"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(422, 'expected {"token": "..."}') from error


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _name_in(host: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
