"""What the demo sends, and what happens to the system meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from demo.people import BLOCKED_DOMAIN, NOBODY, Expected
from demo.system import DemoFailed, System
from demo.telling import Told
from postlane.core.identity import message_id_from_key

DATA = Path(__file__).with_name("data")
SENDER = "Postlane Demo <shop@example.org>"
CAMPAIGN, TEMPLATE, POLICY = "spring", "spring-news", "policy"
UNANSWERED = "ada@example.com"  # 01-plain.eml
REPLY_DELAY_S = 0.1  # how long the providers take to answer, so that there is something in flight to be killed
WAIT_S = 90.0


def misbehave(system: System) -> None:
    """Replies that mean something, and slow ones; half of the slow ones come although the mail was taken already."""
    witness = system.witness
    witness.add_fault("reply", "rcpt", code=550, text="5.1.1 no such user", recipient=f"{NOBODY}*")
    blocked = f"*@{BLOCKED_DOMAIN}"
    witness.add_fault("reply", "rcpt", id=POLICY, code=550, text="5.7.1 blocked by policy", recipient=blocked)
    # The worst case, once: the mail is taken and the connection ends before the answer. Its lane says: send it again.
    witness.add_fault("accept_drop", "dot", recipient=UNANSWERED, count=1)
    witness.add_fault("accept_hang", "dot", delay_s=REPLY_DELAY_S, probability=0.5, seed=1)
    witness.add_fault("delay", "dot", delay_s=REPLY_DELAY_S)


def put_tables(system: System, folder: Path, told: Told) -> None:
    """The template and the suppression list."""
    subject = (DATA / "newsletter.subject.txt").read_text(encoding="utf-8").strip()
    html = f"@{DATA / 'newsletter.html'}"
    told.say(f"postlane template put {TEMPLATE}; postlane suppress import suppressed.csv")
    told.show(system.command("template", "put", TEMPLATE, "--subject", subject, "--html", html))
    told.show(system.command("suppress", "import", str(folder / "suppressed.csv")))


def send_all(system: System, folder: Path, rate: int, expected: Expected, told: Told) -> set[str]:
    """Publish everything, accidents included; the ids of the messages that are on record now."""
    options = ("--from", SENDER, "--campaign", CAMPAIGN, "--json")
    csv = str(folder / "recipients.csv")
    told.say(f"postlane import recipients.csv --template {TEMPLATE} --rate {rate}   (goes on meanwhile)")
    importing = system.begin("import", csv, "--template", TEMPLATE, "--key-column", "id", "--rate", str(rate), *options)
    _until_witnessed(system, 0.20, expected)
    told.say(f"kill -9 of sender-2 (pid {system.kill('sender-2')})")
    files = sorted((DATA / "mails").glob("*.eml"))
    ids = _send_mails(system, files[:1], told)
    told.say(f"sender-2 is back (pid {system.restart('sender-2')})")
    _until_witnessed(system, 0.65, expected)
    told.say("the primary provider goes away: nothing listens, open connections are reset")
    system.witness.outage("primary")
    ids |= _send_mails(system, files[1:], told)
    _until_witnessed(system, 0.85, expected)
    told.say("the primary provider is back")
    system.witness.recover("primary")
    summary = json.loads(system.finish(importing))
    if summary["rejected"] != expected.rejected:
        raise DemoFailed(f"{summary['rejected']} rows were rejected, {expected.rejected} are no mails")
    told.say(f"import: {summary['published']} published, {summary['rejected']} rows kept with their reason, e.g.")
    rejected = Path(summary["rejected_file"]).read_text(encoding="utf-8").splitlines()
    told.show("\n".join(f"line {row['line']}: {row['reason']}" for row in map(json.loads, rejected[:3])))
    told.say("postlane import invoices.ndjson   (each with an attachment)")
    system.command("import", str(folder / "invoices.ndjson"), *options)
    return ids | {message_id_from_key("default", key) for key in expected.keys}


def _send_mails(system: System, files: list[Path], told: Told) -> set[str]:
    told.say(f"postlane send --eml FILE, for {len(files)} files")
    ids = set()
    for file in files:
        said = system.command("send", "--eml", str(file), "--key", f"eml-{file.stem}", "--json")
        ids.add(json.loads(said)["message_id"])
    return ids


def _until_witnessed(system: System, share: float, expected: Expected) -> None:
    """Returns when the witness has taken this share of the list."""
    wanted = int(share * len(expected.ordinary))
    wait_until(lambda: system.witness.health()["records"] >= wanted, f"the witness has {wanted} mails")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Returns when it holds; DemoFailed after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.1)
