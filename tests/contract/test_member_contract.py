"""What a log promises (postlane.eventlog.ports), held against every adapter alike: members, fencing, positions."""

from __future__ import annotations

import asyncio

import pytest

from postlane.eventlog.errors import Aborted, Fenced, OffsetGone, Retriable
from postlane.eventlog.ports import Committed, Outgoing, Partition, Transaction
from tests.contract.log_benches import Bench, Recorder, joined, pump, record, unique, values, writes

Journal = list[tuple[str, str, tuple[int, ...]]]


async def fill(bench: Bench, topic: str, partitions: int, each: int) -> None:
    appender = bench.log("filler").appender()
    for n in range(partitions):
        for i in range(each):
            appender.append_soon(Outgoing(topic, n, None, b"%d-%d" % (n, i), []))
    await appender.flush(20)


async def test_offsets_and_their_metadata_come_back_as_committed(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    await fill(bench, topic, 2, 3)
    group, journal = unique("group"), Journal()
    recorder = Recorder("a", journal)
    member = await joined(log, group, topic, recorder)
    await pump(lambda: bool(recorder.owned), member)
    assert await member.committed([zero, one]) == {zero: None, one: None}
    transactor = await log.transactor(unique("tx"))
    offsets = {zero: Committed(2, "S=17;x" * 100)}
    await transactor.commit(Transaction([record(one, b"out")], offsets, member.membership))
    assert await member.committed([zero, one]) == {zero: Committed(2, "S=17;x" * 100), one: None}
    await transactor.commit(Transaction([], {one: Committed(0, "")}, member.membership))  # offsets alone
    assert (await member.committed([one]))[one] == Committed(0, "")


async def test_nothing_is_delivered_before_start_and_then_from_there(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    await fill(bench, topic, 2, 10)
    recorder = Recorder("a", [], start_at=None)
    member = await joined(log, unique("group"), topic, recorder)
    early = await pump(lambda: bool(recorder.owned), member)
    for _ in range(5):
        early += await member.poll(100, 0.05)
    assert early == []
    member.start(zero, 7)
    found = await _collect(member, 3)
    assert [(r.partition, r.offset) for r in found] == [(0, 7), (0, 8), (0, 9)]
    member.start(one, 0)
    found = await _collect(member, 10)
    assert [(r.partition, r.offset) for r in found] == [(1, i) for i in range(10)]
    member.start(zero, 2)  # moves a started partition
    found = await _collect(member, 8)
    assert [(r.partition, r.offset) for r in found] == [(0, i) for i in range(2, 10)]


async def _collect(member, count):  # type: ignore[no-untyped-def]
    found = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await member.poll(100, 0.2)
    return found


async def test_paused_partitions_deliver_nothing_and_lose_nothing(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    await fill(bench, topic, 2, 200)
    recorder = Recorder("a", [])
    member = await joined(log, unique("group"), topic, recorder)
    found = []
    async with asyncio.timeout(20):
        while len(found) < 40:
            found += await member.poll(10, 0.2)
    member.pause([zero])
    paused_at = sum(r.partition == 0 for r in found)
    async with asyncio.timeout(20):
        while sum(r.partition == 1 for r in found) < 200:
            found += await member.poll(10, 0.2)
    found += await member.poll(10, 0.2)
    assert sum(r.partition == 0 for r in found) == paused_at
    member.resume([zero])
    async with asyncio.timeout(20):
        while len(found) < 400:
            found += await member.poll(10, 0.2)
    for partition in (zero, one):
        assert [r.offset for r in found if r.partition == partition.number] == list(range(200))


async def test_a_cancelled_poll_loses_nothing(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic()
    recorder = Recorder("a", [])
    member = await joined(log, unique("group"), topic, recorder)
    await pump(lambda: bool(recorder.owned), member)
    appender = log.appender()
    found = []
    for i in range(20):
        polling = asyncio.create_task(member.poll(100, 1.0))
        await asyncio.sleep(0.001 * (i % 4))
        await appender.append(record(Partition(topic, 0), b"%d" % i))
        if i % 2:
            polling.cancel()
        try:
            found += await polling
        except asyncio.CancelledError:
            pass
    async with asyncio.timeout(20):
        while len(found) < 20:
            found += await member.poll(100, 0.1)
    assert [r.offset for r in found] == list(range(20))


async def test_positions_pass_control_records_and_aborted_ones(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic()
    partition = Partition(topic, 0)
    transactor = await log.transactor(unique("tx"))
    await transactor.commit(writes(partition, b"1"))
    ident = unique("dead")
    await bench.dead_writer(ident, [record(partition, b"never")])
    await log.transactor(ident)
    await transactor.commit(writes(partition, b"2"))
    recorder = Recorder("a", [])
    member = await joined(log, unique("group"), topic, recorder)
    found = await _collect(member, 2)
    assert [(r.offset, r.value) for r in found] == [(0, b"1"), (4, b"2")]


async def test_a_started_position_that_retention_took_is_said_so(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic()
    await fill(bench, topic, 1, 10)
    await bench.retain_from(Partition(topic, 0), 6)
    recorder = Recorder("a", [], start_at=2)
    member = await joined(log, unique("group"), topic, recorder)
    with pytest.raises(OffsetGone):
        await pump(lambda: False, member, timeout_s=20)


async def test_a_partition_is_let_go_before_another_has_it(bench: Bench) -> None:
    topic = await bench.topic(4)
    group, journal = unique("group"), Journal()
    first, second = Recorder("first", journal), Recorder("second", journal)
    a = await joined(bench.log("a"), group, topic, first)
    await pump(lambda: len(first.owned) == 4, a)
    waiting = asyncio.Event()
    released = asyncio.Event()

    async def slow() -> None:
        waiting.set()
        await released.wait()

    first.letting_go = slow
    b = await joined(bench.log("b"), group, topic, second)
    pumping = asyncio.create_task(pump(lambda: len(first.owned) == 2 and len(second.owned) == 2, a, b))
    async with asyncio.timeout(20):
        await waiting.wait()
    await asyncio.sleep(0.1)
    assert ("first", "revoking", (0, 1, 2, 3)) in journal
    assert not any(name == "second" for name, _, _ in journal)
    released.set()
    await pumping
    told = journal.index(("first", "revoked", (0, 1, 2, 3)))
    assert all(journal.index(entry) > told for entry in journal if entry[0] == "second")
    assert sorted(p.number for p in first.owned | second.owned) == [0, 1, 2, 3]
    assert not first.owned & second.owned


async def test_offsets_may_still_be_committed_while_letting_go(bench: Bench) -> None:
    topic = await bench.topic(2)
    partition = Partition(topic, 0)
    group, journal = unique("group"), Journal()
    first, second = Recorder("first", journal), Recorder("second", journal)
    log = bench.log("a")
    a = await joined(log, group, topic, first)
    await pump(lambda: len(first.owned) == 2, a)
    transactor = await log.transactor(unique("tx"))

    async def last_tick() -> None:
        await transactor.commit(Transaction([], {partition: Committed(5, "last")}, a.membership))

    first.letting_go = last_tick
    b = await joined(bench.log("b"), group, topic, second)
    await pump(lambda: len(first.owned) == 1 and len(second.owned) == 1, a, b)
    assert await b.committed([partition]) == {partition: Committed(5, "last")}


async def test_offsets_of_an_older_generation_are_refused_and_their_records_with_them(bench: Bench) -> None:
    topic = await bench.topic(2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    group, journal = unique("group"), Journal()
    first, second = Recorder("first", journal), Recorder("second", journal)
    log = bench.log("a")
    a = await joined(log, group, topic, first)
    await pump(lambda: len(first.owned) == 2, a)
    old = first.memberships[-1]
    b = await joined(bench.log("b"), group, topic, second)
    await pump(lambda: len(first.owned) == 1 and len(second.owned) == 1, a, b)
    assert first.memberships[-1].generation > old.generation
    transactor = await log.transactor(unique("tx"))
    with pytest.raises(Aborted):
        await transactor.commit(Transaction([record(zero, b"zombie")], {one: Committed(9, "")}, old))
    # The same transactor goes on, and the member that lives may commit.
    await transactor.commit(Transaction([record(zero, b"alive")], {zero: Committed(1, "")}, a.membership))
    assert await a.committed([zero, one]) == {zero: Committed(1, ""), one: None}
    assert await values(log, zero) == [b"alive"]


async def test_offsets_of_a_member_that_left_are_refused(bench: Bench) -> None:
    topic = await bench.topic()
    partition = Partition(topic, 0)
    group = unique("group")
    gone, heir = Recorder("gone", []), Recorder("heir", [])
    log = bench.log("a")
    a = await joined(log, group, topic, gone)
    await pump(lambda: bool(gone.owned), a)
    await a.close()
    assert a.membership is None
    b = await joined(bench.log("b"), group, topic, heir)
    await pump(lambda: bool(heir.owned), b)
    transactor = await log.transactor(unique("tx"))
    with pytest.raises(Aborted):
        await transactor.commit(Transaction([], {partition: Committed(3, "")}, gone.memberships[-1]))
    assert await b.committed([partition]) == {partition: None}


async def test_a_static_member_comes_back_without_a_rebalance(bench: Bench) -> None:
    topic = await bench.topic(4)
    group, journal = unique("group"), Journal()
    stays, leaves = Recorder("stays", journal), Recorder("leaves", journal)
    a = await joined(bench.log("a"), group, topic, stays, "instance-a")
    b = await joined(bench.log("b"), group, topic, leaves, "instance-b")
    await pump(lambda: len(stays.owned) == 2 and len(leaves.owned) == 2, a, b)
    had, generation = leaves.owned, leaves.memberships[-1].generation
    await b.close()
    before = [entry for entry in journal if entry[0] == "stays"]
    back = Recorder("back", journal)
    b = await joined(bench.log("b2"), group, topic, back, "instance-b")
    await pump(lambda: bool(back.owned), a, b)
    assert back.owned == had
    assert back.memberships[-1].generation == generation
    assert back.memberships[-1].member_id != leaves.memberships[-1].member_id
    assert [entry for entry in journal if entry[0] == "stays"] == before
    # and what the one before it says now is refused as another process's
    transactor = await bench.log("zombie").transactor(unique("tx"))
    partition = min(had)
    with pytest.raises((Fenced, Aborted)):
        await transactor.commit(Transaction([], {partition: Committed(3, "")}, leaves.memberships[-1]))
    assert await b.committed([partition]) == {partition: None}


async def test_the_older_of_two_processes_with_one_instance_id_is_fenced(bench: Bench) -> None:
    topic = await bench.topic(2)
    group = unique("group")
    older, newer = Recorder("older", []), Recorder("newer", [])
    a = await joined(bench.log("a"), group, topic, older, "same")
    await pump(lambda: bool(older.owned), a)
    b = await joined(bench.log("b"), group, topic, newer, "same")
    await pump(lambda: bool(newer.owned), b)
    with pytest.raises(Fenced):
        await pump(lambda: False, a, timeout_s=20)


async def test_a_static_member_that_leaves_hands_its_partitions_over(bench: Bench) -> None:
    topic = await bench.topic(2)
    group = unique("group")
    leaves, stays = Recorder("leaves", []), Recorder("stays", [])
    a = await joined(bench.log("a"), group, topic, leaves, "instance-a")
    b = await joined(bench.log("b"), group, topic, stays, "instance-b")
    await pump(lambda: len(leaves.owned) == 1 and len(stays.owned) == 1, a, b)
    await a.close(leave=True)
    await pump(lambda: len(stays.owned) == 2, b)


async def test_unstable_offsets_are_never_taken_for_none(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic()
    partition = Partition(topic, 0)
    recorder = Recorder("a", [])
    member = await joined(log, unique("group"), topic, recorder)
    await pump(lambda: bool(recorder.owned), member)
    ident = unique("dead")
    await bench.dead_writer(ident, [], {partition: Committed(4, "open")}, member.membership)
    asking = asyncio.create_task(member.committed([partition]))
    with pytest.raises(Retriable):
        await asking
    await log.transactor(ident)
    assert await member.committed([partition]) == {partition: None}


async def test_an_exception_of_the_listener_is_raised_by_poll(bench: Bench) -> None:
    topic = await bench.topic()

    class Broken(Recorder):
        async def assigned(self, membership, added):  # type: ignore[no-untyped-def]
            raise LookupError("takeover failed")

    recorder = Broken("a", [])
    member = await joined(bench.log("a"), unique("group"), topic, recorder)
    with pytest.raises(LookupError, match="takeover failed"):
        await pump(lambda: False, member, timeout_s=20)


async def test_the_listener_may_ask_for_offsets_while_it_is_told(bench: Bench) -> None:
    """A takeover asks for O and S within `assigned`; the thread that waits for it must answer."""
    topic = await bench.topic()
    partition = Partition(topic, 0)
    answers = []

    class Asking(Recorder):
        async def assigned(self, membership, added):  # type: ignore[no-untyped-def]
            answers.append(await self.member.committed(added))  # type: ignore[union-attr]
            await super().assigned(membership, added)

    recorder = Asking("a", [])
    member = await joined(bench.log("a"), unique("group"), topic, recorder)
    await pump(lambda: bool(recorder.owned), member)
    assert answers == [{partition: None}]
