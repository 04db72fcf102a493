"""The flight recorder: a memory-mapped file beside a sender with "body begun / reply code" of each attempt under way.

It outlives kill -9 of the process, because the page cache keeps what was stored; it does not outlive the machine, and
says so by the kernel's boot id. It only ever narrows doubt about this instance's own intents:
- the intent's life of the process is the one that wrote the file, and there is no slot for it: its body was never
  begun, since a slot is stored before the body is handed to the transport and freed only when the outcome is in Kafka;
- a slot with a reply: that is what the server said;
- a slot without: handed to the transport, no reply; that stays in doubt.
A file that is torn, stale, foreign or missing is ignored: Kafka's books alone decide.

Layout (little endian): a header of 128 bytes (magic, version, slots, overflow, boot id of the kernel, life of the
process, checksum), then slots of 64 bytes (key: 32 bytes BLAKE2b of `delivery_id#hop`; stage; reply code; CRC-32).
"""

from __future__ import annotations

import mmap
import os
import struct
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

from postlane.core.books import Entry
from postlane.core.events import Intent

MAGIC = b"PLFR"
VERSION = 1
SLOTS = 8192
HEADER_BYTES = 128
SLOT_BYTES = 64
_HEADER = struct.Struct("<4sHII36s36s")  # magic, version, slots, overflow, kernel boot id, life
_SLOT = struct.Struct("<32sBHI")  # key, stage, code, crc of what stands before
_FREE, _BEGUN, _REPLIED = 0, 1, 2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FlightRecorder:
    """One file per lane and instance. `open` reads what the earlier life left, then starts a new one."""

    NEVER_BEGUN = 0
    NO_REPLY = 1

    def __init__(self, path: Path, life: str, *, slots: int = SLOTS) -> None:
        """`life` is the id of this life of the process, as intents carry it. Raises OSError when it cannot be kept."""
        self._slots = slots
        self._past = _read(path)
        size = HEADER_BYTES + slots * SLOT_BYTES
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        descriptor = os.open(fresh, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._header(life, overflow=0)
        self._life = life
        self._lossy = False
        fresh.replace(path)
        self._free = list(range(slots - 1, -1, -1))

    def _header(self, life: str, overflow: int) -> None:
        packed = _HEADER.pack(MAGIC, VERSION, self._slots, overflow, _kernel_boot(), life.encode()[:36])
        self._map[: len(packed) + 4] = packed + struct.pack("<I", crc32(packed))

    # ------------------------------------------------------------------------------------------- while mails are sent

    def begun(self, entry: Entry) -> None:
        """Its body is about to be handed to the transport."""
        if entry.slot >= 0:
            return
        if not self._free:
            if not self._lossy:
                self._lossy = True
                self._header(self._life, overflow=1)  # from here on a missing slot proves nothing
            return
        entry.slot = self._free.pop()
        self._store(entry, _BEGUN, 0)

    def replied(self, entry: Entry, code: int) -> None:
        """The server answered the final dot, or refused before it."""
        if entry.slot >= 0:
            self._store(entry, _REPLIED, code)

    def free(self, entry: Entry) -> None:
        """Its outcome is in Kafka."""
        if entry.slot >= 0:
            self._free.append(entry.slot)
            entry.slot = -1

    def _store(self, entry: Entry, stage: int, code: int) -> None:
        key = blake2b(entry.key.encode(), digest_size=32).digest()
        body = struct.pack("<32sBH", key, stage, code)
        at = HEADER_BYTES + entry.slot * SLOT_BYTES
        self._map[at : at + _SLOT.size] = body + struct.pack("<I", crc32(body))

    def close(self) -> None:
        """Unmaps the file; what it says stays."""
        self._map.close()

    # --------------------------------------------------------------------------------------------- after a kill

    def recall(self, entry: Entry, intent: Intent) -> int | None:
        """What the earlier life recorded of this intent: NEVER_BEGUN, NO_REPLY, the code of the reply, or None."""
        past = self._past
        if past is None or intent.boot != past.life:
            return None
        found = past.slots.get(blake2b(entry.key.encode(), digest_size=32).digest())
        if found is None:
            return None if past.lossy else self.NEVER_BEGUN
        stage, code = found
        return code if stage == _REPLIED else self.NO_REPLY


class NoRecorder:
    """Where no volume is to be had: every doubt stays one."""

    NEVER_BEGUN = 0
    NO_REPLY = 1

    def recall(self, entry: Entry, intent: Intent) -> int | None:
        return None

    def begun(self, entry: Entry) -> None: ...

    def replied(self, entry: Entry, code: int) -> None: ...

    def free(self, entry: Entry) -> None: ...

    def close(self) -> None: ...


class _Past:
    __slots__ = ("life", "lossy", "slots")

    def __init__(self, life: str, lossy: bool, slots: dict[bytes, tuple[int, int]]) -> None:
        self.life = life
        self.lossy = lossy
        self.slots = slots


def _read(path: Path) -> _Past | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < HEADER_BYTES:
        return None
    packed = data[: _HEADER.size]
    magic, version, slots, overflow, kernel, life = _HEADER.unpack(packed)
    (crc,) = struct.unpack_from("<I", data, _HEADER.size)
    whole = len(data) == HEADER_BYTES + slots * SLOT_BYTES and crc == crc32(packed)
    if magic != MAGIC or version != VERSION or not whole or kernel != _kernel_boot():
        return None
    lossy = bool(overflow)
    found: dict[bytes, tuple[int, int]] = {}
    for at in range(HEADER_BYTES, len(data), SLOT_BYTES):
        key, stage, code, slot_crc = _SLOT.unpack_from(data, at)
        if stage == _FREE and slot_crc == 0:
            continue
        if slot_crc != crc32(data[at : at + _SLOT.size - 4]):
            lossy = True  # torn: it may have been anyone's
            continue
        if found.get(key, (_FREE, 0))[0] <= stage:
            found[key] = (stage, code)
    return _Past(life.rstrip(b"\0").decode("ascii", "replace"), lossy, found)


def _kernel_boot() -> bytes:
    try:
        return _BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return b""
