"""The cases of the sender's protocol: as designed within a budget of faults, and every rule switched off."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from .cases import Case
from .sender import SenderModel
from .sender_rules import FAULTS, Rules

_ONE_PARTITION_FAULTS = dict.fromkeys(FAULTS[:10], 1)
_RETRIED = {"attempts_max": (2,)}
_TWO = {"policies": ("resend", "resend"), "attempts_max": (1, 1)}
_TWO_RETRIED = {"policies": ("resend", "resend"), "attempts_max": (1, 2)}


def _model(rules: Mapping[str, Any], faults: Mapping[str, int], together: int | None) -> SenderModel:
    return SenderModel(Rules(**rules), faults, together)


def _holds(
    name: str,
    about: str,
    faults: Mapping[str, int],
    together: int | None = None,
    size: Literal["short", "long"] = "short",
    **rules: Any,
) -> Case:
    return Case(f"sender: {name}", about, partial(_model, rules, faults, together), "holds", "", size)


def _off(name: str, about: str, faults: Mapping[str, int], **rules: Any) -> Case:
    return Case(f"sender without: {name}", about, partial(_model, rules, faults, None), "breaks")


def _backed(name: str, about: str, because: str, faults: Mapping[str, int], **rules: Any) -> Case:
    return Case(f"sender without: {name}", about, partial(_model, rules, faults, None), "holds", because)


AS_DESIGNED = (
    _holds("every fault", "one delivery, two attempts, any one of ten faults", _ONE_PARTITION_FAULTS, 1, **_RETRIED),
    _holds("park", "one parked delivery, crash and zombie", {"crash": 1, "kick": 1}, policies=("park",)),
    _holds("zombie", "crash, zombie, rebalance: two of them", {"crash": 1, "kick": 1, "move": 1}, 2),
    _holds("unknown commit", "unknown commit and a zombie", {"unknown": 1, "kick": 1}),
    _holds(
        "two deliveries",
        "one resent, one parked; a crash",
        {"crash": 1},
        1,
        policies=("resend", "park"),
        attempts_max=(1, 1),
    ),
    _holds(
        "paused process",
        "paused between deadline and body: all but property 7",
        {"kick": 1},
        pause_after_check=True,
        properties="1234568",
        **_RETRIED,
    ),
    _holds(
        "wire", "what was cut off may be accepted later", {"crash": 1, "lose_reply": 1}, wire_outlives=True, **_RETRIED
    ),
    _holds("recorder", "flight recorder of a restarted sender", {"crash": 1, "kick": 1}, recorder="locked"),
    _holds("delayed EndTxn", "a disconnect in commit, a crash, a zombie", {"disconnect": 1, "crash": 1, "kick": 1}),
    _holds(
        "fail closed",
        "offsets expired, head of mail.state gone, a crash: any two",
        {"forget": 1, "crash": 1, "retain": 1},
        2,
    ),
    _holds(
        "three processes",
        "crash, zombie, rebalance: any one",
        {"crash": 1, "kick": 1, "move": 1},
        1,
        processes=3,
        **_RETRIED,
    ),
    _holds(
        "static twins", "an instance restarted beside its zombie; a crash", {"twin": 1, "crash": 1}, static_twins=True
    ),
    _holds(
        "static twins, recorder",
        "the same with a flight recorder",
        {"twin": 1, "crash": 1},
        static_twins=True,
        recorder="locked",
    ),
    _holds(
        "every fault, two",
        "one delivery, two attempts, any two of ten faults",
        _ONE_PARTITION_FAULTS,
        2,
        "long",
        **_RETRIED,
    ),
    _holds(
        "every fault, two, park", "the same, parked", _ONE_PARTITION_FAULTS, 2, "long", policies=("park",), **_RETRIED
    ),
    _holds(
        "two deliveries, retried",
        "resend and park; any one of five faults",
        {"crash": 1, "kick": 1, "move": 1, "unknown": 1, "hold": 1},
        1,
        "long",
        policies=("resend", "park"),
        attempts_max=(2, 1),
    ),
    _holds(
        "two deliveries, two",
        "resend and park; zombie and crash; records reach the broker after the offsets",
        {"crash": 1, "kick": 1},
        2,
        "long",
        policies=("resend", "park"),
        attempts_max=(1, 1),
        late_arrival=True,
    ),
    _holds(
        "three deliveries",
        "three deliveries and a crash",
        {"crash": 1},
        1,
        "long",
        policies=("resend", "park", "resend"),
        attempts_max=(1, 1, 1),
    ),
    _holds(
        "three processes, two",
        "three processes, two faults",
        {"crash": 1, "kick": 1, "move": 1},
        2,
        "long",
        processes=3,
        **_RETRIED,
    ),
    _holds(
        "three processes, three",
        "three processes, three faults",
        {"crash": 1, "kick": 1, "move": 1},
        3,
        "long",
        processes=3,
    ),
    _holds(
        "delayed EndTxn, retried",
        "disconnect, crash, zombie, 451",
        {"disconnect": 1, "refuse": 1, "crash": 1, "kick": 1},
        3,
        "long",
        **_RETRIED,
    ),
    _holds(
        "static twins, long",
        "twins, crash, unknown commit, 451",
        {"twin": 1, "crash": 1, "unknown": 1, "refuse": 1},
        3,
        "long",
        static_twins=True,
        **_RETRIED,
    ),
    _holds(
        "compaction",
        "two compactions, a crash, a 451, two deliveries",
        {"compact": 2, "crash": 1, "refuse": 1},
        2,
        "long",
        **_TWO_RETRIED,
    ),
    _holds(
        "paused process, two",
        "paused process, zombie and crash",
        {"kick": 1, "crash": 1},
        None,
        "long",
        pause_after_check=True,
        properties="1234568",
        **_RETRIED,
    ),
    _holds(
        "wire, two",
        "cut-off bodies, zombie, crash, lost reply",
        {"crash": 1, "kick": 1, "lose_reply": 1},
        2,
        "long",
        wire_outlives=True,
        **_RETRIED,
    ),
    _holds(
        "recorder, two",
        "flight recorder, zombie, crash, lost reply",
        {"crash": 1, "kick": 1, "lose_reply": 1},
        2,
        "long",
        recorder="locked",
        **_RETRIED,
    ),
)

SWITCHED_OFF = (
    _off(
        "intent before body",
        "the body goes out before the intent is committed",
        {"crash": 1},
        intent_first=False,
        properties="1345678",
    ),
    _off(
        "next hop in the transaction",
        "retry record produced outside the tick's transaction",
        {"refuse": 1, "kick": 1},
        next_hop_in_transaction=False,
        **_RETRIED,
    ),
    _off(
        "outcome of a held", "Held leaves no record in mail.state", {"hold": 1, "crash": 1}, held_recorded=False, **_TWO
    ),
    _off("offsets on every tick", "a tick with only intents sends no offsets", {"kick": 1}, offsets_every_tick=False),
    _off("offsets of every partition written", "offsets only where O moves", {"kick": 1}, offsets_listed=False),
    _off("low-water mark", "O off by one", {}, low_water="off by one"),
    _off("low-water mark, position", "O is the consumer's position", {}, low_water="position"),
    _off("S of every record", "S of unsettled intents only", {"crash": 1}, state_floor="unsettled intents", **_TWO),
    _off("S not too new", "S is the end of mail.state", {"crash": 1}, state_floor="end", **_TWO),
    _off(
        "S for its own O",
        "S is computed for a later O than the one committed",
        {"crash": 1},
        state_floor="next O",
        **_TWO,
    ),
    _off("group metadata", "offsets without generation and member id", {"kick": 1}, group_metadata=False),
    _backed(
        "snapshot at assignment",
        "generation as it is when offsets are sent",
        "revoke waits for the tick in flight",
        {"move": 1, "kick": 1},
        snapshot="late",
    ),
    _backed(
        "revoke waits",
        "the revoke callback returns with a tick in flight",
        "the snapshot's generation is stale by then",
        {"move": 1, "kick": 1},
        revoke_waits=False,
    ),
    _off("snapshot at assignment and revoke waits", "both", {"move": 1}, revoke_waits=False, snapshot="late"),
    _off(
        "drop of what was revoked",
        "a live member goes on with a partition it no longer owns",
        {"move": 1},
        drop_revoked=False,
    ),
    _off("empty book", "an owner anew goes on with its old book", {"kick": 1, "move": 1}, empty_book=False),
    _off("re-read after an unknown commit", "said again without looking", {"unknown": 1}, after_unknown="say again"),
    _off("re-read after an unknown commit, assumed", "taken for committed", {"unknown": 1}, after_unknown="assume"),
    _backed(
        "no body while unknown",
        "bodies begin while a commit's outcome is unknown",
        "only intents that are committed already can begin",
        {"unknown": 1, "kick": 1},
        frozen_while_unknown=False,
    ),
    _off(
        "new producer after a disconnect",
        "the same producer goes on (librdkafka#5423)",
        {"disconnect": 1},
        rebuild_after_disconnect=False,
    ),
    _off(
        "new producer after a disconnect, lost mail",
        "the same, looked at for lost mail only",
        {"disconnect": 1, "crash": 1},
        rebuild_after_disconnect=False,
        properties="1",
    ),
    _off(
        "new producer although lost",
        "the partition is lost before the outcome is known; the producer is kept",
        {"disconnect": 1, "kick": 1, "crash": 1},
        rebuild_when_lost=False,
    ),
    _off("stable offset fetch", "O and S while a transaction on them is open", {"kick": 1}, stable_fetch=False),
    _off(
        "restore to the high watermark",
        "mail.state read up to the last stable offset",
        {"crash": 1},
        restore_to="last stable offset",
    ),
    _off(
        "fail closed, offsets",
        "no committed offset beside a mail.state: from the latest",
        {"forget": 1, "crash": 1},
        missing_offset="latest",
    ),
    _off(
        "fail closed, offsets, earliest",
        "... from the earliest, and retention had been there",
        {"forget": 1, "crash": 1, "retain": 1},
        missing_offset="earliest",
    ),
    _off(
        "fail closed, head",
        "S below the start of mail.state: read from the start",
        {"crash": 1, "retain": 1},
        missing_head="go on",
    ),
    _off(
        "fail closed, head, while it is read",
        "... looked at only when S is fetched",
        {"crash": 1, "retain": 1},
        missing_head="looked at once",
    ),
    _off("outcome looked up by hop", "by delivery", {"crash": 1, "refuse": 1}, lookup="delivery", **_TWO_RETRIED),
    _off("outcome looked up by hop, attempt", "by delivery and attempt", {"crash": 1, "hold": 1}, lookup="attempt"),
    _backed(
        "compaction key with hop",
        "mail.state keyed by delivery",
        "a later hop settles the earlier ones",
        {"crash": 1, "refuse": 1, "compact": 1},
        compaction_key="delivery",
        **_RETRIED,
    ),
    _backed(
        "later hop settles the earlier",
        "only a record's own hop settles it",
        "the key has the hop",
        {"crash": 1, "refuse": 1, "compact": 1},
        later_hop_settles=False,
        **_RETRIED,
    ),
    _off(
        "compaction key with hop and later hop",
        "both",
        {"crash": 1, "refuse": 1, "compact": 1},
        later_hop_settles=False,
        compaction_key="delivery",
        **_TWO_RETRIED,
    ),
    _off("in doubt", "an intent without outcome is taken for fresh", {"crash": 1}, doubt_is="fresh"),
    _off("in doubt, delivered", "... is taken for delivered", {"crash": 1}, doubt_is="delivered"),
    _off("in doubt, failed", "... is taken for failed", {"crash": 1}, doubt_is="failed", **_RETRIED),
    _off("wait for the intent's time-to-live", "in doubt is settled at once", {"kick": 1}, doubt_waits=False),
    _off("last look at the deadline", "the old owner begins a lapsed intent", {"kick": 1}, deadline_checked=False),
    _off(
        "best effort of the wait",
        "a process paused after its last look: property 7",
        {"kick": 1},
        pause_after_check=True,
    ),
    _off(
        "evidence for failed",
        "a reply lost after the dot counts as not accepted",
        {"lose_reply": 1},
        lost_reply_is="failed",
    ),
    _off("evidence for released", "Released although the body was begun", {"lapse": 1}, release_only_unbegun=False),
    _off(
        "possibly_delivered",
        "a terminal state after a doubt does not say so",
        {"lose_reply": 1, "refuse": 1},
        doubt_carried=False,
        **_RETRIED,
    ),
    _backed(
        "epoch of a static twin",
        "twins with transactional ids of their own",
        "the group refuses the replaced member id",
        {"twin": 1, "crash": 1},
        static_twins=True,
        epoch_fences=False,
    ),
    _backed(
        "member id of a static twin",
        "metadata with a generation only (it does not change for a static member)",
        "InitProducerId fences the zombie's producer",
        {"twin": 1, "crash": 1},
        static_twins=True,
        member_checked=False,
    ),
    _off(
        "epoch and member id of a static twin",
        "both",
        {"twin": 1},
        static_twins=True,
        member_checked=False,
        epoch_fences=False,
    ),
    _off(
        "lock of the flight recorder",
        "a restart beside its zombie reads the zombie's recorder",
        {"twin": 1},
        static_twins=True,
        recorder="shared",
        **_RETRIED,
    ),
)
