"""SMTP smuggling end to end: whatever line ends and dots a mail is made of, one mail is sent and one mail arrives.

The sequences are those that split mails at real servers (CVE-2023-51764, -51765, -51766, CVE-2024-27305), tried
against two receivers that are strict and one that is not; that one shows that the sequences would work.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from postlane.core.smtp_envelope import Obstacle
from postlane.core.smtp_events import Accepted
from postlane.core.smtp_wire import dot_stuff
from postlane.mime.compose import compose
from postlane.mime.content import AttachedFile, Content, InvalidContent, Rendered
from postlane_sender.connection import Unsendable
from tests.hostile import receivers
from tests.hostile.sending import Item, send

SEQUENCES = {
    "LF . LF": "\n.\n",
    "LF . CRLF": "\n.\r\n",
    "CRLF . LF": "\r\n.\n",
    "CR . CR": "\r.\r",
    "CR . CRLF": "\r.\r\n",
    "CRLF . CR": "\r\n.\r",
    "CR . LF": "\r.\n",
    "LF . CR": "\n.\r",
    "CRLF . CRLF": "\r\n.\r\n",
    "CRLF .. CRLF": "\r\n..\r\n",
    "CR CRLF . CR CRLF": "\r\r\n.\r\r\n",
    "LF LF . LF LF": "\n\n.\n\n",
    "NUL": "\r\n\x00.\r\n",
    "NEL": "\x85.\x85",
    "LS": "\u2028.\u2028",
    "VT": "\x0b.\x0b",
    "FF": "\x0c.\x0c",
}
SMUGGLED = "MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
MESSAGE = "0197a1b2-0000-7000-8000-000000000001"

pytestmark = pytest.mark.timeout(60)
no_sink = pytest.mark.skipif(receivers.smtp_sink_program() is None, reason="Postfix's smtp-sink is not installed")


def contents(sequence: str) -> dict[str, tuple[Content, Rendered | None]]:
    """One mail for each place where a publisher's words go into the bytes."""
    payload = f"Hello{sequence}{SMUGGLED}"
    base: dict[str, Any] = {"sender": "shop@example.org", "to": ["ada@example.com"], "subject": "s"}
    attached = AttachedFile("a.txt", content="LgouCi4NLgo=", content_type="text/plain")
    return {
        "text": (Content(**base, text=payload), None),
        "html": (Content(**base, html=f"<p>{payload}</p>"), None),
        "utf8": (Content(**base, text=payload + "ü"), None),
        "mostly-utf8": (Content(**base, text=payload + "ü" * 2000), None),
        "first": (Content(**base, text=sequence.lstrip("\r\n") + payload), None),
        "template": (Content(**base, template={"id": "t"}), Rendered("s", payload, payload)),
        "attached": (Content(**base, text=payload, attachments=[attached]), None),
        "subject": (Content(**{**base, "subject": payload}, text="t"), None),
        "header": (Content(**base, text="t", headers={"X-Own": payload}), None),
        "name": (Content(**{**base, "sender": f'"{payload}" <shop@example.org>'}, text="t"), None),
        "file": (Content(**base, text="t", attachments=[AttachedFile(payload, content="")]), None),
    }


def composed() -> list[Item]:
    """Every mail that can be composed, each with a recipient of its own."""
    items = []
    for name, sequence in SEQUENCES.items():
        for place, (content, rendered) in contents(sequence).items():
            delivery = f"{MESSAGE}.{len(items)}.0"
            try:
                body = compose(content, delivery_id=delivery, date_ms=0, rendered=rendered)
            except InvalidContent:
                assert place in ("subject", "header", "name", "file") or name == "NUL", (name, place)
                continue
            items.append(Item(f"m{len(items)}@example.com", body))
    return items


@pytest.mark.parametrize(
    "opened",
    [receivers.practice, receivers.aiosmtpd, receivers.lax, pytest.param(receivers.smtp_sink, marks=no_sink)],
    ids=lambda opened: opened.__name__,
)
def test_each_mail_arrives_as_one_with_the_bytes_that_were_composed(opened: Any, tmp_path: Path) -> None:
    async def main() -> None:
        items = composed()
        assert len(items) > 100
        context: AbstractAsyncContextManager[receivers.Receiver] = opened(tmp_path / "r")
        async with context as receiver:
            for pipelining in (True, False):
                mine = [Item(f"{pipelining}-{item.recipient}", item.body) for item in items]
                told = await send(receiver.port, mine, pipelining=pipelining)
                assert {item.recipient for item in mine if isinstance(told.results[item.recipient], Accepted)} == {
                    item.recipient for item in mine
                }
            wanted = {f"{p}-{item.recipient}": item.body or b"" for p in (True, False) for item in items}
            taken = receiver.mails()
        by_recipient: dict[str, receivers.Received] = {}
        for mail in taken:
            (recipient,) = mail.recipients
            assert recipient not in by_recipient, f"{recipient}: a second mail"
            by_recipient[recipient] = mail
        assert set(by_recipient) == set(wanted)
        for recipient, body in wanted.items():
            got = by_recipient[recipient]
            if got.digest is not None:
                assert got.digest == hashlib.sha256(body).hexdigest(), recipient
            else:
                assert got.body == body, recipient

    asyncio.run(main())


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_composed_bytes_have_no_line_end_but_crlf(sequence: str) -> None:
    for place, (content, rendered) in contents(sequence).items():
        try:
            body = compose(content, delivery_id=f"{MESSAGE}.0.0", date_ms=0, rendered=rendered)
        except InvalidContent:
            continue
        bare = body.replace(b"\r\n", b"")
        assert b"\r" not in bare, place
        assert b"\n" not in bare, place
        assert b"\x00" not in body, place
        assert max(map(len, body.split(b"\r\n"))) <= 998, place
        assert b"\r\n.\r\n" not in dot_stuff(body), place


BARE = [name for name, seq in SEQUENCES.items() if set("\r\n") & set(seq.replace("\r\n", ""))]


@pytest.mark.parametrize("name", BARE)
def test_the_second_lock_refuses_what_no_composer_of_ours_writes(name: str) -> None:
    """A body with a bare line end never reaches the wire, whoever made it; the session goes, the next mail is kept."""

    async def main() -> None:
        evil = Item("evil@example.com", f"Subject: x\r\n\r\nHello{SEQUENCES[name]}{SMUGGLED}".encode())
        async with receivers.lax(Path()) as receiver:
            told = await send(receiver.port, [evil])
            assert receiver.mails() == []
        result = told.results[evil.recipient]
        assert isinstance(result, Unsendable)
        assert result.obstacle is Obstacle.BODY

    asyncio.run(main())


@pytest.mark.parametrize("name", ["LF . LF", "CR . CR", "LF . CRLF", "CRLF . LF", "CR . CRLF"])
def test_without_the_locks_a_lax_server_takes_two_mails(name: str) -> None:
    """The control: these bytes are an attack. A client that stuffs dots after CRLF only sends them as they are."""

    async def main() -> None:
        async with receivers.lax(Path()) as receiver:
            reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
            for line in (b"", b"EHLO x\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n"):
                writer.write(line)
                await reader.readline()
            body = f"Subject: x\r\n\r\nHello{SEQUENCES[name]}{SMUGGLED}".encode().removesuffix(b".\r\n")
            writer.write(body.replace(b"\r\n.\r\n", b"\r\n..\r\n") + b".\r\n")
            while len(receiver.mails()) < 2:
                assert await reader.readline()
            writer.close()
            assert [mail.recipients for mail in receiver.mails()] == [("c@d",), ("victim@example.net",)]

    asyncio.run(main())
