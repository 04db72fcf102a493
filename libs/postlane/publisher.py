"""`Publisher` and `AsyncPublisher`: a mail in, a receipt out once every in-sync replica has it.

A mail's identity comes from its idempotency key, so whoever is not sure whether it was published publishes it again.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import NoReturn, Self

from postlane import publish_span
from postlane.config import ConfigurationError, Environment, read_environment
from postlane.core.events import FANOUT_MAX_BYTES, REQUEST_MAX_BYTES, MailRequested
from postlane.core.identity import message_id_from_key, message_id_from_time
from postlane.errors import BrokerUnavailable, InvalidMail, MailTooLarge, PublishError, PublishRefused, PublishTimeout
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.errors import LogError, OptionRefused, Retriable, TooLarge
from postlane.eventlog.kafka_config import ClientConfig, check_options
from postlane.eventlog.ports import Outgoing
from postlane.eventlog.publish import AppendUnknown, SyncAppender
from postlane.eventlog.topics import TopicNames
from postlane.mail import Mail, check_key, check_name

SOURCE = "postlane/publisher"
IN_FLIGHT_MAX = 1000  # mails of publish_many that wait for their receipt
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0

Keyed = Mail | tuple[Mail, str | None]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a mail is on record. `message_id` is what `postlane status` asks for."""

    message_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A mail with its identity, as the record that will be appended."""

    message_id: str
    key: str | None
    record: Outgoing
    span: publish_span.PublishSpan = publish_span.NONE


def prepare(
    mail: Mail,
    key: str | None,
    tenant: str | None,
    topic: str,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    random_bytes: Callable[[int], bytes] = os.urandom,
    source: str = SOURCE,
) -> Prepared:
    """Give a mail its identity and encode it. Raises InvalidMail and MailTooLarge."""
    at = now()
    owner = mail.tenant if tenant is None else check_name("tenant", tenant)
    if key is None:
        message_id = message_id_from_time(int(at.timestamp() * 1000), random_bytes(10))
    else:
        message_id = message_id_from_key(owner, check_key(key))
    fields = {**mail.__dict__, "tenant": owner, "message_id": message_id, "key": key, "requested_at": at}
    try:
        value = encode(MailRequested.model_construct(**fields))
    except TypeError as error:  # orjson's, and only of what pydantic lets through: values of a template's data
        raise InvalidMail([("template.data", f"must hold JSON values (RFC 8259): {error}")]) from None
    if len(value) > REQUEST_MAX_BYTES:
        raise MailTooLarge(len(value), REQUEST_MAX_BYTES)
    count = len(mail.recipients)
    if len(value) * count > FANOUT_MAX_BYTES:
        raise MailTooLarge(len(value) * count, FANOUT_MAX_BYTES, f"the mail times its {count} recipients")
    span = publish_span.begin(topic, message_id, len(value))
    about = headers(MailRequested, source, message_id, at, span.headers)
    return Prepared(message_id, key, Outgoing(topic, None, message_id.encode(), value, about), span)


class Publisher:
    """Publishes mails; threads may share one. Connects when first used, and again in a forked child.

        with Publisher.from_env() as publisher:
            receipt = publisher.publish(mail, key="order-42")

    `kafka` holds librdkafka options; one that the exactness of the books depends on, or that is none, raises
    ConfigurationError. `timeout_s` bounds the wait for an acknowledgement, `connect_timeout_s` the first connection.
    """

    def __init__(
        self,
        bootstrap_servers: str = "127.0.0.1:9092",
        *,
        topic_prefix: str = "",
        kafka: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        source: str = SOURCE,
    ) -> None:
        try:
            options = check_options(kafka or {})
        except OptionRefused as error:
            raise ConfigurationError(str(error)) from None
        self._topic = TopicNames(topic_prefix).requests
        self._source = source
        self._appender = SyncAppender(
            ClientConfig(bootstrap_servers, options, "postlane-publisher"),
            self._topic,
            connect_timeout_s=connect_timeout_s,
            delivery_timeout_s=timeout_s,
        )

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        source: str = SOURCE,
    ) -> Self:
        """As the POSTLANE_* variables say. Raises ConfigurationError."""
        return cls.from_environment(
            read_environment(environ), timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, source=source
        )

    @classmethod
    def from_environment(
        cls,
        environment: Environment,
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        source: str = SOURCE,
    ) -> Self:
        """As an environment that was read before says."""
        return cls(
            environment.bootstrap_servers,
            topic_prefix=environment.topic_prefix,
            kafka=environment.kafka,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            source=source,
        )

    def connect(self) -> None:
        """Reach the cluster now, to fail early. Raises BrokerUnavailable or PublishRefused."""
        try:
            self._appender.connect()
        except LogError as error:
            _raise(error, None)

    def publish(self, mail: Mail, key: str | None = None, *, tenant: str | None = None) -> Receipt:
        """The receipt, once all in-sync replicas have the mail.

        `key`: publishing it again, from anywhere, sends nothing new. `tenant` overrides the mail's. Raises
        InvalidMail, MailTooLarge, BrokerUnavailable, PublishRefused (nothing was published) or PublishTimeout
        (unknown: publish again with the same key).
        """
        return self.publish_soon(mail, key, tenant=tenant).result()

    def publish_soon(self, mail: Mail, key: str | None = None, *, tenant: str | None = None) -> Future[Receipt]:
        """A future of the receipt; waits only to connect and while the buffer is full.

        Raises what `publish` raises where that is known at once; the future raises the rest.
        """
        prepared = self._prepare(mail, key, tenant)
        try:
            appended = self._appender.append_soon(prepared.record)
        except LogError as error:
            _raise(error, prepared)
        return _receipt_of(appended, prepared)

    def publish_many(
        self, mails: Iterable[Keyed], *, tenant: str | None = None, in_flight_max: int = IN_FLIGHT_MAX
    ) -> Iterator[Receipt]:
        """Receipts in the order of `mails`, each a Mail or (Mail, key); the iterable is read as receipts come, at
        most `in_flight_max` ahead. The first mail that fails raises: those before it have been yielded, those
        after it may be published."""
        waiting: deque[Future[Receipt]] = deque()
        for item in mails:
            mail, key = item if isinstance(item, tuple) else (item, None)
            while len(waiting) >= in_flight_max or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
            try:
                waiting.append(self.publish_soon(mail, key, tenant=tenant))
            except PublishError as error:
                failed: Future[Receipt] = Future()
                failed.set_exception(error)  # raised in its turn, after the receipts of those before
                waiting.append(failed)
                break
        while waiting:
            yield waiting.popleft().result()

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything that was handed over is answered. Raises PublishTimeout after `timeout_s`."""
        wait_s = self._appender.delivery_timeout_s if timeout_s is None else timeout_s
        left = self._appender.flush(wait_s)
        if left:
            raise PublishTimeout(f"{left} mails were not acknowledged within {wait_s:g} s; publish them again by key")

    def close(self, timeout_s: float | None = None) -> None:
        """Flush and end. Raises PublishTimeout when mails stay unanswered; their futures say what is known of each."""
        left = self._appender.close(timeout_s)
        if left:
            raise PublishTimeout(f"closed with {left} mails not acknowledged; publish them again by key")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._appender.close()  # what went wrong first is what the caller has to see

    def _prepare(self, mail: Mail, key: str | None, tenant: str | None) -> Prepared:
        if not isinstance(mail, Mail):
            raise InvalidMail([("mail", f"a postlane.Mail is expected, not {type(mail).__name__}")])
        return prepare(mail, key, tenant, self._topic, source=self._source)


class AsyncPublisher:
    """The same verbs, awaited, for one event loop:

    async with AsyncPublisher.from_env() as publisher:
        receipt = await publisher.publish(mail, key="order-42")
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        source: str = SOURCE,
    ) -> Self:
        """As the POSTLANE_* variables say."""
        return cls(Publisher.from_env(environ, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, source=source))

    async def connect(self) -> None:
        """See Publisher.connect."""
        await asyncio.to_thread(self._publisher.connect)

    async def publish(self, mail: Mail, key: str | None = None, *, tenant: str | None = None) -> Receipt:
        """See Publisher.publish. A cancelled call does not take the mail back."""
        return await (await self.publish_soon(mail, key, tenant=tenant))

    async def publish_soon(
        self, mail: Mail, key: str | None = None, *, tenant: str | None = None
    ) -> asyncio.Future[Receipt]:
        """An asyncio future of the receipt; awaits only to connect and while the buffer is full."""
        publisher = self._publisher
        prepared = publisher._prepare(mail, key, tenant)
        try:
            appended = publisher._appender.try_append(prepared.record)
            if appended is None:  # it would block the event loop
                appended = await asyncio.to_thread(publisher._appender.append_soon, prepared.record)
        except LogError as error:
            _raise(error, prepared)
        return asyncio.wrap_future(_receipt_of(appended, prepared))

    async def publish_many(
        self,
        mails: Iterable[Keyed] | AsyncIterable[Keyed],
        *,
        tenant: str | None = None,
        in_flight_max: int = IN_FLIGHT_MAX,
    ) -> AsyncIterator[Receipt]:
        """See Publisher.publish_many; takes asynchronous iterables too."""
        waiting: deque[asyncio.Future[Receipt]] = deque()
        try:
            async for item in _each(mails):
                mail, key = item if isinstance(item, tuple) else (item, None)
                while len(waiting) >= in_flight_max or (waiting and waiting[0].done()):
                    yield await waiting.popleft()
                try:
                    waiting.append(await self.publish_soon(mail, key, tenant=tenant))
                except PublishError as error:
                    failed: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
                    failed.set_exception(error)
                    waiting.append(failed)
                    break
            while waiting:
                yield await waiting.popleft()
        finally:
            for future in waiting:  # nobody will ask for these any more
                future.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def flush(self, timeout_s: float | None = None) -> None:
        """See Publisher.flush."""
        await asyncio.to_thread(self._publisher.flush, timeout_s)

    async def close(self, timeout_s: float | None = None) -> None:
        """See Publisher.close."""
        await asyncio.to_thread(self._publisher.close, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._publisher.__exit__, kind, error, trace)


async def _each(mails: Iterable[Keyed] | AsyncIterable[Keyed]) -> AsyncIterator[Keyed]:
    if isinstance(mails, AsyncIterable):
        async for mail in mails:
            yield mail
        return
    for mail in mails:
        yield mail


def _receipt_of(appended: Future[tuple[int, int]], prepared: Prepared) -> Future[Receipt]:
    receipt: Future[Receipt] = Future()
    receipt.set_running_or_notify_cancel()
    message_id, key = prepared.message_id, prepared.key

    def answered(future: Future[tuple[int, int]]) -> None:
        error = future.exception()
        prepared.span.end(error)
        if error is None:
            partition, offset = future.result()
            receipt.set_result(Receipt(message_id, partition, offset))
        else:
            receipt.set_exception(_translate(error, message_id, key))

    appended.add_done_callback(answered)
    return receipt


def _raise(error: LogError, prepared: Prepared | None) -> NoReturn:
    if prepared is not None:
        prepared.span.end(error)
    message_id, key = (prepared.message_id, prepared.key) if prepared else ("", None)
    raise _translate(error, message_id, key, len(prepared.record.value or b"") if prepared else 0) from None


def _translate(error: BaseException, message_id: str, key: str | None, size_bytes: int = 0) -> BaseException:
    """What an error of the log means for a publisher."""
    if isinstance(error, AppendUnknown):
        again = (
            f"publish again with the key {key!a}" if key else "no key was given, so publishing again may send it twice"
        )
        return PublishTimeout(f"{error}; whether {message_id} was published is unknown: {again}", message_id, key)
    if isinstance(error, TooLarge):
        return MailTooLarge(
            size_bytes, REQUEST_MAX_BYTES, f"the broker's limit is lower than Postlane's ({error}): the mail"
        )
    if isinstance(error, Retriable):
        return BrokerUnavailable(str(error))
    return PublishRefused(str(error)) if isinstance(error, LogError) else error
