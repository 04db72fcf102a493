"""What a simulation does with the log in memory: crashes, freezes, lost replies, late requests, compaction, seeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postlane.eventlog.errors import Aborted, CommitUnknown, Fenced, OffsetGone, Unreachable
from postlane.eventlog.memory import MemoryCluster, MemoryLog
from postlane.eventlog.memory_faults import POINTS, Fault, ProcessDied
from postlane.eventlog.memory_group import Token
from postlane.eventlog.ports import Committed, Membership, Outgoing, Partition, Received, Transaction
from tests.contract.log_benches import Recorder, joined, pump, record, values, writes
from tests.contract.virtual_time import run_virtually

ZERO = Partition("topic", 0)


class Once:
    """One fault at one point; and what else happens there."""

    def __init__(self, point: str, fault: Fault | None, also: Callable[[], None] = lambda: None) -> None:
        self.point = point
        self.fault = fault
        self.also = also
        self.happened = False

    async def at(self, point: str, who: str) -> Fault | None:
        if self.happened or point != self.point:
            return None
        self.happened = True
        self.also()
        return self.fault


def cluster_of(partitions: int = 1) -> MemoryCluster:
    cluster = MemoryCluster(transaction_timeout_s=12.0, session_timeout_s=10.0)
    cluster.create_topic("topic", partitions)
    return cluster


def test_a_dangling_transaction_ends_with_its_timeout_and_its_writer_is_fenced() -> None:
    async def run() -> None:
        cluster = cluster_of()
        log = MemoryLog(cluster, "a", Once("commit", Fault.UNKNOWN_LOST))
        transactor = await log.transactor("tx")
        with pytest.raises(CommitUnknown):
            await transactor.commit(writes(ZERO, b"dangling"))
        await asyncio.sleep(11.9)
        assert cluster.log(ZERO).last_stable == 0
        await asyncio.sleep(0.2)
        assert cluster.log(ZERO).last_stable == cluster.log(ZERO).end == 2
        assert await values(log, ZERO) == []
        transactor._usable = True  # as if it had not been given up
        with pytest.raises(Fenced):
            await transactor.commit(writes(ZERO, b"too late"))

    run_virtually(run())


@pytest.mark.parametrize("rebuilds", [True, False])
def test_a_late_end_of_a_transaction_ends_the_next_one_unless_the_producer_was_rebuilt(rebuilds: bool) -> None:
    """librdkafka#5423, and why an unknown commit always means a new producer."""

    async def run() -> list[bytes | None]:
        cluster = cluster_of()
        log = MemoryLog(cluster, "a", Once("commit", Fault.UNKNOWN_LATE))
        transactor = await log.transactor("tx")
        with pytest.raises(CommitUnknown):
            await transactor.commit(writes(ZERO, b"first"))
        if rebuilds:
            await transactor.rebuild()
        cluster.write_open("tx", transactor._epoch, ZERO, record(ZERO, b"second, not to be committed yet"))
        await asyncio.sleep(2)
        return await values(log, ZERO, end=cluster.log(ZERO).last_stable)

    expected = [] if rebuilds else [b"first", b"second, not to be committed yet"]
    assert run_virtually(run()) == expected


def test_a_crashed_process_leaves_its_partitions_after_the_session_timeout_and_its_buffer_is_lost() -> None:
    async def run() -> None:
        cluster = cluster_of(4)
        dying, living = MemoryLog(cluster, "dying"), MemoryLog(cluster, "living")
        first, second = Recorder("first", []), Recorder("second", [])
        a, b = await joined(dying, "g", "topic", first), await joined(living, "g", "topic", second)
        await pump(lambda: len(first.owned) == len(second.owned) == 2, a, b)
        appender = dying.appender()
        waiting = asyncio.create_task(a.poll(10, 60))
        await asyncio.sleep(0.1)
        appender.append_soon(record(ZERO, b"never sent"))
        dying.crash()
        with pytest.raises(ProcessDied):
            await waiting
        with pytest.raises(ProcessDied):
            await dying.high_watermarks([ZERO])
        began_s = asyncio.get_running_loop().time()
        await pump(lambda: len(second.owned) == 4, b)
        assert 9.9 < asyncio.get_running_loop().time() - began_s < 10.5
        assert first.owned  # nobody told the dead
        assert await values(living, ZERO) == []

    run_virtually(run())


def test_a_static_member_that_crashed_gets_its_partitions_back_at_once() -> None:
    async def run() -> None:
        cluster = cluster_of(4)
        first, second, back = Recorder("first", []), Recorder("second", []), Recorder("back", [])
        dying = MemoryLog(cluster, "dying")
        a = await joined(dying, "g", "topic", first, "one")
        b = await joined(MemoryLog(cluster, "living"), "g", "topic", second, "two")
        await pump(lambda: len(first.owned) == len(second.owned) == 2, a, b)
        told = len(second.journal)
        dying.crash()
        again = await joined(MemoryLog(cluster, "again"), "g", "topic", back, "one")
        await pump(lambda: bool(back.owned), again, b)
        assert back.owned == first.owned
        await asyncio.sleep(30)
        await again.poll(1, 0)
        await b.poll(1, 0)
        assert len(second.journal) == told

    run_virtually(run())


def test_a_frozen_process_wakes_as_a_zombie() -> None:
    async def run() -> None:
        cluster = cluster_of(2)
        frozen, living = MemoryLog(cluster, "frozen"), MemoryLog(cluster, "living")
        first, second = Recorder("first", []), Recorder("second", [])
        a, b = await joined(frozen, "g", "topic", first), await joined(living, "g", "topic", second)
        await pump(lambda: len(first.owned) == len(second.owned) == 1, a, b)
        transactor = await frozen.transactor("tx-a")
        mine = min(first.owned)
        offsets = {mine: Committed(7, "zombie")}
        committing = asyncio.create_task(transactor.commit(Transaction([record(mine, b"z")], offsets, a.membership)))
        frozen.freeze()
        await pump(lambda: len(second.owned) == 2, b)
        assert not committing.done()
        frozen.thaw()
        with pytest.raises(Aborted):
            await committing
        told = len(first.journal)
        await pump(lambda: len(first.journal) == told + 2, a, b)
        assert [what for _, what, _ in first.journal[told:]] == ["lost", "assigned"]
        assert await b.committed([mine]) == {mine: None}
        assert await values(living, mine) == []

    run_virtually(run())


def test_a_rebalance_inside_a_transaction_refuses_its_offsets_only_when_it_is_over() -> None:
    async def run() -> None:
        cluster = cluster_of(2)
        recorder = Recorder("a", [])
        faults = Once("send_offsets", None, lambda: cluster.group("g").rebalance())
        log = MemoryLog(cluster, "a", faults)
        member = await joined(log, "g", "topic", recorder)
        await pump(lambda: bool(recorder.owned), member)
        transactor = await log.transactor("tx")
        old = recorder.memberships[-1]
        # Everyone has been asked to join again, nobody has: the generation still holds.
        await transactor.commit(Transaction([], {ZERO: Committed(1, "")}, old))
        await pump(lambda: len(recorder.memberships) == 2, member)
        with pytest.raises(Aborted):
            await transactor.commit(Transaction([], {ZERO: Committed(2, "")}, old))
        assert await member.committed([ZERO]) == {ZERO: Committed(1, "")}

    run_virtually(run())


def test_a_session_that_expires_under_a_live_member_is_a_loss() -> None:
    async def run() -> None:
        cluster = cluster_of(2)
        recorder = Recorder("a", [])
        member = await joined(MemoryLog(cluster, "a"), "g", "topic", recorder)
        await pump(lambda: bool(recorder.owned), member)
        cluster.group("g").expire(recorder.memberships[-1].member_id)
        await pump(lambda: len(recorder.journal) == 3, member)
        assert [what for _, what, _ in recorder.journal] == ["assigned", "lost", "assigned"]
        assert recorder.memberships[-1].member_id != recorder.memberships[0].member_id

    run_virtually(run())


def test_brokers_take_offsets_of_no_generation_unchecked_so_the_guard_is_needed() -> None:
    async def run() -> None:
        cluster = cluster_of()
        log = MemoryLog(cluster, "a")
        transactor = await log.transactor("tx")
        transactor.guard = lambda _: None  # the mutation
        nobody = Membership("g", -1, "", frozenset(), Token("g", -1, ""))
        await transactor.commit(Transaction([], {ZERO: Committed(5, "unfenced")}, nobody))
        assert cluster.group("g").committed == {ZERO: Committed(5, "unfenced")}
        await transactor.commit(Transaction([], {ZERO: Committed(-1001, "")}, nobody))  # says nothing, does nothing
        assert cluster.group("g").committed == {ZERO: Committed(5, "unfenced")}

    run_virtually(run())


def test_compaction_keeps_the_latest_of_each_key_and_every_offset() -> None:
    async def run() -> None:
        cluster = cluster_of()
        log = MemoryLog(cluster, "a")
        transactor = await log.transactor("tx")
        for i in range(6):
            await transactor.commit(Transaction([Outgoing("topic", 0, b"k%d" % (i % 2), b"%d" % i, [])], {}, None))
        await transactor.commit(Transaction([Outgoing("topic", 0, b"k0", None, [])], {}, None))
        end = cluster.log(ZERO).end
        cluster.compact("topic")
        assert (await log.high_watermarks([ZERO]))[ZERO] == end == 14
        kept: list[Received] = []
        async for batch in log.read(ZERO, 0, end, deadline_s=1):
            kept += batch
        assert [(r.offset, r.key, r.value) for r in kept] == [(10, b"k1", b"5"), (12, b"k0", None)]
        cluster.compact("topic", drop_tombstones=True)
        assert await values(log, ZERO, 11, end) == []
        cluster.trim(ZERO, 12)
        with pytest.raises(OffsetGone):
            await values(log, ZERO, 11, end)

    run_virtually(run())


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.CRASH])
def test_every_point_can_fail_and_can_kill(point: str, fault: Fault) -> None:
    async def run() -> tuple[list[bytes | None], bool]:
        cluster = cluster_of()
        faults = Once(point, fault)
        log = MemoryLog(cluster, "a", faults)
        expected = (ProcessDied,) if fault is Fault.CRASH else (Unreachable, CommitUnknown)
        with contextlib.suppress(*expected):  # a tail tries again by itself
            await _everything(log)
        assert faults.happened
        assert log.process.is_dead == (fault is Fault.CRASH)
        observer = MemoryLog(cluster, "observer")
        await observer.transactor("tx")
        return await values(observer, ZERO), log.process.is_dead

    found, _ = run_virtually(run())
    assert found in ([], [b"t"], [b"t", b"a"])  # whole, in order, never half


async def _everything(log: MemoryLog) -> None:
    recorder = Recorder("a", [])
    assert await log.partition_count("topic") == 1
    member = await joined(log, "g", "topic", recorder)
    await pump(lambda: bool(recorder.owned), member)
    await member.committed([ZERO])
    transactor = await log.transactor("tx")
    await transactor.commit(Transaction([record(ZERO, b"t")], {ZERO: Committed(0, "")}, member.membership))
    await log.appender().append(record(ZERO, b"a"))
    tail = log.tail("topic", lambda _: None)
    await tail.ready(5)
    await values(log, ZERO)
    await log.close()


class Dice:
    """Random faults and delays from one seed."""

    def __init__(self, seed: int, cluster: MemoryCluster) -> None:
        self.dice = random.Random(seed)
        self.cluster = cluster

    async def at(self, point: str, who: str) -> Fault | None:
        if self.dice.random() < 0.3:
            await asyncio.sleep(self.dice.random() * 0.2)
        if self.dice.random() < 0.01:
            self.cluster.group("g").rebalance()
        if self.dice.random() < 0.01 and (members := sorted(self.cluster.group("g").members)):
            self.cluster.group("g").expire(self.dice.choice(members))
        if point in ("commit", "produce") and self.dice.random() < 0.1:
            faults = [Fault.ABORT, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LATE, Fault.UNKNOWN_LOST]
            return self.dice.choice(faults) if point == "commit" else Fault.ABORT
        return None


def history(seed: int) -> str:
    """Three processes copy what they are given, exactly once, under random faults; everything that was said."""

    async def run() -> str:
        cluster = cluster_of(6)
        cluster.create_topic("copies", 6)
        for i in range(120):
            cluster.write(Outgoing("topic", i % 6, b"k", b"%d" % i, []))
        dice = Dice(seed, cluster)
        journal: list[tuple[str, str, tuple[int, ...]]] = []
        logs = [MemoryLog(cluster, f"p{n}", dice) for n in range(3)]
        async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
            tasks = [group.create_task(_copy(log, journal)) for log in logs]
            while any(cluster.group("g").committed.get(Partition("topic", n), (0,))[0] < 20 for n in range(6)):
                await cluster.changed.wait(1)
            for task in tasks:
                task.cancel()
        reader = MemoryLog(cluster, "reader")
        copies = [await values(reader, Partition("copies", n)) for n in range(6)]
        assert copies == [[b"%d" % i for i in range(n, 120, 6)] for n in range(6)]
        dump = [
            [(e.offset, e.fate.value, e.record and e.record.timestamp_ms) for e in log.entries]
            for log in cluster.topics["copies"]
        ]
        return repr((journal, dump, asyncio.get_running_loop().time()))

    return run_virtually(run())


async def _copy(log: MemoryLog, journal: list[tuple[str, str, tuple[int, ...]]]) -> None:
    class Copier(Recorder):
        async def assigned(self, membership: Membership, added: frozenset[Partition]) -> None:
            await super().assigned(membership, added)
            for p, at in (await member.committed(added)).items():
                member.start(p, at.offset if at else 0)

    recorder = Copier(log.process.name, journal, start_at=None)
    member = await joined(log, "g", "topic", recorder)
    transactor = await log.transactor(f"tx-{log.process.name}")
    while True:
        batch = await member.poll(7, 1.0)
        while batch and member.membership is not None:
            out = [Outgoing("copies", r.partition, r.key, r.value, []) for r in batch]
            offsets = {Partition(r.topic, r.partition): Committed(r.offset + 1, "") for r in batch}
            try:
                await transactor.commit(Transaction(out, offsets, member.membership))
                break
            except Aborted:
                await _restart(member, recorder.owned)
                break
            except CommitUnknown:
                await transactor.rebuild()
                await _restart(member, recorder.owned)
                break


async def _restart(member, owned) -> None:  # type: ignore[no-untyped-def]
    for p, at in (await member.committed(owned)).items():
        member.start(p, at.offset if at else 0)


@pytest.mark.parametrize("seed", range(8))
def test_exactly_once_under_random_faults_and_the_same_again_from_the_same_seed(seed: int) -> None:
    assert history(seed) == history(seed)


def test_a_seed_means_the_same_in_another_process() -> None:
    program = "from tests.contract.test_memory_log import history; print(history(3))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(n), "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for n in (1, 2)
    }
    assert found == {history(3) + "\n"}
