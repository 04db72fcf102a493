"""What is asked of the system: mails of every sort, some called off, suppressed, paused or asked for twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from postlane.core.events import Control, Suppression
from postlane.eventlog.codec import encode
from postlane.eventlog.tables import control_key
from tests.simulation.processes import LoopClock

if TYPE_CHECKING:
    from tests.simulation.world import World

MAILS_MIN, MAILS_MAX = 20, 50


class Workload:
    """Publishes at random times over a span; orders in between."""

    def __init__(self, world: World, dice: Random) -> None:
        self._world, self._dice = world, dice
        self._count = dice.randint(MAILS_MIN, MAILS_MAX)
        self._sent: list[tuple[str, dict[str, Any]]] = []
        self._paused: set[tuple[str, str]] = set()

    def begin(self, span_s: float) -> None:
        loop, dice = asyncio.get_running_loop(), self._dice
        for n in range(self._count):
            loop.call_later(dice.random() ** 2 * span_s, self._publish, n)
        for _ in range(dice.randrange(4)):
            loop.call_later(dice.random() * span_s, self._order)

    def end(self) -> None:
        """Nothing stays paused."""
        for scope, name in sorted(self._paused):
            self._world.put(self._world.names.control, control_key("pause", scope, name).decode(), None)
        self._paused.clear()

    def _publish(self, n: int) -> None:
        world, dice, now = self._world, self._dice, LoopClock().now()
        if self._sent and dice.random() < 0.12:
            key, changes = dice.choice(self._sent)
            if dice.random() < 0.3:
                changes = {**changes, "subject": "Another mail under the same key"}
            world.history.say("workload", f"publishes {key} again{', otherwise' if 'subject' in changes else ''}")
            world.publish(key, **changes)
            return
        key = f"k{n}"
        changes: dict[str, Any] = {
            "requested_at": now,
            "lane": dice.choice(("transactional", "transactional", "bulk")),
            "campaign": dice.choice((None, "spring")),
        }
        people = [f"{key}-{i}@{dice.choice(('a', 'b'))}.example" for i in range(dice.choice((1, 1, 1, 2, 3)))]
        changes["to"] = tuple(people)
        roll = dice.random()
        if roll < 0.12:
            changes["send_at"] = now + timedelta(seconds=dice.random() * 12)
        elif roll < 0.3:
            changes["expires_at"] = now + timedelta(seconds=1 + dice.random() * 15)
        elif roll < 0.36:
            changes["in_doubt"] = dice.choice(("resend", "park"))
        self._sent.append((key, changes))
        message = world.publish(key, **changes).message_id
        world.history.say("workload", f"publishes {key} {message} {changes['lane']}")
        if dice.random() < 0.06:
            self._say("cancel", "message", message)
        if dice.random() < 0.05:
            address = people[0]
            world.put(world.names.suppressions, f"default/{address}", encode(Suppression(address=address, at=now)))
            world.history.say("workload", f"suppresses {address}")

    def _order(self) -> None:
        dice = self._dice
        scope, name = dice.choice((("lane", "bulk"), ("campaign", "spring"), ("lane", "transactional")))
        self._say("pause", scope, name)
        asyncio.get_running_loop().call_later(1 + dice.random() * 12, self._resume, scope, name)

    def _resume(self, scope: str, name: str) -> None:
        self._world.put(self._world.names.control, control_key("pause", scope, name).decode(), None)
        self._paused.discard((scope, name))

    def _say(self, action: str, scope: str, name: str) -> None:
        order = Control.model_validate({"action": action, "scope": scope, "name": name, "at": LoopClock().now()})
        self._world.put(self._world.names.control, control_key(action, scope, name).decode(), encode(order))
        self._world.history.say("workload", f"{action} {scope} {name}")
        if action == "pause":
            self._paused.add((scope, name))
