"""Delivery status notifications (RFC 3464): what a server says later about a mail that it, or another, had taken.

Total: whatever the bytes, the answer is a `Report`, or `NotADsn` with the reason. Linear in the size, with every bound
named: no MIME parser walks the tree. The message is cut by its top boundary; of the parts that matter a bounded head
is looked at, and what lies deeper is never opened.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from postlane.core.replies import parse_reply, printable_line

MESSAGE_MAX_BYTES = 4_194_304
PARTS_MAX = 50
HEADERS_MAX_BYTES = 65_536  # of one part
STATUS_MAX_BYTES = 1_048_576  # of the delivery-status part; 100 recipients take a tenth of it
RECIPIENTS_MAX = 100
BLOCKS_MAX = 2 * RECIPIENTS_MAX  # of fields, those of no recipient among them
FIELDS_MAX = 1_000  # of one header block
CONTENT_TYPE_MAX_CHARS = 4_096
ADDRESS_MAX_CHARS = 320
TEXT_MAX_CHARS = 1_024
RETURNED_ADDRESSES_MAX = 200
BOUNDARY_MAX_CHARS = 200  # RFC 2046 5.1.1 has 70
DELIMITER_REST_MAX_BYTES = 80  # "--" and white space behind a delimiter

_STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})  # RFC 3464 2, RFC 6533 4
_RETURNED_TYPES = frozenset(
    {
        "message/rfc822",
        "text/rfc822-headers",
        "message/rfc822-headers",  # not registered, and sent
        "message/global",
        "message/global-headers",
    }
)
_PARAMETER = re.compile(r';[ \t]*+([A-Za-z0-9-]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]++))')
_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?!\d)")
_REPLY = re.compile(r"([245]\d\d)(?:[ -]|$)")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")  # RFC 3461 4
_UNICODE = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")  # RFC 6533 3
_BETWEEN_ADDRESSES = re.compile(r"[\s,;<>\"()]+")

Fields = dict[str, str]  # the first of each name, in lower case, unfolded


class Action(StrEnum):
    """What was done about a recipient (RFC 3464 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


class NotADsn(Exception):
    """The bytes are no delivery status notification; `reason` is one sentence that repeats none of them."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reported(NamedTuple):
    """What a report says of one recipient; texts are one printable line, bounded.

    `status` is the field of that name (RFC 3463); `code`, `enhanced` and `text` are of the server's own reply, where
    the diagnostic is one. `original_recipient` has its xtext decoded, `original_as_sent` has not: an address may have
    a plus and two digits of its own.
    """

    action: Action
    status: str | None
    code: int | None
    enhanced: str | None
    text: str
    final_recipient: str | None
    original_recipient: str | None
    original_as_sent: str | None
    remote_mta: str | None


class Returned(NamedTuple):
    """What the returned mail's headers say of themselves; `addresses` are those of To and Cc."""

    delivery: str | None = None
    message_id: str | None = None
    trace: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A delivery status notification. `recipients` has at least one."""

    recipients: tuple[Reported, ...]
    returned: Returned
    reporting_mta: str | None = None


def parse_dsn(raw: bytes) -> Report:
    """The report in a whole message, line ends CRLF or LF. Raises NotADsn, and nothing else, for whatever is none."""
    if len(raw) > MESSAGE_MAX_BYTES:
        raise NotADsn(f"it has {len(raw)} bytes; at most {MESSAGE_MAX_BYTES}")
    data = raw.replace(b"\r\n", b"\n").lstrip(b"\n")
    head, body = _cut(data)
    kind, parameters = _content_type(_fields(head))
    if kind != "multipart/report":
        raise NotADsn("it is no multipart/report")
    if parameters.get("report-type", "delivery-status").lower() != "delivery-status":
        raise NotADsn("it is a report of another kind")
    boundary = parameters.get("boundary", "")
    if not 0 < len(boundary) <= BOUNDARY_MAX_CHARS or not boundary.isascii():
        raise NotADsn("it names no boundary")
    status: bytes | None = None
    returned: Returned | None = None
    for part in _parts(body, b"--" + boundary.encode("ascii")):
        part_head, content = _cut(part)
        fields = _fields(part_head)
        part_kind, _ = _content_type(fields)
        encoding = fields.get("content-transfer-encoding", "")
        if status is None and part_kind in _STATUS_TYPES:
            status = _decoded(content, encoding, STATUS_MAX_BYTES)
        elif returned is None and part_kind in _RETURNED_TYPES:
            returned = _returned(_decoded(content, encoding, HEADERS_MAX_BYTES))
    if status is None:
        raise NotADsn("it has no delivery-status part")
    recipients, mta = _recipients(status)
    if not recipients:
        raise NotADsn("its delivery-status part names no recipient")
    return Report(recipients, returned or Returned(), mta)


# ------------------------------------------------------------------------------------------------ parts of a message


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """(header block, body). A header block is cut off at HEADERS_MAX_BYTES, and its body then is empty."""
    if data.startswith(b"\n"):
        return b"", data[1:]
    end = data.find(b"\n\n", 0, HEADERS_MAX_BYTES)
    if end < 0:
        return data[:HEADERS_MAX_BYTES], b""
    return data[:end], data[end + 2 :]


def _parts(body: bytes, delimiter: bytes) -> Iterator[bytes]:
    """At most PARTS_MAX parts between delimiters (RFC 2046 5.1.1); one without an end reaches to the end."""
    text = b"\n" + body
    begin: int | None = None
    count = 0
    for start, end, last in _delimiters(text, b"\n" + delimiter):
        if begin is not None:
            yield text[begin:start]
            count += 1
        if last or count >= PARTS_MAX:
            return
        begin = end
    if begin is not None:
        yield text[begin:]


def _delimiters(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int, bool]]:
    """(where it starts, where the next line begins, whether it is the last) of each delimiter line."""
    at = body.find(delimiter)
    while at >= 0:
        after = at + len(delimiter)
        line_end = body.find(b"\n", after)
        if line_end < 0:
            line_end = len(body)
        rest = body[after:line_end].strip() if line_end - after <= DELIMITER_REST_MAX_BYTES else b"x"
        if rest in (b"", b"--"):
            yield at, min(line_end + 1, len(body)), rest == b"--"
        at = body.find(delimiter, after)


def _decoded(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """The first `max_bytes` or so of what the transfer encoding hides; what is not well encoded is as it stands."""
    name = encoding.strip().lower()
    if name == "base64":
        letters = re.sub(rb"[^A-Za-z0-9+/]", b"", content[: max_bytes * 3 // 2])  # padding may stand anywhere
        letters = letters[: len(letters) - (len(letters) % 4 == 1)]
        content = binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))
    elif name == "quoted-printable":
        content = binascii.a2b_qp(content[: max_bytes * 3])
    else:
        return content[:max_bytes]
    return content.replace(b"\r\n", b"\n")[:max_bytes]


def _fields(block: bytes) -> Fields:
    """The header fields of a block: the first of each name, unfolded (RFC 5322 2.2.3), at most FIELDS_MAX."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in block[:HEADERS_MAX_BYTES].decode("utf-8", "replace").split("\n"):
        if line[:1] in (" ", "\t"):
            if current is not None:
                current.append(line)
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        current = None
        if colon and name and name not in found and len(found) < FIELDS_MAX:
            current = found[name] = [value]
    return {name: " ".join(part.strip() for part in parts).strip() for name, parts in found.items()}


def _content_type(fields: Fields) -> tuple[str, dict[str, str]]:
    """The type in lower case, and its parameters."""
    value = fields.get("content-type", "text/plain")[:CONTENT_TYPE_MAX_CHARS]
    kind, _, _ = value.partition(";")
    found: dict[str, str] = {}
    for name, quoted, bare in _PARAMETER.findall(value):
        found.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted else bare)
    return kind.strip().lower(), found


# ------------------------------------------------------------------------------------------------------- what it says


def _recipients(status: bytes) -> tuple[tuple[Reported, ...], str | None]:
    """Of at most RECIPIENTS_MAX recipients; and the reporting MTA."""
    found: list[Reported] = []
    mta: str | None = None
    for block in islice(_blocks(status), BLOCKS_MAX):
        fields = _fields(block)
        if mta is None and "reporting-mta" in fields:
            mta = _value(fields["reporting-mta"])
        action = fields.get("action", "").partition("(")[0].strip().lower()
        if action in Action._value2member_map_:
            found.append(_reported(Action(action), fields))
            if len(found) >= RECIPIENTS_MAX:
                break
    return tuple(found), mta


def _blocks(status: bytes) -> Iterator[bytes]:
    """Header blocks between empty lines, which may have white space in them."""
    lines: list[bytes] = []
    for line in status.split(b"\n"):
        if line.strip():
            lines.append(line)
        elif lines:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def _reported(action: Action, fields: Fields) -> Reported:
    status = _STATUS.match(fields.get("status", "").strip())
    code, enhanced, text = _diagnostic(fields.get("diagnostic-code", ""))
    original = _address(fields.get("original-recipient"))
    return Reported(
        action,
        status[1] if status else None,
        code,
        enhanced,
        text,
        _address(fields.get("final-recipient")),
        None if original is None else decode_xtext(original),
        original,
        _value(fields["remote-mta"]) if "remote-mta" in fields else None,
    )


def _diagnostic(value: str) -> tuple[int | None, str | None, str]:
    """(code, enhanced code, text) of `smtp; 550 5.1.1 …`; a diagnostic of another kind has text only."""
    kind, semicolon, said = value.partition(";")
    if not semicolon or _REPLY.match(value.strip()):  # some leave the kind out
        kind, said = "smtp", value
    said = said.strip()
    reply = _REPLY.match(said) if kind.strip().lower() == "smtp" else None
    if reply is None:
        return None, None, printable_line(said, TEXT_MAX_CHARS)
    read = parse_reply(int(reply[1]), said[reply.end() :].strip())
    return read.code, read.enhanced, printable_line(read.text, TEXT_MAX_CHARS)


def _address(value: str | None) -> str | None:
    """The address of `rfc822; ada@example.com`, as it stands, without brackets; None where there is none."""
    if value is None:
        return None
    kind, semicolon, said = value.partition(";")
    if not semicolon:
        kind, said = "rfc822", value
    if kind.strip().lower() == "utf-8":
        said = _UNICODE.sub(_character, said)
    text = printable_line(said.strip(), ADDRESS_MAX_CHARS + 2)
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    return text if "@" in text and len(text) <= ADDRESS_MAX_CHARS else None


def _character(escaped: re.Match[str]) -> str:
    number = int(escaped[1], 16)
    return chr(number) if 0x20 < number < 0xD800 or 0xDFFF < number < 0x110000 else ""


def decode_xtext(text: str) -> str:
    """RFC 3461 4: `+` and two hexadecimal digits stand for a character. What would not be printable stays."""
    decoded = _XTEXT.sub(lambda found: chr(int(found[1], 16)), text)
    return decoded if decoded.isprintable() else text


def _value(field: str) -> str:
    """What follows the kind: `dns; mx.example.com`."""
    kind, semicolon, said = field.partition(";")
    return printable_line(said if semicolon else kind, ADDRESS_MAX_CHARS)


def _returned(content: bytes) -> Returned:
    """The headers of the mail that came back: only their beginning is looked at."""
    head, _ = _cut(content.lstrip(b"\n"))
    fields = _fields(head)
    addresses: list[str] = []
    for name in ("to", "cc"):
        for text in _BETWEEN_ADDRESSES.split(fields.get(name, "")):
            if "@" in text and len(text) <= ADDRESS_MAX_CHARS and len(addresses) < RETURNED_ADDRESSES_MAX:
                addresses.append(text)
    delivery, message_id, trace = (_own(fields, f) for f in ("x-postlane-delivery", "message-id", "x-postlane-trace"))
    return Returned(delivery, message_id, trace, tuple(addresses))


def _own(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else printable_line(value, ADDRESS_MAX_CHARS)
