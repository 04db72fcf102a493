"""The key file of return paths: read again when it changes, kept as it was when it cannot be, never shown."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.dsn_samples import ADA, DELIVERY, MESSAGE

from postlane.bounce_keys import LOOK_EVERY_S, ReturnPaths
from postlane.core.errors import ConfigurationError
from postlane.core.events import DispatchReady, MailContent
from postlane.core.policy import Bounces
from postlane.eventlog.tables import TemplateTable
from postlane.watched_file import FILE_MAX_BYTES
from postlane_sender.composer import Composer

FIRST, SECOND = "the-first-secret-key", "the-second-secret-key"


class Clock:
    """Monotonic seconds that the test sets."""

    seconds = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self.seconds


def paths(file: Path, clock: Clock) -> ReturnPaths:
    return ReturnPaths(Bounces(address="bounces@mail.example.org", key_file=file), clock)


def signed(returns: ReturnPaths) -> str:
    path = returns.of(DELIVERY)
    assert path is not None
    return path


def test_a_key_is_rotated_without_a_restart(tmp_path: Path) -> None:
    file, clock = tmp_path / "key", Clock()
    file.write_text(FIRST + "\n")
    returns = paths(file, clock)
    old = signed(returns)
    file.write_text(f"{SECOND}\n{FIRST}\n")
    assert signed(returns) == old  # not looked at yet
    clock.seconds += LOOK_EVERY_S
    new = signed(returns)
    assert new != old
    assert [returns.delivery_of(path) for path in (old, new)] == [DELIVERY, DELIVERY]
    file.write_text(f"{SECOND}\n")
    clock.seconds += LOOK_EVERY_S
    assert [returns.delivery_of(path) for path in (old, new)] == [None, DELIVERY]


def test_a_change_that_cannot_be_read_changes_nothing_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "key", Clock()
    file.write_text(FIRST)
    returns = paths(file, clock)
    before = signed(returns)
    for change in (lambda: file.write_text("short"), file.unlink, lambda: file.mkdir()):
        change()
        with caplog.at_level(logging.INFO):
            caplog.clear()
            for _ in range(3):
                clock.seconds += LOOK_EVERY_S
                assert signed(returns) == before
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    file.rmdir()
    file.write_text(SECOND)
    clock.seconds += LOOK_EVERY_S
    assert signed(returns) != before


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * (FILE_MAX_BYTES + 1)])
def test_a_file_without_good_keys_is_a_configuration_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"bounces\.key_file"):
        paths(file, Clock())


def test_nothing_that_is_said_shows_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{FIRST}\nshort-one\n")
    with pytest.raises(ConfigurationError) as refused:
        paths(file, Clock())
    assert "short-one" not in str(refused.value)
    assert FIRST not in str(refused.value)
    file.write_text(FIRST)
    assert "secret" not in repr(paths(file, Clock()))


# ----------------------------------------------------------------------------------------------- what the sender does


def ready(delivery: str = DELIVERY, trace: str | None = None) -> DispatchReady:
    content = MailContent(sender="Shop <shop@example.org>", to=(ADA,), subject="Order", text="On its way.")
    at = datetime(2026, 1, 2, tzinfo=UTC)
    return DispatchReady(
        delivery_id=delivery,
        message_id=MESSAGE,
        recipient=ADA,
        lane="bulk",
        requested_at=at,
        content=content,
        trace=trace,
    )


def test_a_mail_leaves_with_its_return_path_and_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(FIRST)
    returns = paths(tmp_path / "key", Clock())
    plain, signing = Composer(TemplateTable()), Composer(TemplateTable(), returns)
    assert plain(ready()).envelope_from == "shop@example.org"
    made = signing(ready())
    assert returns.delivery_of(made.envelope_from) == DELIVERY
    assert (made.recipient, made.data) == (ADA, plain(ready()).data)
    assert made == signing(ready())


def test_an_id_that_no_token_carries_leaves_with_the_senders_address(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(FIRST)
    signing = Composer(TemplateTable(), paths(tmp_path / "key", Clock()))
    assert signing(ready("order-42.0123456789abcdef.0")).envelope_from == "shop@example.org"


def test_the_trace_of_the_record_is_a_header(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    line = f"X-Postlane-Delivery: {DELIVERY}\r\nX-Postlane-Trace: {trace}\r\n".encode()
    assert line in Composer(TemplateTable())(ready(trace=trace)).data
