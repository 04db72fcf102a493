"""The cases of the router's, the ledger's and the replay protocol."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from . import ledger, replay, router, router_state
from .cases import Case
from .explorer import Model

_Size = Literal["short", "long"]


def _router(rules: Mapping[str, Any], faults: Mapping[str, int], together: int | None) -> Model:
    return router.RouterModel(router_state.Rules(**rules), faults, together)


def _ledger(rules: Mapping[str, Any], faults: Mapping[str, int], together: int | None) -> Model:
    return ledger.LedgerModel(ledger.Rules(**rules), faults, together)


def _replay(rules: Mapping[str, Any], faults: Mapping[str, int], together: int | None) -> Model:
    return replay.ReplayModel(replay.Rules(**rules), faults, together)


_BUILD = {"router": _router, "ledger": _ledger, "replay": _replay}


def _holds(
    which: str, name: str, about: str, faults: Mapping[str, int], together: int, size: _Size = "short", **rules: Any
) -> Case:
    return Case(f"{which}: {name}", about, partial(_BUILD[which], rules, faults, together), "holds", "", size)


def _off(which: str, name: str, about: str, faults: Mapping[str, int], **rules: Any) -> Case:
    return Case(f"{which} without: {name}", about, partial(_BUILD[which], rules, faults, None), "breaks")


def _backed(which: str, name: str, about: str, because: str, faults: Mapping[str, int], **rules: Any) -> Case:
    return Case(f"{which} without: {name}", about, partial(_BUILD[which], rules, faults, None), "holds", because)


_ROUTER_FAULTS = {"crash": 1, "wipe": 1, "kick": 1, "unknown": 1, "expire": 1}
ROUTER = (
    _holds("router", "every fault", "three requests, two keys; any one of five faults", _ROUTER_FAULTS, 1),
    _holds(
        "router",
        "replaced changelog",
        "a kept volume beside a restored mail.seen; crash",
        {"crash": 1},
        1,
        replaced_changelog=True,
    ),
    _holds("router", "every fault, two", "any two of five faults", _ROUTER_FAULTS, 2, "long"),
    _holds("router", "every fault, three", "any three of five faults", _ROUTER_FAULTS, 3, "long"),
    _holds(
        "router",
        "replaced changelog, two",
        "crash and zombie",
        {"crash": 1, "kick": 1},
        2,
        "long",
        replaced_changelog=True,
    ),
    _off(
        "router",
        "changelog in the transaction",
        "keys written to mail.seen before it",
        {"crash": 1},
        seen_in_transaction=False,
    ),
    _off(
        "router",
        "position in the transaction",
        "position committed before it",
        {"crash": 1},
        position_in_transaction=False,
    ),
    _off("router", "group metadata", "position without generation and member id", {"kick": 1}, group_metadata=False),
    _off(
        "router", "stable offset fetch", "position while a transaction on it is open", {"kick": 1}, stable_fetch=False
    ),
    _off(
        "router",
        "restore to the high watermark",
        "mail.seen up to the last stable offset",
        {"crash": 1},
        restore_to="last stable offset",
    ),
    _off(
        "router",
        "restore of committed records",
        "aborted records of mail.seen believed",
        {"crash": 1},
        restore_committed_only=False,
    ),
    _off(
        "router",
        "catching up",
        "a store that is there is taken as complete",
        {"crash": 1, "kick": 1},
        catch_up=False,
        requests="abb",
    ),
    _off(
        "router",
        "store after the commit",
        "the store knows keys before they are committed",
        {"crash": 1, "kick": 1},
        store_after_commit=False,
    ),
    _off(
        "router",
        "store all or nothing",
        "the applied position is written before the keys",
        {"crash": 2},
        store_atomic=False,
    ),
    _off(
        "router",
        "topic id of the store, ignored",
        "the store of an earlier mail.seen is believed",
        {},
        replaced_changelog=True,
        foreign_store="ignored",
    ),
    _off(
        "router",
        "topic id of the store, position",
        "... is noticed only while it is ahead",
        {"crash": 1, "kick": 1},
        replaced_changelog=True,
        foreign_store="position",
    ),
    _off("router", "repeats within a batch", "only the store is asked", {}, requests="aa", dedup_in_batch=False),
    _off(
        "router",
        "take over after an unknown commit, assume",
        "taken for committed",
        {"unknown": 1},
        after_unknown="assume",
    ),
    _off("router", "take over after an unknown commit, again", "said again", {"unknown": 1}, after_unknown="say again"),
)

_LEDGER_FAULTS = {"crash": 1, "kick": 1, "unknown": 1, "rebuild": 1}
LEDGER = (
    _holds("ledger", "every fault", "two events; all of four faults", _LEDGER_FAULTS, 4),
    _holds(
        "ledger",
        "every fault, twice",
        "three events; any five of eight faults",
        {"crash": 2, "kick": 2, "unknown": 2, "rebuild": 2},
        5,
        "long",
        events=3,
    ),
    _off(
        "ledger",
        "one transaction, rows first",
        "rows, then the offset by itself",
        {"crash": 1},
        one_transaction="rows first",
    ),
    _off(
        "ledger",
        "one transaction, offset first",
        "the offset, then the rows by themselves",
        {"crash": 1},
        one_transaction="offset first",
    ),
    _off(
        "ledger",
        "compare and set of the offset",
        "the offset is overwritten, whatever stands there",
        {"kick": 1},
        compare_and_set=False,
    ),
    _off(
        "ledger",
        "start from the database",
        "it starts from the group's offset: stuck",
        {"crash": 1},
        start_from="group",
    ),
    _off(
        "ledger",
        "start from the database, and compare and set",
        "both",
        {"crash": 1},
        start_from="group",
        compare_and_set=False,
    ),
    _backed(
        "ledger",
        "reading the offset after an unknown commit, again",
        "said again",
        "the offset is compared and set",
        {"unknown": 1},
        after_unknown="say again",
    ),
    _backed(
        "ledger",
        "reading the offset after an unknown commit, assume",
        "taken for committed",
        "the offset is compared and set",
        {"unknown": 1},
        after_unknown="assume",
    ),
    _off(
        "ledger",
        "reading the offset, and compare and set",
        "both",
        {"unknown": 1},
        after_unknown="say again",
        compare_and_set=False,
    ),
    _off(
        "ledger",
        "a rebuild of rows and offset",
        "only the rows are emptied",
        {"rebuild": 1},
        rebuild_resets_offset=False,
    ),
)

_REPLAY_FAULTS = {"kill": 1, "silence": 1, "refuse": 1, "rerun": 1}
REPLAY = (
    _holds("replay", "one letter", "two operators; all of four faults", _REPLAY_FAULTS, 4, mails=1),
    _holds(
        "replay",
        "window",
        "a window with a mail still on its way; any two faults",
        _REPLAY_FAULTS,
        2,
        mails=1,
        window=True,
    ),
    _holds("replay", "two letters", "two operators, two letters; any two of four faults", _REPLAY_FAULTS, 2, "long"),
    _holds("replay", "two letters, three", "any three of four faults", _REPLAY_FAULTS, 3, "long"),
    _holds("replay", "window, two mails", "two mails, any two faults", _REPLAY_FAULTS, 2, "long", window=True),
    _off("replay", "generation of the letter + 1", "the latest generation + 1", {}, mails=1, generation="latest + 1"),
    _off(
        "replay",
        "generation of the letter + 1, killed",
        "the same with one operator, killed and started again",
        {"kill": 1},
        mails=1,
        operators=1,
        generation="latest + 1",
    ),
    _off("replay", "a raised generation", "published as it was", {}, mails=1, generation="same"),
    _off("replay", "dedup by generation too", "the router drops repeats by mail only", {}, mails=1, dedup="mail"),
    _off(
        "replay",
        "dedup of replays",
        "the router lets every replay pass",
        {"silence": 1},
        mails=1,
        operators=1,
        dedup="none",
    ),
    _off(
        "replay",
        "guard that the mail is dead",
        "only that it is not known as delivered",
        {},
        mails=1,
        window=True,
        guard="not known delivered",
    ),
    _off("replay", "guard", "none", {}, mails=1, window=True, guard="none"),
    _off(
        "replay",
        "progress after the acknowledgement",
        "noted before",
        {"kill": 1},
        mails=1,
        operators=1,
        progress="before publishing",
    ),
    _backed(
        "replay",
        "resumption",
        "a killed run begins again with a new plan",
        "the router drops a letter's generation that was routed",
        {"kill": 1, "refuse": 1},
        mails=1,
        resume=False,
    ),
)
