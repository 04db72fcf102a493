"""Backups in a bucket of S3 or of a server that speaks it (boto3).

Credentials, region and endpoint are boto3's own: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL_S3, a profile, or the role of the machine. A manifest is put with If-None-Match: *, so that of two
backups at once only one is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from postlane.config import ConfigurationError
from postlane.ops.backup.errors import Damaged, StoreUnavailable
from postlane.ops.backup.store import AlreadyThere

T = TypeVar("T")
DELETE_MAX = 1_000  # names in one request
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
TRIES_MAX = 5
_MISSING = ("404", "NoSuchKey", "NotFound")
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict")


class S3Store:
    """Fills `store.Store`."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.place = f"s3://{bucket}/{self._prefix}".rstrip("/")

    @classmethod
    def of(cls, url: str) -> S3Store:
        """Raises ConfigurationError."""
        parts = urlsplit(url)
        if not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
            raise ConfigurationError(
                f"{parts.scheme}://...: s3://bucket/prefix is expected; credentials are boto3's own"
            )
        config = ClientConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"max_attempts": TRIES_MAX, "mode": "standard"},
        )
        try:
            client = boto3.client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"s3://{parts.netloc}: {error}") from None
        return cls(client, parts.netloc, parts.path)

    def names(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}"
        )
        found = self._asked(prefix, lambda: [o["Key"] for page in pages for o in page.get("Contents", ())])
        yield from sorted(key[len(self._prefix) :] for key in found)

    def get(self, name: str) -> bytes:
        def read() -> bytes:
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
            return content

        return self._asked(name, read)

    def put(self, name: str, content: bytes) -> None:
        self._asked(name, lambda: self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content))

    def put_new(self, name: str, content: bytes) -> None:
        self._asked(
            name,
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + name, Body=content, IfNoneMatch="*"
            ),
        )

    def delete(self, names: list[str]) -> None:
        for at in range(0, len(names), DELETE_MAX):
            objects = [{"Key": self._prefix + name} for name in names[at : at + DELETE_MAX]]
            request = {"Objects": objects, "Quiet": True}
            answer: Any = self._asked(
                "delete", partial(self._client.delete_objects, Bucket=self._bucket, Delete=request)
            )
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise StoreUnavailable(f"{self.place}: {first.get('Key')} was not deleted: {first.get('Message')}")

    def _asked(self, name: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise Damaged(f"{self.place}/{name} is missing") from None
            if code in _TAKEN:
                raise AlreadyThere(f"{self.place}/{name} is there already: another backup was quicker") from None
            raise StoreUnavailable(f"{self.place}/{name}: {error}") from None
        except BotoCoreError as error:
            raise StoreUnavailable(f"{self.place}/{name}: {error}") from None
