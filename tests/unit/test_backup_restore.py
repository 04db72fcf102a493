"""A restore: into empty topics, pauses first, killed at any point and gone on with, the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.unit import backup_world as w
from tests.unit.backup_world import NOW, Installation, archive_of, directory, ran, ready

from postlane.eventlog.errors import Aborted, CommitUnknown
from postlane.eventlog.memory import MemoryLog
from postlane.eventlog.ports import Committed, Partition, Transaction
from postlane.ops.backup import restore as restoring
from postlane.ops.backup.errors import Foreign, Refused
from postlane.ops.backup.pending import Manner
from postlane.ops.backup.scratch import compare
from postlane_router.ownership import POSITION_MARK
from postlane_sender.takeover import floor_of, metadata

DISPATCH, STATE = f"mail.dispatch.{w.LANE}", f"mail.state.{w.LANE}"
RESTORED_AT = NOW + timedelta(hours=1)


async def lost(place: Path) -> Installation:
    """An installation with a bit of everything, backed up twice."""
    it = Installation()
    for n in range(w.PARTITIONS):
        names = [f"{n}{c}" for c in "abcdef"]
        await it.put("mail.suppressions", n, (b"t/x@y", {"a": 1}), (b"t/gone@y", {"a": 1}))
        await it.put("mail.requests", n, *(w.request(k) for k in names))
        await it.put("mail.seen", n, *(w.seen(k) for k in names[:5]))
        it.router("mail.requests", n, 5)
        await it.put("mail.events", n, *(w.event("Routed", k) for k in names[:5]))
        await it.put(DISPATCH, n, *(ready(k) for k in names[:4]))
        await it.put("mail.delay.1h", n, ready(names[4], due_at=NOW + timedelta(hours=9)))
        await it.put(STATE, n, w.state("outcome", names[0]), w.state("intent", names[1]))
        it.sender(n, 0, 0)
    await it.put("mail.control", 0, (b"pause/lane/bulk", {"old": 1}), (b"pause/lane/transactional", None))
    await it.backup(directory(place), at=NOW - timedelta(hours=1))
    await it.put("mail.suppressions", 0, (b"t/gone@y", None))
    await it.put("mail.control", 0, (b"pause/tenant/acme", {"x": 1}))
    await it.put("mail.templates", 0, (b"welcome/000001", {"id": "welcome"}))
    await it.backup(directory(place), at=NOW)
    return it


def contents(it: Installation) -> dict[str, list[Any]]:
    """Every committed record but those of the restore's own topic, and every position."""
    found: dict[str, list[Any]] = {}
    for topic, logs in it.log.cluster.topics.items():
        if topic.endswith("mail.restores"):
            continue
        for log in logs:
            records = log.fetch(log.start, 1_000_000, committed=True)[0]
            found[f"{topic}/{log.partition.number}"] = [(r.key, _plain(topic, r.value), r.headers) for r in records]
    for group, positions in it.admin.positions.items():
        found[group] = sorted((p, c.metadata) for p, c in positions.items())
    return found


def _plain(topic: str, value: bytes | None) -> Any:
    """An intent without its offset: markers of more or fewer transactions lie between the records."""
    if ".state." not in topic or value is None:
        return value
    return {name: v for name, v in orjson.loads(value).items() if name != "offset"}


def test_everything_is_put_back_as_it_was(tmp_path: Path) -> None:
    async def made() -> None:
        old = await lost(tmp_path)
        new = Installation(cluster_id="two", made=False)
        made = await new.restore(archive_of(directory(tmp_path)), at=RESTORED_AT)
        for topic in ("mail.requests", "mail.events", "mail.suppressions", "mail.templates"):
            for n in range(1 if topic == "mail.templates" else w.PARTITIONS):
                was, now = old.records(topic, n), new.records(topic, n)
                assert [(r.key, r.value, r.headers, r.timestamp_ms) for r in was] == [
                    (r.key, r.value, r.headers, r.timestamp_ms) for r in now
                ]
        for n in range(w.PARTITIONS):
            assert [r.key for r in new.records("mail.seen", n)][1:] == [r.key for r in old.records("mail.seen", n)]
            pending = [orjson.loads(r.value)["recipient"][:2] for r in new.records(DISPATCH, n)]
            assert pending == [f"{n}b", f"{n}c", f"{n}d"]
            book = [orjson.loads(r.value) for r in new.records(STATE, n)][1:]
            offsets = [r.offset for r in new.records(DISPATCH, n)]
            assert [(b["kind"], b["hop"], b["offset"]) for b in book] == [("intent", 0, o) for o in offsets]
            # The router goes on with the one request that it had not passed; the sender finds all in doubt.
            position = new.admin.positions[new.names.router_group][Partition(new.names.requests, n)]
            following = [r for r in new.records("mail.requests", n) if r.offset >= position.offset]
            assert [r.key for r in following] == [w.request(f"{n}f")[0]]
            sender = new.admin.positions[new.names.sender_group(w.LANE)][Partition(new.names.dispatch(w.LANE), n)]
            assert sender == Committed(0, metadata(0))
            assert floor_of(sender.metadata) == 0
            assert position.metadata == POSITION_MARK
            assert len(new.records("mail.delay.1h", n)) == 1
        assert (await compare(new.log, new.names, archive_of(directory(tmp_path)), made, 7)).differences == []

    ran(made())


def test_lanes_are_paused_before_anything_else_and_stay_so(tmp_path: Path) -> None:
    written: list[tuple[str, bytes | None]] = []

    async def made() -> None:
        await lost(tmp_path)
        new = Installation(cluster_id="two", made=False)
        log = Tapped(new.log, lambda t: written.extend((r.topic, r.key) for r in t.records))
        restorer = new.restorer(archive_of(directory(tmp_path)), log)
        archive = archive_of(directory(tmp_path))
        await restorer.run(await restorer.look(list(archive.topics), Manner.UNCERTAIN, RESTORED_AT))
        control = {r.key: r.value for r in new.records("mail.control", 0)}
        for lane in w.CONFIG.lanes:
            order = orjson.loads(control[f"pause/lane/{lane}".encode()] or b"{}")
            assert "restored from backup" in order["reason"]
        assert b"pause/tenant/acme" in control

    ran(made())
    others = [topic for topic, _ in written if not topic.endswith("mail.restores")]
    assert others[:2] == ["a.mail.control", "a.mail.control"]
    order = list(dict.fromkeys(others[2:]))
    assert order.index("a.mail.suppressions") < order.index("a.mail.seen") < order.index("a.mail.requests")
    assert order.index(f"a.{STATE}") < order.index(f"a.{DISPATCH}"), "the gate comes before what it guards"


class Died(BaseException):
    """kill -9 where it hurts."""


class Tapped:
    """The log, with every transaction of the restore shown, or stopped, on its way."""

    def __init__(self, log: MemoryLog, tap: Any, after: Any = lambda _: None) -> None:
        self._log, self._tap, self._after = log, tap, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def transactor(self, ident: str) -> Any:
        inner, outer = await self._log.transactor(ident), self

        class Transactor:
            async def commit(self, transaction: Transaction) -> Mapping[Partition, int]:
                outer._tap(transaction)
                ends = await inner.commit(transaction)
                outer._after(transaction)
                return ends

            rebuild, close = inner.rebuild, inner.close

        return Transactor()


@pytest.mark.parametrize("before", [True, False], ids=["before-commit", "after-commit"])
def test_killed_at_each_transaction_it_ends_as_if_it_had_not_been(
    tmp_path: Path, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "BATCH_RECORDS_MAX", 3)

    async def made() -> None:
        await lost(tmp_path)
        archive = archive_of(directory(tmp_path))
        whole = Installation(cluster_id="two", made=False)
        await whole.restore(archive, at=RESTORED_AT)
        wanted = contents(whole)
        lives = 0
        new = Installation(cluster_id="two", made=False)
        while True:
            lives += 1
            left = [4]  # it gets on by one or two, past what it was asked for and the pauses, which are written again

            def dies(_: Transaction, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise Died

            log = Tapped(new.log, dies) if before else Tapped(new.log, lambda _: None, dies)
            restorer = new.restorer(archive, log)
            try:
                # Each life has another clock; what the first one went by is what counts.
                made = await restorer.look(list(archive.topics), Manner.UNCERTAIN, RESTORED_AT + timedelta(hours=lives))
                if lives == 1:
                    made.at = RESTORED_AT
                await restorer.run(made)
                break
            except Died:
                assert lives < 300
        assert contents(new) == {**wanted, "a.mail.control/0": contents(new)["a.mail.control/0"]}
        assert {k for k, *_ in contents(new)["a.mail.control/0"]} == {k for k, *_ in wanted["a.mail.control/0"]}

    ran(made())


@pytest.mark.parametrize("error", [Aborted, CommitUnknown])
@pytest.mark.parametrize("happened", [True, False])
def test_commits_that_fail_or_of_which_nobody_knows(
    tmp_path: Path, error: type[Exception], happened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is Aborted and happened:
        pytest.skip("an aborted transaction has not happened")
    monkeypatch.setattr(restoring, "BATCH_RECORDS_MAX", 3)
    monkeypatch.setattr("postlane.ops.backup.progress.RETRY_S", 0.0)

    async def made() -> None:
        await lost(tmp_path)
        archive = archive_of(directory(tmp_path))
        whole = Installation(cluster_id="two", made=False)
        await whole.restore(archive, at=RESTORED_AT)
        new = Installation(cluster_id="two", made=False)
        count = [0]

        def fails(_: Transaction) -> None:
            count[0] += 1
            if count[0] % 2:
                raise error("as asked for")

        log = Tapped(new.log, lambda _: None, fails) if happened else Tapped(new.log, fails)
        restorer = new.restorer(archive, log)
        await restorer.run(await restorer.look(list(archive.topics), Manner.UNCERTAIN, RESTORED_AT))
        now, wanted = contents(new), contents(whole)
        control = "a.mail.control/0"  # the pauses may be written twice
        assert {**now, control: set(map(str, now[control]))} == {**wanted, control: set(map(str, wanted[control]))}

    ran(made())


def test_again_is_nothing_and_another_one_is_refused(tmp_path: Path) -> None:
    async def made() -> None:
        await lost(tmp_path)
        archive = archive_of(directory(tmp_path))
        new = Installation(cluster_id="two", made=False)
        await new.restore(archive, at=RESTORED_AT)
        before = contents(new)
        made = await new.restore(archive, at=RESTORED_AT + timedelta(days=1))
        assert made.done is not None
        assert made.at == RESTORED_AT  # the plan of that time: what was not due then is due now
        assert contents(new) == before
        first = archive_of(directory(tmp_path), to=NOW - timedelta(minutes=1))
        with pytest.raises(Refused, match="not empty"):
            await new.restore(first)
        assert contents(new) == before

    ran(made())


def test_a_restore_that_was_begun_goes_on_only_with_the_same(tmp_path: Path) -> None:
    async def made() -> None:
        await lost(tmp_path)
        archive = archive_of(directory(tmp_path))
        new = Installation(cluster_id="two", made=False)
        count = [0]

        def dies(_: Transaction) -> None:
            count[0] += 1
            if count[0] == 9:
                raise Died

        restorer = new.restorer(archive, Tapped(new.log, dies))
        with pytest.raises(Died):
            await restorer.run(await restorer.look(list(archive.topics), Manner.UNCERTAIN, RESTORED_AT))
        with pytest.raises(Refused, match="go on with the same"):
            await new.restore(archive, Manner.FRESH)
        first = archive_of(directory(tmp_path), to=NOW - timedelta(minutes=1))
        with pytest.raises(Refused, match="go on with the same"):
            await new.restore(first)
        assert (await new.restorer(archive).look(list(archive.topics), Manner.UNCERTAIN, NOW)).resumed

    ran(made())


def test_targets_that_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    async def made() -> None:
        await lost(tmp_path)
        archive = archive_of(directory(tmp_path))
        busy = Installation(cluster_id="two", made=False)
        busy.admin.members.add(busy.names.sender_group("bulk"))
        with pytest.raises(Refused, match="stop routers and senders"):
            await busy.restore(archive)
        filled = Installation(cluster_id="two")
        await filled.put("mail.requests", 1, w.request("new"))
        with pytest.raises(Refused, match=r"not empty here: a\.mail\.requests"):
            await filled.restore(archive)
        odd = Installation(cluster_id="two", made=False)
        odd.log.cluster.create_topic("a.mail.requests", 5)
        with pytest.raises(Foreign, match="5 partitions here"):
            await odd.restore(archive)
        for it in (busy, filled, odd):
            assert "a.mail.restores" not in it.log.cluster.topics
            assert not it.admin.positions

    ran(made())


def test_one_table_by_itself(tmp_path: Path) -> None:
    """A topic that was deleted by mistake: made anew, it gets its records back, and nothing else is touched."""

    async def made() -> None:
        old = await lost(tmp_path)
        archive = archive_of(directory(tmp_path))
        wanted = {n: [(r.key, r.value) for r in old.records("mail.suppressions", n)] for n in range(w.PARTITIONS)}
        del old.log.cluster.topics["a.mail.suppressions"]
        before = {k: v for k, v in contents(old).items() if "control" not in k}
        restorer = old.restorer(archive)
        await restorer.run(await restorer.look(["mail.suppressions"], Manner.UNCERTAIN, RESTORED_AT))
        for n in range(w.PARTITIONS):
            assert [(r.key, r.value) for r in old.records("mail.suppressions", n)] == wanted[n]
        after = {k: v for k, v in contents(old).items() if "control" not in k and "suppressions" not in k}
        assert after == before
        # Deleted once more, it is restored once more; the same command on what is there does nothing.
        assert (await restorer.look(["mail.suppressions"], Manner.UNCERTAIN, RESTORED_AT)).done is not None
        del old.log.cluster.topics["a.mail.suppressions"]
        await restorer.run(await restorer.look(["mail.suppressions"], Manner.UNCERTAIN, RESTORED_AT))
        assert [(r.key, r.value) for r in old.records("mail.suppressions", 0)] == wanted[0]

    ran(made())


def test_what_is_too_old_for_its_topic_begins_anew_there(tmp_path: Path) -> None:
    """Retention would take a pending record from under its reader; everything else keeps its time."""

    async def made() -> None:
        it = Installation()
        old, young = NOW - timedelta(days=6), NOW - timedelta(days=1)
        await it.put(DISPATCH, 0, ready("old"), at=old)
        await it.put(DISPATCH, 0, ready("young"), at=young)
        it.sender(0, 0, 0)
        await it.backup(directory(tmp_path))
        new = Installation(cluster_id="two", made=False)
        await new.restore(archive_of(directory(tmp_path)), at=NOW)
        times = [r.timestamp_ms for r in new.records(DISPATCH, 0)]
        assert times == [int(NOW.timestamp() * 1000), int(young.timestamp() * 1000)]

    ran(made())
