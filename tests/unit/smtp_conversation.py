"""Plays a scripted server against the SMTP machine, its bytes split at will."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from postlane.core.smtp import SmtpDelivery
from postlane.core.smtp_envelope import Envelope
from postlane.core.smtp_events import Accepted, Closed, EnvelopeAccepted, Event, InDoubt, NotBegun, Refused
from postlane.core.smtp_wire import Extensions

PLAIN = Extensions()
PIPELINED = Extensions(pipelining=True)
RESULTS = (Accepted, Refused, NotBegun, InDoubt)


@dataclass(frozen=True)
class Conversation:
    """`turns`: what the client has written, what the server answers, by turns; the client's is compared."""

    name: str
    extensions: Extensions
    mails: str  # one letter a mail
    turns: tuple[tuple[str, str], ...]
    expected: tuple[str, ...]
    withdraw: str = ""  # mails withdrawn when their body is wanted
    withdraw_early: str = ""  # mails withdrawn after the first write

    def server(self) -> bytes:
        """All that the server says."""
        return b"".join(wire(answer) for _, answer in self.turns)


def wire(text: str) -> bytes:
    """`/` stands for CRLF."""
    return text.replace("/", "\r\n").encode()


def envelope(ref: str) -> Envelope:
    return Envelope(f"{ref}@from.example", f"{ref}@to.example")


def body(ref: str) -> bytes:
    return f"body {ref}\r\n".encode()


def describe(event: Event) -> str:
    """An event in one line, for tables."""
    if isinstance(event, EnvelopeAccepted):
        return f"body? {event.ref}"
    if isinstance(event, Accepted):
        return f"accepted {event.ref} {event.reply}"
    if isinstance(event, Refused):
        return f"refused {event.ref} {event.phase} {event.reply}"
    if isinstance(event, NotBegun):
        return f"not begun {event.ref} {event.phase}"
    if isinstance(event, InDoubt):
        return f"in doubt {event.ref}"
    return f"closed: {event.cause}"


@dataclass
class Player:
    """The client: offers when it may, answers at the end of a server's turn only."""

    conversation: Conversation
    machine: SmtpDelivery = field(init=False)
    events: list[Event] = field(default_factory=list)
    offered: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = SmtpDelivery(self.conversation.extensions)
        self.waiting = list(self.conversation.mails)

    def react(self) -> bytes:
        machine = self.machine
        while self.waiting and machine.can_offer:
            ref = self.waiting.pop(0)
            assert machine.offer(ref, envelope(ref)) is None
            self.offered.append(ref)
        wanted = machine.body_wanted
        if wanted is not None and machine.may_send_body(wanted):
            if wanted in self.conversation.withdraw:
                self.events += machine.withdraw(wanted)
            else:
                machine.send_body(wanted, body(wanted))
        return machine.data_to_send()

    def start(self) -> bytes:
        written = self.react()
        for ref in self.conversation.withdraw_early:
            self.events += self.machine.withdraw(ref)
        return written

    def hear(self, chunks: Iterable[bytes]) -> bytes:
        written = b""
        for chunk in chunks:
            self.events += self.machine.receive(chunk)
            written += self.machine.data_to_send()
        return written + self.react()

    def described(self) -> list[str]:
        return [describe(event) for event in self.events]

    def check_one_result_each(self) -> None:
        results = [event.ref for event in self.events if isinstance(event, RESULTS)]
        assert sorted(results) == sorted(self.offered)
        assert [isinstance(event, Closed) for event in self.events].count(True) == 1
        assert isinstance(self.events[-1], Closed)


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def two_splits(data: bytes) -> Iterator[list[bytes]]:
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]
