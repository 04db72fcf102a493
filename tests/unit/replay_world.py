"""A world with dead letters: the router on the log in memory, a sender that does what it is told, operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from tests.unit.router_world import NAMES, PARTITIONS, LoopClock, World

from postlane.core import events as ev
from postlane.core.events import DispatchReady
from postlane.core.replay import Choices
from postlane.core.settle import Decision
from postlane.eventlog.codec import decode, encode, headers
from postlane.eventlog.dead_letters import dead_letter
from postlane.eventlog.memory import MemoryLog
from postlane.eventlog.memory_faults import Faults
from postlane.eventlog.ports import Outgoing, Partition, Received
from postlane.ops.letters import Filters
from postlane.ops.replay import Pace, Plan, Runner, make_plan
from postlane.ops.replay_reading import Reading
from postlane.ops.replay_requests import Manner, Scribe

GROUP = NAMES.sender_group("transactional")


class Sender:
    """Settles each dispatch record once, as `outcome` says; nothing is ever sent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.done: set[tuple[int, int]] = set()
        self.copies: dict[str, list[int]] = {}  # by delivery without generation: the generations that were delivered

    def settle(self, outcome: Callable[[DispatchReady], str]) -> int:
        """Everything in the lane that was not settled yet; how many."""
        count = 0
        for record in self.world.records(NAMES.dispatch("transactional")):
            if (record.partition, record.offset) not in self.done:
                self.done.add((record.partition, record.offset))
                mail = decode(DispatchReady, record.value)
                self.say(record, mail, outcome(mail))
                count += 1
        return count

    def say(self, record: Received, mail: DispatchReady, outcome: str) -> None:
        now = LoopClock().now()
        ids: dict[str, Any] = {
            "message_id": mail.message_id,
            "delivery_id": mail.delivery_id,
            "recipient": mail.recipient,
            "generation": mail.generation,
            "attempt": mail.attempt,
            "at": now,
        }
        told: list[ev.DeliveryEvent] = [ev.Attempted(**ids, provider="primary")]
        decision: Decision | None = None
        match outcome:
            case "sending":
                pass
            case "delivered":
                told.append(ev.Delivered(**ids, provider="primary"))
                self.copies.setdefault(mail.delivery_id.rpartition(".")[0], []).append(mail.generation)
            case "bounced":
                told.append(ev.Bounced(**ids, provider="primary", reason="recipient"))
            case "expired":
                told.append(ev.Expired(**ids))
            case "uncertain":
                told.append(ev.Uncertain(**ids, provider="primary", reason="lost", policy="park"))
                decision = Decision(told[-1], dead_letter="uncertain")
            case "doubted":
                told.append(ev.Uncertain(**ids, provider="primary", reason="lost", policy="resend", next_at=now))
                again = {**ids, "hop": 1, "attempt": 2, "possibly_delivered": True}
                told.append(ev.Attempted(**again))
                told.append(ev.DeadLettered(**again, reason="policy"))
                decision = Decision(told[-1], dead_letter="policy")
            case _:
                told.append(ev.DeadLettered(**ids, provider="primary", reason=outcome))
                decision = Decision(told[-1], dead_letter=outcome)
        for event in told:
            self._write(record, event)
        if decision is not None:
            self.world.cluster.write(
                dead_letter(
                    record,
                    GROUP,
                    decision.dead_letter or "",
                    None,
                    attempts=3,
                    reply=ev.ReplyInfo(code=550, enhanced="5.7.1", text="no"),
                    provider="primary",
                    delivery_id=mail.delivery_id,
                )
            )

    def _write(self, record: Received, event: ev.DeliveryEvent) -> None:
        ident = f"test/{record.partition}/{record.offset}/{event.type}"  # type: ignore[attr-defined]
        wire = headers(type(event), "test", ident, event.at)
        self.world.cluster.write(Outgoing(NAMES.events, record.partition, record.key, encode(event), wire))


class Operator:
    """One process with a terminal."""

    def __init__(self, world: World, name: str = "operator", faults: Faults | None = None) -> None:
        self.world = world
        self.name = name
        self.log = MemoryLog(world.cluster, name, faults)

    async def plan(
        self,
        what: Any = "dead letters",
        filters: Filters | None = None,
        manner: Manner | None = None,
        **choices: Any,
    ) -> Plan:
        reading = Reading(self.log, NAMES)
        return await make_plan(reading, NAMES, what, filters or Filters(), Choices(**choices), manner or Manner())

    async def run(self, made: Plan, manner: Manner | None = None, batch_max: int | None = None) -> int:
        transactor = await self.log.transactor(f"w.replay.{self.name}")
        scribe = Scribe(NAMES, manner or Manner(), self.name, PARTITIONS)
        loop = asyncio.get_running_loop()
        rate = None if batch_max is None else batch_max * 5.0
        pace = Pace(rate, loop.time)
        return await Runner(self.log, NAMES, transactor, scribe, pace, lambda *_: None, LoopClock().now).run(made)

    async def replay(self, **asked: Any) -> int:
        """Plan and run."""
        manner = asked.get("manner") or Manner(run=asked.get("run", ""))
        return await self.run(await self.plan(**asked), manner)


async def all_routed(world: World) -> None:
    """Let time pass until every request that a reader sees was routed, in a committed transaction."""

    def done() -> bool:
        committed = world.committed()
        last = {Partition(r.topic, r.partition): r.offset for r in world.records(NAMES.requests)}
        return all(committed.get(partition, 0) > offset for partition, offset in last.items())

    await world.until(done, every_s=0.02)


async def with_letters(
    world: World, count: int = 6, outcome: Callable[[DispatchReady], str] = lambda _: "policy", **changes: Any
) -> tuple[Sender, list[str]]:
    """Publish, route, give up."""
    sender = Sender(world)
    messages = [world.publish(f"k{n}", **{"to": (f"r{n}@example.com",), **changes}) for n in range(count)]
    await all_routed(world)
    assert sender.settle(outcome) == len(messages) * len(changes.get("to", ("x",)))
    return sender, messages


def soon(seconds: float) -> Any:
    """A moment from now on."""
    return LoopClock().now() + timedelta(seconds=seconds)


def generations(world: World, messages: Sequence[str]) -> dict[str, list[int]]:
    """By message: the generations that were dispatched."""
    dispatched = world.dispatched()
    return {message: [ready.generation for ready in dispatched[message]] for message in messages}
