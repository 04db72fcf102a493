"""One SMTP connection of the practice server: bytes in, replies out, faults on order.

RFC 5321 with PIPELINING (2920), 8BITMIME (6152), SMTPUTF8 (6531), SIZE (1870), ENHANCEDSTATUSCODES (2034), STARTTLS
(3207) and AUTH PLAIN and LOGIN (4954). Commands are worked off in order; what arrives while one waits stays in the
buffer (see `connection`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from postlane.local.practice.auth import Authentication
from postlane.local.practice.connection import Connection
from postlane.local.practice.faults import Rule, Verdict
from postlane.local.practice.message import look, unstuff

if TYPE_CHECKING:
    from postlane.local.practice.listener import Listener

LINE_MAX_BYTES = 4096
RECIPIENTS_MAX = 1000
_MAIL = re.compile(rb"(?i)MAIL FROM: ?<([^<>\r\n]*)>((?: [^\r\n]*)?)$")
_RCPT = re.compile(rb"(?i)RCPT TO: ?<([^<>\r\n]+)>((?: [^\r\n]*)?)$")
_SIZE = re.compile(rb"(?i) SIZE=(\d+)")


class Session(Connection):
    """One client's SMTP conversation."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._searched = 0
        self._in_body = False
        self._swallow = False
        self._body_began = False
        self._greeted = False
        self._secure = listener.options.implicit_tls
        self._auth = Authentication(listener.options.users)
        self._sender: str | None = None
        self._rcpts: list[str] = []

    @property
    def user(self) -> str | None:
        """Who has logged in."""
        return self._auth.user

    # -- reading

    def _opened(self) -> None:
        self._faulty("connect", lambda: self._reply(b"220 practice.invalid ESMTP " + self.server.name.encode()))

    def _take(self) -> bool:
        return self._take_body() if self._in_body else self._take_line()

    def _take_line(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0 or end > LINE_MAX_BYTES:
            if len(self._buffer) > LINE_MAX_BYTES:
                self._reply(b"500 5.5.2 Line too long")
                self._closing = True
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        if self._auth.expects_answer:
            self._reply(self._auth.answer(line))
            return True
        handler = _COMMANDS.get(line[:4].upper())
        if line[:8].upper() == b"STARTTLS":
            self._starttls()
        elif handler is None or b"\n" in line or b"\0" in line:
            self._reply(b"500 5.5.2 Command not recognised")
        else:
            handler(self, line)
        return True

    def _take_body(self) -> bool:
        buffer = self._buffer
        if not self._body_began:
            if not buffer:
                return False
            self._body_began = True
            verdict = self.server.faults.decide("body", self.server.name, self._rcpts)
            if verdict is not None:
                self._follow(verdict, lambda: None)
                return True
        if buffer.startswith(b".\r\n") and not self._swallow:
            del buffer[:3]
            self._message(b"")
            return True
        end = buffer.find(b"\r\n.\r\n", self._searched)
        if end < 0:
            self._searched = max(0, len(buffer) - 4)
            if len(buffer) > self.server.options.size_max_bytes:
                self._swallow = True
                del buffer[: self._searched]
                self._searched = 0
            return False
        self._swallow = self._swallow or end + 2 > self.server.options.size_max_bytes
        body = bytes(buffer[: end + 2])
        del buffer[: end + 5]
        self._message(body)
        return True

    # -- commands

    def _ehlo(self, line: bytes) -> None:
        def answer() -> None:
            self._greeted = True
            self._reset_mail()
            if line[:4].upper() == b"HELO":
                self._reply(b"250 practice.invalid")
                return
            words = [b"practice.invalid", *self.server.extensions(self._secure)]
            lines = [b"250-" + word for word in words[:-1]] + [b"250 " + words[-1]]
            self._reply(b"\r\n".join(lines))

        self._faulty("ehlo", answer)

    def _mail(self, line: bytes) -> None:
        options = self.server.options
        match = _MAIL.match(line)
        if not self._greeted:
            self._reply(b"503 5.5.1 Say EHLO first")
        elif options.users and self._auth.user is None:
            self._reply(b"530 5.7.0 Authentication required")
        elif self._sender is not None:
            self._reply(b"503 5.5.1 A mail is already begun")
        elif match is None:
            self._reply(b"501 5.5.4 Syntax: MAIL FROM:<address>")
        else:
            size = _SIZE.search(match[2]) if match[2] else None
            sender = _address(match[1], b"SMTPUTF8" in match[2].upper())
            if size is not None and int(size[1]) > options.size_max_bytes:
                self._reply(b"552 5.3.4 Message too big")
            elif sender is None:
                self._reply(b"553 5.6.7 Address needs SMTPUTF8")
            else:
                self._faulty("mail", lambda: self._begin(sender))

    def _begin(self, sender: str) -> None:
        self._sender = sender
        self._reply(b"250 2.1.0 Ok")

    def _rcpt(self, line: bytes) -> None:
        match = _RCPT.match(line)
        if self._sender is None:
            self._reply(b"503 5.5.1 Say MAIL first")
            return
        if match is None:
            self._reply(b"501 5.5.4 Syntax: RCPT TO:<address>")
            return
        rcpt = _address(match[1], True)
        if rcpt is None:
            self._reply(b"553 5.1.3 Address is not UTF-8")
        elif len(self._rcpts) >= RECIPIENTS_MAX:
            self._reply(b"452 4.5.3 Too many recipients")
        else:
            self._faulty("rcpt", lambda: self._add(rcpt), [rcpt])

    def _add(self, rcpt: str) -> None:
        self._rcpts.append(rcpt)
        self._reply(b"250 2.1.5 Ok")

    def _data(self, line: bytes) -> None:
        if self._sender is None or not (self._rcpts or self.server.options.data_always):
            self._reply(b"503 5.5.1 No valid recipients")
        else:
            self._faulty("data", self._start_body, self._rcpts)

    def _start_body(self) -> None:
        self._reply(b"354 End data with <CR><LF>.<CR><LF>")
        self._in_body = True
        self._body_began = False
        self._swallow = False
        self._searched = 0

    def _auth_command(self, line: bytes) -> None:
        if not self.server.auth_offered(self._secure):
            self._reply(b"503 5.5.1 AUTH not offered")
        else:
            self._faulty("auth", lambda: self._reply(self._auth.begin(line)))

    def _starttls(self) -> None:
        if self._secure or self.server.options.tls is None:
            self._reply(b"503 5.5.1 STARTTLS not offered")
            return
        self._reply(b"220 2.0.0 Go ahead")
        self._flush()
        self._held = True
        self._buffer.clear()  # what came before the handshake must not count after it (RFC 3207 section 6)
        self.server.upgrade(self)

    def secured(self, transport: asyncio.Transport | None) -> None:
        """The TLS handshake ended; None: it failed, and the connection with it."""
        if transport is None:
            self._closing = True
            return
        self.transport = transport
        self._secure, self._held, self._greeted = True, False, False
        self._reset_mail()
        self._work()

    def _rset(self, line: bytes) -> None:
        self._reset_mail()
        self._reply(b"250 2.0.0 Ok")

    def _noop(self, line: bytes) -> None:
        self._reply(b"250 2.0.0 Ok")

    def _vrfy(self, line: bytes) -> None:
        self._reply(b"252 2.0.0 Will try")

    def _quit(self, line: bytes) -> None:
        self._reply(b"221 2.0.0 Bye")
        self._closing = True

    # -- the message

    def _message(self, body: bytes) -> None:
        self._in_body = False
        if self._swallow:
            self._refuse_message(b"552 5.3.4 Message too big", "rejected")
            return
        if not self._rcpts:
            self._refuse_message(b"554 5.5.1 No valid recipients", "rejected")
            return
        seen = look(unstuff(body))
        record = {
            "at": time.time(),
            "server": self.server.name,
            "peer": self.peer,
            "mail_from": self._sender,
            "rcpts": self._rcpts,
            "message_id": seen.message_id,
            "delivery": seen.delivery,
            "sha256": seen.sha256,
            "size": seen.size,
        }
        verdict = self.server.faults.decide("dot", self.server.name, self._rcpts, seen.delivery)
        if verdict is None:
            self._accept(record)
        else:
            self._follow(verdict, lambda: self._accept(record), record)

    def _accept(self, record: dict[str, Any], outcome: str = "accepted") -> bool:
        record["outcome"] = outcome
        try:
            number = self.server.ledger.append(record)
        except OSError:
            self._refuse_message(b"452 4.3.1 Insufficient system storage", "rejected")
            return False
        self.server.counters["mails_accepted"] += 1
        if outcome == "accepted":
            self._reply(b"250 2.0.0 Ok: queued as %d" % number)
        self._reset_mail()
        return True

    def _refuse_message(self, reply: bytes, outcome: str, record: dict[str, Any] | None = None) -> None:
        self.server.counters[f"mails_{outcome}"] += 1
        if record is not None and self.server.options.record_rejected:
            record.update(outcome=outcome, reply=reply.decode() or None)
            try:
                self.server.ledger.append(record)
            except OSError:
                pass  # nothing was promised to anybody
        if reply:
            self._reply(reply)
        self._reset_mail()

    def _reset_mail(self) -> None:
        self._sender = None
        self._rcpts = []

    # -- faults

    def _faulty(self, phase: str, usual: Callable[[], object], rcpts: Sequence[str] = ()) -> None:
        verdict = self.server.faults.decide(phase, self.server.name, rcpts)
        if verdict is None:
            usual()
        else:
            self._follow(verdict, usual)

    def _follow(self, verdict: Verdict, usual: Callable[[], object], record: dict[str, Any] | None = None) -> None:
        self.server.counters["faults"] += 1

        def act() -> None:
            if verdict.rule is None:
                usual()
            else:
                self._misbehave(verdict.rule, record)

        if verdict.delay_s > 0:
            self._wait(verdict.delay_s, act)
        else:
            act()

    def _misbehave(self, rule: Rule, record: dict[str, Any] | None) -> None:
        if rule.action == "reply":
            reply = rule.reply.encode()
            if record is not None:
                self._refuse_message(reply, "rejected", record)
            else:
                self._reply(reply)
            if rule.code == 421 or rule.phase == "connect":
                self._closing = True
        elif rule.action == "drop":
            if record is not None:
                self._refuse_message(b"", "dropped", record)
            self._cut()
        elif rule.action == "hang":
            self.hanging = True
        elif record is not None and self._accept(record, "accepted_dropped"):
            if rule.action == "accept_drop":
                self._cut()
            elif rule.delay_s is None:
                self.hanging = True
            else:
                self._wait(rule.delay_s, lambda: self._reply(b"250 2.0.0 Ok: late"))


def _address(raw: bytes, utf8: bool) -> str | None:
    try:
        return raw.decode("utf-8" if utf8 else "ascii")
    except UnicodeDecodeError:
        return None


_COMMANDS: dict[bytes, Callable[[Session, bytes], None]] = {
    b"EHLO": Session._ehlo,
    b"HELO": Session._ehlo,
    b"MAIL": Session._mail,
    b"RCPT": Session._rcpt,
    b"DATA": Session._data,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"QUIT": Session._quit,
    b"VRFY": Session._vrfy,
    b"AUTH": Session._auth_command,
}
