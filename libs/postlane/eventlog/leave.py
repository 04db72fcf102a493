"""Taking a static member out of its group: the one request that librdkafka cannot send.

A static member does not leave on close, by intent; on scale-down its partitions would wait out the session timeout.
Java's admin client has `removeMembersFromConsumerGroup`, which is LeaveGroup v3 (KIP-345); this speaks that and
FindCoordinator over a connection of its own, plain or TLS. Under SASL it declines, and the session times out.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Mapping

from postlane.eventlog.errors import Fatal, Fenced, LogError, Retriable, Unreachable

TIMEOUT_S = 5.0
RESPONSE_MAX_BYTES = 1_048_576
_FIND_COORDINATOR, _LEAVE_GROUP = (10, 1), (13, 3)  # (API key, version): the last ones before flexible encoding
_GROUP = 0
_NONE, _UNKNOWN_MEMBER, _FENCED_INSTANCE = 0, 25, 82
_PASSING = frozenset({14, 15, 16})  # coordinator loading, not available, not here


class CannotLeave(LogError):
    """The cluster's security needs what this connection cannot do; the member stays until its session times out."""


async def remove_static_member(
    bootstrap_servers: str, options: Mapping[str, str], group: str, instance_id: str, member_id: str
) -> None:
    """Remove exactly this member; one that has meanwhile taken the instance id over is left alone.

    Raises CannotLeave, Fenced (somebody has taken over), Retriable, Fatal.
    """
    protocol = options.get("security.protocol", "plaintext").lower()
    if protocol not in ("plaintext", "ssl"):
        raise CannotLeave(f"group {group}: leaving at once is not possible under {protocol}; the session times out")
    tls = _tls(options) if protocol == "ssl" else None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            host, port = await _coordinator(bootstrap_servers, tls, group)
            answer = await _ask(host, port, tls, _LEAVE_GROUP, _leave_request(group, instance_id, member_id))
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise Unreachable(f"leave group {group}: {type(error).__name__}") from error
    _check_left(answer, group, instance_id)


def _leave_request(group: str, instance_id: str, member_id: str) -> bytes:
    return _string(group) + struct.pack(">i", 1) + _string(member_id) + _string(instance_id)


def _check_left(answer: _Answer, group: str, instance_id: str) -> None:
    answer.int32()  # throttle time
    codes = [answer.int16()]
    for _ in range(answer.int32()):
        answer.string(), answer.string()
        codes.append(answer.int16())
    code = next((code for code in codes if code != _NONE), _NONE)
    if code in (_NONE, _UNKNOWN_MEMBER):
        return
    if code == _FENCED_INSTANCE:
        raise Fenced(f"leave group {group}: another process has taken the instance id {instance_id}")
    if code in _PASSING:
        raise Retriable(f"leave group {group}: the coordinator is moving (error {code})")
    raise Fatal(f"leave group {group}: refused with error {code}")


async def _coordinator(bootstrap_servers: str, tls: ssl.SSLContext | None, group: str) -> tuple[str, int]:
    failure: Exception = Unreachable(f"leave group {group}: no bootstrap server")
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition("://")[2].rpartition(":")
        try:
            request = _string(group) + struct.pack(">b", _GROUP)
            answer = await _ask(host.strip("[]"), int(port), tls, _FIND_COORDINATOR, request)
        except (OSError, asyncio.IncompleteReadError) as error:
            failure = error
            continue
        answer.int32()  # throttle time
        code, _message, _node = answer.int16(), answer.string(), answer.int32()
        if code != _NONE:
            raise Retriable(f"leave group {group}: no coordinator (error {code})")
        return answer.string() or "", answer.int32()
    raise failure


async def _ask(host: str, port: int, tls: ssl.SSLContext | None, api: tuple[int, int], body: bytes) -> _Answer:
    """One request over a connection of its own."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        request = struct.pack(">hhi", *api, 1) + _string("postlane-leave") + body
        writer.write(struct.pack(">i", len(request)) + request)
        await writer.drain()
        (size,) = struct.unpack(">i", await reader.readexactly(4))
        if not 4 <= size <= RESPONSE_MAX_BYTES:
            raise OSError(f"{host}:{port} does not speak Kafka's protocol")
        return _Answer(await reader.readexactly(size))
    finally:
        writer.close()


class _Answer:
    """A response body, read field by field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 4  # after the correlation id

    def _take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def int16(self) -> int:
        return self._take(">h")

    def int32(self) -> int:
        return self._take(">i")

    def string(self) -> str | None:
        size = self.int16()
        if size < 0:
            return None
        self._at += size
        return self._data[self._at - size : self._at].decode()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    """The TLS that librdkafka's options ask for."""
    context = ssl.create_default_context(cafile=options.get("ssl.ca.location"))
    if options.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    if options.get("enable.ssl.certificate.verification", "true").lower() in ("false", "0", "f"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = options.get("ssl.certificate.location")
    if certificate is not None:
        context.load_cert_chain(certificate, options.get("ssl.key.location"), options.get("ssl.key.password"))
    return context
