"""Mailboxes: what may stand in an envelope or an address header, and its one normal form.

Accepted is the addr-spec of RFC 5321 4.1.2 and RFC 6531 3.3 (UTF-8 local parts, internationalised domains), alone
or as `Display Name <addr-spec>` (RFC 5322 3.4). Refused on purpose, because each of them has been used to smuggle a
second recipient or a command: source routes, comments, groups, lists, address literals, white space around the @,
and every control character.

The normal form of a domain is lower-case A-labels. The codec `encodings.idna` is IDNA 2003, which turns another
domain's name (straße.example) into ours (strasse.example); so labels are mapped here by the rules of IDNA 2008
(RFC 5891, RFC 5892 by general category, RFC 5895 mapping) and only `punycode` is taken from the standard library.
Joiners are refused rather than checked in context, and the Bidi rule (RFC 5893) is left to the registries.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

ADDRESS_MAX_OCTETS = 254  # RFC 5321 4.5.3.1.3 (path of 256 less its brackets), RFC 3696 erratum 1690
LOCAL_MAX_OCTETS = 64  # RFC 5321 4.5.3.1.1
DOMAIN_MAX_OCTETS = 255  # RFC 5321 4.5.3.1.2; the whole address bounds it first
LABEL_MAX_OCTETS = 63  # RFC 1035 2.3.4
DISPLAY_NAME_MAX_CHARS = 256
INPUT_MAX_CHARS = 2048

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_PLAIN = re.compile(rf"([{_ATEXT}]++(?:\.[{_ATEXT}]++)*+)@((?:{_LABEL}\.)*+(?=[A-Za-z]){_LABEL})")
_NAMED = re.compile(rf"((?:[A-Za-z0-9&'+_\u00a1-\u1fff\u2030-\ud7ff\ue000-\U0010ffff-]++ )++)<{_PLAIN.pattern}>")
_DOT_ATOM = re.compile(rf"[{_ATEXT}\u0080-\U0010ffff]++(?:\.[{_ATEXT}\u0080-\U0010ffff]++)*+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"')
_ASCII_LABEL = re.compile(_LABEL)
_DOTS = re.compile("[\u3002\uff0e\uff61]")  # full stops that RFC 5895 2.2 maps to "."
_LIST_SIGNS = re.compile(r"[,;:@()\\]")
_NOT_IN_LOCAL = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zs", "Zl", "Zp"})
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # Cc, Zl, Zp, Cs
_IN_LABEL = frozenset({"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"})  # RFC 5892 2.1, after mapping
_IN_LABEL_TOO = frozenset("-\u00b7\u0375\u05f3\u05f4\u06fd\u06fe\u0f0b\u3007\u30fb")  # RFC 5892 2.6, contextual ones


class InvalidAddress(ValueError):
    """This is not a mailbox that Postlane mails; the message says what is wrong and what to do."""


class Mailbox(NamedTuple):
    """A mailbox in normal form.

    `local` is as SMTP writes it (quoted only where it must be, NFC), `domain` is lower-case ASCII, `display_name`
    is the text itself, without quotes, or "".
    """

    display_name: str
    local: str
    domain: str

    @property
    def address(self) -> str:
        """The addr-spec for MAIL and RCPT."""
        return f"{self.local}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """True when only a server that offers SMTPUTF8 (RFC 6531) can take this address."""
        return not self.local.isascii()


def parse_mailbox(text: str) -> Mailbox:
    """The mailbox that `text` names: `ada@example.com`, `Ada <ada@example.com>` or `"Lovelace, Ada" <ada@…>`.

    Raises InvalidAddress when it is not exactly one mailbox. The domain is normalised, the case of the local part
    is kept (RFC 5321 2.4).
    """
    plain = _PLAIN.fullmatch(text)
    if plain is not None and len(text) <= ADDRESS_MAX_OCTETS and plain.end(1) <= LOCAL_MAX_OCTETS:
        return Mailbox("", plain[1], plain[2].lower())
    named = _NAMED.fullmatch(text)
    if named is not None and len(text) <= ADDRESS_MAX_OCTETS and len(named[2]) <= LOCAL_MAX_OCTETS:
        return Mailbox(named[1][:-1], named[2], named[3].lower())
    return _parse(text)


def parse_address(text: str) -> str:
    """The normal form of a bare addr-spec, as an envelope carries it; InvalidAddress with a display name too."""
    mailbox = parse_mailbox(text)
    if mailbox.display_name or text.rstrip().endswith(">"):
        raise InvalidAddress(f"{_shown(text)}: only the address may stand here; write {mailbox.address}")
    return mailbox.address


def recipient_domain(address: str) -> str:
    """The normalised domain of an address or mailbox, by which limits and health are kept; raises InvalidAddress."""
    return parse_mailbox(address).domain


def normalise_domain(domain: str) -> str:
    """`domain` as lower-case A-labels (RFC 5890 2.3.2.1); InvalidAddress when it cannot be a mail domain."""
    return _domain(domain, domain)


def _parse(text: str) -> Mailbox:
    if len(text) > INPUT_MAX_CHARS:
        raise InvalidAddress(f"{_shown(text)}: longer than {INPUT_MAX_CHARS} characters; give one address each")
    control = _CONTROL.search(text)
    if control is not None:
        raise InvalidAddress(f"{_shown(text)}: remove the character {control[0]!a}; it may not stand in an address")
    stripped = text.strip(" ")
    name, addr_spec = _split_name(stripped, text)
    local, domain = _split_local(addr_spec, text)
    mailbox = Mailbox(name, _local(local, text), _domain(domain, text))
    if len(mailbox.address.encode()) > ADDRESS_MAX_OCTETS:
        raise InvalidAddress(f"{_shown(text)}: longer than {ADDRESS_MAX_OCTETS} octets (RFC 5321 4.5.3.1.3)")
    return mailbox


def _split_name(stripped: str, text: str) -> tuple[str, str]:
    if not stripped.endswith(">"):
        return "", stripped
    quoted = _QUOTED.match(stripped)
    if quoted is not None and not stripped.startswith("@", quoted.end()):
        name, rest = re.sub(r"\\(.)", r"\1", quoted[1]), stripped[quoted.end() :].lstrip(" ")
        if not rest.startswith("<"):
            raise InvalidAddress(f'{_shown(text)}: write it as "Name" <local@domain>')
    else:
        name, bracket, rest = stripped.partition("<")
        name, rest = name.strip(" "), bracket + rest
        if '"' in name or _LIST_SIGNS.search(name):
            raise InvalidAddress(
                f"{_shown(text)}: put the display name into double quotes, and give one mailbox only (no list, "
                "group or comment)"
            )
    if len(name) > DISPLAY_NAME_MAX_CHARS:
        raise InvalidAddress(f"{_shown(text)}: the display name is longer than {DISPLAY_NAME_MAX_CHARS} characters")
    return name.strip(" "), rest[1:-1]


def _split_local(addr_spec: str, text: str) -> tuple[str, str]:
    if addr_spec.startswith("@"):
        raise InvalidAddress(f"{_shown(text)}: source routes are refused (RFC 5321 F.2); write local@domain")
    quoted = _QUOTED.match(addr_spec)
    if quoted is not None:
        local, rest = quoted[0], addr_spec[quoted.end() :]
        if not rest.startswith("@"):
            raise InvalidAddress(f"{_shown(text)}: after the quoted local part there must be @ and a domain")
        return local, rest[1:]
    if addr_spec.startswith('"'):
        raise InvalidAddress(f"{_shown(text)}: the quoted local part has no end; close its double quotes")
    local, at, domain = addr_spec.partition("@")
    if not at:
        raise InvalidAddress(f"{_shown(text)}: no @ in it; write local@domain")
    if "@" in domain:
        raise InvalidAddress(f"{_shown(text)}: more than one @; write local@domain")
    return local, domain


def _local(local: str, text: str) -> str:
    local = unicodedata.normalize("NFC", local)
    if local.startswith('"'):
        local = _requote(re.sub(r"\\(.)", r"\1", local[1:-1]), text)
    elif not _DOT_ATOM.fullmatch(local):
        raise InvalidAddress(f"{_shown(text)}: {_why_no_dot_atom(local)}")
    if not local.isascii():
        _refuse_invisible(local, text)
    if len(local.encode()) > LOCAL_MAX_OCTETS:
        raise InvalidAddress(f"{_shown(text)}: before the @ there may be at most {LOCAL_MAX_OCTETS} octets")
    return local


def _requote(content: str, text: str) -> str:
    """The shortest form of a quoted local part; RFC 5321 4.1.2 counts it and the bare form as the same mailbox."""
    if not content:
        raise InvalidAddress(f"{_shown(text)}: the local part before the @ is empty")
    if _DOT_ATOM.fullmatch(content):
        return content
    return '"' + content.replace("\\", r"\\").replace('"', r"\"") + '"'


def _why_no_dot_atom(local: str) -> str:
    if not local:
        return "the local part before the @ is empty"
    if "(" in local or ")" in local:
        return "comments are refused; write local@domain"
    if local.startswith(".") or local.endswith(".") or ".." in local:
        return 'a dot may not begin, end or double in the local part; quote it: "a..b"@domain'
    bad = next(c for c in local if not _DOT_ATOM.fullmatch(c) and c != ".")
    return f"{bad!r} may stand before the @ only inside double quotes"


def _domain(domain: str, text: str) -> str:
    if domain.startswith("["):
        raise InvalidAddress(f"{_shown(text)}: address literals are refused; name a domain")
    domain = _DOTS.sub(".", domain)
    labels = [_label(label, text) for label in domain.split(".")]
    if labels[-1].isdigit():
        raise InvalidAddress(f"{_shown(text)}: an IP address is not a mail domain; name a domain")
    normal = ".".join(labels)
    if len(normal) > DOMAIN_MAX_OCTETS:
        raise InvalidAddress(f"{_shown(text)}: the domain is longer than {DOMAIN_MAX_OCTETS} octets")
    return normal


def _label(label: str, text: str) -> str:
    if not label:
        raise InvalidAddress(f"{_shown(text)}: empty label in the domain (two dots, or one at its end)")
    if label.isascii():
        if _ASCII_LABEL.fullmatch(label):
            return label.lower()
        raise InvalidAddress(
            f"{_shown(text)}: {label[:70]!r} is no domain label (letters, digits, inner hyphens, at most "
            f"{LABEL_MAX_OCTETS})"
        )
    if len(label) > LABEL_MAX_OCTETS:
        raise InvalidAddress(f"{_shown(text)}: a domain label is longer than {LABEL_MAX_OCTETS} octets")
    mapped = _map_label(label)
    if mapped.isascii():  # full-width letters, for example, map to plain ones
        return _label(mapped, text)
    for char in mapped:
        if unicodedata.category(char) not in _IN_LABEL and char not in _IN_LABEL_TOO:
            raise InvalidAddress(f"{_shown(text)}: {char!a} may not stand in a domain (RFC 5892)")
    if mapped[0] == "-" or mapped[-1] == "-" or mapped[2:4] == "--" or unicodedata.category(mapped[0])[0] == "M":
        raise InvalidAddress(f"{_shown(text)}: a domain label may not begin with a mark or hyphen (RFC 5891 4.2.3)")
    encoded = "xn--" + mapped.encode("punycode").decode("ascii")
    if len(encoded) > LABEL_MAX_OCTETS:
        raise InvalidAddress(f"{_shown(text)}: a domain label is longer than {LABEL_MAX_OCTETS} octets as A-label")
    return encoded


_KEPT = {"\u00df": "\u00df", "\u1e9e": "\u00df", "\u03c2": "\u03c2"}  # RFC 5892, 2.6; the capital of the first


def _map_label(label: str) -> str:
    return unicodedata.normalize("NFC", "".join(map(_fold, label)))


def _fold(char: str) -> str:
    """NFKC and case folding, but for the letters that folding gives up and IDNA 2008 keeps: ß and final sigma."""
    if char in _KEPT:
        return _KEPT[char]
    return unicodedata.normalize("NFKC", char.casefold()).casefold()


def _refuse_invisible(local: str, text: str) -> None:
    for char in local:
        if char not in " \u200c\u200d" and unicodedata.category(char) in _NOT_IN_LOCAL:
            raise InvalidAddress(f"{_shown(text)}: remove the character {char!a}; it may not stand in an address")


def _shown(text: str) -> str:
    """Input as an error may show it: escaped and short, so that it cannot forge a log line."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
