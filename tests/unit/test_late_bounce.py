"""What becomes of a notification: which delivery bounced, who is suppressed, and who is not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit import dsn_samples as samples
from tests.unit.dsn_samples import ADA, DELIVERY, MESSAGE, TRACE

from postlane.core.dsn import Action, Report, Reported, Returned, parse_dsn
from postlane.core.events import Attempted, Bounced, Delivered, Routed, Suppression
from postlane.core.identity import delivery_id
from postlane.core.late_bounce import CODE_UNKNOWN, Decision, Outcome, decide, delivery_in, traceparent
from postlane.core.project import DeliveryRow, fold_delivery, misfit, project

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def of(raw: bytes, delivery: str | None = DELIVERY, suppress: bool = True) -> list[Decision]:
    return decide(parse_dsn(raw), delivery, NOW, suppress)


def said(raw: bytes, delivery: str | None = DELIVERY) -> Decision:
    (one,) = of(raw, delivery)
    return one


@pytest.mark.parametrize("server", samples.FAILED)
def test_an_address_that_does_not_exist_bounces_and_is_suppressed_for_everybody(server: str) -> None:
    one = said(samples.FAILED[server]())
    assert one.outcome is Outcome.SUPPRESSED
    assert one.event is not None
    assert one.event.reply is not None
    assert (one.event.message_id, one.event.delivery_id, one.event.recipient) == (MESSAGE, DELIVERY, ADA)
    assert (one.event.reason, one.event.reply.code) == ("recipient", 550)
    assert (one.event.attempt, one.event.hop, one.event.provider, one.event.at) == (0, 0, None, NOW)
    assert one.suppression == Suppression(tenant="*", address=ADA, reason="bounced", at=NOW)
    assert misfit(one.event) is None


@pytest.mark.parametrize(
    ("status", "diagnostic", "reason", "code"),
    [
        ("5.2.2", "smtp; 552 5.2.2 mailbox full", "mailbox", 552),
        ("5.7.1", "smtp; 550 5.7.1 blocked by policy", "policy", 550),
        ("5.7.1", "smtp; 550 5.7.1 user unknown to this sender", "policy", 550),
        ("5.6.0", "smtp; 554 5.6.0 bad content", "content", 554),
        ("5.4.4", "X-Postfix; Host or domain name not found", "infrastructure", CODE_UNKNOWN),
        ("4.4.1", "X-Postfix; connect to mx.example.com: timed out", "temporary", 450),
        ("4.4.7", "smtp; 451 4.3.0 later", "temporary", 451),
        ("5.1.1", "smtp; 450 4.2.0 greylisted, user unknown", "temporary", 450),
        ("5.0.0", "smtp; 550 no such user", "recipient", 550),  # by its words: it bounces, but nobody is suppressed
        ("", "smtp; 550 user unknown", "recipient", 550),
        ("", "", "policy", CODE_UNKNOWN),
        ("2.0.0", "smtp; 250 2.0.0 ok", "policy", CODE_UNKNOWN),
    ],
)
def test_other_failures_bounce_and_suppress_nobody(status: str, diagnostic: str, reason: str, code: int) -> None:
    one = said(samples.postfix(Status=status, Diagnostic_Code=diagnostic))
    assert (one.outcome, one.suppression) == (Outcome.BOUNCED, None)
    assert one.event is not None
    assert one.event.reply is not None
    assert (one.event.reason, one.event.reply.code) == (reason, code)


def test_the_servers_own_code_goes_before_the_status() -> None:
    one = said(samples.postfix(Status="5.0.0", Diagnostic_Code="smtp; 550 5.1.1 gone"))
    assert one.outcome is Outcome.SUPPRESSED
    assert said(samples.postfix(Status="5.1.1", Diagnostic_Code="smtp; 550 5.7.1 spam")).suppression is None
    assert said(samples.postfix(Status="5.1.1", Diagnostic_Code="X-Postfix; unknown user")).suppression is not None


@pytest.mark.parametrize(
    ("status", "suppressed"),
    [("5.1.1", True), ("5.1.2", True), ("5.1.3", True), ("5.1.6", True), ("5.1.10", True)]
    + [(status, False) for status in ("5.1.0", "5.1.4", "5.1.5", "5.1.7", "5.1.8", "5.1.9", "5.2.1", "5.7.1")],
)
def test_only_a_code_that_says_so_keeps_every_tenant_from_an_address(status: str, suppressed: bool) -> None:
    one = said(samples.postfix(Status=status, Diagnostic_Code=f"smtp; 550 {status} user unknown, sender denied"))
    assert (one.suppression is not None) is suppressed
    passing = said(samples.postfix(Status=status, Diagnostic_Code=f"smtp; 450 {status} try later"))
    assert passing.suppression is None


def test_nobody_is_suppressed_where_that_is_switched_off() -> None:
    (one,) = of(samples.postfix(), suppress=False)
    assert (one.outcome, one.suppression) == (Outcome.BOUNCED, None)


# ----------------------------------------------------------------------------------------------- who the recipient is


def test_the_spelling_is_that_of_the_router() -> None:
    """A server that lower-cases the local part is still believed, by the header of the mail that came back."""
    ada = "Ada.L@example.com"
    delivery = delivery_id(MESSAGE, ada)
    raw = samples.postfix("ada.l@EXAMPLE.com", samples.mail(ada, delivery), Original_Recipient="")
    one = said(raw, delivery)
    assert one.outcome is Outcome.SUPPRESSED
    assert one.event is not None
    assert one.suppression is not None
    assert (one.event.recipient, one.suppression.address) == (ada, ada.lower())


@pytest.mark.parametrize("field", ["rfc822;ada+2Bx@example.com", "rfc822;ada+x@example.com"])
def test_a_plus_in_the_original_recipient_is_read_both_ways(field: str) -> None:
    delivery = delivery_id(MESSAGE, "ada+x@example.com")
    one = said(samples.postfix(Final_Recipient="rfc822; x@y.example", Original_Recipient=field), delivery)
    assert one.outcome is Outcome.FORWARDED
    plus = delivery_id(MESSAGE, "ada+42@example.com")  # which xtext would read as "adaB"
    one = said(samples.postfix(Final_Recipient="", Original_Recipient="rfc822;ada+42@example.com"), plus)
    assert one.event is not None
    assert (one.event.recipient, one.suppression) == ("ada+42@example.com", None)


def test_where_a_mail_was_passed_on_to_says_nothing_of_our_recipient() -> None:
    one = said(samples.postfix(Final_Recipient="rfc822; old@elsewhere.example"))
    assert (one.outcome, one.suppression) == (Outcome.FORWARDED, None)
    assert one.event is not None
    assert one.event.recipient == ADA


def test_a_recipient_that_nothing_proves_is_not_suppressed() -> None:
    stranger = samples.postfix("victim@example.com", samples.mail("victim@example.com"))
    one = said(stranger)
    assert (one.outcome, one.suppression) == (Outcome.UNPROVEN, None)
    assert one.event is not None
    assert (one.event.delivery_id, one.event.recipient) == (DELIVERY, "victim@example.com")


def test_the_fold_keeps_the_recipient_that_the_router_knew() -> None:
    row = _delivered()
    event = said(samples.postfix("victim@example.com", samples.mail("victim@example.com"))).event
    assert event is not None
    after = fold_delivery(row, event)
    assert after is not None
    assert (after["state"], after["recipient"], after["attempt"]) == ("bounced", ADA, 1)


def test_of_several_recipients_only_ours_bounces() -> None:
    assert [each.outcome for each in of(samples.several())] == [Outcome.DELIVERED, Outcome.RELAYED, Outcome.BOUNCED]
    two = _report(_failed("x@y.example", ADA), _failed(ADA), _failed("z@y.example"))
    found = decide(two, DELIVERY, NOW)
    assert [each.outcome for each in found] == [Outcome.OTHER_RECIPIENT, Outcome.SUPPRESSED, Outcome.OTHER_RECIPIENT]
    assert sum(each.event is not None for each in found) == 1


def test_who_was_reached_did_not_bounce_whoever_else_failed() -> None:
    for action in (Action.DELIVERED, Action.RELAYED, Action.EXPANDED):
        reached = _failed(ADA)._replace(action=action)
        found = decide(_report(_failed("member@y.example", ADA), reached), DELIVERY, NOW)
        assert [each.event for each in found] == [None, None]
    late = _failed(ADA)._replace(action=Action.DELAYED)
    assert decide(_report(late, _failed(ADA)), DELIVERY, NOW)[1].outcome is Outcome.SUPPRESSED


# ----------------------------------------------------------------------------------------------- what changes nothing


def test_only_a_failure_is_an_event() -> None:
    for action in Action:
        one = said(samples.postfix(Action=action.value))
        assert (one.event is not None) == (action is Action.FAILED)
        assert action is Action.FAILED or one.outcome.value == action.value
    assert said(samples.delayed()).outcome is Outcome.DELAYED


@pytest.mark.parametrize("delivery", [None, "", "x", f"{MESSAGE}.0"])
def test_without_a_delivery_nothing_happens(delivery: str | None) -> None:
    one = said(samples.postfix(), delivery)
    assert one == Decision(Outcome.UNKNOWN_DELIVERY, ADA)


def test_an_event_for_a_delivery_that_the_books_do_not_know_changes_nothing() -> None:
    event = said(samples.postfix()).event
    assert event is not None
    assert fold_delivery(None, event) is None
    assert project([event]) == ({}, {})


def test_a_second_bounce_changes_nothing() -> None:
    event = said(samples.postfix()).event
    assert event is not None
    once = fold_delivery(_delivered(), event)
    assert once is not None
    again = Bounced(**{**event.__dict__, "at": datetime(2027, 1, 1, tzinfo=UTC), "reason": "policy"})
    assert fold_delivery(once, again) == once


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_any_words_are_decided(final: str, original: str, header: str) -> None:
    each = Reported(Action.FAILED, "5.1.1", None, None, "", final, original, original, None)
    (one,) = decide(Report((each,), Returned(None, None, None, (header,))), DELIVERY, NOW)
    assert one.suppression is None
    assert one.event is not None


# ------------------------------------------------------------------------------------- what the returned headers say


def test_the_headers_name_the_delivery() -> None:
    assert delivery_in(parse_dsn(samples.gmail()).returned) == DELIVERY
    assert delivery_in(Returned(message_id=f"<{DELIVERY}@example.org>")) == DELIVERY
    assert delivery_in(Returned("not ours", f"<{DELIVERY}@example.org>")) == DELIVERY
    for other in (Returned(), Returned("x", "y"), Returned(message_id=f"<{DELIVERY}>"), Returned(f"{DELIVERY} ")):
        assert delivery_in(other) is None


def test_the_header_names_the_trace() -> None:
    trace_id, span_id = TRACE.split("-")
    assert traceparent(parse_dsn(samples.gmail()).returned) == f"00-{trace_id}-{span_id}-01"
    zero = f"{'0' * 32}-{span_id}", f"{trace_id}-{'0' * 16}"  # invalid by the standard
    for text in (None, "", TRACE.upper(), TRACE + "0", "x" + TRACE, TRACE.replace("-", ""), f"{TRACE}\n", *zero):
        assert traceparent(Returned(trace=text)) is None


def _failed(final: str, original: str | None = None) -> Reported:
    return Reported(Action.FAILED, "5.1.1", 550, "5.1.1", "gone", final, original, original, None)


def _report(*recipients: Reported) -> Report:
    return Report(recipients, Returned())


def _delivered() -> DeliveryRow:
    who = {"message_id": MESSAGE, "delivery_id": DELIVERY, "recipient": ADA, "attempt": 1, "at": NOW}
    row = None
    for event in (Routed(**who, lane="transactional"), Attempted(**who), Delivered(**who)):
        row = fold_delivery(row, event)
    assert row is not None
    assert row["state"] == "delivered"
    return row
