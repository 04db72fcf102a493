"""What an SMTP server's reply means for the mail, the recipient and the provider.

The tables come first; `classify` reads them from top to bottom and the first rule that fits wins. The rules follow
the enhanced status code (RFC 3463) where there is one and the basic code (RFC 5321 4.2.3) where there is none.
Nothing but a recipient fault may ever suppress an address: providers answer 550 for their own blocks, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Phase(StrEnum):
    """The command that a reply answers; `DOT` is the final dot of the body."""

    CONNECT = "connect"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"


class ReplyClass(StrEnum):
    """What the sender has to act on; `CONSEQUENCES` says how."""

    ACCEPTED = "accepted"
    RECIPIENT = "recipient"  # the address does not exist: bounce, and the address may be suppressed
    MAILBOX = "mailbox"  # the address exists but takes nothing (full, disabled): bounce, never suppress
    CONTENT = "content"  # this mail's bytes are refused: bounce, another provider would say the same
    POLICY = "policy"  # reputation, authorisation, spam, sender address: not the recipient's fault
    INFRASTRUCTURE = "infrastructure"  # the server or its network is at fault, for good as far as it knows
    TEMPORARY = "temporary"  # an attempt that may succeed later
    THROTTLED = "throttled"  # not yet: no attempt was spent
    PROVIDER = "provider"  # our account or configuration at the provider is at fault: no attempt was spent


class Consequence(NamedTuple):
    """How a class is acted on.

    `attempt`: an attempt was spent. `final`: this provider will not change its mind. `suppress`: the address may go
    on the suppression list. `failover`: another provider may be tried (the mail was provably not accepted).
    """

    attempt: bool
    final: bool
    suppress: bool
    failover: bool


CONSEQUENCES: dict[ReplyClass, Consequence] = {
    #                                      attempt  final  suppress failover
    ReplyClass.ACCEPTED: Consequence(True, True, False, False),
    ReplyClass.RECIPIENT: Consequence(True, True, True, False),
    ReplyClass.MAILBOX: Consequence(True, True, False, False),
    ReplyClass.CONTENT: Consequence(True, True, False, False),
    ReplyClass.POLICY: Consequence(True, True, False, True),
    ReplyClass.INFRASTRUCTURE: Consequence(True, True, False, True),
    ReplyClass.TEMPORARY: Consequence(True, False, False, True),
    ReplyClass.THROTTLED: Consequence(False, False, False, True),
    ReplyClass.PROVIDER: Consequence(False, False, False, True),
}

# Words by which servers say "slower", whatever the code (SES, Gmail, Yahoo, Microsoft, Postfix anvil, Exim).
RATE_WORDS = re.compile(
    r"throttl|rate.{0,12}(limit|exceed)|(limit|maximum).{0,24}rate|too (many|fast|quickly|much mail)|at a rate"
    r"|unusual rate|sending (limit|quota)|quota.{0,24}exceeded for (sending|today)|(daily|hourly).{0,24}(limit|quota)"
    r"|concurren|slow down|unexpected volume|server busy|connection (limit|rate)",
    re.IGNORECASE,
)
# Words by which servers without enhanced codes say that there is no such address.
UNKNOWN_WORDS = re.compile(
    r"(user|recipient|mailbox|address|account)\b.{0,40}\b(unknown|not found|does ?n[o']t exist|not exist|invalid)"
    r"|(unknown|invalid|no such|non-?existent)\b.{0,20}\b(user|recipient|mailbox|address|account|person)",
    re.IGNORECASE,
)

# Replies that speak of our account or set-up whatever else they say (RFC 4954 section 6, RFC 3207 section 4).
PROVIDER_CODES = frozenset({530, 534, 535, 538})
# Refused before any address was looked at: the session is not usable (503 "authenticate first", 500, 502).
PROVIDER_CODES_ON_MAIL = frozenset({500, 502, 503})

# RFC 3463 subject.detail of a 5xx reply; a whole subject comes after the exceptions to it.
PERMANENT_ENHANCED: dict[str, ReplyClass] = {
    "1.7": ReplyClass.POLICY,  # bad sender address syntax
    "1.8": ReplyClass.POLICY,  # bad sender system address
    "1": ReplyClass.RECIPIENT,
    "2.3": ReplyClass.CONTENT,  # longer than the mailbox allows
    "2": ReplyClass.MAILBOX,
    "3.4": ReplyClass.CONTENT,  # longer than the system allows
    "3": ReplyClass.INFRASTRUCTURE,
    "4.5": ReplyClass.THROTTLED,  # 550 5.4.5 daily sending quota exceeded
    "4": ReplyClass.INFRASTRUCTURE,
    "5": ReplyClass.INFRASTRUCTURE,
    "6": ReplyClass.CONTENT,
    "7": ReplyClass.POLICY,
}
# 5xx without an enhanced code, or with one that says nothing (5.0.0), by phase where the phase changes the meaning.
PERMANENT_BASIC: dict[tuple[int, Phase] | int, ReplyClass] = {
    (552, Phase.RCPT): ReplyClass.MAILBOX,
    552: ReplyClass.CONTENT,
    556: ReplyClass.RECIPIENT,  # the domain accepts no mail (RFC 7504, RFC 7505)
    500: ReplyClass.INFRASTRUCTURE,
    502: ReplyClass.INFRASTRUCTURE,
    503: ReplyClass.INFRASTRUCTURE,
    504: ReplyClass.INFRASTRUCTURE,
    521: ReplyClass.INFRASTRUCTURE,
    555: ReplyClass.INFRASTRUCTURE,
}
UNKNOWN_USER_CODES = frozenset({550, 551, 553})

# 4xx that mean "slower" by code alone, and those where the words decide.
THROTTLED_ENHANCED = frozenset({"3.2", "4.5", "5.3", "7.28"})
THROTTLED_BY_WORDS = frozenset({450, 451, 452, 454})

text_max_chars = 1024
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class Reply(NamedTuple):
    """One reply: `code` 200..599, `enhanced` such as "5.1.1" or None, `text` in one printable line (≤ 1024 chars)."""

    code: int
    enhanced: str | None
    text: str

    def __str__(self) -> str:
        """The reply as a server would have written it in one line."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


def reply_from_lines(code: int, lines: Sequence[bytes]) -> Reply:
    """The reply whose lines, without code and separator, are `lines`; the enhanced code is taken off each line."""
    texts: list[str] = []
    enhanced: str | None = None
    for line in lines:
        text = line.decode("utf-8", "replace")
        if not text.isprintable():
            text = _UNPRINTABLE.sub(" ", text)
        match = _ENHANCED.match(text)
        if match is not None and (enhanced is None or enhanced == match[1]):
            enhanced = match[1]
            text = text[match.end() :]
        texts.append(text.strip())
    joined = texts[0] if len(texts) == 1 else " ".join(filter(None, texts))
    return Reply(code, enhanced, joined[:text_max_chars])


def parse_reply(code: int, text: str) -> Reply:
    """The reply with this code and text, as other SMTP clients hand it over (lines parted by a newline)."""
    return reply_from_lines(code, [line.encode("utf-8", "replace") for line in text.split("\n")])


def printable_line(text: str, max_chars: int) -> str:
    """What came from outside as one printable line of at most `max_chars` characters."""
    text = text[: 4 * max_chars]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return text.strip()[:max_chars]


def classify(reply: Reply, phase: Phase) -> ReplyClass:
    """The class of a reply to the command of `phase`; never raises, a code that no rule knows is temporary."""
    kind = reply.code // 100
    if kind == 2:
        return ReplyClass.ACCEPTED
    if reply.code == 421:
        return ReplyClass.THROTTLED
    if kind == 5:
        return _classify_permanent(reply, phase)
    return _classify_temporary(reply, phase)


def _classify_permanent(reply: Reply, phase: Phase) -> ReplyClass:
    if phase in (Phase.CONNECT, Phase.AUTH) or reply.code in PROVIDER_CODES:
        return ReplyClass.PROVIDER
    if phase is Phase.MAIL and reply.code in PROVIDER_CODES_ON_MAIL:
        return ReplyClass.PROVIDER
    detail = _subject_detail(reply)
    if detail is not None and not detail.startswith("0."):
        found = PERMANENT_ENHANCED.get(detail) or PERMANENT_ENHANCED.get(detail.partition(".")[0])
        if found is ReplyClass.RECIPIENT and phase is Phase.MAIL:
            return ReplyClass.POLICY  # no recipient has been named yet: it is the sender address
        if found is not None:
            return found
    basic = PERMANENT_BASIC.get((reply.code, phase)) or PERMANENT_BASIC.get(reply.code)
    if basic is not None:
        return basic
    if phase is not Phase.MAIL and reply.code in UNKNOWN_USER_CODES and UNKNOWN_WORDS.search(reply.text):
        return ReplyClass.RECIPIENT
    return ReplyClass.POLICY


def _classify_temporary(reply: Reply, phase: Phase) -> ReplyClass:
    if phase in (Phase.CONNECT, Phase.AUTH) or _subject_detail(reply) in THROTTLED_ENHANCED:
        return ReplyClass.THROTTLED
    if reply.code in THROTTLED_BY_WORDS and RATE_WORDS.search(reply.text):
        return ReplyClass.THROTTLED
    return ReplyClass.TEMPORARY


def _subject_detail(reply: Reply) -> str | None:
    """Subject and detail ("1.1" of "5.1.1"). The basic code decides between 4 and 5: servers mix the two up."""
    return None if reply.enhanced is None else reply.enhanced[2:]
