"""Two processes with one instance id on different machines: the newcomer is told, and the older one goes on.

Kafka would fence the older one; its lock file (postlane.instance_lock) speaks on one machine only. So each member of a
group says in its client id where it can be asked: `<client>@<port>.<nonce>`. A newcomer that finds a member of its own
instance id asks that member's host for /livez: if the same boot answers, it lives, and the newcomer ends. No answer is
none: a process that was killed is a member until its session times out, and must be replaced at once. Best effort, and
enough: where the older one cannot be reached, it is fenced, and nothing is lost or doubled.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from http.client import HTTPConnection, HTTPException
from typing import Protocol

import orjson

from postlane.config import ConfigurationError
from postlane.eventlog.admin_groups import GroupMember, GroupState

ASK_TIMEOUT_S = 5.0  # a machine under load answers late, and is alive
ANSWER_MAX_BYTES = 10_000
_MARK = re.compile(r"@(\d{1,5})\.([0-9a-f]{16})(-[a-z]+)?$")  # the library's clients add their role


class Groups(Protocol):
    """What is asked of `postlane.eventlog.admin.KafkaAdmin`."""

    async def groups(self, names: Collection[str]) -> dict[str, GroupState]: ...


def marked(client_id: str, port: int, nonce: str) -> str:
    """A client id that says where the process can be asked whether it lives."""
    return f"{client_id}@{port}.{nonce}"


async def refuse_twin(admin: Groups, groups: Collection[str], instance: str, nonce: str) -> None:
    """Raises ConfigurationError when another live process is a member of one of `groups` with this instance id.

    `nonce` is that of this boot: a process does not refuse itself. Raises Retriable where the brokers do not answer.
    """
    for group in (await admin.groups(groups)).values():
        for member in group.members:
            found = _MARK.search(member.client_id)
            if member.instance_id != instance or found is None or found[2] == nonce:
                continue
            if await asyncio.to_thread(_lives, member, int(found[1]), found[2]):
                raise ConfigurationError(
                    f"instance id {instance} is already running at {_host(member)} (a member of {group.group}, it "
                    "answers); give this one another POSTLANE_INSTANCE_ID, or stop the other first"
                )


def _lives(member: GroupMember, port: int, nonce: str) -> bool:
    """Whether the boot that made this member answers."""
    connection = HTTPConnection(_host(member), port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/livez")
        said = orjson.loads(connection.getresponse().read(ANSWER_MAX_BYTES))
        return isinstance(said, dict) and said.get("nonce") == nonce
    except (OSError, HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _host(member: GroupMember) -> str:
    return member.host.lstrip("/")  # as brokers write the address of a client: "/10.0.0.7"
