"""The three records that every delivered mail costs, written as literals: building and validating the models takes
three times as long, and this is the hot path. A test holds each to its model (postlane.core.events).
"""

from __future__ import annotations

from datetime import datetime

import orjson

from postlane.core.books import Entry
from postlane.core.events import DispatchReady
from postlane_sender.lane import LaneState


def intent(lane: LaneState, entry: Entry, mail: DispatchReady, now: datetime) -> bytes:
    """An `Intent`."""
    return orjson.dumps(
        {
            "kind": "intent",
            "delivery_id": mail.delivery_id,
            "hop": mail.hop,
            "attempt": mail.attempt,
            "offset": entry.offset,
            "instance": lane.instance,
            "boot": lane.boot,
            "provider": entry.provider,
            "ttl_ms": int(lane.policy.intent_ttl_s * 1000),
            "at": now,
        },
        option=orjson.OPT_UTC_Z,
    )


def outcome(delivery_id: str, hop: int, offset: int, result: str, now: datetime) -> bytes:
    """An `Outcome`; `result` is the name of the event that settled the record."""
    return orjson.dumps(
        {"kind": "outcome", "delivery_id": delivery_id, "hop": hop, "offset": offset, "result": result, "at": now},
        option=orjson.OPT_UTC_Z,
    )


def attempted(entry: Entry, mail: DispatchReady, now: datetime) -> bytes:
    """An `Attempted`."""
    return orjson.dumps(
        {
            "type": "Attempted",
            "message_id": mail.message_id,
            "generation": mail.generation,
            "at": now,
            "delivery_id": mail.delivery_id,
            "recipient": mail.recipient,
            "attempt": mail.attempt,
            "hop": mail.hop,
            "possibly_delivered": mail.doubts > 0,
            "provider": entry.provider,
        },
        option=orjson.OPT_UTC_Z,
    )
