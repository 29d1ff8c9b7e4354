"""The token of a studio that others can reach: shown once, kept as a hash."""

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from pathlib import Path

from dreambooth.files import write_text

COST = {"n": 2**14, "r": 8, "p": 1}  # of scrypt: 16 MiB and about 50 ms a guess
SESSION_S = 12 * 3600.0


class TokenFile:
    """Keep the hash of a token in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return self.path.is_file()

    def renew(self) -> str:
        """Make a new token, and return it; it cannot be read again."""
        token, salt = secrets.token_urlsafe(32), secrets.token_bytes(16)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"salt": salt.hex(), "hash": _hash(token, salt).hex(), **COST}))
        os.chmod(self.path, 0o600)
        return token

    def matches(self, token: str) -> bool:
        """Return whether this is the token; takes as long for a wrong one as for the right one."""
        kept = json.loads(self.path.read_bytes())
        found = _hash(token, bytes.fromhex(kept["salt"]))
        return hmac.compare_digest(found, bytes.fromhex(kept["hash"]))


def _hash(token: str, salt: bytes) -> bytes:
    return hashlib.scrypt(token.encode(), salt=salt, **COST)


class Keys:
    """Remember who has shown the token: by its digest, or by the key of a browser's session."""

    def __init__(self, token: TokenFile) -> None:
        self._token = token
        self._one_at_a_time = threading.Lock()  # a hash takes memory
        self._known: bytes | None = None
        self._sessions: dict[bytes, float] = {}

    def knows(self, token: str) -> bool:
        """Return whether a token is right, as far as that is known without a hash."""
        return self._known is not None and hmac.compare_digest(self._known, _digest(token))

    def check(self, token: str) -> bool:
        """Return whether a token is right."""
        with self._one_at_a_time:
            if not self._token.matches(token):
                return False
            self._known = _digest(token)
            return True

    def open_session(self) -> str:
        """Return the key of a new session, for a browser's cookie."""
        now = time.monotonic()
        self._sessions = {key: end for key, end in self._sessions.items() if end > now}
        key = secrets.token_urlsafe(32)
        self._sessions[_digest(key)] = now + SESSION_S
        return key

    def has_session(self, key: str) -> bool:
        """Return whether a session is open."""
        return self._sessions.get(_digest(key), 0.0) > time.monotonic()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
