"""Backups in a bucket: the same store contract as a folder, over HTTP, against a server that speaks S3 (moto's)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.backup_world import NOW, Installation, archive_of, request

from postlane.config import ConfigurationError
from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.errors import Damaged, StoreUnavailable
from postlane.ops.backup.store import AlreadyThere, DirectoryStore, Store, open_store

pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own; endpoint and credentials come from the environment, as an operator gives them."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "practice")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "practice-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = request.node.name.split("[")[0].replace("_", "-")[:40]
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return DirectoryStore(tmp_path)
    return open_store(f"s3://{request.getfixturevalue('bucket')}/some/where")


def test_what_a_store_does(store: Store) -> None:
    store.put("data/b", b"2")
    store.put("data/a/x", b"1")
    store.put("data/a/x", b"3")
    assert list(store.names("data/")) == ["data/a/x", "data/b"]
    assert list(store.names("manifests/")) == []
    assert store.get("data/a/x") == b"3"
    store.put_new("manifests/1", b"m")
    with pytest.raises(AlreadyThere):
        store.put_new("manifests/1", b"n")
    assert store.get("manifests/1") == b"m"
    with pytest.raises(Damaged, match="missing"):
        store.get("data/none")
    store.delete(["data/a/x", "data/none"])
    assert list(store.names("data/")) == ["data/b"]


def test_backup_and_restore_through_a_bucket(bucket: str) -> None:
    store, vault = open_store(f"s3://{bucket}/mail"), Vault(bytes(32))

    async def made() -> None:
        old = Installation()
        await old.put("mail.requests", 0, *(request(str(n)) for n in range(100)))
        await old.backup(store, vault=vault, at=NOW, token="one")
        await old.put("mail.requests", 1, *(request(f"later{n}") for n in range(100)))
        await old.backup(store, vault=vault, at=NOW + timedelta(hours=1), token="two")
        archive = archive_of(store, vault)
        assert archive.check().by_topic["mail.requests"] == 200
        new = Installation(cluster_id="two", made=False)
        await new.restore(archive)
        for number in (0, 1):
            assert [r.value for r in new.records("mail.requests", number)] == [
                r.value for r in old.records("mail.requests", number)
            ]
        gone = next(iter(store.names("data/")))
        store.delete([gone])
        with pytest.raises(Damaged, match=f"{gone} is missing"):
            archive_of(store, vault).check_stored()

    asyncio.run(made())


def test_a_bucket_that_is_not_there_or_does_not_answer(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        list(open_store("s3://no-such-bucket/x").names(""))
    monkeypatch.setattr("postlane.ops.backup.s3.TRIES_MAX", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable) as caught:
        open_store(f"s3://{bucket}").get("x")
    assert "practice-secret" not in str(caught.value)
    for url in ("s3://", "s3://key:secret@bucket/x"):
        with pytest.raises(ConfigurationError) as refused:
            open_store(url)
        assert "secret" not in str(refused.value)
