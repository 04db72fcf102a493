"""Run in a process of its own by test_content_leads_nowhere: routes and composes a hostile mail, and tells every file,
connection, process, import and piece of code that the interpreter was asked for meanwhile (PEP 578)."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import minijinja._internal  # noqa: F401 the library imports it when a template first fails

from postlane.core.events import MailRequested, Template
from postlane.core.policy import Config
from postlane.core.route import RoutePolicy
from postlane.eventlog.codec import encode
from postlane.eventlog.ports import Received
from postlane.eventlog.tables import TemplateTable
from postlane.eventlog.topics import TopicNames
from postlane_ledger.batch import fold, prepare
from postlane_router.deciding import Decider
from postlane_router.store import MemoryStore
from postlane_router.tables import RouterTables
from postlane_sender.composer import Composer
from postlane_sender.lane import NotComposable

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = TopicNames()
WATCHED = (
    "open", "socket.", "subprocess.", "os.", "exec", "compile", "import", "ctypes.", "urllib.", "shutil.", "glob.",
    "pickle.", "marshal.", "pty.", "webbrowser.", "ftplib.", "smtplib.", "http.", "sqlite3.", "tempfile.",
)  # fmt: skip
LEADS = [
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "../../../etc/passwd",
    "`id`",
    "$(id)",
    "${jndi:ldap://127.0.0.1:9/x}",
    "{% include '/etc/passwd' %}",
    "{{ [].__class__.__base__.__subclasses__() }}",
    "!!python/object/apply:os.system [id]",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><p>&e;</p>",
    "<img src='http://127.0.0.1:9/p.png'><link rel=stylesheet href='file:///etc/passwd'><script src=//x></script>",
    "cos\nsystem\n(S'id'\ntR.",
    "__import__('os').system('id')",
    "postgresql://u:p@127.0.0.1:9/d",
    "sqlite:////tmp/x",
]


def mail(word: str, number: int, template: bool) -> MailRequested:
    ident = f"0197a1b2-0000-7000-8000-{number:012d}"
    said: dict[str, Any] = {
        "subject": word.replace("\n", " "),
        "html": f"<p>{word}</p>",
        "text": word,
        "headers": {"X-Own": word.replace("\n", " ")},
        "attachments": [{"filename": word[:40].replace("/", "_").replace("\n", "_"), "content": "eA=="}],
    }
    if template:
        said |= {"template": {"id": "t", "version": 1, "data": {"x": word, "y": {word: [word]}}}}
        said |= {"text": None, "html": None}
    return MailRequested.model_validate(
        {"message_id": ident, "sender": "a@b.example", "to": ["c@d.example"], "requested_at": NOW, "campaign": "c"}
        | {name: value for name, value in said.items() if value is not None}
    )


def through(number: int, word: str, template: bool) -> None:
    """One mail through router, composer and ledger."""
    request = mail(word, number, template)
    source = Template(
        id="t", version=1, subject="s", text=f"{{{{ x }}}} {word}", html=f"<p>{{{{ y }}}}</p>{word}", at=NOW
    )
    record = Received(NAMES.templates, 0, number, 0, b"t/000001", encode(source), ())
    tables, templates = RouterTables(), TemplateTable()
    tables.apply_template(record)
    templates.apply(record)
    decider = Decider(NAMES, RoutePolicy.of(Config()), tables, MemoryStore())
    asked = Received(NAMES.requests, 0, number, 0, request.message_id.encode(), encode(request), ())
    (batch,) = decider.decide(decider.read([asked]), NOW, {}, {}, 10**9)
    composer = Composer(templates)
    from postlane.core.events import DispatchReady
    from postlane.eventlog.codec import decode

    for out in batch.records:
        if out.topic.startswith("mail.dispatch."):
            try:
                composer(decode(DispatchReady, out.value))
            except NotComposable:
                continue
    events = [out for out in batch.records if out.topic == NAMES.events]
    fold(prepare([Received(o.topic, 0, n, 0, o.key, o.value, o.headers) for n, o in enumerate(events)]), {}, {})


def main() -> None:
    through(0, "hello ü", False)  # what is imported and compiled at its first use is done
    through(1, "hello ü", True)
    seen: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(WATCHED):
            seen.append(f"{event} {args!r}"[:300])

    sys.addaudithook(watch)
    for number, word in enumerate(LEADS):
        through(2 + 2 * number, word, False)
        through(3 + 2 * number, word, True)
    found = list(seen)
    open("/dev/null").close()  # the control: the hook hears
    print(json.dumps({"found": found, "hears": len(seen) > len(found), "mails": 2 * len(LEADS)}))


if __name__ == "__main__":
    main()
