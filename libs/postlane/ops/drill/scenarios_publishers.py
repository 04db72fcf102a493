"""What publishers do to you: a campaign that is broken or a mistake, and one that never stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from postlane.eventlog.kafka_config import ClientConfig
from postlane.eventlog.ports import Outgoing
from postlane.eventlog.publish import SyncAppender
from postlane.mail import Mail
from postlane.ops.drill.account import Delivery
from postlane.ops.drill.scene import Scene, scenario
from postlane.ops.drill.throwaway import RUNAWAY_PER_S, RUNAWAY_TENANT, ThrowawaySite

_TEMPLATE = "drill-offer"
_EACH = 20
_RECALL_S = 20  # between the end of the fault and the time at which the campaign's mistake would go out
_GARBAGE = (b"", b"\xff\xfe\x00", b"[1,2,3]", b'{"message_id": 7}', b"{" * 500)
_RUNAWAY_MAILS = 400
_RECALLED_AT, _TOLD_WITHIN_S = "_recalled_at", 2.0  # an order takes a moment to reach every sender
_LATENCY_MAX_S, _LATENCY_GROWTH_MAX = 5.0, 3.0


def _of_kind(scene: Scene, kind: str) -> list[Delivery]:
    return scene.follower.account.of(m for m, a in scene.load.accepted().items() if a.kind == kind)


def _poison_after(scene: Scene) -> None:
    for delivery in _of_kind(scene, "broken"):
        scene.expect(delivery.ends == ["dead_lettered"], f"{delivery.ident} is {delivery.ends}, not dead-lettered")
        scene.expect(not delivery.copies, f"{delivery.ident} was sent half rendered")
    gone = _gone_before_the_recall(scene, "recalled")
    for delivery in _of_kind(scene, "recalled"):
        if delivery.ident not in gone:
            scene.expect(delivery.ends == ["cancelled"], f"{delivery.ident} is {delivery.ends}, not cancelled")
            scene.expect(not delivery.copies, f"{delivery.ident} was recalled and went out")
    for delivery in _of_kind(scene, "whole"):
        scene.expect(delivery.ends == ["delivered"], f"{delivery.ident} is {delivery.ends}, not delivered")
    letters = [letter for letter in scene.follower.account.dead_letters if _is_garbage(scene, letter)]
    scene.expect(len(letters) == len(_GARBAGE), f"{len(letters)} of {len(_GARBAGE)} unreadable records were kept")
    scene.figures |= {"unreadable_kept": len(letters), "broken": _EACH, "recalled": _EACH - len(gone)}


def _gone_before_the_recall(scene: Scene, kind: str) -> set[str]:
    """The deliveries that a server had when the command that calls them off ended, or just after."""
    told_at = scene.figures.pop(_RECALLED_AT, None)
    if told_at is None:
        return set()
    return {d.ident for d in _of_kind(scene, kind) if any(copy.at <= told_at + _TOLD_WITHIN_S for copy in d.copies)}


def _is_garbage(scene: Scene, letter: dict[str, str]) -> bool:
    return bool(letter.get("kafka_dlt-original-topic") == scene.site.names.requests)


@scenario(12, "own", after=_poison_after)
def poison_campaign(scene: Scene) -> Iterator[str]:
    """A campaign goes wrong: its template does not render for a third, records that nobody can read come with it, and
    the rest was a mistake that is called off in one command. Everybody else's mail goes on."""
    site: ThrowawaySite = scene.site
    template = site.folder / "offer.txt"
    template.write_text("An offer for {{ name }}.\n")
    site.command("template", "put", _TEMPLATE, "--subject", "An offer", "--text", f"@{template}")
    scene.began = time.time()
    later = datetime.now(UTC) + timedelta(seconds=scene.hold_s + _RECALL_S)
    for i in range(_EACH):
        _add(scene, f"whole-{i}", "whole", {"name": f"Person {i}"}, "drill-poison")
        _add(scene, f"broken-{i}", "broken", {}, "drill-poison")
        _add(scene, f"recalled-{i}", "recalled", {"name": f"Person {i}"}, "drill-mistake", later)
    _garbage(site)
    yield f"{3 * _EACH} mails of a bad campaign and {len(_GARBAGE)} unreadable records were published"
    if scene.until(lambda: not _unread(scene, "recalled"), "the campaign is known"):
        site.command("cancel", "--campaign", "drill-mistake", "--reason", "drill")
        scene.figures[_RECALLED_AT] = scene.mark("postlane cancel --campaign drill-mistake")


def _add(
    scene: Scene, key: str, kind: str, data: dict[str, str], campaign: str, send_at: datetime | None = None
) -> None:
    mail = Mail(
        sender=scene.site.sender,
        to=[f"{key}@{scene.site.recipients_domain}"],
        template={"id": _TEMPLATE, "data": data},
        campaign=campaign,
        send_at=send_at,
    )
    scene.load.add(mail, key, kind)


def _unread(scene: Scene, kind: str) -> bool:
    found = [m for m, a in scene.load.accepted().items() if a.kind == kind]
    return len(found) < _EACH or any(not scene.follower.account.by_message.get(m) for m in found)


def _garbage(site: ThrowawaySite) -> None:
    appender = SyncAppender(ClientConfig(site.bootstrap, {}, "postlane-drill"), site.names.requests)
    try:
        for i, value in enumerate(_GARBAGE):
            appender.append(Outgoing(site.names.requests, None, b"drill-garbage-%d" % i, value))
    finally:
        appender.close()


def _runaway_after(scene: Scene) -> None:
    gone = _gone_before_the_recall(scene, "runaway")
    deliveries = _of_kind(scene, "runaway")
    ends = [end for delivery in deliveries for end in delivery.ends]
    scene.expect(set(ends) <= {"delivered", "cancelled"}, f"runaway mails ended as {sorted(set(ends))}")
    late = [d.ident for d in deliveries if d.copies and d.ident not in gone]
    scene.expect(not late, f"{len(late)} runaway mails went out although their campaign had been cancelled")
    scene.figures |= {"runaway": len(deliveries), "runaway_sent": ends.count("delivered")}
    before, during = _slowest(scene, 0.0, scene.began), _slowest(scene, scene.began, scene.healed)
    bound_s = max(_LATENCY_MAX_S, _LATENCY_GROWTH_MAX * before)  # a busy machine was slow before
    scene.figures |= {"others_slowest_before_s": before, "others_slowest_s": during}
    scene.expect(during <= bound_s, f"another tenant's mail took {during} s (at most {bound_s:.1f} s beside a runaway)")


def _slowest(scene: Scene, since: float, until: float) -> float:
    account = scene.follower.account
    took = [
        min(copy.at for copy in delivery.copies) - accepted.at
        for message, accepted in scene.load.accepted().items()
        if accepted.kind == "ordinary" and since <= accepted.at <= until
        for delivery in account.of([message])
        if delivery.copies
    ]
    return round(max(took, default=0.0), 2)


@scenario(10, "own", after=_runaway_after)
def runaway_publisher(scene: Scene) -> Iterator[str]:
    """A tenant publishes hundreds of mails at once: its limit holds it back, an operator pauses it and calls the
    campaign off, and everybody else's mail goes on."""
    site: ThrowawaySite = scene.site
    for i in range(_RUNAWAY_MAILS):
        mail = Mail(
            sender=site.sender,
            to=[f"runaway-{i}@{site.recipients_domain}"],
            subject=f"Again {i}",
            text="Again.",
            tenant=RUNAWAY_TENANT,
            campaign="drill-runaway",
        )
        scene.load.add(mail, f"runaway-{i}", "runaway")
    try:
        yield f"{_RUNAWAY_MAILS} mails of one tenant at once; its limit is {RUNAWAY_PER_S:.0f} a second"
        site.command("pause", "--tenant", RUNAWAY_TENANT, "--reason", "drill")
        scene.mark(f"postlane pause --tenant {RUNAWAY_TENANT}")
        site.command("cancel", "--campaign", "drill-runaway", "--reason", "drill")
        scene.figures[_RECALLED_AT] = scene.mark("postlane cancel --campaign drill-runaway")
    finally:
        site.command("resume", "--tenant", RUNAWAY_TENANT)
        scene.mark(f"postlane resume --tenant {RUNAWAY_TENANT}")
