"""Takes what comes back for mails that had been accepted: reads it, decides, and writes what was decided to Kafka.

    1. read the notification (postlane.core.dsn), and find out which delivery it is about
    2. decide (postlane.core.late_bounce)
    3. append the suppression, and wait for its acknowledgement
    4. append the event, and wait for its acknowledgement

Whoever brought it is answered after step 4 only, so a bounce is taken or comes again. One that comes again changes
nothing: the suppression has the same key, and a delivery bounces once (postlane.core.lifecycle).
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from postlane.bounce_keys import ReturnPaths
from postlane.clock import Clock
from postlane.core.dsn import NotADsn, Report, parse_dsn
from postlane.core.events import Bounced, Suppression
from postlane.core.late_bounce import Decision, Outcome, decide, delivery_in, traceparent
from postlane.eventlog.codec import encode, headers
from postlane.eventlog.errors import Retriable
from postlane.eventlog.ports import Appender, Headers, Outgoing
from postlane.eventlog.topics import TopicNames
from postlane.ops.tables import suppression_key
from postlane.telemetry.metrics import ProducerMetrics
from postlane.telemetry.tracing import NO_SPAN, Span, Tracer, Value

SOURCE = "postlane/bounces"
ACK_TIMEOUT_S = 20.0  # for both acknowledgements; servers wait ten minutes for the reply to the dot
log = logging.getLogger("postlane.bounces")


class Taken(NamedTuple):
    """What was done: a decision for each recipient of the report; none, and the reason, where it was no report."""

    delivery_id: str | None
    decisions: tuple[Decision, ...]
    reason: str = ""

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What came of each recipient, in the words of the metric."""
        return tuple(each.outcome.value for each in self.decisions) or (Outcome.NOT_A_REPORT.value,)


class BounceIntake:
    """One for the process, for every way in. `suppress`: addresses that do not exist go on the list.

    Without return paths only what trusted callers bring can be matched.
    """

    def __init__(
        self,
        appender: Appender,
        names: TopicNames,
        return_paths: ReturnPaths | None,
        *,
        suppress: bool,
        clock: Clock,
        tracer: Tracer,
        metrics: ProducerMetrics,
    ) -> None:
        self._appender = appender
        self._names = names
        self._return_paths = return_paths
        self._suppress = suppress
        self._clock = clock
        self._tracer = tracer
        self._metrics = metrics

    def delivery_of(self, address: str) -> str | None:
        """The delivery whose return path this address is; None when we signed none such."""
        return None if self._return_paths is None else self._return_paths.delivery_of(address)

    async def take(self, raw: bytes, envelope_to: str | None, trusted: bool) -> Taken:
        """Take one message, as it came, that was addressed to `envelope_to`.

        `trusted`: the caller has shown who it is, and may say of which delivery the message is by the headers of the
        returned mail; others only by a return path of ours. Whatever the bytes are, this raises only what appending
        raises (Retriable, Fatal, …): then nothing, or not all of it, was written, and the same may come again.
        """
        delivery = None if envelope_to is None else self.delivery_of(envelope_to)
        try:
            report = parse_dsn(raw)
        except NotADsn as no_report:
            self._count(Outcome.NOT_A_REPORT)
            return Taken(delivery, (), no_report.reason)
        if delivery is None and trusted:
            delivery = delivery_in(report.returned)
        decisions = tuple(decide(report, delivery, self._clock.now(), self._suppress))
        span = self._begin(report, delivery)
        try:
            for decision in decisions:
                await self._write(decision, span)
        except BaseException as error:
            span.fail(type(error).__name__)
            span.end()
            raise
        for decision in decisions:
            self._count(decision.outcome)
        self._end(span, decisions)
        reason = "it is not known of which delivery it is" if delivery is None else ""
        return Taken(delivery, decisions, reason)

    async def _write(self, decision: Decision, span: Span) -> None:
        if decision.event is None:
            return
        trace = self._tracer.headers(span)
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                if decision.suppression is not None:
                    await self._appender.append(self._suppression(decision.suppression, trace))
                await self._appender.append(self._event(decision.event, trace))
        except TimeoutError:
            raise Retriable(f"Kafka did not acknowledge a bounce within {ACK_TIMEOUT_S:g} s") from None

    def _suppression(self, fact: Suppression, trace: Headers) -> Outgoing:
        key = suppression_key(fact.tenant, fact.address)
        about = headers(Suppression, SOURCE, f"{key.decode()}@{fact.at.isoformat()}", fact.at, trace)
        return Outgoing(self._names.suppressions, None, key, encode(fact), about)

    def _event(self, fact: Bounced, trace: Headers) -> Outgoing:
        about = headers(Bounced, SOURCE, f"{fact.delivery_id}/Bounced", fact.at, trace)
        return Outgoing(self._names.events, None, fact.message_id.encode(), encode(fact), about)

    def _count(self, outcome: Outcome) -> None:
        self._metrics.bounces_total.labels(outcome.value).inc()

    # ------------------------------------------------------------------------------------------------------- traces

    def _begin(self, report: Report, delivery: str | None) -> Span:
        """In the trace that the returned mail's header names, where it is the mail of a delivery that was proven."""
        if not self._tracer.enabled or delivery is None:
            return NO_SPAN
        message = delivery.partition(".")[0]
        parent = traceparent(report.returned)
        context = [] if parent is None else [("traceparent", parent.encode("ascii"))]
        if not self._tracer.wants(context, message.encode()):
            return NO_SPAN
        attributes: dict[str, Value] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "bounce",
            "messaging.operation.type": "process",
            "messaging.destination.name": self._names.events,
            "messaging.message.id": message,
        }
        return self._tracer.span(
            "bounce", self._tracer.extract(context), attributes=attributes, kind="consumer", root=True
        )

    def _end(self, span: Span, decisions: tuple[Decision, ...]) -> None:
        """The span says what the event says; without one, what came of the first recipient."""
        chosen = next((each for each in decisions if each.event is not None), decisions[0])
        span.set("postlane.outcome", chosen.outcome.value)
        if chosen.event is not None:
            reply = chosen.event.reply
            span.set("postlane.reason", chosen.event.reason)
            span.set("smtp.reply.code", None if reply is None else reply.code)
            span.set("smtp.reply.enhanced", None if reply is None else reply.enhanced)
            for name, value in self._tracer.address(chosen.event.recipient).items():
                span.set(name, value)
        span.end()
