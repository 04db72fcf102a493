"""What providers and the way to them do to you."""

from __future__ import annotations

from collections.abc import Iterator

from postlane.ops.drill.scene import Scene, scenario
from postlane.ops.drill.site import FAULT_ID


def _first_is_back(scene: Scene) -> None:
    server, since = scene.site.listeners[0], scene.healed
    back = [at for at, _, by in scene.follower.account.copies() if by == server and at >= since]
    scene.expect(bool(back), f"{server} was not used again after it was healed")
    if back:
        scene.figures["provider_used_again_s"] = round(back[0] - since, 1)


@scenario(15, "witness", after=_first_is_back)
def provider_outage(scene: Scene) -> Iterator[str]:
    """The first provider is down: nothing listens there, open connections are reset."""
    witness, server = scene.site.witness, scene.site.listeners[0]
    rule = witness.add_fault("refuse", id=f"{FAULT_ID}outage", server=server)
    try:
        yield f"{server} listens no more and its connections were reset"
    finally:
        witness.remove_fault(rule)


@scenario(15, "witness", after=_first_is_back)
def all_providers_down(scene: Scene) -> Iterator[str]:
    """Every provider is down: nothing can be sent, and Kafka has to hold the backlog."""
    witness = scene.site.witness
    rules = []
    try:
        for server in scene.site.listeners:
            rules.append(witness.add_fault("refuse", id=f"{FAULT_ID}outage-{server}", server=server))
        yield f"{' and '.join(scene.site.listeners)} listen no more"
    finally:
        for rule in rules:
            witness.remove_fault(rule)


@scenario(15, "relay", after=_first_is_back)
def provider_network(scene: Scene) -> Iterator[str]:
    """The network to the first provider loses every packet: connections hang, and nobody is told."""
    relay = scene.site.relay
    relay.lose_everything()
    try:
        yield f"nothing passes between the senders and {scene.site.listeners[0]}, in either direction"
    finally:
        relay.heal()


@scenario(15, "auth", after=_first_is_back)
def credential_expiry(scene: Scene) -> Iterator[str]:
    """The first provider's credentials expire: logins are refused (535), sessions closed (421), until the new
    password is put where the senders read it."""
    site, provider = scene.site, scene.site.listeners[0]
    site.expire_password(provider, "second")
    try:
        yield f"{provider} takes another password now"
    finally:
        site.tell_password(provider, "second")
        scene.mark("the new password is in place; no sender was restarted")
