"""The book of a partition: O never passes what is unsettled, S never lies above a record that a takeover needs."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postlane.core.books import Book, Entry, Found, History, Stage
from postlane.core.events import DispatchReady, Intent, MailContent, Outcome

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def mail(offset: int, hop: int = 0) -> DispatchReady:
    return DispatchReady(
        delivery_id=f"d{offset}", message_id="m", recipient="a@example.com", hop=hop, lane="bulk", requested_at=NOW,
        content=MailContent(sender="b@example.com"),
    )  # fmt: skip


def intent(offset: int, hop: int = 0, delivery: str | None = None) -> Intent:
    return Intent(
        delivery_id=delivery or f"d{offset}", hop=hop, attempt=1, offset=offset, instance="i", ttl_ms=1000, at=NOW
    )


def outcome(offset: int, hop: int = 0, delivery: str | None = None) -> Outcome:
    return Outcome(delivery_id=delivery or f"d{offset}", hop=hop, offset=offset, result="Delivered", at=NOW)


def test_a_takeover_finds_what_the_state_says() -> None:
    history = History()
    for record in (intent(10), outcome(10), intent(11), intent(13, hop=1, delivery="d12"), outcome(13, 1, "d12")):
        history.add(record)
    book = Book(0, 10, 5, 20, history=history)
    found = [book.admit(Entry(0, n, mail(n)))[0] for n in (10, 11, 12)]
    # 12 has no record of its own, but one of a later hop settles it.
    assert found == [Found.SETTLED, Found.IN_DOUBT, Found.SETTLED]
    assert book.history is not None
    assert book.admit(Entry(0, 14, mail(14)))[0] is Found.FRESH
    assert book.history is None, "what the state topic said is forgotten once reading has passed it"
    assert book.stale
    assert book.oldest == 11


def test_o_stops_at_the_oldest_unsettled_and_s_at_what_rests_above_it() -> None:
    book = Book(0, 0, 0, 100)
    entries = [Entry(0, n, mail(n)) for n in range(3)]
    for entry in entries:
        book.admit(entry)
    for entry in entries:
        book.note(entry, Stage.STARTING)
    assert book.position() == (0, 100)
    book.committed(entries, 103)
    entries[1].stage = Stage.ENDED
    book.note(entries[1], Stage.SETTLING)
    assert book.position() == (0, 100)  # 1 is settled, 0 is not
    book.committed([entries[1]], 104)
    for n in (0, 2):
        entries[n].stage = Stage.ENDED
        book.note(entries[n], Stage.SETTLING)
    assert book.position() == (3, 104)
    book.committed([entries[0], entries[2]], 106)
    assert book.position() == (3, 106)


class World:
    """A book beside a naive account of the state topic: every record with its real offset."""

    def __init__(self) -> None:
        self.book = Book(0, 0, 0, 0)
        self.entries: list[Entry] = []
        self.log = 0  # the end of the state topic; aborted records and markers take offsets too
        self.records: dict[int, list[int]] = {}  # dispatch offset -> offsets of its committed state records

    def tick(self, picks: list[int], commits: bool) -> None:
        drafted, moved = [], []
        for pick in picks:
            entry = self.entries[pick % len(self.entries)]
            if entry in drafted:
                continue
            if entry.stage is Stage.FRESH:
                self.book.note(entry, Stage.STARTING)
            elif entry.stage is Stage.STARTED:
                entry.stage = Stage.ENDED
                self.book.note(entry, Stage.SETTLING)
            elif entry.stage is Stage.ENDED:
                self.book.note(entry, Stage.SETTLING)
            else:
                continue
            drafted.append(entry)
        low_water, floor = self.book.position()
        for entry in drafted:
            moved.append((entry.offset, self.log))
            self.log += 1
        self.log += 1  # the marker
        if not commits:
            before = [(e, e.stage) for e in drafted]
            self.book.rolled_back(drafted)
            for entry, stage in before:
                assert entry.stage is (Stage.FRESH if stage is Stage.STARTING else Stage.ENDED)
            return
        for offset, at in moved:
            self.records.setdefault(offset, []).append(at)
        self.book.committed(drafted, moved[-1][1] + 1 if moved else None)
        unsettled = [e.offset for e in self.entries if e.stage is not Stage.SETTLED]
        assert low_water == (min(unsettled) if unsettled else self.book.next_offset)
        needed = [at for offset, places in self.records.items() if offset >= low_water for at in places]
        assert floor <= min(needed, default=self.log)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just("read"), st.tuples(st.lists(st.integers(0, 30), max_size=6), st.booleans())
        ),
        max_size=40,
    )
)  # fmt: skip
def test_whatever_the_order_of_things(steps: list[str | tuple[list[int], bool]]) -> None:
    world = World()
    for step in steps:
        if isinstance(step, str):
            entry = Entry(0, world.book.next_offset, mail(world.book.next_offset))
            world.entries.append(entry)
            world.book.admit(entry)
        elif world.entries:
            world.tick(*step)


def test_a_record_that_is_read_twice_is_known() -> None:
    book = Book(0, 4, 0, 0)
    assert book.admit(Entry(0, 4, mail(4)))[0] is Found.FRESH
    assert book.admit(Entry(0, 4, mail(4)))[0] is Found.SETTLED
    assert len(book.entries) == 1


@pytest.mark.parametrize("read", [0, 1, 5])
def test_the_span_is_what_lies_between_o_and_reading(read: int) -> None:
    book = Book(0, 7, 0, 0)
    for n in range(read):
        book.admit(Entry(0, 7 + n, mail(7 + n)))
    assert book.span == read
