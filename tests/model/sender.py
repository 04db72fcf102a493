"""The sender's bookkeeping protocol (DESIGN section 4): one partition, a few deliveries, all interleavings.

The world: one dispatch partition, one partition of mail.state, a delay stage, a group coordinator, a transaction
coordinator whose markers reach mail.state and the committed offsets separately, and an SMTP server that counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .explorer import Budget, Step, budget
from .sender_broker import NOBODY, broker_steps, process_steps
from .sender_oracle import lost
from .sender_rules import FAULTS, Rules
from .sender_smtp import smtp_steps
from .sender_state import CLOSED, FRESH, RUNNING, Ghost, Offsets, Record, Sender, World
from .sender_takeover import doubt_steps, takeover_steps
from .sender_tick import tick_steps


class SenderModel:
    """The protocol under `rules`, with `faults` (a count each) and at most `together` of them in one history."""

    def __init__(self, rules: Rules, faults: Mapping[str, int], together: int | None = None) -> None:
        self.rules = rules
        self.budget: Budget = budget(FAULTS, faults, together)

    def initial(self) -> World:
        rules = self.rules
        count, fresh = rules.deliveries, frozenset[tuple[int, int]]()
        first = Sender(
            alive=True, mode=RUNNING, book=(FRESH,) * count, marks=(-1,) * count, lock=rules.recorder != "none"
        )
        others = [Sender(alive=True, lock=rules.recorder != "none")] * (rules.processes - 1)
        members = [True] * rules.processes
        if rules.static_twins:
            others[0], members[1] = NOBODY, False
        ghost = Ghost((0,) * count, (0,) * count, ("",) * count, frozenset(), fresh, fresh, fresh, fresh, fresh)
        return World(
            dispatch=tuple(Record(delivery, 0, 1, False) for delivery in range(count)),
            delayed=(),
            log=(),
            committed=Offsets(0, 0),
            transactions=(None,) * rules.processes,
            senders=(first, *others),
            members=tuple(members),
            owner=0,
            ghost=ghost,
            budget=self.budget,
        )

    def steps(self, state: World) -> Iterator[Step]:
        rules = self.rules
        yield from broker_steps(rules, state)
        for who, sender in enumerate(state.senders):
            yield from process_steps(rules, state, who)
            if not sender.alive:
                continue
            yield from takeover_steps(rules, state, who)
            if sender.mode == RUNNING:
                yield from smtp_steps(rules, state, who)
                yield from doubt_steps(rules, state, who)
            yield from tick_steps(rules, state, who)

    def broken(self, state: World) -> str | None:
        return lost(self.rules, state)

    def unfinished(self, state: World) -> str | None:
        if any(sender.mode == CLOSED for sender in state.senders):
            return None  # failed closed: the mail waits for a person
        waiting = [delivery for delivery, end in enumerate(state.ghost.terminal) if not end]
        if waiting and "1" in self.rules.properties:
            return f"1: nothing more can happen, and d{waiting[0]} is not terminal"
        return None
