"""Taking a partition over: what the books say is believed, what they cannot say stops it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.contract.virtual_time import run_virtually
from tests.unit.sender_world import LANE, NAMES, World, at, config, mail

from postlane.core.books import Entry
from postlane.core.events import Intent, Outcome
from postlane.core.policy import Topics
from postlane.core.rules import Rules
from postlane.eventlog.codec import encode
from postlane.eventlog.memory import MemoryLog
from postlane.eventlog.ports import Committed, Outgoing, Partition
from postlane_sender.recorder import FlightRecorder
from postlane_sender.takeover import BooksDamaged, floor_of, metadata

ONE = config(topics=Topics(partitions=1))
DISPATCH, STATE = Partition(NAMES.dispatch(LANE), 0), Partition(NAMES.state(LANE), 0)


def commit(world: World, offset: int, text: str) -> None:
    world.cluster.group(NAMES.sender_group(LANE)).committed[DISPATCH] = Committed(offset, text)


def write(world: World, *records: Intent | Outcome) -> None:
    for record in records:
        world.cluster.write(entry(record))


def entry(record: Intent | Outcome) -> Outgoing:
    return Outgoing(STATE.topic, 0, f"{record.delivery_id}#{record.hop}".encode(), encode(record))


def intent_of(key: str, offset: int, *, ttl_s: float = 5, boot: str = "other", hop: int = 0) -> Intent:
    return Intent(
        delivery_id=mail(key).delivery_id, hop=hop, attempt=1, offset=offset, instance="s0", boot=boot,
        provider="primary", ttl_ms=int(ttl_s * 1000), at=at(0),
    )  # fmt: skip


def outcome_of(key: str, offset: int) -> Outcome:
    return Outcome(delivery_id=mail(key).delivery_id, hop=0, offset=offset, result="Delivered", at=at(0))


@pytest.mark.parametrize("text", ["", "S1:", "S1:-3", "S2:5", "S1:five", "5", "S1:５x"])
def test_metadata_that_is_not_ours_is_damage(text: str) -> None:
    with pytest.raises(BooksDamaged, match="offsets-lost"):
        floor_of(text)


def test_metadata_comes_back() -> None:
    assert floor_of(metadata(0)) == 0
    assert floor_of(metadata(2**60)) == 2**60


def test_settled_in_doubt_and_fresh_are_told_apart() -> None:
    async def main() -> None:
        world = World(ONE)
        for key in ("settled", "doubt", "fresh"):
            world.put(mail(key))
        write(world, intent_of("settled", 0), outcome_of("settled", 0), intent_of("doubt", 1))
        commit(world, 0, metadata(0))
        sender = world.sender()
        await world.until(lambda: "Delivered" in world.kinds(mail("fresh")))
        assert asyncio.get_running_loop().time() < 4
        assert world.kinds(mail("doubt")) == []
        assert world.committed()[0].offset == 1
        await world.settled()
        assert 5 <= asyncio.get_running_loop().time() < 8
        assert world.kinds(mail("settled")) == []
        assert world.took(mail("settled")) == world.took(mail("doubt")) == 0
        assert world.kinds(mail("doubt")) == ["Uncertain"]
        await sender.stop()

    run_virtually(main())


def test_lost_offsets_beside_books_that_are_not_empty_start_nothing() -> None:
    async def main() -> None:
        world = World(ONE)
        world.put(mail("a"))
        write(world, intent_of("a", 0))
        sender = world.sender()
        await world.until(lambda: "offsets were lost" in (sender.loop.not_ready() or ""))
        await asyncio.sleep(20)
        assert world.took(mail("a")) == 0
        assert world.committed() == {}
        await sender.stop()

    run_virtually(main())


def test_books_that_retention_has_overtaken_start_nothing() -> None:
    async def main() -> None:
        world = World(ONE)
        world.put(mail("a"))
        write(world, intent_of("x", 0), outcome_of("x", 0), intent_of("a", 0))
        commit(world, 0, metadata(1))
        world.cluster.trim(STATE, 2)
        sender = world.sender()
        await world.until(lambda: "offsets-lost" in (sender.loop.not_ready() or ""))
        await asyncio.sleep(20)
        assert world.took(mail("a")) == 0
        await sender.stop()

    run_virtually(main())


def test_overtaken_books_of_a_lane_in_which_nothing_waits_are_no_damage() -> None:
    async def main() -> None:
        world = World(ONE)
        world.put(mail("old"))
        write(world, intent_of("old", 0), outcome_of("old", 0))
        commit(world, 1, metadata(1))
        world.cluster.trim(STATE, 2)
        sender = world.sender()
        await world.until(lambda: sender.loop.not_ready() is None)
        world.put(mail("new"))
        await world.settled()
        assert world.took(mail("new")) == 1
        await sender.stop()

    run_virtually(main())


def test_a_state_record_that_cannot_be_read_is_damage() -> None:
    async def main() -> None:
        world = World(ONE)
        world.put(mail("a"))
        world.cluster.write(Outgoing(STATE.topic, 0, f"{mail('a').delivery_id}#0".encode(), b'{"kind":"int'))
        commit(world, 0, metadata(0))
        sender = world.sender()
        await world.until(lambda: "cannot be read" in (sender.loop.not_ready() or ""))
        await asyncio.sleep(20)
        assert world.took(mail("a")) == 0
        await sender.stop()

    run_virtually(main())


def test_a_dispatch_log_that_begins_above_o_ends_the_process() -> None:
    async def main() -> None:
        world = World(ONE)
        for n in range(5):
            world.put(mail(f"m{n}"))
        commit(world, 1, metadata(0))
        world.cluster.trim(DISPATCH, 3)
        sender = world.sender()
        with pytest.raises(BooksDamaged, match="offsets-lost"):
            await asyncio.wait_for(sender.task, 30)
        assert not world.primary.took

    run_virtually(main())


@pytest.mark.parametrize("value", [b"", b"[", b'{"kind":"intent","hop":-1}', b"null"])
def test_a_state_record_that_no_sender_wrote_is_passed_over(value: bytes) -> None:
    async def main() -> None:
        world = World(ONE)
        world.put(mail("done"))
        world.put(mail("tried"))
        world.put(mail("new"))
        for key in (None, b"", b"poison", b"poison#", b"#1x"):
            world.cluster.write(Outgoing(STATE.topic, 0, key, value))
        write(world, intent_of("done", 0), outcome_of("done", 0), intent_of("tried", 1))
        for key in (b"poison", None, entry(intent_of("done", 0)).key):  # readable, and not under the key of its own
            world.cluster.write(Outgoing(STATE.topic, 0, key, encode(outcome_of("tried", 1))))
            world.cluster.write(Outgoing(STATE.topic, 0, key, encode(intent_of("new", 10**12))))
        world.cluster.write(Outgoing(STATE.topic, 0, b"poison", value))
        commit(world, 0, metadata(0))
        sender = world.sender()
        await world.settled()
        assert [world.took(mail(name)) for name in ("done", "tried", "new")] == [0, 0, 1]
        assert world.kinds(mail("tried")) == ["Uncertain"]
        await sender.stop()

    run_virtually(main())


def test_one_damaged_partition_does_not_stop_the_others() -> None:
    async def main() -> None:
        world = World()
        world.put(mail("shut"), 0)
        write(world, intent_of("shut", 0))
        world.put(mail("open"), 1)
        sender = world.sender()
        await world.until(lambda: world.took(mail("open")) == 1)
        assert world.took(mail("shut")) == 0
        assert "offsets were lost" in (sender.loop.not_ready() or "")
        await sender.stop()

    run_virtually(main())


def test_a_dead_writers_open_transaction_is_waited_for() -> None:
    """Its records lie above the last stable offset: a takeover bounded by that would miss the intent."""

    async def main() -> None:
        world = World(ONE)
        world.put(mail("a"))
        dead = await MemoryLog(world.cluster, "dead").transactor("dead")
        commit(world, 0, metadata(0))
        epoch = world.cluster.producers["dead"].epoch
        record = entry(intent_of("a", 0))
        world.cluster.write_open("dead", epoch, STATE, record)
        sender = world.sender()
        await asyncio.sleep(5)
        assert "taking over" in (sender.loop.not_ready() or "")
        assert world.took(mail("a")) == 0
        world.cluster.end("dead", epoch, commit=True)  # it was decided, and only now is it seen
        await world.settled()
        assert world.kinds(mail("a")) == ["Uncertain"]
        assert world.took(mail("a")) == 0
        await sender.stop()
        await dead.close()

    run_virtually(main())


def test_control_records_at_the_end_are_read_past() -> None:
    async def main() -> None:
        world = World(ONE)
        world.put(mail("a"))
        dead = await MemoryLog(world.cluster, "dead").transactor("dead")
        epoch = world.cluster.producers["dead"].epoch
        world.cluster.write_open("dead", epoch, STATE, entry(intent_of("a", 0)))
        world.cluster.end("dead", epoch, commit=False)
        commit(world, 0, metadata(0))
        sender = world.sender()
        await world.settled(10)
        assert world.kinds(mail("a")) == ["Attempted", "Delivered"], "an aborted intent never was"
        await sender.stop()
        await dead.close()

    run_virtually(main())


def test_the_flight_recorder_narrows_the_doubt_of_our_own_past(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(ONE)
        keys = ("never", "noreply", "accepted", "refused", "foreign")
        path = tmp_path / "flight.bin"
        past = FlightRecorder(path, "life-a")
        for n, key in enumerate(keys):
            world.put(mail(key))
            write(world, intent_of(key, n, boot="life-b" if key == "foreign" else "life-a"))
            entry = Entry(0, n, mail(key))
            if key != "never":
                past.begun(entry)
            if key == "accepted":
                past.replied(entry, 250)
            if key == "refused":
                past.replied(entry, 450)
        commit(world, 0, metadata(0))
        sender = world.sender(recorder=FlightRecorder(path, "life-c"))
        await world.until(lambda: all(world.kinds(mail(key)) for key in keys[:4]), 4)
        await world.until(lambda: "Delivered" in world.kinds(mail("never")), 1)
        assert world.kinds(mail("never")) == ["Attempted", "Delivered"]
        assert world.kinds(mail("noreply")) == ["Uncertain"]
        assert world.kinds(mail("accepted")) == ["Delivered"]
        assert world.kinds(mail("refused")) == ["Deferred"]
        assert world.kinds(mail("foreign")) == [], "another's intent waits its time"
        await world.settled()
        assert world.kinds(mail("foreign")) == ["Uncertain"]
        assert [world.took(mail(key)) for key in keys] == [1, 0, 0, 0, 0]
        await sender.stop()

    run_virtually(main())


def test_without_the_wait_rules_a_doubt_is_decided_at_once() -> None:
    """The mutation controls of the proof really switch the rules."""

    async def main() -> None:
        world = World(ONE)
        world.put(mail("a"))
        write(world, intent_of("a", 0, ttl_s=600))
        commit(world, 0, metadata(0))
        sender = world.sender(rules=Rules(wait_for_lapse=False))
        await world.settled(5)
        assert world.kinds(mail("a")) == ["Uncertain"]
        await sender.stop()

    run_virtually(main())


def test_the_cost_of_a_takeover_is_not_that_of_the_history() -> None:
    async def main() -> None:
        world = World(config(topics=Topics(partitions=1), lane={"max_span": 64}))
        for n in range(600):
            world.put(mail(f"h{n}"))
        first = world.sender("s1")
        await world.settled()
        await first.stop()
        second = world.sender("s2")
        await world.until(lambda: 0 in second.lane.books)
        history = second.lane.books[0].history
        assert (history.records if history else 0) <= 3 * 64
        assert world.cluster.log(STATE).end > 1200
        await second.stop()

    run_virtually(main())
