"""The bytes of SMTP: replies read strictly, bodies and addresses written so that nothing can be smuggled in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

line_max_bytes = 4096  # RFC 5321 4.5.3.1.5 says 512; some servers put URLs into their replies
reply_max_bytes = 64 * 1024
address_max_bytes = 254  # RFC 5321 4.5.3.1.3: a path is 256 with its angle brackets

_CODES = {str(code).encode(): code for code in range(200, 600)}
_BAD_IN_LINE = re.compile(rb"[\r\n\0]")
_CR_ALONE_OR_DOT = re.compile(rb"\r(?:\n\.|[^\n]|\Z)")
# The replies to a dot and to the MAIL, RCPT and DATA behind it when all goes well, one line each.
_ALL_WELL = re.compile(
    rb"(2[0-9][0-9])(?: ([^\r\n\0]*))?\r\n(?:2[0-9][0-9](?: [^\r\n\0]*)?\r\n){2}354(?: [^\r\n\0]*)?\r\n"
)
_CR_ALONE = re.compile(rb"\r(?!\n)")
# What may not stand in an address of a command: controls, any white space, brackets, lone surrogates.
_ADDRESS_UNSAFE = re.compile(r"[\x00-\x20\x7f-\x9f<>\s\ufeff\ud800-\udfff]")


class MalformedReply(Exception):
    """The server's bytes are no SMTP replies; the connection cannot be trusted any more."""


class Extensions(NamedTuple):
    """What the server's last EHLO offered, as far as delivery cares; `size_max_bytes` 0 means no stated limit."""

    pipelining: bool = False  # RFC 2920
    eight_bit_mime: bool = False  # RFC 6152
    smtputf8: bool = False  # RFC 6531
    size: bool = False  # RFC 1870
    size_max_bytes: int = 0


def extensions_from_ehlo(offered: Mapping[str, str]) -> Extensions:
    """Reads keyword → parameters of an EHLO reply; keywords may be in any case, a senseless SIZE is no limit."""
    keywords = {keyword.lower(): params.strip() for keyword, params in offered.items()}
    size = keywords.get("size", "")
    return Extensions(
        pipelining="pipelining" in keywords,
        eight_bit_mime="8bitmime" in keywords,
        smtputf8="smtputf8" in keywords,
        size="size" in keywords,
        size_max_bytes=int(size) if size.isascii() and size.isdigit() and len(size) < 20 else 0,
    )


def dot_stuff(body: bytes) -> bytes:
    """The body with each leading dot doubled and a CRLF at its end (RFC 5321 4.5.2), the final dot not included.

    Raises ValueError for a CR or LF that stands alone: some servers take "LF . LF" for the end of the mail and what
    follows for commands (SMTP smuggling, CVE-2023-51764). The composer normalises; this is the second lock.
    """
    # Each CR has its LF, and there are no more LF than CR: then no LF stands alone either. (Two counts and one pattern
    # with a literal first byte take half the time of looking for the pairs: 5 µs for 4 KB.)
    if body.count(b"\n") != body.count(b"\r"):
        raise ValueError("body contains a bare CR or LF")
    found = _CR_ALONE_OR_DOT.search(body)
    if found is not None:
        if _CR_ALONE.search(body, found.start()) is not None:
            raise ValueError("body contains a bare CR or LF")
        body = body.replace(b"\r\n.", b"\r\n..")
    if body.startswith(b"."):
        body = b"." + body
    return body if body.endswith(b"\r\n") else body + b"\r\n"


def check_address(address: str) -> None:
    """Raises ValueError unless the address can stand between angle brackets without changing the command."""
    if _ADDRESS_UNSAFE.search(address) is not None:
        raise ValueError("address contains white space, a control character or an angle bracket")
    if len(address) > address_max_bytes or (not address.isascii() and len(address.encode()) > address_max_bytes):
        raise ValueError(f"address is longer than {address_max_bytes} bytes")


def all_went_well(data: bytes) -> tuple[int, bytes] | None:
    """Code and text of the reply to the dot, if these bytes are exactly 2xx, 2xx, 2xx, 354; None is no verdict."""
    match = _ALL_WELL.fullmatch(data) if len(data) <= line_max_bytes else None
    return None if match is None else (_CODES[match[1]], match[2] or b"")


class ReplyReader:
    """Cuts the server's bytes into replies, the same ones however the bytes were split. Buffers ≤ one reply.

    CRLF ends a line, nothing else does (RFC 5321 2.3.8); a lone LF or CR, a NUL, a code that is none, an overlong
    line or reply raise `MalformedReply`.
    """

    __slots__ = ("_at", "_clean", "_lines", "_partial", "_partial_bytes", "_partial_code", "_tail", "texts")

    def __init__(self) -> None:
        self.texts: list[bytes] = []  # the lines of the last reply without code and separator
        self._lines: list[bytes] = []  # complete lines not yet read, from `_at` on
        self._at = 0
        self._tail = b""  # the beginning of the next line
        self._clean = True  # the bytes fed last hold no control character but CRLF, and are no longer than a line
        self._partial: list[bytes] = []  # the lines of a reply whose last line is still to come
        self._partial_bytes = 0
        self._partial_code = b""

    def feed(self, data: bytes) -> None:
        """Takes bytes from the server; call `next` until it returns 0 before feeding again."""
        if self._tail:
            data = self._tail + data
        lines = data.split(b"\r\n")
        self._clean = (
            len(data) <= line_max_bytes
            and data.count(b"\n") == data.count(b"\r") == len(lines) - 1
            and b"\0" not in data
        )
        self._tail = lines.pop()
        self._lines = lines
        self._at = 0

    def unread(self) -> bytes:
        """The first bytes that no returned reply has used up."""
        if self._partial:
            return self._partial_code
        return self._lines[self._at] + b"\r" if self._at < len(self._lines) else self._tail

    def next(self) -> int:
        """The code of the next whole reply, whose lines are `texts`, or 0 when more bytes are needed."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            if not self._clean and (len(line) > line_max_bytes or _BAD_IN_LINE.search(line) is not None):
                raise MalformedReply(_what_is_wrong(line))
            code = _CODES.get(line[:3])
            if code is None:
                raise MalformedReply("reply without a code")
            separator = line[3:4]
            if separator == b" " or not separator:
                if self._partial:
                    self._add_line(line)
                    self.texts, self._partial = self._partial, []
                    self._partial_bytes = 0
                else:
                    self.texts = [line[4:]]
                return code
            if separator != b"-":
                raise MalformedReply("reply code not followed by a space or hyphen")
            self._add_line(line)
        if not self._clean and (b"\n" in self._tail or len(self._tail) > line_max_bytes + 1):
            raise MalformedReply(_what_is_wrong(self._tail))
        return 0

    def _add_line(self, line: bytes) -> None:
        code = line[:3]
        if self._partial and code != self._partial_code:
            raise MalformedReply("lines of one reply differ in their code")
        self._partial_code = code
        self._partial_bytes += len(line) + 2
        if self._partial_bytes > reply_max_bytes:
            raise MalformedReply(f"reply longer than {reply_max_bytes} bytes")
        self._partial.append(line[4:])


def _what_is_wrong(line: bytes) -> str:
    # Which of the two comes first must not depend on how much of the line has arrived.
    if 0 <= line.find(b"\n") <= line_max_bytes + 1:
        return "line end without CR in a reply"
    if len(line) > line_max_bytes:
        return f"reply line longer than {line_max_bytes} bytes"
    return "bare CR or NUL in a reply"
