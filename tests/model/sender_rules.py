"""The rules of the sender's protocol (DESIGN section 4) as options; the defaults are the protocol as designed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FAULTS = (
    "crash",  # a process dies (and may come back)
    "kick",  # the group drops a member that runs on: a zombie
    "move",  # a rebalance: revoked and given to another member, or to the same one again
    "unknown",  # the outcome of a commit is not known to the client
    "expire",  # the broker times a living process's transaction out
    "refuse",  # the server defers (451), or the connection is lost before the final dot
    "lose_reply",  # the connection is lost after the final dot
    "hold",  # a delivery may not start now and leaves as Held
    "lapse",  # an intent finds no connection in time
    "compact",  # the cleaner runs over mail.state
    "disconnect",  # the connection is lost in commit; librdkafka says it again, the first EndTxn arrives late
    "twin",  # a static member is restarted beside its own zombie
    "forget",  # the group's committed offsets expire
    "retain",  # retention takes the decided head of mail.state too early
)
CRASH, KICK, MOVE, UNKNOWN, EXPIRE, REFUSE, LOSE_REPLY, HOLD, LAPSE, COMPACT, DISCONNECT, TWIN, FORGET, RETAIN = range(
    len(FAULTS)
)


@dataclass(frozen=True, slots=True)
class Rules:
    """One world and the rules that its senders and broker obey."""

    # the world
    policies: tuple[Literal["resend", "park"], ...] = ("resend",)  # one delivery each
    attempts_max: tuple[int, ...] = (1,)
    processes: int = 2
    late_arrival: bool = False  # records reach the broker only after the offsets: the harder order alone, fewer states
    properties: str = "12345678"  # which are checked; see sender_oracle.py

    # what is written before what
    intent_first: bool = True  # body only after the tick with the intent has committed
    next_hop_in_transaction: bool = True  # retry record and outcome in one transaction
    held_recorded: bool = True  # Held leaves an outcome in mail.state too

    # offsets: O and S
    offsets_every_tick: bool = True  # False: a tick with only intents sends none
    offsets_listed: bool = True  # False: only where O moves (another partition's keep the fence on)
    low_water: Literal["settled", "off by one", "position"] = "settled"
    state_floor: Literal["records", "log", "unsettled intents", "end", "next O"] = "records"

    # the fence
    group_metadata: bool = True  # False: offsets without generation and member id
    member_checked: bool = True  # False: metadata with a generation but no member id
    snapshot: Literal["assignment", "late"] = "assignment"  # late: metadata as it is when offsets are sent
    revoke_waits: bool = True  # the revoke callback returns only when no tick is in flight
    drop_revoked: bool = True  # what belongs to a partition no longer owned is dropped
    empty_book: bool = True  # who owns a partition again takes it over again

    # a commit with unknown outcome
    after_unknown: Literal["re-read", "say again", "assume"] = "re-read"
    frozen_while_unknown: bool = True  # no DATA before the outcome is known
    rebuild_after_disconnect: bool = True  # False: the same producer goes on after a disconnect in commit

    rebuild_when_lost: bool = True  # ... also when the partition is lost before the outcome is known

    # takeover
    stable_fetch: bool = True  # committed() waits for offsets of open transactions
    restore_to: Literal["high watermark", "last stable offset"] = "high watermark"
    missing_offset: Literal["fail closed", "earliest", "latest"] = "fail closed"  # beside a non-empty mail.state
    missing_head: Literal["fail closed", "looked at once", "go on"] = "fail closed"  # S below the start of mail.state
    lookup: Literal["hop", "attempt", "delivery"] = "hop"
    later_hop_settles: bool = True
    compaction_key: Literal["hop", "delivery"] = "hop"

    # doubt
    doubt_is: Literal["uncertain", "fresh", "delivered", "failed"] = "uncertain"
    doubt_waits: bool = True  # for the intent's whole time-to-live
    deadline_checked: bool = True  # the old owner looks once more right before the body
    pause_after_check: bool = False  # a process may be paused between that look and the body (not a rule: a fault)
    lost_reply_is: Literal["uncertain", "failed"] = "uncertain"
    release_only_unbegun: bool = True  # False: Released may be said of a body that was begun
    doubt_carried: bool = True  # a terminal state after a doubt says possibly_delivered

    # bytes on the wire: a body cut off by a crash or a cancel may still be accepted afterwards
    wire_outlives: bool = False

    # static membership: processes 0 and 1 are one instance (one transactional id), 1 is the restart
    static_twins: bool = False
    epoch_fences: bool = True  # False: each process has a transactional id of its own
    recorder: Literal["none", "locked", "shared"] = "none"  # flight recorder; shared: without a lock on its file

    @property
    def deliveries(self) -> int:
        return len(self.policies)
