"""The SMTP machine over scripted conversations: transcripts, every split of the bytes, every cut of the connection."""

from __future__ import annotations

import pytest
from smtp_conversation import PIPELINED, PLAIN, Conversation, Player, body, bytewise, envelope, two_splits, whole, wire
from smtp_conversations import CONVERSATIONS

from postlane.core.replies import Phase, Reply
from postlane.core.smtp import SmtpDelivery
from postlane.core.smtp_envelope import Envelope, Obstacle
from postlane.core.smtp_events import Accepted, Cause, Closed, Event, InDoubt, NotBegun, Unsendable
from postlane.core.smtp_moves import CALLS, REPLIES, IllegalMove, State, Waiting
from postlane.core.smtp_wire import Extensions, extensions_from_ehlo, line_max_bytes, reply_max_bytes

each = pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.name)


@each
def test_transcript(conversation: Conversation) -> None:
    player = Player(conversation)
    written = player.start()
    for number, (client, server) in enumerate(conversation.turns):
        assert written == wire(client), f"turn {number}"
        written = player.hear(whole(wire(server)))
    assert player.described() == list(conversation.expected)


def events_split_in_two(conversation: Conversation) -> list[list[Event]]:
    # Split one turn at a time; the other turns arrive whole.
    runs = []
    for split_turn, (_, server) in enumerate(conversation.turns):
        for chunks in two_splits(wire(server)):
            player = Player(conversation)
            player.start()
            for number, (_, answer) in enumerate(conversation.turns):
                player.hear(chunks if number == split_turn else whole(wire(answer)))
            runs.append(player.events)
    return runs


@each
def test_every_split_of_the_bytes_says_the_same(conversation: Conversation) -> None:
    reference = Player(conversation)
    reference.start()
    for _, server in conversation.turns:
        reference.hear(whole(wire(server)))
    for events in events_split_in_two(conversation):
        assert events == reference.events
    slow = Player(conversation)
    slow.start()
    for _, server in conversation.turns:
        slow.hear(bytewise(wire(server)))
    assert slow.events == reference.events


@each
def test_connection_lost_after_every_byte(conversation: Conversation) -> None:
    """Lost before the body was handed over: not begun. After it, without a whole reply to the dot: in doubt."""
    for cut in range(len(conversation.server()) + 1):
        player = Player(conversation)
        player.start()
        handed_over: set[str] = set()
        left = cut
        for _, server in conversation.turns:
            data = wire(server)[:left]
            written = player.hear(whole(data))
            handed_over |= {ref for ref in conversation.mails if body(ref) in written}
            left -= len(data)
            if not left:
                break
        player.events += player.machine.lost("cut")
        player.check_one_result_each()
        for event in player.events:
            if isinstance(event, NotBegun):
                assert event.ref not in handed_over
            elif isinstance(event, InDoubt | Accepted):
                assert event.ref in handed_over
        assert player.machine.data_to_send() == b""
        assert player.machine.receive(b"250 late\r\n") == []
        assert player.machine.lost("again") == []


@pytest.mark.parametrize("extensions", [PLAIN, PIPELINED])
def test_phase_of_a_lost_connection(extensions: Extensions) -> None:
    answers = [b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]
    phases = [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DATA]
    for heard, phase in enumerate(phases):
        machine = SmtpDelivery(extensions)
        machine.offer("A", envelope("A"))
        for answer in answers[:heard]:
            machine.receive(answer)
        assert machine.lost("cut") == [NotBegun("A", phase, "cut"), Closed(Cause.LOST, "cut")]


@pytest.mark.parametrize("extensions", [PLAIN, PIPELINED])
def test_what_it_waits_for(extensions: Extensions) -> None:
    machine = SmtpDelivery(extensions)
    seen = [machine.waiting_for]
    machine.offer("A", envelope("A"))
    for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        seen.append(machine.waiting_for)
        machine.receive(answer)
    seen.append(machine.waiting_for)
    machine.send_body("A", body("A"))
    seen.append(machine.waiting_for)
    machine.receive(b"250 ok\r\n")
    machine.quit()
    seen.append(machine.waiting_for)
    w = Waiting
    assert seen == [w.NOTHING, w.MAIL, w.RCPT, w.DATA, w.BODY, w.DOT, w.QUIT]
    assert machine.receive(b"221 bye\r\n") == [Closed(Cause.QUIT, "quit")]


@pytest.mark.parametrize("dot", ["250 2.0.0 ok", "250", "250-2.0.0 a/250 2.0.0 b", "451 4.3.0 x", "250 \n", "250 \r x"])
@pytest.mark.parametrize("mail", ["250 ok", "250", "550 no", "421 bye"])
@pytest.mark.parametrize("data", ["354 go", "354", "354 go/", "354 go/250 x", "354 go/4", "550 no", "250 ok"])
def test_the_short_way_does_what_the_long_way_does(dot: str, mail: str, data: str) -> None:
    answer = wire(f"{dot}/{mail}/250 ok/{data}/")
    machines = []
    for chunks in (whole(answer), bytewise(answer), [b"", answer[:-1], answer[-1:]]):
        machine = SmtpDelivery(PIPELINED)
        machine.offer("A", envelope("A"))
        machine.offer("B", envelope("B"))
        machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        machine.send_body("A", body("A"))
        machine.data_to_send()
        events = [event for chunk in chunks for event in machine.receive(chunk)]
        state = (events, machine.state, machine.waiting_for, machine.may_send_body("B"), machine.replies_seen)
        after = machine.withdraw("B") if machine.body_wanted is not None else []
        machines.append((state, after))
    assert machines[0] == machines[1] == machines[2]


def test_the_next_mail_written_late_goes_behind_the_dot() -> None:
    machine = SmtpDelivery(PIPELINED)
    machine.offer("A", envelope("A"))
    machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    machine.send_body("A", body("A"))
    machine.data_to_send()
    assert machine.can_offer
    machine.offer("B", envelope("B"))
    assert machine.data_to_send().startswith(b"MAIL FROM:<B@")
    assert not machine.can_offer
    assert machine.lost("cut") == [InDoubt("A", "cut"), NotBegun("B", Phase.MAIL, "cut"), Closed(Cause.LOST, "cut")]


def test_withdrawn_behind_the_dot_leaves_the_dot_alone() -> None:
    machine = SmtpDelivery(PIPELINED)
    machine.offer("A", envelope("A"))
    machine.offer("B", envelope("B"))
    machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    machine.send_body("A", body("A"))
    assert machine.withdraw("B") == [NotBegun("B", Phase.MAIL, "withdrawn")]
    events = machine.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert events[0] == Accepted("A", Reply(250, None, "ok"))
    assert isinstance(events[1], Closed)
    assert events[1].cause is Cause.WITHDRAWN


def test_no_body_while_unasked_bytes_lie_in_the_buffer() -> None:
    machine = SmtpDelivery(PIPELINED)
    machine.offer("A", envelope("A"))
    machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n42")
    assert not machine.may_send_body("A")
    with pytest.raises(IllegalMove):
        machine.send_body("A", body("A"))
    assert machine.receive(b"5 x\r\n")[-1] == Closed(Cause.PROTOCOL_ERROR, "reply that nothing asked for")


def machine_in(state: State) -> SmtpDelivery:
    machine = SmtpDelivery(PIPELINED)
    if state is State.IDLE:
        return machine
    if state is State.QUIT:
        machine.quit()
        machine.data_to_send()
        return machine
    machine.offer("A", envelope("A"))
    if state is State.CLOSED:
        machine.lost("cut")
    elif state is State.REFUSED:
        machine.receive(b"550 no\r\n")
    elif state is State.LONE_DOT:
        machine.receive(b"250 ok\r\n550 no\r\n354 go\r\n")
    elif state in (State.BODY, State.DOT):
        machine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
        if state is State.DOT:
            machine.send_body("A", body("A"))
    machine.data_to_send()
    assert machine.state is state
    return machine


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("call", list(CALLS))
def test_legal_and_illegal_calls(state: State, call: str) -> None:
    machine = machine_in(state)
    ref = "A"
    if call == "withdraw" and state in (State.DOT, State.LONE_DOT, State.REFUSED):
        machine.offer("B", envelope("B"))
        ref = "B"
    before = (machine.state, machine.waiting_for, machine.can_offer, machine.body_wanted)
    calls = {
        "offer": lambda: machine.offer("X", envelope("X")),
        "send_body": lambda: machine.send_body("A", body("A")),
        "withdraw": lambda: machine.withdraw(ref),
        "quit": machine.quit,
    }
    if state in CALLS[call]:
        calls[call]()
    else:
        with pytest.raises(IllegalMove):
            calls[call]()
        assert (machine.state, machine.waiting_for, machine.can_offer, machine.body_wanted) == before
        assert machine.data_to_send() == b""


def test_a_third_mail_is_not_taken() -> None:
    machine = SmtpDelivery(PIPELINED)
    machine.offer("A", envelope("A"))
    machine.offer("B", envelope("B"))
    with pytest.raises(IllegalMove):
        machine.offer("C", envelope("C"))
    with pytest.raises(IllegalMove):
        machine.withdraw("C")


def test_a_body_once_handed_over_cannot_be_withdrawn() -> None:
    machine = machine_in(State.DOT)
    with pytest.raises(IllegalMove):
        machine.withdraw("A")


def test_every_move_of_the_table_is_reached_by_a_conversation() -> None:
    seen: set[tuple[State, Waiting]] = set()
    for conversation in CONVERSATIONS:
        player = Player(conversation)
        player.start()
        for _, server in conversation.turns:
            for chunk in bytewise(wire(server)):
                seen.add((player.machine.state, player.machine.waiting_for))
                player.events += player.machine.receive(chunk)
            player.react()
    missing = {(state, step) for state, step, _ in REPLIES} - seen
    assert missing <= {(State.QUIT, Waiting.QUIT), (State.REFUSED, Waiting.RSET)}


def test_withdrawn_while_its_reset_is_outstanding() -> None:
    machine = SmtpDelivery(PLAIN)
    machine.offer("A", envelope("A"))
    machine.receive(b"250 ok\r\n")
    machine.receive(b"550 who\r\n")
    machine.data_to_send()
    machine.offer("B", envelope("B"))
    assert machine.data_to_send() == b"RSET\r\n"
    machine.withdraw("B")
    assert machine.receive(b"250 ok\r\n") == []
    assert machine.state is State.IDLE
    machine.offer("C", envelope("C"))
    assert machine.data_to_send().startswith(b"MAIL FROM:<C@")


# What the server offers


def first_line(extensions: Extensions, mail: Envelope) -> bytes | Unsendable:
    machine = SmtpDelivery(extensions)
    return machine.offer("A", mail) or machine.data_to_send().partition(b"\r\n")[0]


FULL = extensions_from_ehlo({"pipelining": "", "SIZE": "1000", "8BITMIME": "", "SMTPUTF8": ""})
OFFERS = [
    (PLAIN, Envelope("", "a@b.example"), b"MAIL FROM:<>"),
    (FULL, Envelope("f@x.example", "a@b.example"), b"MAIL FROM:<f@x.example> BODY=8BITMIME"),
    (FULL, Envelope("f@x.example", "a@b.example", 1000, False), b"MAIL FROM:<f@x.example> SIZE=1000"),
    (FULL, Envelope("f@x.example", "a@b.example", 1001), Unsendable("A", Obstacle.SIZE)),
    (PLAIN, Envelope("f@x.example", "a@b.example", 10**9), b"MAIL FROM:<f@x.example>"),
    (PLAIN, Envelope("f@x.example", "a@b.example", None, True), Unsendable("A", Obstacle.EIGHT_BIT)),
    (PLAIN, Envelope("f@x.example", "ü@b.example"), Unsendable("A", Obstacle.SMTPUTF8)),
    (PLAIN, Envelope("ü@x.example", "a@b.example"), Unsendable("A", Obstacle.SMTPUTF8)),
    (FULL, Envelope("f@x.example", "ü@b.example", None, False), b"MAIL FROM:<f@x.example> SMTPUTF8"),
]


@pytest.mark.parametrize(("extensions", "mail", "expected"), OFFERS)
def test_parameters_of_mail(extensions: Extensions, mail: Envelope, expected: bytes | Unsendable) -> None:
    assert first_line(extensions, mail) == expected


def test_an_unsendable_mail_changes_nothing() -> None:
    machine = SmtpDelivery(PLAIN)
    assert machine.offer("A", Envelope("f@x.example", "ü@b.example")) is not None
    assert machine.state is State.IDLE
    assert machine.data_to_send() == b""


@pytest.mark.parametrize("size", ["", "x", "-1", "9" * 30, "²"])
def test_a_senseless_size_is_no_limit(size: str) -> None:
    assert extensions_from_ehlo({"SIZE": size}).size_max_bytes == 0


# Bounds on what a server may say


def replies_to_mail(data: bytes) -> list[Event]:
    machine = SmtpDelivery(PLAIN)
    machine.offer("A", envelope("A"))
    events: list[Event] = []
    for start in range(0, len(data), 997):
        events += machine.receive(data[start : start + 997])
    assert machine.receive(data[:0]) == []
    return events


BROKEN = (NotBegun, Closed)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (line_max_bytes + 2),
        b"250 " + b"x" * line_max_bytes + b"\r\n",
        b"250-" + b"x" * 100 + b"\r\n250-" * 20_000,
        b"250-x\r\n" * (reply_max_bytes // 7 + 1),
        b"250 o\rk\r\n",
        b"250 o\0k\r\n",
        b"\r\n",
        b"25\r\n",
        b"2500 ok\r\n",
        b"150 ok\r\n",
        b"650 ok\r\n",
        b"\xff\xfe\xfd\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        "２５０ ok\r\n".encode(),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_broken_replies_end_the_connection(data: bytes) -> None:
    events = replies_to_mail(data)
    assert [type(event) for event in events] == list(BROKEN)
    assert isinstance(events[1], Closed)
    assert events[1].cause is Cause.PROTOCOL_ERROR


def test_a_line_of_the_greatest_length_is_read() -> None:
    data = b"550 " + b"x" * (line_max_bytes - 4) + b"\r\n"
    for chunks in (whole(data), bytewise(data)):
        machine = SmtpDelivery(PLAIN)
        machine.offer("A", envelope("A"))
        assert len([event for chunk in chunks for event in machine.receive(chunk)]) == 1
        assert not machine.closed
