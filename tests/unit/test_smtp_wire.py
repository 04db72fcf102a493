"""Bodies and addresses as they leave: nothing in them can end the mail or start a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.smtp import SmtpDelivery
from postlane.core.smtp_envelope import Envelope
from postlane.core.smtp_wire import Extensions, check_address, dot_stuff


@pytest.mark.parametrize(
    ("body", "stuffed"),
    [
        (b"", b"\r\n"),
        (b"a", b"a\r\n"),
        (b"a\r\n", b"a\r\n"),
        (b".\r\n", b"..\r\n"),
        (b".", b"..\r\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\r\n..\r\n.x\r\n", b"a\r\n...\r\n..x\r\n"),
        (b"a.b\r\n", b"a.b\r\n"),
    ],
)
def test_dot_stuffing(body: bytes, stuffed: bytes) -> None:
    assert dot_stuff(body) == stuffed


@pytest.mark.parametrize(
    "body",
    [b"a\n.\nb", b"a\r.\rb", b"a\n.\r\nb", b"a\r\n.\nb", b"a\r\n.\rb", b"a\r", b"\n", b"a\r\r\nb", b"a\n\r\n", b"\n\r"],
)
def test_smuggling_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="bare"):
        dot_stuff(body)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b"\0", b"\xff"]), max_size=30).map(b"".join))
def test_what_leaves_is_read_back_as_one_body(body: bytes) -> None:
    try:
        wire = dot_stuff(body) + b".\r\n"
    except ValueError:
        assert b"\r" in body.replace(b"\r\n", b"") or b"\n" in body.replace(b"\r\n", b"")
        return
    lines = wire.split(b"\r\n")
    assert lines.index(b".") == len(lines) - 2  # the only end is the end
    read = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines[:-2]) + b"\r\n"
    assert read == (body if body.endswith(b"\r\n") else body + b"\r\n")


@pytest.mark.parametrize(
    "address",
    [
        "a@b.example\r\nDATA",
        "a@b\n",
        "a b@c.example",
        "a>@b.example",
        "<a@b.example",
        "a@b.example> SIZE=1",
        "a\0@b.example",
        "a\x7f@b.example",
        "a\x85@b.example",
        "a\u2028@b.example",
        "a\u00a0@b.example",
        "a\ud800@b.example",
        "a" * 255,
        "ü" * 128,
    ],
)
def test_hostile_addresses_are_refused_in_either_place(address: str) -> None:
    with pytest.raises(ValueError):
        check_address(address)
    for envelope in (Envelope(address, "a@b.example"), Envelope("a@b.example", address)):
        machine = SmtpDelivery(Extensions(pipelining=True, smtputf8=True))
        with pytest.raises(ValueError):
            machine.offer("A", envelope)
        assert machine.data_to_send() == b""
        assert machine.can_offer


def test_a_recipient_is_needed() -> None:
    with pytest.raises(ValueError, match="empty"):
        SmtpDelivery(Extensions()).offer("A", Envelope("a@b.example", ""))


def test_8bit_bytes_leave_only_when_declared() -> None:
    for offered, ok in ((Extensions(pipelining=True), False), (Extensions(pipelining=True, eight_bit_mime=True), True)):
        machine = SmtpDelivery(offered)
        machine.offer("A", Envelope("a@b.example", "c@d.example"))
        machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        machine.data_to_send()
        if ok:
            machine.send_body("A", "ü\r\n".encode())
            assert machine.data_to_send() == "ü\r\n.\r\n".encode()
        else:
            with pytest.raises(ValueError, match="8BITMIME"):
                machine.send_body("A", "ü\r\n".encode())
            assert machine.may_send_body("A")
