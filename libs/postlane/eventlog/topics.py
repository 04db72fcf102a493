"""The topics: names, partitions, policies. The one declaration that brokers, Kubernetes and checks are made from."""

from __future__ import annotations

from dataclasses import dataclass

from postlane.core.delay import STEPS
from postlane.core.policy import Topics as TopicPolicy

DAY_MS = 86_400_000
RECORD_MAX_BYTES = 2_097_152

DELAY_STEPS = STEPS  # of the delay stage: name and seconds, shortest first


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it should be; `config` holds Kafka's topic options as strings."""

    name: str
    partitions: int
    config: dict[str, str]
    writers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TopicNames:
    """Every name, with the prefix of this installation."""

    prefix: str = ""

    @property
    def requests(self) -> str:
        return f"{self.prefix}mail.requests"

    @property
    def seen(self) -> str:
        return f"{self.prefix}mail.seen"

    @property
    def events(self) -> str:
        return f"{self.prefix}mail.events"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}mail.dead-letters"

    @property
    def observations(self) -> str:
        return f"{self.prefix}mail.observations"

    @property
    def suppressions(self) -> str:
        return f"{self.prefix}mail.suppressions"

    @property
    def templates(self) -> str:
        return f"{self.prefix}mail.templates"

    @property
    def control(self) -> str:
        return f"{self.prefix}mail.control"

    @property
    def health(self) -> str:
        return f"{self.prefix}mail.health"

    def dispatch(self, lane: str) -> str:
        return f"{self.prefix}mail.dispatch.{lane}"

    def state(self, lane: str) -> str:
        return f"{self.prefix}mail.state.{lane}"

    def delay(self, step: str) -> str:
        return f"{self.prefix}mail.delay.{step}"

    @property
    def delays(self) -> tuple[str, ...]:
        return tuple(self.delay(step) for step, _ in DELAY_STEPS)

    def sender_group(self, lane: str) -> str:
        return f"{self.prefix}sender.{lane}"

    @property
    def router_group(self) -> str:
        return f"{self.prefix}router"

    def step_of(self, topic: str) -> int | None:
        """The seconds of a delay topic, None for another topic."""
        for step, seconds in DELAY_STEPS:
            if topic == self.delay(step):
                return seconds
        return None


def declare(names: TopicNames, lanes: tuple[str, ...], policy: TopicPolicy) -> tuple[TopicSpec, ...]:
    """Every topic of an installation with these lanes (DESIGN of the topics: docs/ARCHITECTURE.md)."""
    p = policy.partitions

    def kept(days: float, **more: str) -> dict[str, str]:
        base = {"cleanup.policy": "delete", "retention.ms": str(int(days * DAY_MS))}
        return {**base, "max.message.bytes": str(RECORD_MAX_BYTES), **more}

    def book(days: float) -> dict[str, str]:
        return kept(
            days,
            **{
                "cleanup.policy": "compact,delete",
                "min.compaction.lag.ms": "3600000",
                "segment.ms": "3600000",
            },
        )

    table: dict[str, str] = {"cleanup.policy": "compact", "max.message.bytes": str(RECORD_MAX_BYTES)}
    specs = [
        TopicSpec(names.requests, p, kept(policy.requests_days), ("producer", "replay"), ("router",)),
        TopicSpec(names.seen, p, book(policy.dedup_days + 1), ("router",), ("router",)),
        TopicSpec(
            names.events,
            p,
            kept(policy.events_days),
            ("router", "sender", "producer", "replay"),
            ("ledger", "replay"),
        ),
        TopicSpec(names.dead_letters, p, kept(policy.events_days), ("router", "sender"), ("replay", "ledger")),
        TopicSpec(names.observations, p, kept(1), ("sender",), ("health",)),
        TopicSpec(names.suppressions, p, table, ("producer", "replay"), ("router",)),
        TopicSpec(names.templates, 1, table, ("producer",), ("router", "sender")),
        TopicSpec(names.control, 1, table, ("producer",), ("router", "sender")),
        # Every few seconds a record of each provider: only closed segments are compacted, and a reader reads them all.
        TopicSpec(names.health, p, {**table, "segment.ms": "600000"}, ("health",), ("sender",)),
    ]
    for step, seconds in DELAY_STEPS:
        days = policy.dispatch_days + seconds / 86_400
        specs.append(TopicSpec(names.delay(step), p, kept(days), ("router", "sender"), ("router",)))
    for lane in lanes:
        specs.append(TopicSpec(names.dispatch(lane), p, kept(policy.dispatch_days), ("router",), ("sender",)))
        specs.append(TopicSpec(names.state(lane), p, book(policy.dispatch_days + 2), ("sender",), ("sender",)))
    return tuple(specs)
