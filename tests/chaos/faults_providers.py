"""Providers that are away, slow, refusing, or that take a mail and do not say so; a password that changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tests.chaos.registry import fault
from tests.chaos.town import Town


def _rules(town: Town, *rules: dict[str, Any]) -> Iterator[str]:
    control = town.practice.control
    ids = [control.add_fault(**rule) for rule in rules]
    try:
        yield ", ".join(f"{rule['action']} at {rule.get('phase', 'dot')}" for rule in rules)
    finally:
        for ident in ids:
            control.remove_fault(ident)


@fault(12.0, touches=("provider",))
def provider_outage(town: Town, dice: random.Random) -> Iterator[str]:
    """nothing listens at either provider, longer than all retries together"""
    town.practice.control.outage()
    try:
        yield "both"
    finally:
        town.practice.control.recover()


@fault(10.0, touches=("provider",))
def failover(town: Town, dice: random.Random) -> Iterator[str]:
    """nothing listens at the first provider; the second is well"""
    town.practice.control.outage("primary")
    try:
        yield "primary"
    finally:
        town.practice.control.recover("primary")


@fault(10.0, touches=("provider",))
def brown_out(town: Town, dice: random.Random) -> Iterator[str]:
    """a second for each reply to the dot, and a fifth of the mails deferred"""
    yield from _rules(
        town,
        {"action": "delay", "phase": "dot", "delay_s": 1.0},
        {"action": "reply", "phase": "dot", "code": 451, "probability": 0.2, "seed": dice.getrandbits(32)},
    )


@fault(10.0, touches=("provider",))
def storm_of_421(town: Town, dice: random.Random) -> Iterator[str]:
    """421 to 70 % of the MAILs, and to 30 % of the connections"""
    seed = dice.getrandbits(32)
    yield from _rules(
        town,
        {"action": "reply", "phase": "mail", "code": 421, "probability": 0.7, "seed": seed},
        {"action": "reply", "phase": "connect", "code": 421, "probability": 0.3, "seed": seed},
    )


@fault(12.0, touches=("provider",))
def tarpit(town: Town, dice: random.Random) -> Iterator[str]:
    """1.5 s before each reply to EHLO, MAIL and RCPT"""
    yield from _rules(town, *({"action": "delay", "phase": p, "delay_s": 1.5} for p in ("ehlo", "mail", "rcpt")))


@fault(10.0, touches=("provider",))
def hang_after_the_dot(town: Town, dice: random.Random) -> Iterator[str]:
    """a tenth of the mails taken, and never answered"""
    yield from _rules(town, {"action": "accept_hang", "probability": 0.1, "seed": dice.getrandbits(32)})


@fault(10.0, touches=("provider",))
def accept_then_drop(town: Town, dice: random.Random) -> Iterator[str]:
    """30 % of the mails taken, and the connection closed without the 250"""
    yield from _rules(town, {"action": "accept_drop", "probability": 0.3, "seed": dice.getrandbits(32)})


@fault(10.0, touches=("provider",))
def drop_at_the_dot(town: Town, dice: random.Random) -> Iterator[str]:
    """30 % of the connections closed after the dot, nothing taken"""
    yield from _rules(town, {"action": "drop", "phase": "dot", "probability": 0.3, "seed": dice.getrandbits(32)})


@fault(10.0, touches=("provider",))
def refused_for_good(town: Town, dice: random.Random) -> Iterator[str]:
    """a fifth of the recipients unknown (550 5.1.1)"""
    rule = {"action": "reply", "phase": "rcpt", "code": 550, "text": "5.1.1 unknown", "probability": 0.2}
    yield from _rules(town, {**rule, "seed": dice.getrandbits(32)})


@fault(8.0, touches=("provider", "password"))
def rotate_credentials(town: Town, dice: random.Random) -> Iterator[str]:
    """the providers take a new password only; the senders' file has it 8 s later"""
    password = f"rotated-{dice.getrandbits(32):08x}"
    town.set_password(password)
    town.practice.kill()
    town.practice.start()
    yield "535 until the file has the new one"
    town.tell_password(password)
