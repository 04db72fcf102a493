"""Disks that fill up, and bits that flip on them."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.chaos.faults_processes import until_in_sync
from tests.chaos.registry import fault
from tests.chaos.town import BROKERS, PARTITIONS, Town

_CHUNK_BYTES = 1 << 16
_HEADER = struct.Struct(">qiibihiqqqhii")  # a batch's header: Kafka protocol guide, record batch
_CONTROL = 0x20
_BACKLOG_TIMEOUT_S = 30.0


@contextlib.contextmanager
def _full(folder: Path) -> Iterator[None]:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out:
        with contextlib.suppress(OSError):
            while True:
                out.write(bytes(_CHUNK_BYTES))
        with contextlib.suppress(OSError):
            while True:
                out.write(bytes(64))
    try:
        yield
    finally:
        ballast.unlink()


@fault(12.0, touches=("broker",), needs=("namespaces",))
def disk_full_at_a_broker(town: Town, dice: random.Random) -> Iterator[str]:
    """no byte left on a broker's disk; room again after 12 s"""
    i = BROKERS - 1
    with town.held_down(i):
        with _full(town.broker_data(i)):
            yield f"broker {i}"
        # A broker whose only disk failed ends by itself; one that has not noticed is restarted by its operator.
        town.kafka.stop_broker(i, grace_s=5.0)
    town.until_up(i)
    until_in_sync(town)


@fault(12.0, touches=("ledger",), needs=("namespaces",))
def disk_full_at_the_ledger(town: Town, dice: random.Random) -> Iterator[str]:
    """no byte left for the ledger's database; room again after 12 s"""
    with _full(town.database.parent):
        yield "ledger"


@fault(12.0, touches=("router",), needs=("namespaces",))
def disk_full_at_a_router(town: Town, dice: random.Random) -> Iterator[str]:
    """no byte left for a router's store, and the router killed while it is so; room again after 12 s"""
    with _full(town.data("router-1")):
        time.sleep(4.0)
        town.kill("router-1")
        yield "router-1"


@fault(0.0, touches=("router",))
def flipped_bits_in_the_routers_store(town: Town, dice: random.Random) -> Iterator[str]:
    """a router stopped in order, one bit flipped in each file of its store, started again"""
    flipped = 0
    with town.held_down("router-2"):
        town.stack.stop("router-2", grace_s=15)
        for path in sorted(town.data("router-2").rglob("*")):
            if path.suffix in (".sst", ".log") and path.is_file() and path.stat().st_size > 64:
                _flip(path, dice.randrange(path.stat().st_size), dice)
                flipped += 1
    yield f"router-2, {flipped} files"
    town.until_up("router-2")


@fault(0.0, touches=("router",))
def lost_router_store(town: Town, dice: random.Random) -> Iterator[str]:
    """a router killed and its store deleted"""
    name = dice.choice(town.of("router"))
    with town.held_down(name):
        town.kill(name)
        for path in town.data(name).iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    yield name
    town.until_up(name)


@fault(10.0, touches=("broker", "sender"))
def flipped_bit_in_a_segment(town: Town, dice: random.Random) -> Iterator[str]:
    """one bit flipped in the leader's segment of a dispatch topic, in a batch that no sender has read; the broker's
    replica deleted 10 s later and copied from the others"""
    senders = town.of("sender")
    with town.held_down(*senders):
        for name in senders:
            town.stack.stop(name, grace_s=15)
        number, leader, path, at = _unread_batch(town)
        _flip(path, at, dice)
    topic = town.names.dispatch("transactional")
    yield f"{path.parent.name}/{path.name} at {at}, broker {leader}"
    with town.held_down(leader):
        town.kafka.stop_broker(leader)
        shutil.rmtree(town.broker_data(leader) / f"{topic}-{number}")
    town.until_up(leader)
    until_in_sync(town)


def _flip(path: Path, at: int, dice: random.Random) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(handle, 1, at)
        if len(byte) != 1:
            raise OSError(errno.EINVAL, f"{path} ends before {at}")
        os.pwrite(handle, bytes([byte[0] ^ (1 << dice.randrange(8))]), at)
    finally:
        os.close(handle)


def _unread_batch(town: Town) -> tuple[int, int, Path, int]:
    """(partition, leader, file, position within a record batch) of a batch that the senders have not read yet."""
    topic, group = town.names.dispatch("transactional"), town.names.sender_group("transactional")
    admin = AdminClient({"bootstrap.servers": town.bootstrap, "log_level": 0})
    asking = Consumer({"bootstrap.servers": town.bootstrap, "group.id": group, "log_level": 0})  # no member
    try:
        asked = asking.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=15)
    finally:
        asking.close()
    if errors := [tp.error for tp in asked if tp.error is not None]:
        raise KafkaException(errors[0])
    committed = {tp.partition: tp.offset for tp in asked}
    deadline = time.monotonic() + _BACKLOG_TIMEOUT_S
    while time.monotonic() < deadline:
        partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
        for number in range(PARTITIONS):
            leader = partitions[number].leader
            for path in sorted((town.broker_data(leader) / f"{topic}-{number}").glob("*.log"), reverse=True):
                for first, start, size, attributes in _batches(path):
                    if first >= committed.get(number, 0) and not attributes & _CONTROL:
                        return number, leader, path, start + _HEADER.size + (size - _HEADER.size) // 2
        time.sleep(0.25)
    raise TimeoutError("no mail waits for the senders")


def _batches(path: Path) -> Iterator[tuple[int, int, int, int]]:
    """(first offset, position, bytes, attributes) of each batch of a segment."""
    data = path.read_bytes()
    at = 0
    while at + _HEADER.size <= len(data):
        first, length, _, _, _, attributes, *_ = _HEADER.unpack_from(data, at)
        if length <= 0:
            return
        yield first, at, length + 12, attributes
        at += length + 12
