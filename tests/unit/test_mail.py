"""`Mail`: every mistake that can be known early is said, all of them at once, and nothing misspelt goes out."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from postlane import Attachment, InvalidMail, Mail, MailTooLarge, Template
from postlane.mail import PROBLEMS_MAX, check_key, check_name

GOOD: dict[str, Any] = {"sender": "shop@example.org", "to": "ada@example.com", "subject": "S", "text": "T"}
NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)


def fields(**changed: Any) -> dict[str, Any]:
    return {**GOOD, **changed}


def test_the_example_of_the_contract() -> None:
    mail = Mail(sender="shop@example.org", to=["ada@example.com"], subject="Order 42", text="On its way.")
    assert mail.to == ("ada@example.com",)
    assert (mail.lane, mail.tenant, mail.recipients) == ("transactional", "default", ("ada@example.com",))


@pytest.mark.parametrize("to", ["ada@example.com", ["ada@example.com"], ("ada@example.com",)])
def test_one_address_or_several(to: Any) -> None:
    assert Mail(**fields(to=to)).to == ("ada@example.com",)


def test_a_generator_of_addresses() -> None:
    assert Mail(**fields(to=(f"u{i}@example.com" for i in range(3)))).to == tuple(f"u{i}@example.com" for i in range(3))


@pytest.mark.parametrize(
    ("changed", "field", "says"),
    [
        ({"to": ()}, "to", "at least one address"),
        ({"to": "nobody"}, "to[0]", "no @"),
        ({"to": ["a@b.example", "x@"]}, "to[1]", "empty label"),
        ({"cc": "a b@c.example"}, "cc[0]", "double quotes"),
        ({"bcc": "x@y.example\r\nBcc: z@z.example"}, "bcc[0]", "remove the character"),
        ({"to": [f"u{i}@example.com" for i in range(101)]}, "to", "at most 100"),
        ({"sender": "nobody"}, "sender", "no @"),
        ({"reply_to": "nobody"}, "reply_to", "no @"),
        ({"subject": "a\r\nBcc: x@y.example"}, "subject", "control character"),
        ({"text": None}, "text", "empty"),
        ({"template": {"id": "welcome"}}, "template", "not both"),
        ({"text": None, "template": {"id": "we lcome"}}, "template.id", "letters, digits"),
        ({"text": None, "template": {"id": "w", "version": 0}}, "template.version", "count from 1"),
        ({"headers": {"Bcc": "x@y.example"}}, "headers", ""),
        ({"headers": {"X-A": "b\nc"}}, "headers", ""),
        ({"lane": "Trans Actional"}, "lane", "lower-case"),
        ({"tenant": "a/b"}, "tenant", "letters, digits"),
        ({"tenant": "*"}, "tenant", "letters, digits"),
        ({"campaign": ""}, "campaign", "letters, digits"),
        ({"in_doubt": "maybe"}, "in_doubt", "'resend' or 'park'"),
        ({"send_at": datetime(2026, 1, 1)}, "send_at", "time zone"),
        ({"send_at": NOW, "expires_at": NOW}, "expires_at", "before send_at"),
    ],
)
def test_a_mistake_names_its_field_and_what_to_do(changed: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidMail) as caught:
        Mail(**fields(**changed))
    assert caught.value.field.startswith(field)
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("given", "hint"),
    [("subjekt", "'subject'"), ("txt", "'text'"), ("recipients", "known: sender"), ("message_id", "known: sender")],
)
def test_an_unknown_field_is_refused_with_the_nearest(given: str, hint: str) -> None:
    with pytest.raises(InvalidMail, match=hint):
        Mail(**fields(**{given: "x"}))


def test_unknown_fields_inside_are_refused_too() -> None:
    with pytest.raises(InvalidMail, match="did you mean 'filename'"):
        Mail(**fields(attachments=[{"file_name": "a", "content": ""}]))
    with pytest.raises(InvalidMail, match="did you mean 'data'"):
        Template(id="w", date={})  # type: ignore[call-arg]


def test_every_mistake_at_once_and_bounded() -> None:
    with pytest.raises(InvalidMail) as caught:
        Mail(**fields(to=["x", "y"], cc=["z"], subject="a\nb"))
    assert [field for field, _ in caught.value.problems] == ["to[0]", "to[1]", "cc[0]", "subject"]
    with pytest.raises(InvalidMail) as caught:
        Mail(**fields(to=["x"] * 100))
    assert len(caught.value.problems) == PROBLEMS_MAX


def test_a_mail_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Mail(**GOOD).subject = "other"  # type: ignore[misc]


def test_an_attachment_takes_bytes_and_files(tmp_path: Path) -> None:
    file = tmp_path / "invoice.pdf"
    file.write_bytes(b"%PDF-1.7\x00\xff")
    attached = Attachment.from_file(file)
    assert (attached.filename, attached.content_type) == ("invoice.pdf", "application/pdf")
    assert base64.b64decode(attached.content) == b"%PDF-1.7\x00\xff"
    assert Attachment(filename="a", content=b"abc") == Attachment(filename="a", content="YWJj")
    with pytest.raises(InvalidMail, match=r"attachments\[0\].content"):
        Mail(**fields(attachments=[Attachment(filename="a", content="no base64!")]))


def test_keys_and_names() -> None:
    assert check_key("order-42") == "order-42"
    for bad in ("", "x" * 513, "a\x00b", "\ud800"):
        with pytest.raises(InvalidMail):
            check_key(bad)
    for bad in ("", "a/b", "x" * 129, "-a", "*"):  # "*" is every tenant of a suppression
        with pytest.raises(InvalidMail, match="--tenant"):
            check_name("--tenant", bad)


def test_errors_survive_a_process_boundary() -> None:
    for error in (InvalidMail([("to", "nobody")]), MailTooLarge(2, 1)):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


def test_times_may_be_text() -> None:
    assert Mail(**fields(send_at="2026-01-31T10:00:00+01:00")).send_at == NOW
    assert Mail(**fields(expires_at=NOW + timedelta(days=1))).expires_at == NOW + timedelta(days=1)


def test_importing_postlane_loads_next_to_nothing() -> None:
    heavy = {"pydantic", "confluent_kafka", "click", "orjson"}
    code = f"import sys, postlane; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_in_all_is_there() -> None:
    import postlane

    for name in postlane.__all__:
        assert getattr(postlane, name).__name__ == name
    assert set(postlane.__all__) <= set(dir(postlane))
    with pytest.raises(AttributeError, match="Pulbisher"):
        postlane.Pulbisher  # noqa: B018
