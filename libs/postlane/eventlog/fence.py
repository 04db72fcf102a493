"""The guard before every transaction: will the broker really check who commits these offsets?"""

from __future__ import annotations

from postlane.eventlog.errors import Unfenced
from postlane.eventlog.ports import Transaction


def check_fence(transaction: Transaction) -> None:
    """Raises Unfenced unless the broker will check who commits these offsets.

    Brokers take transactional offsets of generation -1 unchecked, and the library sends none at all, silently, when
    all of them are invalid.
    """
    for partition, committed in transaction.offsets.items():
        if committed.offset < 0:
            raise Unfenced(f"{partition.topic}[{partition.number}]: offset {committed.offset}")
    if not transaction.offsets:
        return
    membership = transaction.membership
    if membership is None:
        raise Unfenced("offsets without a membership")
    if membership.generation < 0 or not membership.member_id:
        raise Unfenced(f"group {membership.group}: generation {membership.generation}, member {membership.member_id!r}")
