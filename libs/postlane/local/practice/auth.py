"""AUTH PLAIN and LOGIN (RFC 4954, RFC 4616), so that the sender's side of it can be practised."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping

_BAD = b"535 5.7.8 Authentication credentials invalid"
_SYNTAX = b"501 5.5.2 Not base64"


class Authentication:
    """One connection's AUTH exchange; `users` maps names to passwords."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self.user: str | None = None
        self._users = users
        self._step: str | None = None
        self._name = ""

    @property
    def expects_answer(self) -> bool:
        """Whether the client's next line is an answer to a 334, not a command."""
        return self._step is not None

    def begin(self, line: bytes) -> bytes:
        """The reply to an AUTH command."""
        words = line.split()
        mechanism = words[1].upper() if len(words) > 1 else b""
        if self.user is not None:
            return b"503 5.5.1 Already authenticated"
        if not self._users or mechanism not in (b"PLAIN", b"LOGIN"):
            return b"504 5.5.4 Mechanism not known"
        self._step = "plain" if mechanism == b"PLAIN" else "name"
        if len(words) > 2:
            return self.answer(b"" if words[2] == b"=" else words[2])
        return b"334 " if mechanism == b"PLAIN" else b"334 VXNlcm5hbWU6"

    def answer(self, line: bytes) -> bytes:
        """The reply to the client's answer."""
        step, self._step = self._step, None
        if line == b"*":
            return b"501 5.0.0 Cancelled"
        try:
            text = base64.b64decode(line, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return _SYNTAX
        if step == "name":
            self._name, self._step = text, "password"
            return b"334 UGFzc3dvcmQ6"
        if step == "password":
            return self._check(self._name, text)
        parts = text.split("\0")
        return self._check(parts[1], parts[2]) if len(parts) == 3 else _SYNTAX

    def _check(self, name: str, password: str) -> bytes:
        known = self._users.get(name)
        if known is None or not hmac.compare_digest(known.encode(), password.encode()):
            return _BAD
        self.user = name
        return b"235 2.7.0 Authentication successful"
