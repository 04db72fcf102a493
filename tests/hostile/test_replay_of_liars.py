"""A replay does not take a publisher's word for the time: its guards look where the events really are."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from postlane.core.replay import Guard
from tests.unit.replay_world import Operator, all_routed, generations, with_letters
from tests.unit.router_world import World, virtually


@pytest.mark.parametrize(
    "requested_at",
    [datetime(2999, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)],
)
def test_what_was_delivered_is_not_mailed_again_whenever_it_says_it_was_requested(requested_at: datetime) -> None:
    async def main() -> None:
        world = World()
        router = world.router()
        _, messages = await with_letters(
            world, 4, lambda _: "delivered", requested_at=requested_at, expires_at=datetime(9999, 1, 1, tzinfo=UTC)
        )
        made = await Operator(world).plan(what="requests")
        assert (made.total, made.counts.guarded) == (0, Counter({Guard.DELIVERED: 4}))
        assert await Operator(world).run(made) == 0
        await all_routed(world)
        assert generations(world, messages) == {message: [0] for message in messages}
        await router.stop()

    virtually(main())


def test_a_mail_of_the_year_one_does_not_stop_the_planning() -> None:
    """It has expired long ago; what matters is that the others can still be replayed."""

    async def main() -> None:
        world = World()
        router = world.router()
        world.publish("old", to=("old@example.com",), requested_at=datetime(1, 1, 1, tzinfo=UTC))
        _, messages = await with_letters(world, 2)
        await all_routed(world)
        made = await Operator(world).plan(what="requests")
        assert await Operator(world).run(made) == made.total == 3
        await all_routed(world)
        found = generations(world, messages)
        assert [found[message] for message in messages] == [[0, 1], [0, 1]]
        await router.stop()

    virtually(main())
