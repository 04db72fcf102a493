"""The SMTP machine against any server: no exception, one result a mail, bounded memory, an end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_conversation import PIPELINED, PLAIN, RESULTS, body, bytewise, envelope

from postlane.core.smtp import SmtpDelivery
from postlane.core.smtp_events import Accepted, Closed, Event, InDoubt
from postlane.core.smtp_wire import line_max_bytes, reply_max_bytes

replies = st.one_of(
    st.sampled_from([b"250 ok\r\n", b"354 go\r\n"]),
    st.sampled_from([b"550 5.1.1 no\r\n", b"451 later\r\n", b"503 no\r\n", b"421 bye\r\n", b"250-a\r\n", b"334 x\r\n"]),
    st.binary(max_size=12),
)
actions = st.one_of(replies, st.sampled_from(["offer", "body", "withdraw", "bad body", "quit"]))


def play(machine: SmtpDelivery, script: list[bytes | str]) -> tuple[list[Event], list[int], set[int]]:
    events: list[Event] = []
    offered: list[int] = []
    handed_over: set[int] = set()
    for action in script:
        if isinstance(action, bytes):
            events += machine.receive(action)
        elif action == "offer" and machine.can_offer:
            ref = len(offered)
            machine.offer(ref, envelope(str(ref)))
            offered.append(ref)
        elif action == "quit" and machine.state == 0:
            machine.quit()
        wanted = machine.body_wanted
        if wanted is not None and machine.may_send_body(wanted):
            if action == "body":
                machine.send_body(wanted, body(str(wanted)))
                handed_over.add(wanted)
            elif action == "bad body":
                try:
                    machine.send_body(wanted, b"a\nb")
                except ValueError:
                    assert machine.may_send_body(wanted)
            elif action == "withdraw":
                events += machine.withdraw(wanted)
        machine.data_to_send()
    return events, offered, handed_over


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([PLAIN, PIPELINED]), st.lists(actions, max_size=40))
def test_any_server_any_order(extensions, script) -> None:
    machine = SmtpDelivery(extensions)
    events, offered, handed_over = play(machine, ["offer", "offer", *script])
    events += machine.lost("end")
    results = [event for event in events if isinstance(event, RESULTS)]
    assert sorted(event.ref for event in results) == offered
    assert isinstance(events[-1], Closed)
    assert sum(isinstance(event, Closed) for event in events) == 1
    for event in results:
        if isinstance(event, Accepted | InDoubt):
            assert event.ref in handed_over


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([PLAIN, PIPELINED]), st.lists(st.binary(max_size=200), max_size=30))
def test_random_bytes(extensions, chunks) -> None:
    whole, split = SmtpDelivery(extensions), SmtpDelivery(extensions)
    for machine in (whole, split):
        machine.offer("A", envelope("A"))
    data = b"".join(chunks)
    one = whole.receive(data)
    many = [event for chunk in bytewise(data) for event in split.receive(chunk)]
    assert one == many
    one += whole.lost("end")
    assert isinstance(one[-1], Closed)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"250 ok", b"250-more", b"\r\n", b"\n", b"\r", b"421", b" ", b"-", b"\0", b"4"]), max_size=40
    )
)
def test_line_ends_of_every_sort_split_or_not(parts) -> None:
    data = b"".join(parts)
    whole, split = SmtpDelivery(PIPELINED), SmtpDelivery(PIPELINED)
    for machine in (whole, split):
        machine.offer("A", envelope("A"))
    assert whole.receive(data) == [event for chunk in bytewise(data) for event in split.receive(chunk)]


def test_memory_is_bounded_however_much_arrives() -> None:
    machine = SmtpDelivery(PLAIN)
    machine.offer("A", envelope("A"))
    line = b"250-" + b"x" * 60 + b"\r\n"
    fed = 0
    while not machine.closed:
        machine.receive(line)
        fed += len(line)
        assert fed <= reply_max_bytes + line_max_bytes
