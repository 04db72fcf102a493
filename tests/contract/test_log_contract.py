"""What a log promises (postlane.eventlog.ports), held against every adapter alike: transactions and reading."""

from __future__ import annotations

import asyncio

import pytest

from postlane.eventlog.errors import (
    CommitUnknown,
    EndNotReached,
    Fenced,
    OffsetGone,
    TooLarge,
    Unfenced,
    UnknownTopic,
)
from postlane.eventlog.murmur2 import partition_of
from postlane.eventlog.ports import Committed, Membership, Outgoing, Partition, Received, Transaction
from tests.contract.log_benches import Bench, record, unique, values, writes


async def test_a_committed_transaction_is_read_whole_with_everything_in_it(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(2)
    zero, one = Partition(topic, 0), Partition(topic, 1)
    transactor = await log.transactor(unique("tx"))
    headers = [("ce_id", b"1"), ("twice", b"a"), ("twice", b""), ("bytes", b"\x00\xff")]
    ends = await transactor.commit(
        Transaction(
            [
                Outgoing(topic, 0, b"key", b"value", headers),
                Outgoing(topic, 1, None, b"\x00\xff", ()),
                Outgoing(topic, 0, b"key", None, []),
            ],
            {},
            None,
        )
    )
    assert ends == {zero: 2, one: 1}
    read: list[Received] = []
    async for batch in log.read(zero, 0, 2, deadline_s=10):
        read += batch
    assert [(r.topic, r.partition, r.offset, r.key, r.value) for r in read] == [
        (topic, 0, 0, b"key", b"value"),
        (topic, 0, 1, b"key", None),
    ]
    assert list(read[0].headers) == headers
    assert list(read[1].headers) == []
    assert await values(log, one) == [b"\x00\xff"]


async def test_ends_count_only_our_own_last_record(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    transactor = await log.transactor(unique("tx"))
    assert await transactor.commit(writes(partition, b"1", b"2")) == {partition: 2}
    assert await transactor.commit(writes(partition, b"3")) == {partition: 4}  # offset 2 is the commit marker
    assert await values(log, partition) == [b"1", b"2", b"3"]


async def test_an_empty_transaction_does_nothing(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    transactor = await log.transactor(unique("tx"))
    assert await transactor.commit(Transaction([], {}, None)) == {}
    assert (await log.high_watermarks([partition]))[partition] == 0


async def test_an_older_process_of_the_same_transactional_id_is_fenced(bench: Bench) -> None:
    partition = Partition(await bench.topic(), 0)
    ident = unique("tx")
    zombie = await bench.log("zombie").transactor(ident)
    await zombie.commit(writes(partition, b"before"))
    heir = await bench.log("heir").transactor(ident)
    with pytest.raises(Fenced):
        await zombie.commit(writes(partition, b"zombie"))
    await heir.commit(writes(partition, b"heir"))
    assert await values(bench.log("reader"), partition) == [b"before", b"heir"]


async def test_a_dead_writers_open_transaction_holds_readers_back_until_it_is_settled(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    await (await log.transactor(unique("tx"))).commit(writes(partition, b"before"))
    ident = unique("dead")
    await bench.dead_writer(ident, [record(partition, b"never"), record(partition, b"never")])
    await log.appender().append(record(partition, b"after"))
    end = (await log.high_watermarks([partition]))[partition]
    assert end == 5  # before, its marker, two open records, after: all of it, not the last stable offset
    early: list[bytes | None] = []

    async def read_in_time() -> None:
        async for batch in log.read(partition, 0, end, deadline_s=0.5):
            early.extend(r.value for r in batch)

    with pytest.raises(EndNotReached):
        await read_in_time()
    assert early == [b"before"]
    assert await values(log, partition, end=end, committed=False) == [b"before", b"never", b"never", b"after"]
    await log.transactor(ident)  # the heir's InitProducerId settles it
    assert await values(log, partition, end=end) == [b"before", b"after"]


async def test_a_read_that_waits_goes_on_as_soon_as_the_transaction_is_settled(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    ident = unique("dead")
    await bench.dead_writer(ident, [record(partition, b"never")])
    reading = asyncio.create_task(values(log, partition, end=1))
    await asyncio.sleep(0)
    await bench.log("heir").transactor(ident)
    assert await reading == []


async def test_a_range_that_ends_in_control_records_is_read_to_its_end(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    transactor = await log.transactor(unique("tx"))
    for value in (b"1", b"2"):
        await transactor.commit(writes(partition, value))
    ident = unique("dead")
    await bench.dead_writer(ident, [record(partition, b"never")])
    await log.transactor(ident)
    end = (await log.high_watermarks([partition]))[partition]
    assert end == 6
    for start, expected in ((0, [b"1", b"2"]), (1, [b"2"]), (3, []), (4, []), (5, []), (6, [])):
        assert await values(log, partition, start, end) == expected


async def test_a_range_ends_before_its_end(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    appender = log.appender()
    for i in range(10):
        assert await appender.append(record(partition, b"%d" % i)) == (0, i)
    assert await values(log, partition, 3, 7) == [b"3", b"4", b"5", b"6"]
    assert await values(log, partition, 7, 7) == []


async def test_a_read_beyond_the_end_is_not_reached(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    await log.appender().append(record(partition, b"only"))
    with pytest.raises(EndNotReached):
        async for _ in log.read(partition, 0, 5, deadline_s=0.3):
            pass


async def test_a_start_below_the_log_is_gone(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    appender = log.appender()
    for i in range(6):
        await appender.append(record(partition, b"%d" % i))
    await bench.retain_from(partition, 4)
    assert (await log.low_watermarks([partition]))[partition] == 4
    with pytest.raises(OffsetGone):
        await values(log, partition, 3, 6)
    assert await values(log, partition, 4, 6) == [b"4", b"5"]


async def test_several_ranges_are_read_at_once(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(4)
    appender = log.appender()
    for n in range(4):
        for i in range(20):
            await appender.append(Outgoing(topic, n, None, b"%d-%d" % (n, i), []))
    found = await asyncio.gather(*(values(log, Partition(topic, n), n, 20) for n in range(4)))
    assert found == [[b"%d-%d" % (n, i) for i in range(n, 20)] for n in range(4)]


async def test_offsets_without_a_fence_never_leave(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic()
    partition = Partition(topic, 0)
    transactor = await log.transactor(unique("tx"))
    group = unique("group")
    good = Committed(1, "")
    for offsets, membership in (
        ({partition: good}, None),
        ({partition: good}, Membership(group, -1, "me", frozenset(), b"")),
        ({partition: good}, Membership(group, 1, "", frozenset(), b"")),
        ({partition: Committed(-1001, "")}, Membership(group, 1, "me", frozenset(), b"")),
    ):
        with pytest.raises(Unfenced):
            await transactor.commit(Transaction([record(partition, b"never")], offsets, membership))
    await transactor.commit(writes(partition, b"still usable"))
    assert await values(log, partition, committed=False) == [b"still usable"]


@pytest.mark.parametrize("applied", [True, False])
async def test_an_unknown_commit_is_settled_by_a_rebuild(bench: Bench, applied: bool) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    transactor = await log.transactor(unique("tx"))
    await transactor.commit(writes(partition, b"before"))
    await bench.lose_reply(transactor, applied=applied)
    with pytest.raises(CommitUnknown):
        await transactor.commit(writes(partition, b"unknown"))
    with pytest.raises(CommitUnknown):  # nothing may be said before the rebuild
        await transactor.commit(writes(partition, b"too early"))
    await transactor.rebuild()
    found = await values(log, partition)
    assert found == ([b"before", b"unknown"] if applied else [b"before"])
    await transactor.commit(writes(partition, b"after"))
    assert await values(log, partition) == [*found, b"after"]


async def test_a_record_too_large_takes_its_transaction_with_it_and_no_more(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    transactor = await log.transactor(unique("tx"))
    with pytest.raises(TooLarge):
        await transactor.commit(writes(partition, b"small", b"x" * 3_000_000))
    await transactor.commit(writes(partition, b"next"))
    assert await values(log, partition) == [b"next"]
    with pytest.raises(TooLarge):
        await log.appender().append(record(partition, b"x" * 3_000_000))


async def test_a_topic_that_does_not_exist_is_said_so(bench: Bench) -> None:
    log = bench.log("a")
    with pytest.raises(UnknownTopic):
        await log.partition_count("contract-nowhere")
    with pytest.raises(UnknownTopic):
        await log.high_watermarks([Partition("contract-nowhere", 0)])
    topic = await bench.topic(3)
    assert await log.partition_count(topic) == 3
    assert await log.topic_id(topic) == await log.topic_id(topic) != ""
    with pytest.raises(UnknownTopic):
        await log.topic_id("contract-nowhere")


async def test_offsets_at_a_time(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    appender = log.appender()
    await appender.append(record(partition, b"0"))
    read: list[Received] = []
    async for batch in log.read(partition, 0, 1, deadline_s=10):
        read += batch
    written_ms = read[0].timestamp_ms
    assert await log.offsets_at([partition], written_ms - 1000) == {partition: 0}
    assert await log.offsets_at([partition], written_ms) == {partition: 0}
    assert await log.offsets_at([partition], written_ms + 60_000) == {partition: 1}


async def test_a_key_alone_decides_the_partition_as_java_clients_do(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(7)
    appender = log.appender()
    transactor = await log.transactor(unique("tx"))
    for key in (b"a", b"message-1", b"0190b7c4-2f8e-7cc3-98c4-dc0c0c07398f", b"\xff\x00"):
        expected = partition_of(key, 7)
        assert (await appender.append(Outgoing(topic, None, key, b"v", [])))[0] == expected
        ends = await transactor.commit(Transaction([Outgoing(topic, None, key, b"v", [])], {}, None))
        assert [p.number for p in ends] == [expected]


async def test_what_is_appended_soon_is_there_after_a_flush(bench: Bench) -> None:
    log = bench.log("a")
    partition = Partition(await bench.topic(), 0)
    appender = log.appender()
    for i in range(50):
        appender.append_soon(record(partition, b"%d" % i))
    await appender.flush(10)
    assert await values(log, partition) == [b"%d" % i for i in range(50)]


async def test_a_table_has_all_that_was_there_when_ready_and_then_follows(bench: Bench) -> None:
    log = bench.log("a")
    topic = await bench.topic(3)
    appender = log.appender()
    for i in range(30):
        await appender.append(Outgoing(topic, i % 3, b"key-%d" % (i % 5), b"%d" % i, []))
    await (await log.transactor(unique("tx"))).commit(writes(Partition(topic, 1), b"30"))
    seen: list[Received] = []
    moved = asyncio.Event()

    def apply(received: Received) -> None:
        seen.append(received)
        moved.set()

    tail = log.tail(topic, apply)
    await tail.ready(20)
    assert sorted(int(r.value or b"") for r in seen) == list(range(31))
    for n in range(3):
        offsets = [r.offset for r in seen if r.partition == n]
        assert offsets == sorted(offsets)
    moved.clear()
    await appender.append(Outgoing(topic, 2, b"key-1", None, []))
    async with asyncio.timeout(20):
        await moved.wait()
    assert (seen[-1].key, seen[-1].value) == (b"key-1", None)
    await tail.close()
