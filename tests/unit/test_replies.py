"""Tables of replies: what real servers say, and what the sender must take it for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.replies import (
    CONSEQUENCES,
    Phase,
    Reply,
    ReplyClass,
    classify,
    parse_reply,
    reply_from_lines,
    text_max_chars,
)

C = ReplyClass
CASES: list[tuple[str, Phase, ReplyClass]] = [
    ("250 2.0.0 Ok: queued as 4XyZ", Phase.DOT, C.ACCEPTED),
    ("250 OK", Phase.DOT, C.ACCEPTED),
    ("251 2.1.5 will forward", Phase.RCPT, C.ACCEPTED),
    # recipient faults
    ("550 5.1.1 <a@b.example>: Recipient address rejected: User unknown", Phase.RCPT, C.RECIPIENT),
    ("550 5.1.1 The email account that you tried to reach does not exist.", Phase.DOT, C.RECIPIENT),
    ("550 5.1.2 bad destination system", Phase.RCPT, C.RECIPIENT),
    ("501 5.1.3 Bad recipient address syntax", Phase.RCPT, C.RECIPIENT),
    ("556 5.1.10 Recipient address has null MX", Phase.RCPT, C.RECIPIENT),
    ("556 domain does not accept mail", Phase.RCPT, C.RECIPIENT),
    ("550 No such user here", Phase.RCPT, C.RECIPIENT),
    ("550 Unknown recipient", Phase.RCPT, C.RECIPIENT),
    ("550 mailbox <x> not found", Phase.RCPT, C.RECIPIENT),
    # not the recipient's fault
    ("550 Requested action not taken: mailbox unavailable", Phase.RCPT, C.POLICY),
    ("550 5.7.1 Service unavailable; client host blocked using zen", Phase.RCPT, C.POLICY),
    ("554 5.7.1 Message rejected as spam", Phase.DOT, C.POLICY),
    ("554 Transaction failed", Phase.DOT, C.POLICY),
    ("550 5.7.26 Unauthenticated email", Phase.DOT, C.POLICY),
    ("550 5.1.8 Sender address rejected: Domain not found", Phase.RCPT, C.POLICY),
    ("553 5.1.7 bad sender", Phase.MAIL, C.POLICY),
    ("550 5.1.0 sender rejected", Phase.MAIL, C.POLICY),
    ("550 no such user", Phase.MAIL, C.POLICY),
    ("501 syntax", Phase.MAIL, C.POLICY),
    ("550 5.0.0 rejected", Phase.RCPT, C.POLICY),
    # mailbox
    ("552 5.2.2 Mailbox full", Phase.RCPT, C.MAILBOX),
    ("550 5.2.1 mailbox disabled", Phase.RCPT, C.MAILBOX),
    ("552 mailbox full", Phase.RCPT, C.MAILBOX),
    # content
    ("554 5.6.0 malformed message", Phase.DOT, C.CONTENT),
    ("552 5.3.4 Message size exceeds fixed limit", Phase.MAIL, C.CONTENT),
    ("552 too large", Phase.DOT, C.CONTENT),
    ("552 5.2.3 message too long", Phase.DOT, C.CONTENT),
    # infrastructure
    ("550 5.3.0 local configuration error", Phase.RCPT, C.INFRASTRUCTURE),
    ("550 5.4.4 unable to route", Phase.RCPT, C.INFRASTRUCTURE),
    ("554 5.5.1 no valid recipients", Phase.DATA, C.INFRASTRUCTURE),
    ("503 bad sequence", Phase.DATA, C.INFRASTRUCTURE),
    # temporary
    ("451 4.3.0 Temporary lookup failure", Phase.RCPT, C.TEMPORARY),
    ("450 4.2.0 <a@b.example>: Greylisted, try again later", Phase.RCPT, C.TEMPORARY),
    ("452 4.2.2 mailbox full", Phase.RCPT, C.TEMPORARY),
    ("452 4.3.1 Insufficient system storage", Phase.MAIL, C.TEMPORARY),
    ("451 4.7.1 Please try again later", Phase.RCPT, C.TEMPORARY),
    ("454 4.7.0 TLS not available", Phase.MAIL, C.TEMPORARY),
    ("354 go ahead", Phase.DOT, C.TEMPORARY),
    # throttled is not an attempt
    ("421 4.7.0 closing", Phase.DOT, C.THROTTLED),
    ("421 Service not available", Phase.MAIL, C.THROTTLED),
    ("454 Throttling failure: Maximum sending rate exceeded.", Phase.DOT, C.THROTTLED),
    ("454 Throttling failure: Daily message quota exceeded.", Phase.DATA, C.THROTTLED),
    ("450 4.7.1 Error: too much mail from 192.0.2.1", Phase.MAIL, C.THROTTLED),
    ("451 4.7.0 rate limit exceeded", Phase.RCPT, C.THROTTLED),
    ("450 4.2.1 The user is receiving mail too quickly", Phase.RCPT, C.THROTTLED),
    ("452 4.5.3 Too many recipients", Phase.RCPT, C.THROTTLED),
    ("451 4.3.2 Please try again later", Phase.MAIL, C.THROTTLED),
    ("450 4.7.28 unusual", Phase.DOT, C.THROTTLED),
    ("550 5.4.5 Daily user sending limit exceeded", Phase.DOT, C.THROTTLED),
    # the provider, not the mail
    ("530 5.7.0 Must issue a STARTTLS command first", Phase.MAIL, C.PROVIDER),
    ("535 5.7.8 Authentication credentials invalid", Phase.AUTH, C.PROVIDER),
    ("538 5.7.11 Encryption required", Phase.MAIL, C.PROVIDER),
    ("503 5.5.1 Error: authenticate first", Phase.MAIL, C.PROVIDER),
    ("554 5.7.1 go away", Phase.CONNECT, C.PROVIDER),
    ("454 4.7.0 Temporary authentication failure", Phase.AUTH, C.THROTTLED),
]


@pytest.mark.parametrize(("line", "phase", "expected"), CASES, ids=[f"{c[0]} @{c[1]}" for c in CASES])
def test_what_servers_say(line: str, phase: Phase, expected: ReplyClass) -> None:
    code, _, text = line.partition(" ")
    assert classify(parse_reply(int(code), text), phase) is expected


def test_only_a_recipient_fault_may_suppress() -> None:
    assert [kind for kind in C if CONSEQUENCES[kind].suppress] == [C.RECIPIENT]


def test_throttled_and_provider_spend_no_attempt() -> None:
    assert {kind for kind in C if not CONSEQUENCES[kind].attempt} == {C.THROTTLED, C.PROVIDER}


def test_enhanced_code_is_taken_off_every_line() -> None:
    reply = reply_from_lines(550, [b"5.1.1 The account", b"5.1.1 does not exist.", b"5.1.1"])
    assert reply == Reply(550, "5.1.1", "The account does not exist.")
    assert str(reply) == "550 5.1.1 The account does not exist."


@pytest.mark.parametrize("text", ["5.1 x", "5.1.1x", "3.1.1 x", "5.1234.1 x", ""])
def test_what_only_looks_like_an_enhanced_code(text: str) -> None:
    assert parse_reply(550, text).enhanced is None


@given(st.integers(200, 599), st.lists(st.binary(max_size=80), min_size=1, max_size=4), st.sampled_from(Phase))
def test_any_reply_has_a_class_and_one_printable_bounded_line(code: int, lines: list[bytes], phase: Phase) -> None:
    reply = reply_from_lines(code, [line * 20 for line in lines])
    assert classify(reply, phase) in ReplyClass
    assert len(reply.text) <= text_max_chars
    assert not any(ord(char) < 32 or char in "\x7f\x85\u2028\u2029" for char in reply.text)
