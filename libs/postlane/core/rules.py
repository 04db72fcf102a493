"""The rules of the bookkeeping protocol, each of which can be switched off by a test and by nothing else.

A proof shows something only if it fails when a guard is taken out (docs/proof.md has the table). `RULES` of a normal
process is `Rules()`: everything on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Rules:
    """True: the rule holds. Named after what it demands."""

    intent_before_body: bool = True
    fence_every_tick: bool = True  # offsets also where a tick holds nothing but intents
    group_metadata: bool = True  # offsets are sent with generation and member id
    restore_to_high_watermark: bool = True  # a takeover reads to the real end, not to the last stable offset
    doubt_is_not_fresh: bool = True
    wait_for_lapse: bool = True
    drop_not_owned: bool = True
    floor_counts_outcomes: bool = True  # S counts outcomes above O, not unsettled intents alone
    reread_unknown_commit: bool = True
    lookup_by_hop: bool = True
    lost_after_dot_is_doubt: bool = True
    low_water_is_unsettled: bool = True  # O stops at the oldest unsettled record
    retry_in_transaction: bool = True
    look_again_before_body: bool = True
    dedup: bool = True
    expiry_everywhere: bool = True
    ledger_offsets_with_rows: bool = True
    replay_raises_generation: bool = True


ALL_RULES = Rules()


def rules_without(names: Iterable[str]) -> Rules:
    """All rules but these. Raises ValueError for a name that is none."""
    known = {f.name for f in fields(Rules)}
    off = [name for name in names if name]
    for name in off:
        if name not in known:
            raise ValueError(f"there is no rule {name!r}; known: {', '.join(sorted(known))}")
    return replace(ALL_RULES, **dict.fromkeys(off, False)) if off else ALL_RULES
