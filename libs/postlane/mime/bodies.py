"""Bodies: text or base64 in, lines of at most 76 (or, as 7bit, 998) ASCII octets with CRLF ends out.

Text goes as 7bit where it can. Otherwise as quoted-printable when it is mostly ASCII and as base64 when it is not,
never as 8bit: a provider without 8BITMIME would make a relay re-encode the mail, which breaks its DKIM signature and
the byte-identity of a resend.
"""

from __future__ import annotations

import re
import struct
from binascii import b2a_base64, b2a_qp

from postlane.mime.content import InvalidContent

LINE_MAX_OCTETS = 998  # RFC 5322 2.1.1, without CRLF
_BASE64_LINE = 76  # RFC 2045 6.8
_BLOCK = struct.Struct("76s" * 32)  # lines that are cut off in one go
_TEXT_OCTETS = bytes([9, 10, 13, *range(32, 127)])
_BASE64 = re.compile(r"[A-Za-z0-9+/]*+={0,2}")
_WHITE = str.maketrans("", "", " \t\r\n")


def encode_text(field: str, text: str) -> tuple[str, bytes]:
    """(Content-Transfer-Encoding, body ending in CRLF) of a text part; raises InvalidContent for NUL and surrogates.

    Line ends of any sort become CRLF, and a text without a final one gets it where the encoding is by lines.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x00" in text:
        raise InvalidContent(field, "remove the NUL character")
    try:
        data = text.replace("\n", "\r\n").encode()
    except UnicodeEncodeError as error:
        raise InvalidContent(field, f"remove the lone surrogate at character {error.start}") from None
    if not data.endswith(b"\r\n"):
        data += b"\r\n"
    if _goes_as_it_is(text, data):
        return "7bit", data
    # A special octet costs two more in quoted-printable; base64 costs a third of everything.
    specials = len(data.translate(None, _TEXT_OCTETS))
    if specials * 6 > len(data):
        return "base64", wrap_base64(b2a_base64(data, newline=False))
    return "quoted-printable", b2a_qp(data, istext=True)


def check_text(field: str, text: str | None) -> None:
    """InvalidContent when `encode_text` would refuse `text`."""
    if text is None:
        return
    if not isinstance(text, str):
        raise InvalidContent(field, f"must be a string, not {type(text).__name__}")
    if "\x00" in text:
        raise InvalidContent(field, "remove the NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidContent(field, f"remove the lone surrogate at character {error.start}") from None


def base64_of(field: str, content: str) -> bytes:
    """The base64 digits of an attachment without white space; InvalidContent when they are not base64.

    Trailing bits are not looked at: they cannot leave the alphabet, and no receiver reads them.
    """
    if not isinstance(content, str):
        raise InvalidContent(field, f"must be base64 in a string, not {type(content).__name__}")
    if not _BASE64.fullmatch(content):
        content = content.translate(_WHITE)
        if not _BASE64.fullmatch(content):
            raise InvalidContent(field, "is not base64 (RFC 4648 4, the alphabet with + and /)")
    if len(content) % 4:
        raise InvalidContent(field, "is not base64: its length is no multiple of 4; was it cut off?")
    return content.encode("ascii")


def wrap_base64(digits: bytes) -> bytes:
    """Base64 digits as lines of 76 with CRLF ends; one CRLF for none."""
    blocks_end = len(digits) // _BLOCK.size * _BLOCK.size
    parts: list[bytes] = []
    for block in _BLOCK.iter_unpack(memoryview(digits)[:blocks_end]):
        parts += block
    parts += [digits[at : at + _BASE64_LINE] for at in range(blocks_end, len(digits), _BASE64_LINE)]
    parts.append(b"")
    return b"\r\n".join(parts) or b"\r\n"


def _goes_as_it_is(text: str, data: bytes) -> bool:
    if not text.isascii() or data.translate(None, _TEXT_OCTETS):
        return False
    if text.startswith(("From ", "--=_")) or "\nFrom " in text or "\n--=_" in text:
        return False  # mbox would change the one, the other could be a boundary of ours
    return len(text) <= LINE_MAX_OCTETS or max(map(len, text.split("\n"))) <= LINE_MAX_OCTETS
