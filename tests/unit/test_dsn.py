"""Notifications in the forms that servers write them, whole and broken: what they say, or why they say nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit import dsn_samples as samples
from tests.unit.dsn_samples import ADA, DELIVERY, TRACE

from postlane.core.dsn import (
    HEADERS_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    PARTS_MAX,
    RECIPIENTS_MAX,
    TEXT_MAX_CHARS,
    Action,
    NotADsn,
    Report,
    decode_xtext,
    parse_dsn,
)


@pytest.mark.parametrize("server", samples.FAILED)
def test_each_server_says_who_failed_and_why(server: str) -> None:
    report = parse_dsn(samples.FAILED[server]())
    (one,) = report.recipients
    assert one.action is Action.FAILED
    assert (one.final_recipient or "").lower() == ADA
    assert one.code == 550
    assert one.enhanced in ("5.1.1", "5.1.10")
    assert one.text.isprintable()
    assert one.text
    assert report.reporting_mta
    assert report.returned.delivery == DELIVERY
    assert report.returned.message_id == f"<{DELIVERY}@example.org>"
    assert report.returned.trace == TRACE
    assert report.returned.addresses == (ADA,)


@pytest.mark.parametrize("server", samples.EVERY)
def test_line_ends_and_a_missing_last_boundary_make_no_difference(server: str) -> None:
    raw = samples.EVERY[server]()
    whole = parse_dsn(raw)
    assert parse_dsn(raw.replace(b"\r\n", b"\n")) == whole
    assert parse_dsn(b"\r\n" + raw) == whole
    cut = raw.rstrip().removesuffix(b"--")
    assert cut != raw.rstrip()
    assert parse_dsn(cut[: cut.rindex(b"\r\n--")]) == whole


def test_what_postfix_says_word_by_word() -> None:
    (one,) = parse_dsn(samples.postfix()).recipients
    assert one == (
        Action.FAILED,
        "5.1.1",
        550,
        "5.1.1",
        f"<{ADA}>: Recipient address rejected: User unknown in virtual mailbox table",
        ADA,
        ADA,
        ADA,
        "mx.example.com",
    )


def test_the_status_of_exim_is_kept_beside_what_the_server_said() -> None:
    (one,) = parse_dsn(samples.exim()).recipients
    assert (one.status, one.code, one.enhanced, one.text) == ("5.0.0", 550, "5.1.1", "no such mailbox")


def test_a_delay_is_no_failure_and_its_words_are_no_reply() -> None:
    (one,) = parse_dsn(samples.delayed()).recipients
    assert (one.action, one.status, one.code, one.enhanced) == (Action.DELAYED, "4.4.1", None, None)
    assert one.text == "connect to mx.example.com[192.0.2.1]:25: timed out"


def test_several_recipients() -> None:
    report = parse_dsn(samples.several())
    assert [(each.action, each.final_recipient) for each in report.recipients] == [
        (Action.DELIVERED, "bob@example.com"),
        (Action.RELAYED, "carol@example.com"),
        (Action.FAILED, ADA),
    ]


def test_a_report_without_its_type_or_of_the_types_for_utf8() -> None:
    raw = samples.postfix()
    assert parse_dsn(raw.replace(b" report-type=delivery-status;", b"")) == parse_dsn(raw)
    utf8 = raw.replace(b"message/delivery-status", b"message/global-delivery-status")
    utf8 = utf8.replace(b"Final-Recipient: rfc822; ada@", rb"Final-Recipient: utf-8; ad\x{E4}@")
    (one,) = parse_dsn(utf8).recipients
    assert one.final_recipient == "adä@example.com"


def test_fields_that_some_servers_leave_out_or_write_otherwise() -> None:
    (one,) = parse_dsn(samples.postfix(Diagnostic_Code="550 5.7.1 <x>; blocked", Final_Recipient=f"<{ADA}>")).recipients
    assert (one.code, one.enhanced, one.text, one.final_recipient) == (550, "5.7.1", "<x>; blocked", ADA)
    raw = samples.postfix().replace(b"UTC)\r\n\r\nFinal-Recipient", b"UTC)\r\nFinal-Recipient")  # one block of all
    assert parse_dsn(raw).recipients[0].final_recipient == ADA
    (bare,) = parse_dsn(samples.postfix(Diagnostic_Code="", Status="", Remote_MTA="")).recipients
    assert (bare.status, bare.code, bare.text, bare.remote_mta) == (None, None, "", None)


def test_xtext_is_decoded_and_kept_as_it_was() -> None:
    (one,) = parse_dsn(samples.postfix(Original_Recipient="rfc822;ada+2Bshop@example.com")).recipients
    assert (one.original_recipient, one.original_as_sent) == ("ada+shop@example.com", "ada+2Bshop@example.com")
    assert decode_xtext("a+0Ab") == "a+0Ab"
    assert decode_xtext("a+zz+41") == "a+zzA"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no multipart/report"),
        (samples.out_of_office(), "no multipart/report"),
        (samples.mail(), "no multipart/report"),
        (samples.postfix().replace(b"=delivery-status", b"=disposition-notification"), "another kind"),
        (samples.postfix().replace(b'boundary="', b'bound="'), "no boundary"),
        (samples.postfix().replace(b"message/delivery-status", b"text/plain"), "no delivery-status part"),
        (samples.postfix(Action=""), "names no recipient"),
        (samples.postfix(Action="exploded"), "names no recipient"),
        (b"X: " + b"x" * MESSAGE_MAX_BYTES, "at most"),
        (b"X: " + b"x" * HEADERS_MAX_BYTES + b"\r\n" + samples.postfix(), "no multipart/report"),
    ],
)  # fmt: skip
def test_what_is_no_notification_says_why(raw: bytes, says: str) -> None:
    with pytest.raises(NotADsn, match=says) as refused:
        parse_dsn(raw)
    assert refused.value.reason == str(refused.value)


# -------------------------------------------------------------------------------------------------- broken and hostile


@pytest.mark.parametrize("server", samples.EVERY)
def test_cut_off_anywhere_it_is_a_report_or_none(server: str) -> None:
    """And it says nothing worse than the whole: what was cut off is not read as a failure."""
    raw = samples.EVERY[server]()
    whole = parse_dsn(raw)
    actions = {(each.action, each.status) for each in whole.recipients}
    read = 0
    for end in range(len(raw)):
        report = _read(raw[:end])
        if report is not None:
            read += 1
            assert len(report.recipients) <= len(whole.recipients)
            assert {each.action for each in report.recipients} <= {action for action, _ in actions}
    assert read > 100


@given(st.binary(max_size=2000))
@example(b"Content-Type: multipart/report; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\nAction: failed")
@example(b"Content-Type: multipart/report; boundary=x\n\n--x--\n--x\n--x--")
@example(b"\r\n\r\n")
def test_any_bytes_are_a_report_or_none(raw: bytes) -> None:
    _read(raw)


@given(st.data())
def test_a_report_with_anything_in_it_is_a_report_or_none(data: st.DataObject) -> None:
    raw = samples.EVERY[data.draw(st.sampled_from(sorted(samples.EVERY)))]()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw = raw[:at] + data.draw(st.binary(max_size=30)) + raw[at + data.draw(st.integers(0, 40)) :]
    _read(raw)


def test_parts_within_parts_are_not_opened() -> None:
    """A report within the returned mail, or within another part, is not this message's."""
    inner = samples.postfix()
    for kind in (b"message/rfc822", b"multipart/mixed; boundary=y", b"text/plain"):
        outer = b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: " + kind + b"\r\n\r\n" + inner
        with pytest.raises(NotADsn, match="no delivery-status part"):
            parse_dsn(outer + b"\r\n--x--\r\n")
    nested = b"".join(b"Content-Type: multipart/report; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(20_000))
    with pytest.raises(NotADsn):
        parse_dsn(nested)


def test_the_first_status_and_the_first_returned_mail_count() -> None:
    again = samples.postfix(recipient="eve@example.com", message=samples.mail("eve@example.com", "x.y.0"))
    raw = samples.postfix()
    boundary = b"--4Z1xYz0abc.1732400001/mail.example.org"
    more = boundary + again.partition(boundary)[2]
    report = parse_dsn(raw.removesuffix(boundary + b"--\r\n") + more)
    assert report == parse_dsn(raw)


def test_a_boundary_that_is_the_beginning_of_another_one() -> None:
    raw = samples.gmail().replace(b"000000000000a1b2c30620", b"000000000000a1b2c3062bb")
    assert parse_dsn(raw) == parse_dsn(samples.gmail())


def test_counts_and_texts_are_bounded() -> None:
    many = "\n\n".join(f"Final-Recipient: rfc822; r{n}@example.com\nAction: failed" for n in range(2 * RECIPIENTS_MAX))
    gone = dict.fromkeys(("Original_Recipient", "Action", "Status", "Remote_MTA", "Diagnostic_Code"), "")
    report = parse_dsn(samples.postfix(Final_Recipient=f"rfc822; a@b.example\nAction: failed\n\n{many}", **gone))
    assert len(report.recipients) == RECIPIENTS_MAX
    (one,) = parse_dsn(samples.postfix(Diagnostic_Code="smtp; 550 \x1b[31m\x00" + "x" * 20_000)).recipients
    assert one.text.isprintable()
    assert len(one.text) <= TEXT_MAX_CHARS
    boundary = b"--4Z1xYz0abc.1732400001/mail.example.org\r\n"
    padding = boundary + b"Content-Type: text/plain\r\n\r\nx\r\n"
    head, _, rest = samples.postfix().partition(boundary)
    assert parse_dsn(head + padding * (PARTS_MAX - 3) + boundary + rest).recipients
    with pytest.raises(NotADsn, match="no delivery-status part"):
        parse_dsn(head + padding * PARTS_MAX + boundary + rest)


def _full(piece: bytes) -> bytes:
    head = samples.postfix().partition(b"X-Postfix-Queue-ID")[0]
    return (head + piece * (MESSAGE_MAX_BYTES // len(piece)))[:MESSAGE_MAX_BYTES]


@pytest.mark.parametrize(
    "make",
    [
        lambda: _full(b"a" * 100),
        lambda: _full(b"\r\n"),
        lambda: _full(b"\n "),
        lambda: _full(b"Action: failed\r\n\r\n"),
        lambda: _full(b"\r\n--4Z1xYz0abc.1732400001/mail.example.org"),
        lambda: _full(b"\r\n--4Z1xYz0abc.1732400001/mail.example.org\r\n"),
        lambda: _full(b"--"),
        lambda: b'Content-Type: multipart/report; boundary="' + b"\\\";a=" * 12_000 + b"\r\n\r\n",
        lambda: b"Content-Type: multipart/report" + b';a="' * 15_000 + b"\r\n\r\n",
        lambda: b"Content-Type: multipart/report; boundary=x\r\n\r\n" + b"\r\n--x " * 500_000,
        lambda: samples.postfix(message=b"To: " + b"a@" * 2_000_000),
        lambda: samples.postfix(message=b"To: " + b"(" * 2_000_000),
        lambda: samples.postfix(Diagnostic_Code="smtp; 550 " + "\x00" * 1_000_000),
        lambda: samples.postfix(Original_Recipient="rfc822;" + "+41" * 300_000),
    ],
)  # fmt: skip
def test_the_time_is_linear(make: Callable[[], bytes]) -> None:
    """Four megabytes of the worst kind take less than a second of this process, as four of the best do."""
    raw = make()
    began = time.process_time()
    _read(raw)
    assert time.process_time() - began < 1.0


def _read(raw: bytes) -> Report | None:
    try:
        report = parse_dsn(raw)
    except NotADsn:
        return None
    assert 0 < len(report.recipients) <= RECIPIENTS_MAX
    for each in report.recipients:
        for text in (each.text, each.final_recipient, each.original_recipient, each.remote_mta, report.reporting_mta):
            assert text is None or (text.isprintable() and len(text) <= TEXT_MAX_CHARS)
    return report
