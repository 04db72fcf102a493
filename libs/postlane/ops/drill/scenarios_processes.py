"""What happens to processes and brokers."""

from __future__ import annotations

from collections.abc import Iterator

from postlane.ops.drill.scene import Scene, scenario


def _killed(scene: Scene, service: str) -> Iterator[str]:
    site = scene.site
    name = site.of(service)[0]
    site.kill(name)
    try:
        yield f"{name} was killed and stays away"
    finally:
        site.launch(name)
    scene.until(lambda: site.is_ready(name), f"{name} is ready again")
    scene.mark(f"{name} is ready again")


@scenario(20, "kill:sender")
def sender_crash(scene: Scene) -> Iterator[str]:
    """A sender dies (SIGKILL) in the middle of its work and stays away: another takes over its partitions."""
    yield from _killed(scene, "sender")


@scenario(20, "kill:router", routers=2)
def router_crash(scene: Scene) -> Iterator[str]:
    """A router dies (SIGKILL) and stays away: another takes over its partitions and builds up its memory of keys."""
    yield from _killed(scene, "router")


@scenario(20, "brokers", brokers=3)
def broker_loss(scene: Scene) -> Iterator[str]:
    """A broker dies (SIGKILL): one of three, or the only one. It comes back when the fault ends."""
    kafka = scene.site.kafka
    alone = kafka.brokers == 1
    kafka.kill(0)
    try:
        yield "broker 0 was killed" + (", the only one" if alone else f" ({kafka.brokers - 1} are left)")
    finally:
        kafka.start_broker(0)
        scene.mark("broker 0 takes requests again")
