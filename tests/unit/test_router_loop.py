"""The router's loop on the in-memory log: exactly once through aborts, unknown commits, rebalances and deaths."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest
from router_world import NAMES, PARTITIONS, TRACE, LoopClock, World, at, virtually

from postlane.core.events import Control, Suppression, Template, TemplateRef
from postlane.eventlog.codec import encode, header
from postlane.eventlog.dead_letters import origin_of
from postlane.eventlog.errors import TooLarge
from postlane.eventlog.memory_faults import Fault
from postlane.eventlog.ports import Outgoing, Partition
from postlane_router.store import MemoryStore, StoreBroken


class Once:
    """At the nth passing of a point, one fault."""

    def __init__(self, point: str, fault: Fault, nth: int = 1) -> None:
        self.point, self.fault, self.left = point, fault, nth

    async def at(self, point: str, who: str) -> Fault | None:
        if point != self.point:
            return None
        self.left -= 1
        return self.fault if self.left == 0 else None


def exactly_once(world: World, keys: list[str]) -> None:
    """Every message one dispatch record, one Requested, one Routed, one entry in the changelog."""
    dispatched, events = world.dispatched(), world.events()
    assert {m: len(d) for m, d in dispatched.items()} == dict.fromkeys(keys, 1)
    assert {m: [e.type for e in es] for m, es in events.items()} == {m: ["Requested", "Routed"] for m in keys}
    seen = [record.key for record in world.records(NAMES.seen)]
    assert sorted(key.decode() for key in seen if key) == sorted(keys)


def run(main: Coroutine[Any, Any, None]) -> None:
    virtually(main)


def test_one_mail_with_its_trail() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish("a", to=("ada@example.com", "bob@example.com"), lane="bulk")
        await world.all_read()
        assert world.kinds(message) == ["Requested", "Routed", "Routed"]
        records = world.records(NAMES.dispatch("bulk"))
        (request,) = world.records(NAMES.requests)
        written = [*records, *world.records(NAMES.events), *world.records(NAMES.seen)]
        assert {record.partition for record in written} == {request.partition}
        assert {record.key for record in written} == {message.encode()}
        assert all(TRACE in record.headers for record in [*records, *world.records(NAMES.events)])
        assert len({header(record.headers, "ce_id") for record in world.records(NAMES.events)}) == 3
        assert router.router.not_ready() is None
        await router.stop()

    run(main())


def test_an_idle_router_does_not_wait() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await asyncio.sleep(5)
        before = asyncio.get_running_loop().time()
        world.publish("a")
        await world.all_read()
        assert asyncio.get_running_loop().time() - before <= 0.03
        await router.stop()

    run(main())


def test_a_key_twice_and_a_conflict() -> None:
    async def main() -> None:
        world = World()
        message = world.publish("a")
        world.publish("a")  # in the same batch
        world.publish("a", subject="other")
        router = world.router()
        await world.all_read()
        world.publish("a")  # in another
        world.publish("a", text="other")
        await world.all_read()
        assert [len(d) for d in world.dispatched().values()] == [1]
        assert world.kinds(message) == ["Requested", "Routed", "Conflicted", "Conflicted"]
        letters = world.records(NAMES.dead_letters)
        assert [origin_of(letter.headers).reason for letter in letters] == ["key_conflict"] * 2
        requests = world.records(NAMES.requests)
        assert [letter.value for letter in letters] == [requests[2].value, requests[4].value]
        await router.stop()

    run(main())


def test_a_replay_is_new_once() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish("a")
        for _ in range(3):
            world.publish("a", generation=1, replay_of="x", requested_at=at(1))
        world.publish("a", generation=2, replay_of="x", requested_at=at(1))
        await world.all_read()
        assert sorted(ready.generation for ready in world.dispatched()[message]) == [0, 1, 2]
        await router.stop()

    run(main())


def test_poison_goes_to_the_dead_letters_and_blocks_nothing() -> None:
    async def main() -> None:
        world = World()
        poison = [None, b"", b"\xff\xfe", b"[" * 100_000, b'{"a":', b"null", b"1e999", b"x" * 1_000_000]
        for number, value in enumerate(poison):
            world.cluster.write(Outgoing(NAMES.requests, 0, b"k%d" % number, value, [("h", b"1"), ("ce_type", b"x")]))
            world.cluster.write(Outgoing(NAMES.delay("1s"), 0, b"k%d" % number, value))
        message = world.publish("a")
        router = world.router()
        await world.all_read()
        await world.until(lambda: len(world.records(NAMES.dead_letters)) == 2 * len(poison))
        letters = world.records(NAMES.dead_letters)
        by_origin = {(origin_of(x.headers).topic, origin_of(x.headers).offset): x for x in letters}
        for topic in (NAMES.requests, NAMES.delay("1s")):
            for record in world.records(topic):
                if record.key is not None and record.key.startswith(b"k"):
                    letter = by_origin[topic, record.offset]
                    assert (letter.key, letter.value) == (record.key, record.value)
                    assert origin_of(letter.headers).reason == "undecodable"
        assert world.kinds(message) == ["Requested", "Routed"]
        undecodable = [e for events in world.events().values() for e in events if e.type == "Undecodable"]
        assert len(undecodable) == 2 * len(poison)
        await router.stop()

    run(main())


@pytest.mark.parametrize(
    ("point", "fault"),
    [
        *[(point, Fault.ABORT) for point in ("begin", "produce", "send_offsets", "commit")],
        *[("commit", fault) for fault in (Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE)],
        *[(point, Fault.UNREACHABLE) for point in ("begin", "produce", "send_offsets", "commit", "poll", "group")],
        *[(point, Fault.UNREACHABLE) for point in ("offsets", "read")],
    ],
)
@pytest.mark.parametrize("nth", [1, 2, 3, 5])
def test_a_fault_costs_nothing_and_doubles_nothing(point: str, fault: Fault, nth: int) -> None:
    async def main() -> None:
        world = World()
        # Small batches, so that the nth passing is in the middle.
        router = world.router(faults=Once(point, fault, nth), batch_records_max=4)
        keys = [world.publish(f"k{n}") for n in range(20)]
        await asyncio.sleep(0.01)
        keys += [world.publish(f"l{n}") for n in range(20)]
        await world.all_read()
        again = [world.publish(f"k{n}") for n in range(20)]
        assert set(again) <= set(keys)
        await world.all_read()
        exactly_once(world, keys)
        assert router.router.not_ready() is None
        await router.stop()

    run(main())


@pytest.mark.parametrize("point", ["begin", "produce", "send_offsets", "commit", "committed", "poll"])
@pytest.mark.parametrize("nth", [1, 3, 4])
@pytest.mark.parametrize("kept", [True, False])
def test_a_death_anywhere_with_the_store_kept_or_lost(point: str, nth: int, kept: bool) -> None:
    async def main() -> None:
        world = World()
        store = MemoryStore()
        first = world.router(store=store, faults=Once(point, Fault.CRASH, nth), batch_records_max=4)
        keys = [world.publish(f"k{n}") for n in range(30)]
        await world.until(lambda: first.task.done())
        second = world.router(store=store if kept else None)
        await world.all_read()
        for n in range(30):
            world.publish(f"k{n}")
        await world.all_read()
        exactly_once(world, keys)
        await second.stop()

    run(main())


def test_routers_come_and_go_under_load() -> None:
    async def main() -> None:
        world = World()
        keys: list[str] = []

        async def load() -> None:
            for n in range(600):
                keys.append(world.publish(f"k{n}"))
                if n % 3 == 0:
                    world.publish(f"k{n // 2}")
                await asyncio.sleep(0.05)

        loading = asyncio.get_running_loop().create_task(load())
        first = world.router("r1", batch_records_max=5)
        await asyncio.sleep(3)
        second = world.router("r2", batch_records_max=5)
        await asyncio.sleep(8)
        await first.kill()
        await asyncio.sleep(3)
        third = world.router("r3", batch_records_max=5)
        await asyncio.sleep(4)
        await second.stop()
        first = world.router("r1")
        await loading
        await world.all_read()
        exactly_once(world, keys)
        for router in (first, third):
            await router.stop()

    run(main())


def test_a_store_is_rebuilt_from_the_changelog_when_it_breaks() -> None:
    class Breaking(MemoryStore):
        left = 3

        def find(self, keys: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise StoreBroken("a flipped bit")
            return super().find(keys)

    async def main() -> None:
        world = World()
        router = world.router(store=Breaking(), batch_records_max=4)
        keys = [world.publish(f"k{n}") for n in range(20)]
        await world.all_read()
        for n in range(20):
            world.publish(f"k{n}")
        await world.all_read()
        exactly_once(world, keys)
        await router.stop()

    run(main())


def test_lost_consumer_offsets_beside_a_memory_of_keys_stop_the_partition() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        for n in range(9):
            world.publish(f"k{n}")
        await world.all_read()
        await router.stop()
        world.cluster.group(NAMES.router_group).committed.clear()
        sent = len(world.records(NAMES.dispatch("transactional")))
        router = world.router("r2")
        await asyncio.sleep(60)
        reason = router.router.not_ready()
        assert reason is not None
        assert "doctor" in reason
        world.publish("new")
        await asyncio.sleep(30)
        assert len(world.records(NAMES.dispatch("transactional"))) == sent
        await router.stop()

    run(main())


def test_a_changelog_made_anew_under_a_kept_store_stops_the_partition() -> None:
    async def main() -> None:
        world = World()
        store = MemoryStore()
        router = world.router(store=store)
        for n in range(9):
            world.publish(f"k{n}")
        await world.all_read()
        await router.stop()
        del world.cluster.topics[NAMES.seen]
        world.cluster.create_topic(NAMES.seen, PARTITIONS)
        router = world.router(store=store)
        await asyncio.sleep(60)
        assert "made anew" in (router.router.not_ready() or "")
        await router.stop()

    run(main())


def test_requests_deleted_unread_stop_the_partition() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        world.publish("a")
        await world.all_read()
        await router.stop()
        for n in range(9):
            world.publish(f"k{n}")
        for log in world.cluster.topics[NAMES.requests]:
            world.cluster.trim(log.partition, log.end - 1)
        router = world.router()
        await asyncio.sleep(60)
        assert "deleted before they were read" in (router.router.not_ready() or "")
        await router.stop()

    run(main())


def test_every_partition_gets_a_position_at_once() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        topics = (NAMES.requests, *NAMES.delays)
        wanted = {Partition(topic, n) for topic in topics for n in range(PARTITIONS)}
        await world.until(lambda: world.committed().keys() == wanted)
        await router.stop()

    run(main())


def test_a_template_put_right_before_its_first_mail() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await world.until(lambda: router.router.not_ready() is None)
        template = Template(id="t", version=1, subject="s", text="x", at=LoopClock().now())
        world.put(NAMES.templates, "t/000001", template)
        message = world.publish("a", text=None, template=TemplateRef(id="t"))
        unknown = world.publish("b", text=None, template=TemplateRef(id="none"))
        await world.all_read()
        assert world.kinds(message) == ["Requested", "Routed"]
        (ready,) = world.dispatched()[message]
        assert ready.content.template == TemplateRef(id="t", version=1)
        assert world.kinds(unknown) == ["Requested", "Rejected"]
        await router.stop()

    run(main())


def test_content_that_cannot_be_mailed_is_rejected_for_all() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        evil = "x\r\nBcc: eve@example.com"
        cases: list[dict[str, Any]] = [
            {"sender": f"shop@example.org{evil}"},
            {"subject": evil},
            {"reply_to": evil},
            {"headers": {evil: "x"}},
            {"headers": {"X-A": evil}},
            {"headers": {"Bcc": "eve@example.com"}},
            {"text": None},
            {"attachments": [{"filename": evil, "content": ""}]},
            {"attachments": [{"filename": "a", "content": "!"}]},
            {"attachments": [{"filename": "a", "content": "", "content_type": evil}]},
        ]
        bad = [world.publish(f"k{n}", to=("a@b.example", "c@d.example"), **case) for n, case in enumerate(cases)]
        good = world.publish("good")
        await world.all_read()
        for message in bad:
            assert world.kinds(message) == ["Requested", "Rejected", "Rejected"]
        assert list(world.dispatched()) == [good]
        await router.stop()

    run(main())


# ------------------------------------------------------------------------------------------------------ delay stage


@pytest.mark.parametrize("wait_s", [0.3, 3, 8.5, 25, 100, 3_700])
def test_send_at_is_kept(wait_s: float) -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await world.until(lambda: router.router.not_ready() is None)
        due = LoopClock().now() + timedelta(seconds=wait_s)
        message = world.publish("a", send_at=due)
        await world.until(lambda: bool(world.records(NAMES.dispatch("transactional"))), wait_s + 10, wait_s / 500)
        (record,) = world.records(NAMES.dispatch("transactional"))
        assert -1 <= record.timestamp_ms - due.timestamp() * 1000 < 3_000  # the log's stamps are rounded down
        assert world.kinds(message) == ["Requested", "Scheduled", "Routed"]
        (ready,) = world.dispatched()[message]
        assert (ready.hop, ready.attempt) == (0, 1)
        await router.stop()

    run(main())


def test_many_at_different_times_each_in_time_across_a_restart() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await world.until(lambda: router.router.not_ready() is None)
        begin = LoopClock().now()
        due = {world.publish(f"k{n}", send_at=(t := begin + timedelta(seconds=n * 0.7))): t for n in range(1, 80)}
        await asyncio.sleep(20)
        await router.kill()
        router = world.router()
        await world.until(lambda: len(world.records(NAMES.dispatch("transactional"))) == len(due), 120, 0.1)
        written = {r.key.decode(): r.timestamp_ms for r in world.records(NAMES.dispatch("transactional")) if r.key}
        for message, time in due.items():
            assert written[message] >= time.timestamp() * 1000 - 1  # the log's stamps are rounded down
            if not 15 < (time - begin).total_seconds() < 40:
                assert written[message] <= time.timestamp() * 1000 + 3_500
        assert all(len(ready) == 1 for ready in world.dispatched().values())
        await router.stop()

    run(main())


def test_cancel_suppress_and_expiry_while_it_waits() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        await world.until(lambda: router.router.not_ready() is None)
        now = LoopClock().now()
        later = now + timedelta(seconds=30)
        cancelled = world.publish("a", send_at=later)
        suppressed = world.publish("b", send_at=later, to=("bob@example.com",))
        expired = world.publish("c", send_at=later, expires_at=now + timedelta(seconds=15))
        fine = world.publish("d", send_at=later)
        await world.all_read()
        await asyncio.sleep(1)
        world.put(
            NAMES.control,
            f"cancel/message/{cancelled}",
            Control(action="cancel", scope="message", name=cancelled, at=LoopClock().now()),
        )
        world.put(NAMES.suppressions, "default/bob@example.com", Suppression(address="bob@example.com", at=now))
        await world.until(lambda: fine in world.dispatched())
        await asyncio.sleep(5)
        assert world.kinds(cancelled) == ["Requested", "Scheduled", "Cancelled"]
        assert world.kinds(suppressed) == ["Requested", "Scheduled", "Suppressed"]
        assert world.kinds(expired) == ["Requested", "Scheduled", "Expired"]
        ended = world.events()[expired][-1]
        assert timedelta(0) <= ended.at - (now + timedelta(seconds=15)) < timedelta(seconds=3)
        assert list(world.dispatched()) == [fine]
        await router.stop()

    run(main())


def test_a_paused_tenant_waits_and_goes_on_when_resumed() -> None:
    async def main() -> None:
        world = World()
        pause = Control(action="pause", scope="tenant", name="t", at=LoopClock().now())
        world.put(NAMES.control, "pause/tenant/t", pause)
        router = world.router()
        message = world.publish("a", tenant="t")
        other = world.publish("b")
        await asyncio.sleep(100)
        assert world.kinds(message) == ["Requested", "Scheduled"]
        assert list(world.dispatched()) == [other]
        world.put(NAMES.control, "pause/tenant/t", None)
        before = asyncio.get_running_loop().time()
        await world.until(lambda: message in world.dispatched())
        assert asyncio.get_running_loop().time() - before < 11
        assert world.kinds(message) == ["Requested", "Scheduled", "Routed"]
        await router.stop()

    run(main())


def test_a_record_stamped_in_the_future_holds_the_others_no_longer_than_its_step() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish("a")
        await world.all_read()
        (ready,) = world.dispatched()[message]
        now = LoopClock().now()
        strange = ready.model_copy(update={"hop": 1, "due_at": now + timedelta(hours=9)})
        normal = ready.model_copy(update={"hop": 2, "due_at": now + timedelta(seconds=9)})
        log = world.cluster.topics[NAMES.delay("10s")][0]
        for it in (strange, normal):
            world.cluster.write(Outgoing(NAMES.delay("10s"), 0, message.encode(), encode(it)))
        entry = log.entries[-2].record
        assert entry is not None
        entry.timestamp_ms += 3_600_000
        await world.until(lambda: len(world.dispatched()[message]) == 2, 12)
        assert sorted(r.hop for r in world.dispatched()[message]) == [0, 2]
        await router.stop()

    run(main())


def test_a_lane_that_is_gone_is_a_dead_letter() -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        message = world.publish("a")
        await world.all_read()
        (ready,) = world.dispatched()[message]
        gone = ready.model_copy(update={"lane": "gone", "hop": 1})
        world.cluster.write(Outgoing(NAMES.delay("1s"), 0, message.encode(), encode(gone)))
        await world.until(lambda: "DeadLettered" in world.kinds(message))
        (letter,) = world.records(NAMES.dead_letters)
        assert origin_of(letter.headers).reason == "unknown_lane"
        await router.stop()

    run(main())


def test_what_becomes_too_large_is_found_and_dead_lettered() -> None:
    """One broker takes less than another: the record is found by halves, the others go on."""

    async def main() -> None:
        world = World()
        target = world.cluster.target

        def narrow(record: Outgoing) -> Partition:
            if record.topic == NAMES.dispatch("transactional") and len(record.value or b"") > 20_000:
                raise TooLarge("too large here")
            return target(record)

        world.cluster.target = narrow  # type: ignore[method-assign]
        small = [world.publish(f"k{n}") for n in range(6)]
        big = world.publish("big", text="x" * 20_000)
        small += [world.publish(f"l{n}") for n in range(6)]
        router = world.router()
        await world.all_read()
        assert world.kinds(big) == ["Undecodable"]
        assert sorted(world.dispatched()) == sorted(small)
        (letter,) = world.records(NAMES.dead_letters)
        assert letter.key == big.encode()
        assert router.router.not_ready() is None
        await router.stop()

    run(main())


def test_a_changelog_made_anew_is_told_by_its_id_however_long_it_has_grown() -> None:
    """Its positions lie beyond what the store has applied: offsets alone would not show that it is another topic."""

    async def main() -> None:
        world = World()
        store = MemoryStore()
        router = world.router(store=store)
        for n in range(6):
            world.publish(f"a{n}")
        await world.all_read()
        await router.stop()

        world.cluster.delete_topic(NAMES.seen)
        world.cluster.create_topic(NAMES.seen, PARTITIONS)
        for n in range(200):
            world.cluster.write(Outgoing(NAMES.seen, n % PARTITIONS, b"foreign-%d" % n, b"{}"))
        message = world.publish("b")
        again = world.router("r2", store=store)
        await world.until(lambda: "made anew" in (again.router.not_ready() or ""))
        assert message not in world.dispatched(), "it stands still until a person has looked"
        await again.kill()

        fresh = world.router("r3", store=MemoryStore())
        await world.all_read()
        assert message in world.dispatched(), "a store without a past takes the topic as it is"
        await fresh.stop()

    run(main())
