"""The book of a partition: O, S, rolled back and committed ticks, and what a takeover finds, against a naive model."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postlane.core.books import Book, Entry, Found, History, Stage
from postlane.core.events import DispatchReady, Intent, MailContent, Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def entry(offset: int, delivery: str | None = None, hop: int = 0) -> Entry:
    ready = DispatchReady(
        delivery_id=delivery or f"d{offset}", message_id="m", recipient="a@example.com", hop=hop, lane="bulk",
        requested_at=NOW, content=MailContent(sender="b@example.org"),
    )  # fmt: skip
    return Entry(0, offset, ready)


def intent(offset: int, delivery: str | None = None, hop: int = 0) -> Intent:
    ident = delivery or f"d{offset}"
    return Intent(delivery_id=ident, hop=hop, attempt=1, offset=offset, instance="i", ttl_ms=1, at=NOW)


def outcome(offset: int, delivery: str | None = None, hop: int = 0) -> Outcome:
    return Outcome(delivery_id=delivery or f"d{offset}", hop=hop, offset=offset, result="Delivered", at=NOW)


def history(*records: Intent | Outcome) -> History:
    made = History()
    for record in records:
        made.add(record)
    return made


# ------------------------------------------------------------------------------------------------------------- tables


def test_o_stops_at_the_oldest_unsettled_record_and_s_at_its_first_state_record() -> None:
    book = Book(0, 10, 100, 100)
    first, second = entry(10), entry(11)
    book.admit(first)
    book.admit(second)
    book.note(first, Stage.STARTING)
    assert book.position() == (10, 100)
    book.committed([first], 103)
    book.note(second, Stage.STARTING)
    assert book.position() == (10, 100)
    book.committed([second], 106)
    second.stage = Stage.ENDED
    book.note(second, Stage.SETTLING)
    assert book.position() == (10, 100), "an outcome above O holds S no less than an intent does"
    assert book.unsettled == 2
    book.committed([second], 109)
    assert (book.unsettled, book.span) == (1, 2), "what is settled behind the oldest is no work any more"
    first.stage = Stage.ENDED
    book.note(first, Stage.SETTLING)
    assert book.position() == (12, 109)


def test_a_rolled_back_tick_leaves_no_trace() -> None:
    book = Book(0, 0, 5, 5)
    a, b = entry(0), entry(1)
    book.admit(a)
    book.admit(b)
    book.note(a, Stage.STARTING)
    book.position()
    book.committed([a], 7)
    a.stage = Stage.ENDED
    book.note(a, Stage.SETTLING)
    book.note(b, Stage.STARTING)
    assert book.position() == (1, 7)
    book.rolled_back([a, b])
    assert (a.stage, b.stage) == (Stage.ENDED, Stage.FRESH)
    assert book.oldest == 0
    assert [e.offset for e in book.entries] == [0, 1]
    book.note(a, Stage.SETTLING)
    assert book.position() == (1, 7)
    book.committed([a], 9)
    assert (book.oldest, book.state_end) == (1, 9)


def test_an_outcome_without_an_intent_counts_from_its_own_tick() -> None:
    book = Book(0, 0, 5, 5)
    a, b = entry(0), entry(1)
    book.admit(a)
    book.admit(b)
    b.stage = Stage.ENDED  # held at once, while the one before it waits
    book.note(b, Stage.SETTLING)
    assert book.position() == (0, 5)
    book.committed([b], 6)
    a.stage = Stage.ENDED
    book.note(a, Stage.SETTLING)
    assert book.position() == (2, 6)


def test_a_record_that_is_read_twice_is_known() -> None:
    book = Book(0, 0, 0, 0)
    book.admit(entry(0))
    assert book.admit(entry(0)) == (Found.SETTLED, None)
    assert len(book.entries) == 1


def test_what_the_history_settled_moves_o_without_a_record() -> None:
    book = Book(0, 0, 0, 9, history=history(outcome(0), outcome(1)))
    assert not book.stale
    assert book.admit(entry(0))[0] is Found.SETTLED
    assert book.admit(entry(1))[0] is Found.SETTLED
    assert book.stale
    assert book.position() == (2, 9)
    book.committed([], None)
    assert not book.stale


def test_s_stays_until_o_has_passed_what_the_history_speaks_of() -> None:
    """The takeover's knowledge comes from S on: another takeover needs the same as long as O has not passed it."""
    book = Book(0, 0, 3, 9, history=history(intent(0), outcome(1), intent(2)))
    doubtful, settled, third = entry(0), entry(1), entry(2)
    assert book.admit(doubtful)[0] is Found.IN_DOUBT
    assert book.position()[1] == 3
    book.committed([], None)
    assert book.admit(settled)[0] is Found.SETTLED
    assert book.admit(third)[0] is Found.IN_DOUBT
    doubtful.stage = Stage.ENDED
    book.note(doubtful, Stage.SETTLING)
    assert book.position() == (2, 3), "the third rests on S too"
    book.committed([doubtful], 11)
    third.stage = Stage.ENDED
    book.note(third, Stage.SETTLING)
    assert book.position() == (3, 11)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ((), Found.FRESH),
        ((intent(4),), Found.IN_DOUBT),
        ((outcome(4),), Found.SETTLED),
        ((intent(4), outcome(4)), Found.SETTLED),
        ((intent(4, hop=1),), Found.SETTLED),  # a record of a later hop settles all earlier ones
        ((intent(1, "d4", hop=0),), Found.IN_DOUBT),
        ((outcome(4, "other"),), Found.FRESH),
        ((intent(4, "d4", hop=0), outcome(9, "d4", hop=2)), Found.SETTLED),
    ],
)
def test_what_a_takeover_finds(records: tuple[Any, ...], found: Found) -> None:
    assert history(*records).find(entry(4))[0] is found


def test_an_earlier_hop_says_nothing_of_a_later_one() -> None:
    assert history(outcome(2, "d", hop=1)).find(entry(7, "d", hop=2)) == (Found.FRESH, None)


def test_an_undecodable_record_has_a_key_of_its_own() -> None:
    poison = Entry(0, 12, None)
    found = history(Outcome(delivery_id="@12", hop=0, offset=12, result="Undecodable", at=NOW)).find(poison)
    assert found[0] is Found.SETTLED


# ---------------------------------------------------------------------------------------------------------- the model


@dataclass
class Naive:
    """A state partition and a sender's knowledge, kept in the plainest way."""

    log: list[tuple[int, int, str]] = field(default_factory=list)  # (position, dispatch offset, "intent"/"outcome")
    end: int = 0
    settled: set[int] = field(default_factory=set)

    def write(self, records: list[tuple[int, str]]) -> int:
        """A committed tick; the position after our last record, behind which a control record follows."""
        for offset, kind in records:
            self.log.append((self.end, offset, kind))
            self.end += 1
        after = self.end
        self.end += 1
        return after

    def check(self, low_water: int, floor: int, read_to: int, drafted: set[int]) -> None:
        unsettled = [n for n in range(read_to) if n not in self.settled | drafted]
        assert low_water == (min(unsettled) if unsettled else read_to)
        needed = [position for position, offset, _ in self.log if offset >= low_water]
        assert all(floor <= position for position in needed), "S is above a record that a takeover needs"
        assert floor <= self.end

    def takeover(self, committed: tuple[int, int]) -> Book:
        low_water, floor = committed
        found = history(*(intent(o) if kind == "intent" else outcome(o) for p, o, kind in self.log if p >= floor))
        return Book(0, low_water, floor, self.end, history=found if found.records else None)

    def expected(self, offset: int) -> Found:
        kinds = {kind for _, o, kind in self.log if o == offset}
        return Found.SETTLED if "outcome" in kinds else Found.IN_DOUBT if kinds else Found.FRESH


MOVES = st.lists(
    st.tuples(st.sampled_from(["read", "tick", "abort", "crash"]), st.integers(0, 2**16 - 1)), min_size=1, max_size=60
)


@settings(max_examples=400, deadline=None)
@given(MOVES)
def test_any_interleaving_keeps_o_and_s_true(moves: list[tuple[str, int]]) -> None:
    naive = Naive()
    committed = (0, 0)
    book = Book(0, 0, 0, 0)
    held: dict[int, Entry] = {}

    def read() -> None:
        made = entry(book.next_offset)
        expected = naive.expected(made.offset)
        found, _ = book.admit(made)
        assert found is expected
        held[made.offset] = made

    def draft(bits: int) -> tuple[list[Entry], list[tuple[int, str]]]:
        drafted, records = [], []
        for n, one in enumerate(list(held.values())):
            if not bits >> (n % 16) & 1:
                continue
            if one.stage is Stage.FRESH:
                book.note(one, Stage.STARTING)
                records.append((one.offset, "intent"))
            elif one.stage in (Stage.STARTED, Stage.DOUBT, Stage.ENDED):
                book.note(one, Stage.SETTLING)
                records.append((one.offset, "outcome"))
            else:
                continue
            drafted.append(one)
        return drafted, records

    for move, bits in moves:
        if move == "read":
            for _ in range(bits % 4 + 1):
                read()
        elif move == "crash":
            book, held = naive.takeover(committed), {}
        else:
            drafted, records = draft(bits)
            settling = {one.offset for one in drafted if one.stage is Stage.SETTLING}
            _ = book.stale
            position = book.position()
            naive.check(*position, book.next_offset, settling)
            if move == "abort":
                naive.end += bits % 3  # aborted records and a marker take offsets too
                book.rolled_back(drafted)
                assert book.oldest == min(
                    [o for o in range(book.next_offset) if o not in naive.settled], default=0
                ) or (book.oldest == book.next_offset)
            else:
                after = naive.write(records) if records else None
                naive.settled |= settling
                book.committed(drafted, after)
                committed = position
            held = {n: one for n, one in held.items() if one.stage is not Stage.SETTLED}
        assert committed[0] <= book.oldest
