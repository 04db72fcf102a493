"""Backups that are not what was written: each is refused with what is wrong, and nothing is lost by it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import backup_world as w
from tests.unit.backup_world import NOW, Installation, archive_of, directory, ran

from postlane.config import ConfigurationError
from postlane.eventlog.ports import Received
from postlane.ops.backup.catalogue import read_catalogue
from postlane.ops.backup.chunks import Chunk, compress, decompress, records
from postlane.ops.backup.encrypt import Vault, vault_of
from postlane.ops.backup.errors import BackupError, Damaged, Foreign, NothingHere, Refused, TooNew, WrongKey
from postlane.ops.backup.manifest import Manifest, read_manifest, sealed
from postlane.ops.backup.store import AlreadyThere, open_store
from postlane.ops.backup.take import Wishes, check_wishes
from postlane.ops.backup.target import check_alone, check_backup_fits

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backups, the second on top of the first, with several chunks each."""
    place = tmp_path_factory.mktemp("backups")

    async def made() -> None:
        it = Installation()
        for number in range(w.PARTITIONS):
            await it.put("mail.suppressions", number, *((f"t/{n}@x".encode(), {"n": n}) for n in range(50)))
            await it.put("mail.requests", number, *(w.request(f"{number}-{n}") for n in range(20)))
        await it.backup(directory(place), at=NOW, token="one")
        for number in range(w.PARTITIONS):
            await it.put("mail.requests", number, *(w.request(f"later-{number}-{n}") for n in range(20)))
        await it.backup(directory(place), at=NOW + timedelta(hours=1), token="two")

    ran(made())
    return place


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def refusal(place: Path, vault: Vault | None = None) -> BackupError:
    """What a restore of the newest says before it writes anything."""
    with pytest.raises(BackupError) as caught:
        archive_of(directory(place), vault).check()
    assert str(place) in str(caught.value) or "data/" in str(caught.value) or "manifests/" in str(caught.value)
    return caught.value


def chunks(place: Path) -> list[Path]:
    return sorted(p for p in (place / "data").rglob("*") if p.is_file())


def manifests(place: Path) -> list[Path]:
    return sorted((place / "manifests").iterdir())


def test_what_was_written_is_accepted(place: Path) -> None:
    checked = archive_of(directory(place)).check()
    assert checked.by_topic["mail.requests"] == 80
    assert checked.by_topic["mail.suppressions"] == 100
    assert checked.chunks == len(chunks(place))


def test_every_chunk_with_a_flipped_bit(place: Path) -> None:
    for path in chunks(place):
        content = path.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert isinstance(refusal(place), Damaged)
            with pytest.raises(Damaged, match="SHA-256"):
                archive_of(directory(place)).check_stored()
        path.write_bytes(content)
    archive_of(directory(place)).check()


@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_truncated_chunk(place: Path, left: int) -> None:
    path = chunks(place)[0]
    path.write_bytes(path.read_bytes()[:left])
    assert "cut short" in str(refusal(place))


def test_a_missing_chunk(place: Path) -> None:
    chunks(place)[-1].unlink()
    assert "is missing" in str(refusal(place))


def test_chunks_that_changed_places(place: Path) -> None:
    first, second = (p for p in chunks(place) if "one/mail.requests" in str(p))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert isinstance(refusal(place), Damaged)


def forged(place: Path, change: Callable[[Manifest], Manifest], vault: Vault | None = None) -> None:
    """A manifest whose author knows how to seal: only what it says is wrong."""
    vault = vault or Vault(None)
    path = manifests(place)[-1]
    manifest = read_manifest(f"manifests/{path.name}", path.read_bytes(), vault)
    path.write_bytes(sealed(change(manifest), vault)[1])


def _reordered(manifest: Manifest) -> Manifest:
    part = manifest.topics["mail.requests"]
    ranges = dict(part.partitions)
    chunk = ranges[0].chunks[0]
    ranges[0] = ranges[0].model_copy(update={"chunks": (chunk, chunk)})
    return manifest.model_copy(
        update={"topics": {**manifest.topics, "mail.requests": part.model_copy(update={"partitions": ranges})}}
    )


def _counts_more(manifest: Manifest) -> Manifest:
    part = manifest.topics["mail.requests"]
    ranges = dict(part.partitions)
    chunk = ranges[0].chunks[0].model_copy(update={"records": 21})
    ranges[0] = ranges[0].model_copy(update={"chunks": (chunk,)})
    return manifest.model_copy(
        update={"topics": {**manifest.topics, "mail.requests": part.model_copy(update={"partitions": ranges})}}
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_reordered, "out of order"),
        (_counts_more, "the manifest says 21"),
        (lambda m: m.model_copy(update={"token": "one"}), "is not one of its chunks"),
        (lambda m: m.model_copy(update={"cluster_id": "two"}), "two installations in one place"),
        (lambda m: m.model_copy(update={"prefix": "b."}), "two installations in one place"),
        (lambda m: m.model_copy(update={"sequence": 7}), "moved or copied"),
        (lambda m: m.model_copy(update={"previous": None}), "does not follow"),
    ],
)
def test_a_manifest_that_says_something_else(place: Path, change: Callable[[Manifest], Manifest], says: str) -> None:
    forged(place, change)
    assert says in str(refusal(place))


def test_a_manifest_that_was_edited(place: Path) -> None:
    path = manifests(place)[-1]
    path.write_bytes(path.read_bytes().replace(b'"full": false', b'"full": true'))
    assert "seal" in str(refusal(place))


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_truncated_manifest(place: Path, left: int) -> None:
    path = manifests(place)[-1]
    path.write_bytes(path.read_bytes()[:left])
    assert isinstance(refusal(place), Damaged)


def test_a_manifest_of_a_later_version(place: Path) -> None:
    path = manifests(place)[-1]
    document = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**document, "format": 2, "new": {}}))
    assert isinstance(refusal(place), TooNew)


def test_something_else_where_a_manifest_should_be(place: Path) -> None:
    manifests(place)[-1].write_bytes(b'["x"]')
    assert isinstance(refusal(place), Foreign)


def test_a_replaced_backup_breaks_the_chain(place: Path, tmp_path: Path) -> None:
    async def made() -> None:
        it = Installation()
        await it.backup(directory(tmp_path / "other"), at=NOW, token="one")

    ran(made())
    shutil.copy(manifests(tmp_path / "other")[0], manifests(place)[0])
    assert "does not follow" in str(refusal(place))


def test_a_missing_backup_in_the_middle(place: Path) -> None:
    manifests(place)[0].unlink()
    assert "rests on backup 0000001" in str(refusal(place))


def test_half_uploaded_backups_do_not_exist(place: Path) -> None:
    """Chunks without a manifest: the one before is still what is restored, and the next backup clears up."""
    manifests(place)[-1].unlink()
    archive = archive_of(directory(place))
    assert archive.newest.sequence == 1
    archive.check()
    assert read_catalogue(directory(place), Vault(None)).unfinished == ["data/0000002-two/"]

    async def again() -> None:
        it = Installation()
        await it.put("mail.requests", 0, *(w.request(f"0-{n}") for n in range(20)))
        with pytest.raises(Refused, match="made anew"):  # this log is shorter than what is in the backup
            await it.backup(directory(place), at=NOW + timedelta(hours=2), token="three")

    ran(again())
    manifests(place)[0].unlink()
    with pytest.raises(NothingHere, match="unfinished: data/"):
        archive_of(directory(place))


def test_a_killed_backup_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def made() -> None:
        it = Installation()
        await it.put("mail.requests", 0, w.request("a"))
        store = directory(tmp_path)
        await it.backup(store, token="one")
        await it.put("mail.requests", 0, w.request("b"))
        put, left = store.put, [1]

        def dies(name: str, content: bytes) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            put(name, content)

        monkeypatch.setattr(store, "put", dies)
        await it.put("mail.control", 0, (b"pause/lane/bulk", {"x": 1}))
        with pytest.raises(KeyboardInterrupt):
            await it.backup(store, at=NOW + timedelta(hours=1), token="dead")
        monkeypatch.setattr(store, "put", put)
        assert archive_of(store).newest.sequence == 1
        assert any("-dead/" in str(path) for path in chunks(tmp_path))
        await it.backup(store, at=NOW + timedelta(hours=2), token="again")
        assert not any("-dead/" in str(path) for path in chunks(tmp_path))
        assert archive_of(store).count("mail.requests", 0) == 2

    ran(made())


def test_two_backups_at_once_and_one_is_finished(place: Path) -> None:
    store = directory(place)
    with pytest.raises(AlreadyThere):
        store.put_new("manifests/0000002.json", b"{}")
    archive_of(store).check()


def test_another_installation_is_turned_away(place: Path) -> None:
    async def tried(it: Installation) -> None:
        with pytest.raises(Foreign, match="another installation"):
            await it.backup(directory(place), at=NOW + timedelta(hours=2), token="three")

    ran(tried(Installation(cluster_id="two")))
    archive = archive_of(directory(place))
    with pytest.raises(Foreign, match="--from-prefix"):
        check_backup_fits(archive, w.TopicNames("b."), w.CONFIG, None)
    check_backup_fits(archive, w.TopicNames("b."), w.CONFIG, "a.")
    more = w.Config(topics=w.Topics(partitions=7))
    with pytest.raises(Foreign, match="declares 7"):
        check_backup_fits(archive, w.NAMES, more, None)
    with pytest.raises(Refused, match=r"mail\.seen"):
        check_alone(["mail.seen"])


def test_encrypted_backups(tmp_path: Path) -> None:
    vault = Vault(KEY)

    async def made() -> None:
        it = Installation()
        for number in range(w.PARTITIONS):
            await it.put("mail.requests", number, *(w.request(f"secret{number}{n}") for n in range(20)))
        await it.backup(directory(tmp_path), vault=vault)

    ran(made())
    assert not any(b"secret" in path.read_bytes() for path in chunks(tmp_path))
    archive_of(directory(tmp_path), vault).check()
    assert "--key-file" in str(refusal(tmp_path))
    assert isinstance(refusal(tmp_path, Vault(KEY[::-1])), WrongKey)
    # Who has no key can neither change a chunk, nor swap two, nor seal a manifest that says so.
    first, second = chunks(tmp_path)[:2]
    manifest = manifests(tmp_path)[0]
    with pytest.raises(Damaged, match="another's place"):
        vault.open(first.read_bytes(), second.relative_to(tmp_path).as_posix())
    document = orjson.loads(manifest.read_bytes())
    document["seal"] = Vault(None).seal(orjson.dumps({k: v for k, v in document.items() if k != "seal"}))
    manifest.write_bytes(orjson.dumps(document))
    assert "seal" in str(refusal(tmp_path, vault))
    document["key_id"] = None
    manifest.write_bytes(orjson.dumps(document))
    assert isinstance(refusal(tmp_path, vault), WrongKey)


def test_key_files(tmp_path: Path) -> None:
    for name, content in (
        ("raw", KEY),
        ("hex", KEY.hex().encode()),
        ("text", b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert vault_of(tmp_path / name).key_id == Vault(KEY).key_id
    (tmp_path / "short").write_bytes(b"hush hush")
    with pytest.raises(ConfigurationError) as caught:
        vault_of(tmp_path / "short")
    assert "hush" not in str(caught.value)


def test_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        open_store("ftp://x/y")
    assert open_store(str(tmp_path)).place == str(tmp_path)


def test_keeping_less_than_a_full_backup_apart_is_refused() -> None:
    with pytest.raises(Refused):
        check_wishes(Wishes(keep=timedelta(days=1)))


def test_retention_forgets_what_no_restore_needs(tmp_path: Path) -> None:
    """Days 0 to 9, a full one every third: with three days to keep, those before the full one of day 6 go."""

    async def made() -> None:
        it = Installation()
        for day in range(10):
            await it.put("mail.requests", 0, w.request(str(day)))
            at = NOW + timedelta(days=day)
            taken = await it.backup(
                directory(tmp_path), at, token=str(day), full_every=timedelta(days=3), keep=timedelta(days=3)
            )
            assert taken.manifest.full is (day % 3 == 0)

    ran(made())
    catalogue = read_catalogue(directory(tmp_path), Vault(None))
    assert [m.sequence for m in catalogue.manifests] == [7, 8, 9, 10]
    archive = archive_of(directory(tmp_path))
    archive.check()
    assert archive.count("mail.requests", 0) == 10
    folders = {os.path.basename(p) for p in (tmp_path / "data").iterdir()}
    assert folders == {m.folder.split("/")[1] for m in catalogue.manifests}
    assert archive_of(directory(tmp_path), to=NOW + timedelta(days=7, hours=1)).newest.sequence == 8
    with pytest.raises(NothingHere):
        archive_of(directory(tmp_path), to=NOW)


record = st.builds(
    Received,
    st.just("t"),
    st.just(0),
    st.integers(0, 2**40),
    st.integers(-1, 2**45),
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=200),
    st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=3),
)


@given(st.lists(record, max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_record_survives_a_chunk_and_no_part_of_one_is_taken_for_a_whole(found: list[Received]) -> None:
    chunk = Chunk()
    for one in found:
        chunk.add(one)
    raw = decompress(compress(chunk.raw()), "c")
    back = list(records(raw, "t", 0, "c"))
    assert [(r.offset, r.timestamp_ms, r.key, r.value, list(r.headers)) for r in back] == [
        (r.offset, r.timestamp_ms, r.key, r.value, list(r.headers)) for r in found
    ]
    for cut in range(len(raw)):
        try:
            assert len(list(records(raw[:cut], "t", 0, "c"))) < max(1, len(found))
        except Damaged:
            continue


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(Damaged, match="unpacks to"):
        decompress(compress(bytes(32_000_000)), "c")
    with pytest.raises(Damaged):
        decompress(b"not zstd at all", "c")
