"""What goes wrong, by seed: crashes at any await, freezes past the session, rebalances, commits of unknown outcome,
late markers, outages of a provider and its every mood, compaction, orderly stops."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from postlane.eventlog.memory_faults import Fault
from postlane_router.store import MemoryStore
from tests.simulation.processes import Process, RouterProcess, Sender

if TYPE_CHECKING:
    from tests.simulation.world import World

_ANYWHERE = (Fault.UNREACHABLE, Fault.CRASH)
_IN_A_TRANSACTION = (*_ANYWHERE, Fault.ABORT)
FAULTS: dict[str, tuple[Fault, ...]] = {
    "begin": _IN_A_TRANSACTION,
    "produce": _IN_A_TRANSACTION,
    "send_offsets": _IN_A_TRANSACTION,
    "commit": (*_IN_A_TRANSACTION, Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_LOST, Fault.UNKNOWN_LATE),
    "committed": (Fault.CRASH,),
    "poll": _ANYWHERE,
    "group": _ANYWHERE,
    "offsets": _ANYWHERE,
    "read": _ANYWHERE,
    "init": _ANYWHERE,
    "tail": (Fault.UNREACHABLE,),
}
MOODS = (
    "closing", "throttle", "defer_mail", "defer", "refuse", "drop_data", "drop_before", "hang", "defer_dot",
    "refuse_dot", "drop_after", "slow_mail", "block", "hang_after", "slow",
)  # fmt: skip
SENDERS = ("s1", "s2", "s3")
ROUTERS = ("r1", "r2")
ENDING_WAIT_S = 0.01


class Nemesis:
    """Asked at each point of the log (memory_faults.Faults), and steps by itself between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = dice = Random(f"{world.seed}/nemesis")
        self.quiet = False
        self.lives = 0
        self._points = dice.choice((0.0, 0.003, 0.01, 0.03))  # probability of a fault at a point
        self._commits = dice.choice((self._points, 0.02, 0.1))  # … at the end of a transaction
        self._late = dice.choice((0.0, 0.0, 0.3))  # probability that markers come late
        self._latency_s = dice.choice((0.0005, 0.002, 0.01))
        self._steps_s = dice.choice((0.3, 0.8, 2.0))
        self._weights = [dice.random() * dice.choice((0.3, 1, 3)) for _ in range(11)]
        self._senders: dict[str, Sender] = {}
        self._routers: dict[str, RouterProcess] = {}
        self._zombies: list[Process] = []
        self._stores: dict[str, MemoryStore] = {}
        self._wanted = dice.choice((1, 2, 2, 3))
        self._lanes = dice.choice((("transactional", "bulk"), ("transactional", "bulk"), ("transactional",)))
        moods = dice.sample(MOODS, dice.randint(0, 6))
        share = dice.choice((0.1, 0.3, 0.6))
        for provider in world.providers.values():
            provider.weights = {mood: share / len(moods) for mood in moods}

    # -------------------------------------------------------------------------------------- at the points of the log

    async def at(self, point: str, who: str) -> Fault | None:
        await asyncio.sleep(self.dice.random() * self._latency_s)
        if point in ("begin", "init"):
            while point == "begin" and self.world.cluster.is_ending(self._transactional_id(who)):  # noqa: ASYNC110 - virtual
                await asyncio.sleep(ENDING_WAIT_S)
        kinds = FAULTS.get(point)
        often = self._commits if point in ("commit", "committed") else self._points
        if kinds is None or self.quiet or self.dice.random() >= often:
            return None
        fault = self.dice.choice(kinds)
        self.world.history.say("nemesis", f"{fault.value} at {point} of {who}")
        if fault is Fault.CRASH:
            self._kill_by_name(who)
            await asyncio.sleep(0)  # it never comes back here
        return fault

    def _transactional_id(self, who: str) -> str:
        """Of any lane: a producer whose markers are still to come makes its process wait, which is never wrong."""
        instance = who.partition("~")[0]
        ids = [f"router.{instance}", *(f"sender.{lane}.{instance}" for lane in self.world.config.lanes)]
        return next((name for name in ids if self.world.cluster.is_ending(name)), ids[0])

    def marker_delay_s(self) -> float:
        if self.quiet or self.dice.random() >= self._late:
            return 0.0
        return self.dice.random() * 0.5

    def _kill_by_name(self, who: str) -> None:
        for process in (*self._senders.values(), *self._routers.values(), *self._zombies):
            if process.life.name == who:
                process.kill()

    # ------------------------------------------------------------------------------------------------- step by step

    def begin(self) -> None:
        for name in SENDERS[: self._wanted]:
            self._start_sender(name)
        self._start_router("r1")

    def pause_s(self) -> float:
        return self.dice.random() * self._steps_s

    def step(self) -> None:
        """Bring back what is gone, now and then; then maybe do harm."""
        dice = self.dice
        for name in SENDERS[: self._wanted]:
            if self._is_gone(self._senders.get(name)) and dice.random() < 0.4:
                self._start_sender(name)
        if self._is_gone(self._routers.get("r1")) and dice.random() < 0.4:
            self._start_router("r1")
        harms = (
            self._crash, self._crash_router, self._freeze, self._replace, self._rebalance,
            self._stop, self._outage, self._compact, self._expire, self._newcomer, self._double,
        )  # fmt: skip
        if dice.random() < 0.5:
            dice.choices(harms, self._weights)[0]()

    @staticmethod
    def _is_gone(process: Process | None) -> bool:
        return process is None or process.gone

    def _start_sender(self, name: str) -> None:
        self.lives += 1
        self._senders[name] = Sender(self.world, name, self._lanes_of(name))
        self._say(f"starts {self._senders[name].life.name}")

    def _lanes_of(self, name: str) -> tuple[str, ...]:
        return self._lanes if name != "s1" else tuple(self.world.config.lanes)

    def _start_router(self, name: str) -> None:
        self.lives += 1
        store = self._stores.get(name) if self.dice.random() < 0.6 else None
        self._stores[name] = store or MemoryStore()
        self._routers[name] = RouterProcess(self.world, name, self._stores[name])
        self._say(f"starts {self._routers[name].life.name}")

    def _say(self, what: str) -> None:
        self.world.history.say("nemesis", what)

    def _someone(self) -> Sender | None:
        alive = [s for s in self._senders.values() if not s.gone and not s.life.frozen]
        return self.dice.choice(alive) if alive else None

    def _crash(self) -> None:
        if (sender := self._someone()) is not None:
            self._say(f"kills {sender.life.name}")
            sender.kill()

    def _crash_router(self) -> None:
        router = self._routers.get("r1")
        if router is not None and not router.gone and not router.life.frozen:
            self._say(f"kills {router.life.name}")
            router.kill()

    def _freeze(self) -> None:
        process: Process | None = self._someone() if self.dice.random() < 0.85 else self._routers.get("r1")
        if process is None or process.gone or process.life.frozen:
            return
        pause_s = self.dice.random() * 30
        self._say(f"freezes {process.life.name} for {pause_s:.1f} s")
        process.freeze()
        asyncio.get_running_loop().call_later(pause_s, self._thaw, process)

    def _thaw(self, process: Process) -> None:
        if process.life.frozen and not process.life.dead:
            self._say(f"thaws {process.life.name}")
            process.thaw()

    def _replace(self) -> None:
        """A frozen process is taken for dead, and started again beside its own zombie."""
        frozen = [name for name, s in self._senders.items() if s.life.frozen and not s.gone]
        if frozen:
            name = self.dice.choice(frozen)
            self._zombies.append(self._senders[name])
            self._start_sender(name)

    def _double(self) -> None:
        """A live process is frozen for a moment, and started again beside itself at once."""
        if (sender := self._someone()) is not None and sender.instance in self._senders:
            pause_s = self.dice.random() * 9
            self._say(f"freezes {sender.life.name} for {pause_s:.1f} s and starts it beside itself")
            sender.freeze()
            asyncio.get_running_loop().call_later(pause_s, self._thaw, sender)
            self._zombies.append(sender)
            self._start_sender(sender.instance)

    def _rebalance(self) -> None:
        lane = self.dice.choice(tuple(self.world.config.lanes))
        group = self.dice.choice((self.world.names.router_group, *[self.world.names.sender_group(lane)] * 3))
        self._say(f"rebalances {group}")
        self.world.cluster.group(group).rebalance()

    def _expire(self) -> None:
        """The network held someone's heartbeats."""
        group = self.world.cluster.group(
            self.world.names.sender_group(self.dice.choice(tuple(self.world.config.lanes)))
        )
        if group.members:
            member = self.dice.choice(sorted(group.members))
            self._say(f"expires {member}")
            group.expire(member)

    def _stop(self) -> None:
        if (sender := self._someone()) is not None:
            self._say(f"stops {sender.life.name}")
            sender.stop()

    def _newcomer(self) -> None:
        if self._wanted < len(SENDERS):
            self._wanted += 1

    def _outage(self) -> None:
        provider = self.dice.choice(list(self.world.providers.values()))
        if provider.up:
            pause_s = self.dice.random() * 10
            self._say(f"{provider.name} is down for {pause_s:.1f} s")
            provider.down()
            asyncio.get_running_loop().call_later(pause_s, setattr, provider, "up", True)

    def _compact(self) -> None:
        lane = self.dice.choice(tuple(self.world.config.lanes))
        self._say(f"compacts {lane}")
        self.world.cluster.compact(self.world.names.state(lane))

    # ------------------------------------------------------------------------------------------------------ the end

    def end(self) -> None:
        """No more faults; what is down comes back, what is frozen is thawed, providers take everything."""
        self.quiet = True
        for provider in self.world.providers.values():
            provider.weights, provider.up = {}, True
        for process in (*self._senders.values(), *self._zombies, *self._routers.values()):
            self._thaw(process)
        self.tend()

    def tend(self) -> None:
        for name in SENDERS[: self._wanted]:
            if self._is_gone(self._senders.get(name)):
                self._start_sender(name)
        if self._is_gone(self._routers.get("r1")):
            self._start_router("r1")

    async def stop_all(self) -> None:
        """SIGTERM to all; they have to end."""
        self._say("stops all")
        processes: list[Process] = [*self._senders.values(), *self._zombies, *self._routers.values()]
        for process in processes:
            process.stop()
        for process in processes:
            if not process.gone:
                await asyncio.wait({process.task}, timeout=60)
                if not process.task.done():
                    self.world.history.breaks("an orderly stop ends", f"{process.life.name} does not stop in 60 s")

    def check(self) -> None:
        """The routers' memories are the fold of mail.seen."""
        seen = self.world.oracles.seen
        for name, store in self._stores.items():
            for key, digest in zip(seen, store.find([key.encode() for key in seen]), strict=True):
                if digest is not None and digest.hex() != seen[key]:
                    self.world.history.breaks("memory is the fold of mail.seen", f"{name}: {key}", key)
            owned = self._routers[name]
            if not owned.life.dead and len(self._routers) == 1:
                missing = [k for k, d in zip(seen, store.find([k.encode() for k in seen]), strict=True) if d is None]
                if missing:
                    self.world.history.breaks("memory is the fold of mail.seen", f"{name} forgot {missing[:3]}")
