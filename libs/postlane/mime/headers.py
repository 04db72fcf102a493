"""Header fields: text in, folded ASCII lines with CRLF out, and no way to smuggle in a line of one's own.

Each function returns one whole field `Name: value\\r\\n`. Non-ASCII becomes RFC 2047 encoded words (base64, since
it costs the same for every script), file names become RFC 2231 parameters. Only a UTF-8 local part stays UTF-8, as
RFC 6532 has it; it needs SMTPUTF8 anyway.
"""

from __future__ import annotations

import re
import time
from binascii import b2a_base64
from collections.abc import Iterable
from urllib.parse import quote

from postlane.core.addresses import InvalidAddress, Mailbox, parse_mailbox
from postlane.mime.content import InvalidContent

LINE_CHARS = 76  # RFC 2047 2 for lines with encoded words; RFC 5322 2.1.1 would allow 78
LINE_MAX_OCTETS = 998  # RFC 5322 2.1.1
SUBJECT_MAX_CHARS = 1000
HEADER_VALUE_MAX_CHARS = 8000
CUSTOM_HEADERS_MAX = 50
FILENAME_MAX_CHARS = 255

_WORD_OCTETS = 45  # of UTF-8 in one encoded word: 60 characters of base64, 72 with its brackets, 75 allowed
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+^_`|~-]{1,50}")
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9 ._+@()-]{1,60}")
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(?:@[A-Za-z0-9.-]+)?")
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105 - RFC 2045 5.1, not a secret
_CONTENT_TYPE = re.compile(rf'{_TOKEN}/{_TOKEN}(?:; ?{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))*')

OWN_HEADERS = frozenset(
    (  # noqa: SIM905
        "from sender to cc bcc reply-to subject date message-id mime-version return-path received "
        "dkim-signature delivered-to apparently-to x-original-to authentication-results"
    ).split()
)
OWN_PREFIXES = ("content-", "x-postlane-", "resent-", "arc-")
_STRUCTURED = ("list-", "references", "in-reply-to", "auto-submitted", "precedence")  # have a syntax of their own

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date_field(date_ms: int) -> str:
    """`Date:` of a moment in milliseconds since 1970, in UTC (RFC 5322 3.3)."""
    t = time.gmtime(date_ms // 1000)
    return (
        f"Date: {_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04d} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} +0000\r\n"
    )


def mailbox_of(field: str, text: str) -> Mailbox:
    """The mailbox in request field `field`; InvalidContent instead of InvalidAddress."""
    try:
        return parse_mailbox(text)
    except InvalidAddress as error:
        raise InvalidContent(field, str(error)) from None
    except TypeError:
        raise InvalidContent(field, f"must be a string, not {type(text).__name__}") from None


def address_field(name: str, field: str, addresses: Iterable[str]) -> str:
    """The header `name` with the mailboxes of request field `field`."""
    mailboxes = [mailbox_of(field, text) for text in addresses]
    if len(mailboxes) == 1 and not mailboxes[0].display_name:
        return f"{name}: {mailboxes[0].address}\r\n"
    return mailboxes_field(name, mailboxes)


def mailboxes_field(name: str, mailboxes: list[Mailbox]) -> str:
    """The header `name` with `mailboxes`, folded between names and addresses."""
    pieces: list[str] = []
    for mailbox in mailboxes:
        if mailbox.display_name:
            pieces += _phrase(mailbox.display_name)
            pieces.append(f"<{mailbox.address}>,")
        else:
            pieces.append(f"{mailbox.address},")
    pieces[-1] = pieces[-1][:-1]
    return _fold(name, pieces)


def text_field(name: str, field: str, value: str, max_chars: int = SUBJECT_MAX_CHARS) -> str:
    """An unstructured header whose `value` a reader sees exactly as given."""
    refuse_controls(field, value)
    if len(value) > max_chars:
        raise InvalidContent(field, f"longer than {max_chars} characters; shorten it")
    if value.isascii() and "=?" not in value and value.strip(" ") == value:
        if len(name) + 2 + len(value) <= LINE_CHARS:
            return f"{name}: {value}\r\n"
        if "  " not in value:
            pieces = value.split(" ")
            if max(map(len, pieces)) <= LINE_CHARS - len(name) - 2:
                return _fold(name, pieces)
    return _fold(name, _encoded_words(value, LINE_CHARS - len(name) - 2))


def custom_field(name: str, value: str) -> str:
    """A header of the publisher's own choice; refuses the names that are Postlane's to write."""
    field = f"headers[{ascii(name)[:80]}]"
    if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
        raise InvalidContent(field, "a header name is 1 to 50 letters, digits and hyphens")
    lower = name.lower()
    if lower in OWN_HEADERS or lower.startswith(OWN_PREFIXES):
        raise InvalidContent(field, "Postlane or the servers write this header; use the field of the request instead")
    refuse_controls(field, value)
    value = value.strip(" ")
    if not value:
        raise InvalidContent(field, "the value is empty; leave the header out")
    if len(value) > HEADER_VALUE_MAX_CHARS:
        raise InvalidContent(field, f"longer than {HEADER_VALUE_MAX_CHARS} characters; shorten it")
    if not value.isascii():
        if lower.startswith(_STRUCTURED):
            raise InvalidContent(field, "must be ASCII; percent-encode URLs")
        return text_field(name, field, value, HEADER_VALUE_MAX_CHARS)
    if len(name) + 2 + len(value) <= LINE_CHARS:
        return f"{name}: {value}\r\n"
    pieces = value.split()
    if max(map(len, pieces)) + len(name) + 2 > LINE_MAX_OCTETS:
        raise InvalidContent(field, f"a line may have at most {LINE_MAX_OCTETS} octets; put spaces into it")
    return _fold(name, pieces)


def content_type_of(field: str, value: str) -> str:
    """A media type that may stand in a header; containers are refused, they would need parts of their own."""
    if not isinstance(value, str) or len(value) > 200 or not _CONTENT_TYPE.fullmatch(value):
        raise InvalidContent(field, "write a media type such as application/pdf (RFC 2045 5.1)")
    if value[:10].lower() == "multipart/" or value[:8].lower() == "message/":
        raise InvalidContent(field, "multipart/* and message/* cannot be attached; use application/octet-stream")
    return value


def content_id_of(field: str, value: str) -> str:
    """The Content-ID without its brackets."""
    bare = value[1:-1] if value[:1] == "<" and value[-1:] == ">" else value
    if len(bare) > 200 or not _CONTENT_ID.fullmatch(bare):
        raise InvalidContent(field, "write a content id such as logo or logo@example.org (no spaces, ASCII)")
    return bare


def disposition_field(disposition: str, field: str, filename: str) -> str:
    """`Content-Disposition` with the file name, in the extended form of RFC 2231 where it is not plain."""
    refuse_controls(field, filename)
    filename = filename.strip()  # readers do, too
    if not filename or len(filename) > FILENAME_MAX_CHARS:
        raise InvalidContent(field, f"give a file name of 1 to {FILENAME_MAX_CHARS} characters")
    if "/" in filename or "\\" in filename:
        raise InvalidContent(field, "give a file name, not a path")
    if _PLAIN_FILENAME.fullmatch(filename):
        line = f'Content-Disposition: {disposition}; filename="{filename}"\r\n'
        return line if len(line) <= LINE_CHARS + 2 else line.replace("; filename", ";\r\n filename", 1)
    encoded = [quote(char, safe="") for char in filename]
    if sum(map(len, encoded)) <= 54:
        return f"Content-Disposition: {disposition};\r\n filename*=utf-8''{''.join(encoded)}\r\n"
    return f"Content-Disposition: {disposition}" + _continued(encoded) + "\r\n"


def refuse_controls(field: str, value: str) -> None:
    """InvalidContent when `value` holds what could end a line or a header: C0, C1, DEL, U+2028, U+2029, surrogates."""
    if not isinstance(value, str):
        raise InvalidContent(field, f"must be a string, not {type(value).__name__}")
    control = _CONTROL.search(value)
    if control is not None:
        raise InvalidContent(field, f"remove the control character {control[0]!a}")


def _phrase(display_name: str) -> list[str]:
    """A display name as atoms, a quoted string or encoded words (RFC 5322 3.2.5, RFC 2047 5)."""
    if display_name.isascii() and "=?" not in display_name and len(display_name) <= 60:
        if _PHRASE.fullmatch(display_name) and "  " not in display_name:
            return display_name.split(" ")
        return ['"' + display_name.replace("\\", r"\\").replace('"', r"\"") + '"']
    return _encoded_words(display_name, LINE_CHARS - len("Reply-To: "))


def _encoded_words(value: str, first_line_chars: int) -> list[str]:
    """RFC 2047 words of at most 75 characters, each of whole characters; the first fits `first_line_chars` if > 20."""
    data = value.encode()
    octets = _WORD_OCTETS
    if 20 < first_line_chars < 72:
        octets = (first_line_chars - 12) // 4 * 3
    words: list[str] = []
    start, end = 0, len(data)
    while start < end:
        stop = min(start + octets, end)
        while stop < end and data[stop] & 0xC0 == 0x80:  # never inside a character
            stop -= 1
        words.append(f"=?utf-8?B?{b2a_base64(data[start:stop], newline=False).decode('ascii')}?=")
        start, octets = stop, _WORD_OCTETS
    return words


def _fold(name: str, pieces: list[str]) -> str:
    """`name: piece piece…`, broken before a piece that would pass column 76."""
    out = [f"{name}: {pieces[0]}"]  # never alone on its line: some readers keep the white space then
    column = len(out[0])
    for piece in pieces[1:]:
        if column + 1 + len(piece) > LINE_CHARS:
            out.append("\r\n ")
            column = 0
        else:
            out.append(" ")
        out.append(piece)
        column += 1 + len(piece)
    out.append("\r\n")
    return "".join(out)


def _continued(encoded: list[str]) -> str:
    """RFC 2231 3 and 4.1 together: numbered, extended sections of whole characters."""
    sections = [""]
    for char in encoded:
        if len(sections[-1]) + len(char) > 50:
            sections.append("")
        sections[-1] += char
    sections[0] = "utf-8''" + sections[0]
    return "".join(f";\r\n filename*{n}*={section}" for n, section in enumerate(sections))
