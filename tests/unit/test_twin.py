"""A second process of one instance id: refused while the first answers, let in when it is dead or another."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pytest

from postlane.config import ConfigurationError
from postlane.eventlog.admin_groups import GroupMember, GroupState
from postlane.local import ports
from postlane.telemetry.http import ServiceHttp
from postlane.twin import marked, refuse_twin


class Group:
    """A group with one member."""

    def __init__(self, instance: str, client_id: str, host: str = "/127.0.0.1") -> None:
        self._member = GroupMember("m-1", instance, client_id, host, frozenset())

    async def groups(self, names: Collection[str]) -> dict[str, GroupState]:
        return {name: GroupState(name, "Stable", (self._member,)) for name in names}


@pytest.fixture
def first() -> Iterator[ServiceHttp]:
    served = ServiceHttp("127.0.0.1", 0, lambda: None, service="sender", instance="sender-0")
    served.start()
    yield served
    served.close()


async def test_the_newcomer_is_told_where_the_other_lives(first: ServiceHttp) -> None:
    group = Group("sender-0", marked("postlane-sender-sender-0", first.port, first.nonce))
    with pytest.raises(ConfigurationError, match=r"sender-0 is already running at 127\.0\.0\.1 .*sender\.bulk"):
        await refuse_twin(group, ["sender.bulk"], "sender-0", "f" * 16)


async def test_a_process_does_not_refuse_itself(first: ServiceHttp) -> None:
    group = Group("sender-0", marked("c", first.port, first.nonce))
    await refuse_twin(group, ["sender.bulk"], "sender-0", first.nonce)


async def test_another_instance_id_is_no_twin(first: ServiceHttp) -> None:
    group = Group("sender-1", marked("c", first.port, first.nonce))
    await refuse_twin(group, ["sender.bulk"], "sender-0", "f" * 16)


async def test_a_killed_process_is_replaced_although_it_is_a_member_still() -> None:
    group = Group("sender-0", marked("c", ports.free_port(), "a" * 16))
    await refuse_twin(group, ["sender.bulk"], "sender-0", "f" * 16)


async def test_a_later_boot_at_the_same_port_is_not_the_member(first: ServiceHttp) -> None:
    group = Group("sender-0", marked("c", first.port, "a" * 16))
    await refuse_twin(group, ["sender.bulk"], "sender-0", "f" * 16)


@pytest.mark.parametrize("client_id", ["postlane-sender-0", "rdkafka", "c@99999.zz", "c@1.0123456789abcdeg", ""])
async def test_a_client_that_does_not_say_where_it_is_is_not_asked(client_id: str) -> None:
    await refuse_twin(Group("sender-0", client_id, "/192.0.2.1"), ["sender.bulk"], "sender-0", "f" * 16)
