"""Notifications made of anything, to return paths made of anything: nobody is suppressed, and no event is written, but
for the delivery and the recipient that were proven."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given, settings
from hypothesis import strategies as st

from postlane.core.dsn import RECIPIENTS_MAX, TEXT_MAX_CHARS, NotADsn, Report, parse_dsn
from postlane.core.events import Bounced, Suppression
from postlane.core.identity import delivery_id
from postlane.core.late_bounce import decide, delivery_in, traceparent
from postlane.core.project import misfit
from postlane.core.return_path import delivery_of, key_of, return_path
from postlane.eventlog.codec import decode, encode
from postlane.ops.tables import suppression_key
from tests.hostile.effort import EXAMPLES

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGE = "0197a1b2-0000-7000-8000-000000000001"
ADA = "ada@example.com"
DELIVERY = delivery_id(MESSAGE, ADA)
ADDRESS = "bounces@mail.example.org"
KEYS = (key_of(b"the first key of two"), key_of(b"the other one of two"))
PATH = return_path(DELIVERY, ADDRESS, KEYS[1])

# What parsers of MIME, of fields and of addresses stumble over.
_SCRAPS = (
    '\r|\n|\r\n|\n\n|\r\n\r\n| |\t|:|;|,|<|>|@|=|+|\\|"|(|)|--|--b|--b--|--b-- |\n--b\n|\n--b--\n|\x00|\x1b[31m|'
    "\u2028|\x85|\ufeff|\u0130|\u0131|\udcff|a|5.1.1|5.1.10|4.4.1|550|550-|smtp;|rfc822;|utf-8;|\\x{0A}|\\x{D800}|"
    "\\x{110000}|+0A|+2B|+00|failed|Action: failed|Action: delayed|Status: 5.1.1|Final-Recipient: rfc822; |"
    "Original-Recipient: |Diagnostic-Code: smtp; 550 5.1.1 |Content-Type: |multipart/report; boundary=b|"
    "message/delivery-status|message/rfc822|Content-Transfer-Encoding: base64|X-Postlane-Delivery: |"
    "Content-Transfer-Encoding: quoted-printable|X-Postlane-Trace: |To: |Cc: |ada@example.com|"
    "Ada <ada@example.com>|eve@example.net"
)
scraps = st.sampled_from([*_SCRAPS.split("|"), DELIVERY, "x" * 3000, "(" * 3000, "9" * 5000]) | st.text(max_size=6)
words = st.lists(scraps, max_size=12).map("".join)
status = st.lists(words | st.just("Action: failed") | st.just(f"Final-Recipient: rfc822; {ADA}"), max_size=6)
anything = st.binary(max_size=400) | words.map(lambda text: text.encode("utf-8", "surrogatepass"))


def message(fields: list[str], returned: str, status_head: str, encoding: str) -> bytes:
    """A report as far as its outer form goes."""
    head = "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n"
    part = f"Content-Type: message/delivery-status\r\n{status_head}{encoding}\r\n\r\n" + "\r\n".join(fields)
    last = f"\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n{returned}\r\n\r\nbody\r\n--b--\r\n"
    return (head + part + last).encode("utf-8", "surrogatepass")


messages = anything | st.builds(
    message, status, words, words, st.sampled_from(["", "Content-Transfer-Encoding: base64", "X: y"])
)


@example(b"")
@example(message(["Action: failed", f"Final-Recipient: rfc822; {ADA}", "Status: 5.1.1"], f"To: {ADA}", "", ""))
@given(messages)
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_notification_is_read_or_refused_and_harms_nobody_else(raw: bytes) -> None:
    try:
        report = parse_dsn(raw)
    except NotADsn:
        return
    _bounded(report)
    assert decide(report, None, NOW) == [d for d in decide(report, None, NOW) if d.event is None]
    decisions = decide(report, DELIVERY, NOW)
    assert len(decisions) == len(report.recipients)
    events = [d.event for d in decisions if d.event is not None]
    assert len(events) <= 1
    for event in events:
        assert (event.delivery_id, event.message_id) == (DELIVERY, MESSAGE)
        assert decode(Bounced, encode(event)) == event
        assert misfit(event) is None
    for decision in decisions:
        if decision.suppression is not None:
            assert decision.suppression.address == ADA  # nobody but whom the delivery was for
            assert decode(Suppression, encode(decision.suppression)) == decision.suppression
            assert suppression_key("*", ADA) == f"*/{decision.suppression.address}".encode()


def _bounded(report: Report) -> None:
    assert 0 < len(report.recipients) <= RECIPIENTS_MAX
    for each in report.recipients:
        texts = (each.text, each.status, each.enhanced, each.final_recipient, each.original_recipient, each.remote_mta)
        assert all(text is None or (text.isprintable() and len(text) <= TEXT_MAX_CHARS) for text in texts)
    named = delivery_in(report.returned)
    assert named is None or len(named) < 64
    context = traceparent(report.returned)
    assert context is None or len(context) == 55


@example(PATH)
@example(PATH.upper())
@example(PATH.replace("a", "\u0430"))
@given(words | st.text(max_size=80) | st.builds(lambda text: f"bounces+{text}@mail.example.org", st.text(max_size=60)))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_address_is_ours_only_if_we_signed_it(text: str) -> None:
    found = delivery_of(text, ADDRESS, KEYS)
    assert found is None or return_path(found, ADDRESS, KEYS[1]) == text.lower()


@given(st.integers(0, len(PATH) - 1), st.characters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_no_character_of_a_return_path_can_be_another(place: int, char: str) -> None:
    altered = PATH[:place] + char + PATH[place + 1 :]
    assert (delivery_of(altered, ADDRESS, KEYS) == DELIVERY) == (altered.isascii() and altered.lower() == PATH)
