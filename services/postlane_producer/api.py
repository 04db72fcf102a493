"""The HTTP API: mails in as JSON, receipts out once Kafka has them (docs/gateway.md, `GET /v1/openapi.json`).

A caller is known before its body is read. What is read at once is bounded in requests and in bytes; what does not fit
is told to come again. An answer of 202 stands for what `Publisher.publish` promises, and nothing less.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from postlane.clock import Clock
from postlane.core.addresses import parse_mailbox
from postlane.core.api_keys import ApiKey, Right
from postlane.core.dsn import MESSAGE_MAX_BYTES
from postlane.errors import BrokerUnavailable, InvalidMail, MailTooLarge, PublishError
from postlane.eventlog.errors import LogError
from postlane.mail import Mail, check_key
from postlane.ops.openapi import document
from postlane.publisher import AsyncPublisher, Receipt
from postlane.telemetry.metrics import ProducerMetrics
from postlane.telemetry.tracing import Tracer
from postlane_producer import problems, tracing
from postlane_producer.bounces import BounceIntake
from postlane_producer.keys import KeyRing
from postlane_producer.problems import Problem

REQUESTS_AT_ONCE_MAX = 256
BODIES_AT_ONCE_MAX_BYTES = 32_000_000  # a body becomes some seven times as much on its way to Kafka
MAIL_MAX_BYTES = 4_000_000  # of JSON, which may escape every character: the mail itself has its own bound
BATCH_MAX_BYTES = 10_000_000
BATCH_MAX_MAILS = 1_000
BODY_TIMEOUT_S = 30.0
BUSY_WAIT_S = 1.0
WAY = "http"
KEY_HEADER = "Idempotency-Key"
_JSON, _LINES, _PROBLEM = "application/json", "application/x-ndjson", "application/problem+json"
_MESSAGE = "message/rfc822"

log = logging.getLogger("postlane.producer")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Room:
    """What may be read at once: so much by all, half of it by one caller."""

    requests: int = REQUESTS_AT_ONCE_MAX
    bytes: int = BODIES_AT_ONCE_MAX_BYTES
    _requests: Counter[str] = field(default_factory=Counter)  # by caller
    _bytes: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def of(self, caller: str, size_bytes: int) -> AsyncIterator[None]:
        """Hold it while a request is under way. Raises Problem (503) when there is none."""
        requests, held = self._requests, self._bytes
        mine = requests[caller] < max(1, self.requests // 2) and held[caller] + size_bytes <= self.bytes // 2
        if not mine or requests.total() >= self.requests or held.total() + size_bytes > self.bytes:
            raise Problem(503, "busy", "too much is under way; nothing was published", wait_s=BUSY_WAIT_S)
        requests[caller] += 1
        held[caller] += size_bytes
        try:
            yield
        finally:
            requests[caller] -= 1
            held[caller] -= size_bytes


class Api:
    """The handlers, for one application."""

    def __init__(
        self,
        publisher: AsyncPublisher,
        keys: KeyRing,
        intake: BounceIntake,
        metrics: ProducerMetrics,
        tracer: Tracer,
        clock: Clock,
    ) -> None:
        self._publisher = publisher
        self._keys = keys
        self._intake = intake
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._room = Room()
        self._document = orjson.dumps(document(), option=orjson.OPT_INDENT_2)
        metrics.expect(WAY, problems.OURS)
        self.trouble: str | None = None  # why nothing can be published, as the last try said
        self._under_way = 0
        self.closing = asyncio.Event()  # from now on each connection ends with its answer
        self._idle = asyncio.Event()
        self._idle.set()

    def application(self) -> web.Application:
        """What the server runs."""
        made = web.Application(middlewares=[self._answered])
        made.router.add_post("/v1/mails", self.mail)
        made.router.add_post("/v1/mails/batch", self.batch)
        made.router.add_post("/v1/bounces", self.bounce)
        made.router.add_get("/v1/openapi.json", self.describe)
        made.on_response_prepare.append(_named)
        return made

    async def drain(self, timeout_s: float) -> None:
        """Wait for the answers to what has begun."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log.warning("requests are left unanswered", extra={"requests": self._under_way})

    async def describe(self, request: web.Request) -> web.Response:
        """What this API is, for machines."""
        return web.Response(body=self._document, content_type=_JSON)

    async def mail(self, request: web.Request) -> web.Response:
        """One mail. 202 and its receipt once every in-sync replica has it."""
        caller = self._caller(request, "publish")
        self._pace(caller, 1)  # first: a mistake costs time as well
        async with self._body(request, caller, MAIL_MAX_BYTES, _JSON) as body:
            mail, key = read(body, _one(request.headers.getall(KEY_HEADER, ())))
            self._may(caller, mail, body)
            with tracing.begin(self._tracer, request, caller, mail, key):
                receipt = await self._publish(mail, key, caller)
        return web.Response(status=202, body=orjson.dumps(told(receipt)), content_type=_JSON)

    async def batch(self, request: web.Request) -> web.Response:
        """A mail a line. 200, and for each line, in order, what `mail` would have answered, with its status."""
        caller = self._caller(request, "publish")
        async with self._body(request, caller, BATCH_MAX_BYTES, _LINES) as lines:
            if len(lines) > BATCH_MAX_MAILS:
                raise Problem(413, "too-many", f"{len(lines)} mails; at most {BATCH_MAX_MAILS} a batch")
            self._pace(caller, len(lines))
            answers = await asyncio.gather(*(self._line(line, caller, request) for line in lines))
        text = b"\n".join(orjson.dumps(answer) for answer in answers)
        return web.Response(body=text + b"\n", content_type=_LINES)

    async def bounce(self, request: web.Request) -> web.Response:
        """A notification as it came (message/rfc822), from a caller that may say of which delivery it is. 200 and what
        came of it once Kafka has acknowledged; `?to=` is the address that it was sent to."""
        caller = self._caller(request, "bounces")
        async with self._body(request, caller, MESSAGE_MAX_BYTES, _MESSAGE) as raw:
            try:
                taken = await self._intake.take(raw, request.query.get("to"), trusted=True)
            except LogError as error:
                log.warning("a bounce could not be written", extra={"reason": str(error)})
                title = "it was not kept, or only in part; send it again"
                raise Problem(503, "unavailable", title, wait_s=problems.RETRY_AFTER_S) from None
        body = {"delivery_id": taken.delivery_id, "outcomes": taken.outcomes, "reason": taken.reason or None}
        told_of = {name: value for name, value in body.items() if value is not None}
        return web.Response(body=orjson.dumps(told_of), content_type=_JSON)

    async def _line(self, line: bytes, caller: ApiKey, request: web.Request) -> dict[str, Any]:
        try:
            body = parsed(line)
            mail, key = read(body, None)
            self._may(caller, mail, body)
            with tracing.begin(self._tracer, request, caller, mail, key):
                return {"status": 202, **told(await self._publish(mail, key, caller))}
        except Problem as known:
            problem = known
        except Exception:  # of one line; the others go on
            problem = _failed("a line of a batch failed", request)
        self._metrics.refused_total.labels(WAY, problem.reason).inc()
        return problem.body

    # ------------------------------------------------------------------------------------------------------ steps

    def _caller(self, request: web.Request, right: Right) -> ApiKey:
        caller = self._keys.of(request.headers.get("Authorization", ""))
        if caller is None:
            raise Problem(401, "unknown-key", "an API key is needed: Authorization: Bearer plk_…")
        if right not in caller.may:
            raise Problem(403, "not-allowed", f"this key may not do that; it needs the right {right!r}")
        return caller

    def _may(self, caller: ApiKey, mail: Mail, body: dict[str, Any]) -> None:
        """What the key restricts. Raises Problem (403)."""
        if caller.tenant is not None and "tenant" in body and mail.tenant != caller.tenant:
            raise Problem(403, "not-allowed", f"this key publishes for the tenant {caller.tenant!r} only")
        if caller.lanes and mail.lane not in caller.lanes:
            raise Problem(403, "not-allowed", f"this key may use the lanes {', '.join(caller.lanes)} only")
        if not caller.sends_as(parse_mailbox(mail.sender).address):
            raise Problem(403, "not-allowed", "this key may not send as that address")

    def _pace(self, caller: ApiKey, count: int) -> None:
        wait_s = self._keys.wait_s(caller, count, self._clock.monotonic())
        if wait_s > 0:
            raise Problem(429, "too-fast", f"this key may publish {caller.rate_per_s:g} mails a second", wait_s=wait_s)

    async def _publish(self, mail: Mail, key: str | None, caller: ApiKey) -> Receipt:
        began = self._clock.monotonic()
        try:
            receipt = await self._publisher.publish(mail, key, tenant=caller.tenant)
        except PublishError as error:
            if isinstance(error, BrokerUnavailable):
                self.trouble = str(error)
            if not isinstance(error, InvalidMail | MailTooLarge):
                log.warning("a mail could not be published", extra={"reason": str(error), "api_key": caller.name})
            raise problems.of(error) from None
        self.trouble = None
        self._metrics.publish_seconds.observe(self._clock.monotonic() - began)
        self._metrics.accepted_total.labels(WAY).inc()
        return receipt

    @asynccontextmanager
    async def _body(self, request: web.Request, caller: ApiKey, max_bytes: int, kind: str) -> AsyncIterator[Any]:
        """The body, read within its bounds; the room that it takes is held until the answer is ready."""
        if request.content_type != kind:
            raise Problem(415, "media-type", f"send {kind}")
        if {coding.lower() for coding in request.headers.getall("Content-Encoding", ())} - {"identity"}:
            raise Problem(415, "media-type", "send it without a Content-Encoding")
        size = request.content_length
        if size is not None and size > max_bytes:
            raise Problem(413, "too-large", f"the body has {size} bytes; at most {max_bytes} are read")
        async with self._room.of(caller.name, max_bytes if size is None else size):
            raw = await _read(request, max_bytes)
            yield _READERS[kind](raw)

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever goes wrong is a problem document."""
        self._under_way += 1
        self._idle.clear()
        try:
            answer = await self._guarded(request, handler)
            if self.closing.is_set():
                answer.force_close()
            return answer
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as known:
            problem = known
        except web.HTTPException as error:
            if error.status < 400:
                raise
            problem = Problem(error.status, "not-here", error.reason)
        except ConnectionError:
            raise  # nobody is there to answer
        except Exception:
            problem = _failed("a request failed", request)
        self._metrics.refused_total.labels(WAY, problem.reason).inc()
        body = orjson.dumps(problem.body)
        return web.Response(status=problem.status, body=body, content_type=_PROBLEM, headers=dict(problem.headers))


def _failed(what: str, request: web.Request) -> Problem:
    log.exception(what, extra={"path": request.path[:100]})
    return Problem(500, "failed", "something broke here; whether it was published is unknown")


def _one(values: Sequence[str]) -> str | None:
    """A header that may stand there once. Raises Problem (422)."""
    if len(values) > 1:
        raise _wrong("key", f"several headers {KEY_HEADER}; give one")
    return values[0] if values else None


async def _named(request: web.Request, response: web.StreamResponse) -> None:
    """Which library of which version answers is nobody's business."""
    response.headers["Server"] = "postlane"


async def _read(request: web.Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.content.iter_any():
                size += len(part)
                if size > max_bytes:
                    raise Problem(413, "too-large", f"the body is too large; at most {max_bytes} bytes are read")
                parts.append(part)
    except TimeoutError:
        raise Problem(408, "too-slow", f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
    return b"".join(parts)


def parsed(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises Problem (400)."""
    try:
        body = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError):
        raise Problem(400, "no-json", "the body is no JSON (RFC 8259, UTF-8)") from None
    if not isinstance(body, dict):
        raise Problem(400, "no-json", "a JSON object is expected, the mail")
    return body


def read(body: dict[str, Any], header: str | None) -> tuple[Mail, str | None]:
    """The mail, and its idempotency key from the field `key` or the header. Raises Problem (422)."""
    fields = {name: value for name, value in body.items() if name != "key"}
    key = body.get("key")
    if header is not None:
        named = unquoted(header)
        if key is not None and key != named:
            raise _wrong("key", f"differs from the header {KEY_HEADER}; give one of them")
        key = named
    try:
        return Mail.model_validate(fields), None if key is None else check_key(key)
    except PublishError as error:
        raise problems.of(error) from None


def unquoted(header: str) -> str:
    """The key in an `Idempotency-Key` header: a quoted string of structured fields (RFC 8941 3.3.3), or a bare word."""
    text = header.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text


def told(receipt: Receipt) -> dict[str, Any]:
    """A receipt as the API writes it."""
    return {"message_id": receipt.message_id, "partition": receipt.partition, "offset": receipt.offset}


def _wrong(field_name: str, what: str) -> Problem:
    return problems.of(InvalidMail([(field_name, what)]))


_READERS: dict[str, Callable[[bytes], Any]] = {_JSON: parsed, _LINES: bytes.splitlines, _MESSAGE: bytes}
