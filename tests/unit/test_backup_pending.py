"""What a restore puts back on its way: each delivery once, as the books say, whatever the cut caught in between."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from tests.unit import backup_world as w
from tests.unit.backup_world import NOW, Installation, archive_of, directory, ran, ready

from postlane.eventlog.ports import Partition
from postlane.ops.backup.errors import Refused
from postlane.ops.backup.pending import Fate, Manner, Pending

DISPATCH = f"mail.dispatch.{w.LANE}"
STATE = f"mail.state.{w.LANE}"


def placed(store: Path, manner: Manner = Manner.UNCERTAIN, number: int = 0) -> dict[str, tuple[str, Fate]]:
    found = {}
    for it in Pending(archive_of(directory(store)), number, manner, NOW).placed():
        assert it.key not in found, "a delivery is on its way twice"
        found[it.key] = (it.topic, it.fate)
    return found


def key(name: str, hop: int = 0) -> str:
    return f"{w.delivery(name)}#{hop}"


def test_below_the_positions_nothing_is_pending_and_above_them_the_books_decide(tmp_path: Path) -> None:
    async def made() -> None:
        it = Installation()
        await it.put(DISPATCH, 0, ready("below"), ready("settled"), ready("doubt"), ready("fresh"))
        floor = await it.put(STATE, 0, w.state("outcome", "below"))
        await it.put(STATE, 0, w.state("intent", "settled"), w.state("outcome", "settled"), w.state("intent", "doubt"))
        it.sender(0, 1, floor + 1)
        await it.backup(directory(tmp_path))

    ran(made())
    assert placed(tmp_path) == {key("doubt"): (DISPATCH, Fate.IN_DOUBT), key("fresh"): (DISPATCH, Fate.UNCERTAIN)}
    # Not straight to the sender: the router has to look at the suppressions first.
    assert placed(tmp_path, Manner.FRESH)[key("fresh")] == ("mail.delay.1s", Fate.FRESH)
    assert placed(tmp_path, Manner.FRESH)[key("doubt")] == (DISPATCH, Fate.IN_DOUBT)


def test_what_waits_for_its_time_stays_where_it_waits(tmp_path: Path) -> None:
    async def made() -> None:
        it = Installation()
        later, past = NOW + timedelta(hours=1), NOW - timedelta(seconds=1)
        await it.put("mail.delay.1h", 0, ready("passed"), ready("later", due_at=later), ready("due", 1, due_at=past))
        it.router("mail.delay.1h", 0, 1)
        await it.backup(directory(tmp_path))

    ran(made())
    assert placed(tmp_path) == {
        key("later"): ("mail.delay.1h", Fate.SCHEDULED),
        key("due", 1): (DISPATCH, Fate.UNCERTAIN),
    }
    assert placed(tmp_path, Manner.FRESH)[key("due", 1)] == ("mail.delay.1h", Fate.FRESH)


def test_an_outcome_that_was_copied_too_early_is_known_by_its_next_hop_or_its_event(tmp_path: Path) -> None:
    async def made() -> None:
        it = Installation()
        await it.put(DISPATCH, 0, ready("deferred"), ready("delivered"), ready("parked"), ready("resent"))
        await it.put("mail.delay.10s", 0, ready("deferred", 1, due_at=NOW + timedelta(seconds=9)))
        it.sender(0, 0, 0)
        taken = await it.backup(directory(tmp_path))
        assert taken.manifest.positions.marks["mail.events"] == {0: 0, 1: 0}
        # The marks are taken first, so the events of such a moment lie above them; here they come with the next backup.
        await it.put("mail.events", 0, w.event("Delivered", "delivered"), w.event("Uncertain", "parked"))
        await it.put("mail.events", 0, w.event("Uncertain", "resent", next_at=NOW.isoformat()))

    ran(made())
    pending = placed(tmp_path)
    assert key("deferred") not in pending
    assert pending[key("deferred", 1)] == ("mail.delay.10s", Fate.SCHEDULED)
    assert key("delivered") in pending  # its event is not in the backup


def test_an_event_above_the_mark_ends_what_it_speaks_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def made() -> None:
        it = Installation()
        await it.put(DISPATCH, 0, ready("delivered"), ready("parked"), ready("resent"), ready("attempted"))
        it.sender(0, 0, 0)
        before = it.admin.group_offsets

        async def in_between(group: str, partitions: Collection[Partition], *, stable: bool = False) -> object:
            """A tick is committed after the marks and the senders' positions were taken."""
            found = await before(group, partitions, stable=stable)
            if group == it.names.sender_group(w.LANE):
                await it.put("mail.events", 0, w.event("Delivered", "delivered"), w.event("Uncertain", "parked"))
                await it.put("mail.events", 0, w.event("Uncertain", "resent", next_at=NOW.isoformat()))
                await it.put("mail.events", 0, w.event("Attempted", "attempted"))
            return found

        monkeypatch.setattr(it.admin, "group_offsets", in_between)
        await it.backup(directory(tmp_path))

    ran(made())
    assert set(placed(tmp_path)) == {key("resent"), key("attempted")}


def test_a_record_that_was_passed_on_in_between_is_there_once(tmp_path: Path) -> None:
    async def made() -> None:
        it = Installation()
        await it.put("mail.delay.1s", 0, ready("passed", 2))
        await it.put(DISPATCH, 0, ready("passed", 2))
        it.sender(0, 0, 0)
        await it.backup(directory(tmp_path))

    ran(made())
    assert placed(tmp_path, Manner.FRESH) == {key("passed", 2): ("mail.delay.1s", Fate.FRESH)}
    found = list(Pending(archive_of(directory(tmp_path)), 0, Manner.FRESH, NOW).placed())
    assert [it.record.topic for it in found] == [DISPATCH]


def test_what_was_routed_after_the_point_is_forgotten_and_routed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def made() -> None:
        it = Installation()
        await it.put("mail.requests", 0, w.request("routed"), w.request("cut"), w.request("whole"), w.request("new"))
        await it.put("mail.seen", 0, w.seen("routed"))
        it.router("mail.requests", 0, 1)
        stable = it.admin.last_stable_offsets

        async def in_between(partitions: object) -> object:
            """`whole` is routed before the dispatch topics are copied; `cut` after them and before `mail.seen` is."""
            topics = {p.topic for p in partitions}  # type: ignore[attr-defined]
            if it.names.dispatch(w.LANE) in topics and len(it.records(DISPATCH, 0)) == 2:
                found = await stable(partitions)  # type: ignore[arg-type]
                await it.put("mail.seen", 0, w.seen("whole"), w.seen("cut"))
                await it.put("mail.events", 0, w.event("Routed", "cut"), w.event("Delivered", "whole"))
                await it.put(DISPATCH, 0, ready("cut"))
                return found
            return await stable(partitions)  # type: ignore[arg-type]

        await it.put(DISPATCH, 0, ready("routed"), ready("whole"))
        await it.put("mail.events", 0, w.event("Routed", "routed"), w.event("Attempted", "routed"))
        monkeypatch.setattr(it.admin, "last_stable_offsets", in_between)
        await it.backup(directory(tmp_path))

    ran(made())
    archive = archive_of(directory(tmp_path))
    pending = Pending(archive, 0, Manner.UNCERTAIN, NOW)
    assert pending.late == {w.message("cut"), w.message("whole")}
    kept = [r.key for r in archive.records("mail.seen", 0) if not pending.is_late(r)]
    assert kept == [w.seen("routed")[0]]
    assert [it.key for it in pending.placed()] == [key("routed")]
    events = [r for r in archive.records("mail.events", 0) if not pending.is_late(r)]
    assert [w.orjson.loads(r.value)["message_id"] for r in events] == [w.message("routed")] * 2


def test_unreadable_records_go_where_they_were_and_only_if_nobody_settled_them(tmp_path: Path) -> None:
    async def made() -> None:
        it = Installation()
        await it.put(DISPATCH, 0, (b"k", b"\xff"), (b"k", b"{}"))
        done = {"kind": "outcome", "delivery_id": "@0", "hop": 0, "offset": 0, "result": "DeadLettered"}
        await it.put(STATE, 0, (b"@0#0", {**done, "at": NOW.isoformat()}))
        await it.put("mail.delay.1s", 0, ready("gone", lane="no-such-lane"))
        it.sender(0, 0, 0)
        await it.backup(directory(tmp_path))

    ran(made())
    found = list(Pending(archive_of(directory(tmp_path)), 0, Manner.UNCERTAIN, NOW).placed())
    assert [(it.topic, it.record.value, it.fate) for it in found][-1] == (DISPATCH, b"{}", Fate.UNREADABLE)
    assert {it.topic for it in found} == {DISPATCH, "mail.delay.1s"}
    assert len(found) == 2


def test_values_of_state_are_read_as_they_are(tmp_path: Path) -> None:
    """A later version may write more into an intent; it is put back with all of it, but for what is a position."""

    async def made() -> Installation:
        it = Installation()
        await it.put(DISPATCH, 0, ready("doubt"))
        await it.put(STATE, 0, w.state("intent", "doubt", offset=0, later_field=[1]))
        it.sender(0, 0, 0)
        await it.backup(directory(tmp_path))
        other = Installation(cluster_id="two")
        await other.restore(archive_of(directory(tmp_path)))
        return other

    other = ran(made())
    gate, intent = other.records(STATE, 0)
    assert gate.key == b"@restore#0"
    body = orjson.loads(intent.value)
    assert body["later_field"] == [1]
    assert body["boot"] == ""
    assert body["offset"] == other.records(DISPATCH, 0)[0].offset


def test_without_positions_the_books_alone_say_what_is_pending(tmp_path: Path) -> None:
    """Offsets were reset to the beginning: everything would be read again, and only this is on its way."""

    async def made() -> Installation:
        it = Installation()
        await it.put("mail.requests", 0, *(w.request(k) for k in ("sent", "retried", "later", "ended", "unrouted")))
        await it.put("mail.seen", 0, *(w.seen(k) for k in ("sent", "retried", "later", "ended")))
        for n, name in enumerate(("sent", "retried", "later", "ended")):
            await it.put("mail.events", 0, w.event("Requested", name), ident=f"a.mail.requests/0/{n}/0")
        await it.put("mail.events", 0, w.event("Suppressed", "ended"))
        await it.put(DISPATCH, 0, ready("sent"), ready("retried"), ready("retried", 1))
        await it.put("mail.delay.1s", 0, ready("retried", 1), ready("retried", 2), ready("ended"))
        await it.put("mail.delay.1d", 0, ready("later", due_at=NOW + timedelta(days=1)))
        await it.put(
            STATE, 0, w.state("outcome", "sent"), w.state("outcome", "retried"), w.state("outcome", "retried", 1)
        )
        it.admin.positions[it.names.sender_group(w.LANE)] = {
            w.Partition(it.names.dispatch(w.LANE), 0): w.Committed(0, "")
        }
        with pytest.raises(Refused, match="--positions-lost"):
            await it.backup(directory(tmp_path))
        it.admin.members.add(it.names.router_group)
        with pytest.raises(Refused, match="stop routers"):
            await it.backup(directory(tmp_path), positions_lost=True)
        it.admin.members.clear()
        await it.backup(directory(tmp_path), positions_lost=True)
        new = Installation(cluster_id="two", made=False)
        await new.restore(archive_of(directory(tmp_path)), Manner.FRESH, at=NOW)
        return new

    new = ran(made())
    assert placed(tmp_path, Manner.FRESH) == {
        key("retried", 2): ("mail.delay.1s", Fate.FRESH),
        key("later"): ("mail.delay.1d", Fate.SCHEDULED),
    }
    position = new.admin.positions[new.names.router_group][w.Partition(new.names.requests, 0)]
    following = [r.key for r in new.records("mail.requests", 0) if r.offset >= position.offset]
    assert following == [w.request("unrouted")[0]]
