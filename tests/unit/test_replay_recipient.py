"""A replay's one recipient, named beside the `to` and `cc` that everyone read."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.router_world import request, virtually

from postlane.core.events import RECIPIENTS_MAX, MailRequested
from postlane.core.identity import delivery_id
from postlane.core.route import dedup_key, recipients, unacceptable
from postlane_router.reading import digest_of


def made(**changes: Any) -> MailRequested:
    async def main() -> MailRequested:  # the world's clock is its loop's
        return request("k", **changes)

    found = virtually(main())
    assert isinstance(found, MailRequested)
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generation": 1, "replay_recipient": "eve@example.net"}, None),
        ({"generation": 1, "to": (), "replay_recipient": "eve@example.net"}, None),
        ({"generation": 1, "to": ("a@example.com", "b@example.com"), "replay_recipient": "a@example.com"}, None),
        ({"generation": 1, "to": ("a@example.com", "b@example.com")}, "exactly one recipient"),
        ({"generation": 1}, None),
        ({"generation": 0, "replay_recipient": "eve@example.net"}, "only a replay"),
        (
            {"generation": 1, "to": ("a@b.example",) * (RECIPIENTS_MAX + 1), "replay_recipient": "a@b.example"},
            "at most",
        ),
    ],
)
def test_what_is_a_replay(changes: dict[str, Any], said: str | None) -> None:
    mail = made(**changes)
    found = unacceptable(mail, mail.message_id.encode())
    assert (found is None) == (said is None)
    assert said is None or said in (found or "")


def test_it_alone_is_mailed_and_remembered() -> None:
    mail = made(generation=2, to=("a@example.com",), cc=("b@example.com",), replay_recipient="Eve@Example.net")
    [person] = recipients(mail)
    assert person.address == "Eve@example.net"
    assert person.delivery_id == delivery_id(mail.message_id, "Eve@example.net", 2)
    assert dedup_key(mail, [person]) == person.delivery_id


def test_what_a_request_asks_for_is_the_same_with_and_without_the_field() -> None:
    """Records that were accepted before the field was there keep their digests."""
    mail = made()
    assert digest_of(mail) == digest_of(mail.model_copy(update={"replay_recipient": None}))
    assert digest_of(mail) != digest_of(mail.model_copy(update={"replay_recipient": "a@example.com"}))
