"""The manifest: what a finished backup holds, at which point, and which backup it follows.

`seal` is over the rest of the document (SHA-256, or HMAC-SHA256 where there is a key); `previous` carries the seal of
the backup before, so that none can be replaced or left out in the middle of a chain. Topics are named without the
prefix of the installation; partitions are keyed by their number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.errors import Damaged, Foreign, TooNew

FORMAT = 1
_NAME = re.compile(r"manifests/(\d{7})\.json")
_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChunkInfo(_Part):
    """One chunk: offsets of its first and last record, sizes in bytes, digest of what is stored and of the records."""

    name: str
    first: int
    last: int
    records: int
    raw_bytes: int
    stored_bytes: int
    stored_sha256: str
    raw_sha256: str


class Range(_Part):
    """What was copied of one partition: offsets [start, end)."""

    start: int
    end: int
    chunks: tuple[ChunkInfo, ...] = ()

    @property
    def records(self) -> int:
        return sum(chunk.records for chunk in self.chunks)


class TopicPart(_Part):
    """One topic. `whole`: a restore needs nothing of earlier backups for it."""

    whole: bool
    partitions: dict[int, Range]


class Positions(_Part):
    """What was committed at the point, by topic and partition: O and S of the senders, O of the router and delays."""

    senders: dict[str, dict[int, tuple[int, int]]] = {}  # lane -> partition -> (O, S)
    router: dict[str, dict[int, int]] = {}  # topic -> partition -> O
    ledger: dict[int, int] = {}  # for the record: next offset of mail.events in its database
    marks: dict[str, dict[int, int]] = {}  # mail.events, mail.seen: their ends before anything else was looked at


class Previous(_Part):
    sequence: int
    seal: str


class Manifest(_Part):
    """One finished backup. `point` is when the last position was taken: later records are not in it."""

    format: int = FORMAT
    sequence: int
    token: str
    full: bool
    point: AwareDatetime
    version: str
    cluster_id: str
    prefix: str
    lanes: tuple[str, ...]
    in_doubt: dict[str, str] = {}
    previous: Previous | None = None
    key_id: str | None = None
    positions: Positions
    topics: dict[str, TopicPart]
    warnings: tuple[str, ...] = ()
    seal: str = ""

    @property
    def name(self) -> str:
        return manifest_name(self.sequence)

    @property
    def folder(self) -> str:
        """Where its chunks are."""
        return data_folder(self.sequence, self.token)

    @property
    def ident(self) -> str:
        return f"{self.sequence:07d}"

    def chunks(self) -> Sequence[ChunkInfo]:
        return [c for topic in self.topics.values() for part in topic.partitions.values() for c in part.chunks]

    @property
    def records(self) -> int:
        return sum(part.records for topic in self.topics.values() for part in topic.partitions.values())


def manifest_name(sequence: int) -> str:
    return f"manifests/{sequence:07d}.json"


def data_folder(sequence: int, token: str) -> str:
    return f"data/{sequence:07d}-{token}/"


def sequence_of(name: str) -> int | None:
    """The number of a manifest by its name, None for another file."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1])


def sealed(manifest: Manifest, vault: Vault) -> tuple[Manifest, bytes]:
    """The manifest with its seal, and its bytes."""
    body = orjson.loads(_canonical(manifest.model_dump(mode="json", exclude={"seal"})))  # keys as text, as when read
    done = manifest.model_copy(update={"seal": vault.seal(_canonical(body))})
    return done, orjson.dumps({**body, "seal": done.seal}, option=_SORTED | orjson.OPT_INDENT_2)


def read_manifest(name: str, content: bytes, vault: Vault) -> Manifest:
    """Raises TooNew, WrongKey, Damaged, Foreign."""
    try:
        document: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise Damaged(f"{name}: not a whole JSON document ({len(content)} bytes): cut short or overwritten") from None
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise Foreign(f"{name}: not a manifest of a Postlane backup")
    if document["format"] > FORMAT:
        raise TooNew(f"{name}: format {document['format']}, known here: {FORMAT}; upgrade Postlane to read it")
    key_id = document.get("key_id")
    if key_id is not None and not isinstance(key_id, str):
        raise Damaged(f"{name}: key_id is not a text")
    vault.check_key(key_id, name)
    seal = document.pop("seal", "")
    if vault.seal(_canonical(document)) != seal:
        raise Damaged(f"{name}: its seal does not fit its content: it was changed after it was written")
    try:
        manifest = Manifest.model_validate({**document, "seal": seal})
    except ValidationError as error:
        raise Damaged(f"{name}: {error.errors(include_url=False)[0]['msg']}") from None
    if sequence_of(name) != manifest.sequence:
        raise Damaged(f"{name}: holds backup {manifest.ident}: it was moved or copied over another")
    for chunk in manifest.chunks():
        if not chunk.name.startswith(manifest.folder) or ".." in chunk.name:
            raise Damaged(f"{name}: {chunk.name[:100]!a} is not one of its chunks")
    return manifest


def check_follows(before: Manifest, after: Manifest) -> None:
    """Raises Foreign or Damaged unless `after` was made on top of `before`."""
    for what in ("cluster_id", "prefix"):
        one, other = getattr(before, what), getattr(after, what)
        if one != other:
            raise Foreign(
                f"{after.name}: {what} is {other!r}, but {one!r} in {before.name}: two installations in one place"
            )
    previous = after.previous
    if previous is None or previous.sequence != before.sequence or previous.seal != before.seal:
        raise Damaged(
            f"{after.name} does not follow {before.name}: one of them was replaced, or one between them is missing"
        )
    for topic, part in after.topics.items():
        if part.whole:
            continue
        for number, copied in part.partitions.items():
            earlier = before.topics.get(topic)
            end = earlier.partitions[number].end if earlier and number in earlier.partitions else None
            if end is None or copied.start < end:
                raise Damaged(f"{after.name}: {topic}[{number}] begins at {copied.start}, {before.name} ends at {end}")


def _canonical(document: Any) -> bytes:
    return orjson.dumps(document, option=_SORTED)
