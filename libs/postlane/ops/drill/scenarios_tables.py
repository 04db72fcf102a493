"""What was lost and is put back: the ledger's database, the suppressions and the templates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from postlane.mail import Mail
from postlane.ops.drill.checkers import check, ledger_is_the_fold
from postlane.ops.drill.follow import Follower, ledger_rows
from postlane.ops.drill.scene import Scene, scenario
from postlane.ops.drill.throwaway import ThrowawaySite, said
from postlane.publisher import Publisher

_TEMPLATE = "drill-welcome"
_MAILS = 20


@scenario(3, "kill:ledger", "own")
def ledger_lost(scene: Scene) -> Iterator[str]:
    """The ledger dies and its database is lost: it is folded again from the log. Mail is not affected."""
    site: ThrowawaySite = scene.site
    before = [m for m in scene.load.accepted() if m not in scene.follower.account.waiting(scene.load.accepted())]
    site.kill("ledger")
    site.lose_ledger_database()
    try:
        yield f"the ledger was killed and its database deleted; {len(before)} mails were settled by then"
    finally:
        site.launch("ledger")
        scene.mark("the ledger was started on an empty database")
    if scene.until(lambda: not _differs(scene, before), "the rebuilt database says what the log says"):
        scene.recovered = scene.mark("the rebuilt database says what the log says of every mail from before")


def _differs(scene: Scene, messages: list[str]) -> bool:
    account = scene.follower.account
    try:
        rows = ledger_rows(scene.site.database_url, [d.ident for d in account.of(messages)])
    except Exception:  # the database's own, while it is being made
        return True
    return bool(list(ledger_is_the_fold(account, messages, rows)))


@scenario(1, "own")
def restore_backup(scene: Scene) -> Iterator[str]:
    """Suppressions and templates are lost with their cluster: they are restored from a backup into an empty
    installation, which mails nobody before it is resumed, and no suppressed address ever."""
    site: ThrowawaySite = scene.site
    suppressed = [f"never-{i}@{site.recipients_domain}" for i in range(_MAILS)]
    site.command("suppress", "add", *suppressed, "--reason", "drill")
    (site.folder / "welcome.txt").write_text("Welcome, {{ name }}.\n")
    site.command("template", "put", _TEMPLATE, "--subject", "Welcome", "--text", f"@{site.folder / 'welcome.txt'}")
    backup = site.folder / "backup"
    made = said(site.command("backup", str(backup), "--json"))
    scene.figures["backup_records"] = made["records"]
    scene.mark(f"backup {made['backup']} was taken")
    with contextlib.ExitStack() as undo:
        scene.began = time.time()  # the loss; what went before was the rehearsal's preparation
        yield f"an empty installation is all there is; {len(suppressed)} suppressions and a template are in the backup"
        _restore_and_send(scene, site, backup, suppressed, undo)


def _restore_and_send(
    scene: Scene, site: ThrowawaySite, backup: Path, suppressed: list[str], undo: contextlib.ExitStack
) -> None:
    other = site.sibling(site.folder / "restored")
    restored = other.prepare()
    restore = ("restore", str(backup), "--from-prefix", site.names.prefix, "--yes", "--json")
    restored.command(*restore, "--topic", "mail.suppressions", "--topic", "mail.templates")
    scene.mark("suppressions and templates are restored; every lane is paused")
    undo.enter_context(other)
    follower = Follower(other.bootstrap, other.names, other.lanes, other.witness)
    undo.callback(follower.close)
    with Publisher(other.bootstrap, topic_prefix=other.names.prefix) as publisher:
        wanted = _publish(publisher, site, suppressed)
    scene.until(lambda: follower.catch_up() and _suppressed(follower, wanted), "the suppressions are obeyed")
    scene.expect(not other.witness.ledger(), "a mail went out before the lanes were resumed")
    for lane in other.lanes:
        other.command("resume", "--lane", lane)
    scene.mark("the lanes are resumed")
    everything = [*wanted["suppressed"], *wanted["templated"]]
    scene.until(
        lambda: follower.catch_up() and not follower.account.waiting(everything), "what was accepted there is settled"
    )
    scene.recovered = scene.mark("every mail of the restored installation is settled")
    account = follower.account
    for message in wanted["suppressed"]:
        mailed = [d.ident for d in account.of([message]) if d.copies or d.ends != ["suppressed"]]
        scene.expect(not mailed, f"a suppressed address was mailed: {mailed}")
    for message in wanted["templated"]:
        late = [d.ident for d in account.of([message]) if d.ends != ["delivered"]]
        scene.expect(not late, f"a mail of the restored template was not delivered: {late}")
    scene.failed += [str(broken) for broken in check(account, everything)]
    scene.figures |= {"suppressed_there": len(wanted["suppressed"]), "templated_there": len(wanted["templated"])}


def _publish(publisher: Publisher, site: ThrowawaySite, suppressed: list[str]) -> dict[str, list[str]]:
    plain = [
        Mail(sender=site.sender, to=[address], subject="Never", text="You should not read this.")
        for address in suppressed
    ]
    templated = [
        Mail(
            sender=site.sender,
            to=[f"welcome-{i}@{site.recipients_domain}"],
            template={"id": _TEMPLATE, "data": {"name": f"{i}"}},
        )
        for i in range(_MAILS)
    ]
    return {
        "suppressed": [r.message_id for r in publisher.publish_many(plain)],
        "templated": [r.message_id for r in publisher.publish_many(templated)],
    }


def _suppressed(follower: Follower, wanted: dict[str, list[str]]) -> bool:
    return not follower.account.waiting(wanted["suppressed"])
