"""The flight recorder: what it proves after a kill, and that it proves nothing where it cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from postlane.core.books import Entry
from postlane.core.events import DispatchReady, Intent, MailContent
from postlane_sender import recorder as module
from postlane_sender.recorder import HEADER_BYTES, SLOT_BYTES, FlightRecorder, NoRecorder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEVER, NO_REPLY = FlightRecorder.NEVER_BEGUN, FlightRecorder.NO_REPLY


def entry(name: str, hop: int = 0) -> Entry:
    ready = DispatchReady(
        delivery_id=name, message_id="m", recipient="a@example.com", hop=hop, lane="bulk", requested_at=NOW,
        content=MailContent(sender="b@example.org"),
    )  # fmt: skip
    return Entry(0, 0, ready)


def intent(name: str, life: str, hop: int = 0) -> Intent:
    return Intent(delivery_id=name, hop=hop, attempt=1, offset=0, instance="i", boot=life, ttl_ms=1, at=NOW)


def recalled(recorder: FlightRecorder, name: str, life: str, hop: int = 0) -> int | None:
    return recorder.recall(entry(name, hop), intent(name, life, hop))


def life(path: Path, name: str, slots: int = 8) -> FlightRecorder:
    return FlightRecorder(path, name, slots=slots)


def test_begun_replied_never_begun(tmp_path: Path) -> None:
    path = tmp_path / "flight.bin"
    first = life(path, "life-1")
    begun, replied, refused = entry("begun"), entry("replied"), entry("refused")
    for one in (begun, replied, refused):
        first.begun(one)
    first.replied(replied, 250)
    first.replied(refused, 554)
    second = life(path, "life-2")
    assert recalled(second, "begun", "life-1") == NO_REPLY
    assert recalled(second, "replied", "life-1") == 250
    assert recalled(second, "refused", "life-1") == 554
    assert recalled(second, "other", "life-1") == NEVER
    assert recalled(second, "begun", "life-1", hop=1) == NEVER, "hops are told apart"


def test_a_refusal_before_the_body_needs_no_slot(tmp_path: Path) -> None:
    one, early = life(tmp_path / "f", "life-1"), entry("early")
    one.replied(early, 550)
    one.free(early)
    assert early.slot == -1
    assert len(one._free) == 8


def test_only_the_life_that_wrote_it_is_spoken_of(tmp_path: Path) -> None:
    path = tmp_path / "f"
    life(path, "life-1").begun(entry("a"))
    second = life(path, "life-2")
    second.begun(entry("b"))
    third = life(path, "life-3")
    assert recalled(third, "a", "life-1") is None, "stale: two lives ago"
    assert recalled(third, "b", "life-2") == NO_REPLY
    assert recalled(third, "c", "somebody-else") is None, "foreign"


def test_slots_are_freed_and_used_again_and_old_ones_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    first = life(path, "life-1", slots=2)
    for n in range(50):
        one = entry(f"m{n}")
        first.begun(one)
        assert one.slot >= 0
        first.replied(one, 250)
        first.free(one)
        first.free(one)
        assert one.slot == -1
    assert len(first._free) == 2
    last = entry("last")
    first.begun(last)
    first.begun(last)
    assert len(first._free) == 1, "a second beginning of one attempt takes no second slot"
    assert recalled(life(path, "life-2"), "last", "life-1") == NO_REPLY


def test_overflow_says_that_a_missing_slot_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    first = life(path, "life-1", slots=2)
    for n in range(3):
        first.begun(entry(f"m{n}"))
    second = life(path, "life-2")
    assert recalled(second, "m0", "life-1") == NO_REPLY
    assert recalled(second, "m2", "life-1") is None
    assert recalled(second, "never", "life-1") is None


def test_a_torn_slot_may_have_been_anyones(tmp_path: Path) -> None:
    path = tmp_path / "f"
    first = life(path, "life-1")
    kept, torn = entry("kept"), entry("torn")
    first.begun(kept)
    first.begun(torn)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + torn.slot * SLOT_BYTES + 3] ^= 0x40
    path.write_bytes(data)
    second = life(path, "life-2")
    assert recalled(second, "kept", "life-1") == NO_REPLY
    assert recalled(second, "torn", "life-1") is None
    assert recalled(second, "never", "life-1") is None


@pytest.mark.parametrize("damage", ["header", "short", "long", "empty", "magic", "text"])
def test_a_file_that_is_not_whole_is_ignored(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f"
    life(path, "life-1").begun(entry("a"))
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[9] ^= 1
    elif damage == "magic":
        data[0] ^= 1
    changed = {"short": data[:-1], "long": data + b"x", "empty": b"", "text": b"hello\n" * 99}.get(damage, data)
    path.write_bytes(changed)
    second = life(path, "life-2")
    assert recalled(second, "a", "life-1") is None
    assert recalled(second, "never", "life-1") is None
    second.begun(entry("b"))
    assert recalled(life(path, "life-3"), "b", "life-2") == NO_REPLY


def test_it_does_not_outlive_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    life(path, "life-1").begun(entry("a"))
    boot = tmp_path / "boot_id"
    boot.write_text("00000000-0000-0000-0000-000000000000\n")
    monkeypatch.setattr(module, "_BOOT_ID", boot)
    assert recalled(life(path, "life-2"), "a", "life-1") is None


def test_a_kernel_that_does_not_say_which_boot_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "missing")
    path = tmp_path / "f"
    life(path, "life-1").begun(entry("a"))
    assert recalled(life(path, "life-2"), "a", "life-1") is None


def test_no_recorder_proves_nothing() -> None:
    none = NoRecorder()
    none.begun(entry("a"))
    none.free(entry("a"))
    assert none.recall(entry("a"), intent("a", "life-1")) is None


CHILD = """
import sys, time
from pathlib import Path
from tests.unit.test_recorder import entry, life
one = life(Path(sys.argv[1]), "child")
for n in range(4):
    made = entry(f"m{n}")
    one.begun(made)
    if n == 1:
        one.replied(made, 250)
    if n == 2:
        one.replied(made, 250)
        one.free(made)
print("ready", flush=True)
time.sleep(60)
"""


def test_it_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()
    after = life(path, "next")
    # The third was settled in Kafka before its slot went to the fourth: nobody asks for it any more.
    assert [recalled(after, f"m{n}", "child") for n in (0, 1, 3, 4)] == [NO_REPLY, 250, NO_REPLY, NEVER]
