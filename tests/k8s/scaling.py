"""A lag on a real Kafka drives the senders of a lane 0 → N → 0 through KEDA, and applying again leaves N alone.

The senders' pods need not run anything: what they would do and tell is done here (positions are committed for their
group, a stand-in for Prometheus answers with the three gauges). What is tried is the manifests' own ScaledObject:
triggers, formula, bounds and the path through KEDA and the autoscaler, with shorter periods.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from postlane.local.kafka import KafkaCluster
from tests.k8s.cluster import Cluster, Skipped
from tests.k8s.render import Doc, moved, named, production_with

SENDER = "sender-bulk"
PARTITIONS = 12
PER_POD = 5000  # the target of the manifests
WAIT_S = 180.0
COORDINATOR_WAIT_S = 60.0
QUEUED_MAX = 20_000  # records of the producer at a time


def run(cluster: Cluster, bootstrap: str | None, address: str) -> Iterator[str]:
    """A line for each thing that was seen to hold."""
    if "ScaledObject.keda.sh" not in cluster.kinds():
        raise Skipped("the cluster has no KEDA (no kind ScaledObject)")
    with tempfile.TemporaryDirectory() as folder, _kafka(bootstrap, Path(folder)) as servers:
        lane = Lane(servers)
        with _prometheus(lane, address) as url:
            docs = _objects(servers, url, lane)
            with cluster.namespace(docs) as namespace:
                docs = moved(docs, namespace)
                cluster.apply(docs)
                yield from _up_and_down(cluster, lane, docs, namespace)


def _up_and_down(cluster: Cluster, lane: Lane, docs: list[Doc], namespace: str) -> Iterator[str]:
    def replicas() -> int:
        found = int(cluster.get("statefulset", SENDER, namespace)["spec"]["replicas"])
        lane.owned = found > 0
        return found

    def until(wanted: int, what: str) -> float:
        began = time.monotonic()
        seen = []

        def there() -> bool:
            seen.append(replicas())
            return seen[-1] == wanted

        try:
            cluster.until(there, what, WAIT_S)
        except AssertionError as error:
            told = cluster.get("scaledobject", SENDER, namespace).get("status", {})
            raise AssertionError(f"{error}; replicas were {sorted(set(seen))}; {json.dumps(told)[:1500]}") from None
        return time.monotonic() - began

    until(0, "an idle lane goes to zero")
    yield "0 replicas while nothing waits but a control record for each partition"
    lane.produce(3 * PER_POD - PARTITIONS)
    took = until(3, "a lag of three pods' work makes three")
    yield f"a lag of {3 * PER_POD} records made 3 replicas in {took:.0f} s"
    cluster.apply(docs)
    assert replicas() == 3, "applying the manifests again set the replicas back"
    yield "the manifests applied again leave the replicas alone"
    lane.produce(40 * PER_POD)
    took = until(PARTITIONS, "more work than partitions makes as many pods as partitions")
    yield f"40 pods' work more made {PARTITIONS}, one for each partition, in {took:.0f} s"
    lane.settle(behind_one_slow_mail=True)
    took = until(1, "everything is settled but one slow mail, and the committed lag is as large as ever")
    yield f"one slow mail, with a committed lag of {lane.lag}: 1 replica after {took:.0f} s"
    lane.settle()
    took = until(0, "nothing is left")
    yield f"nothing left: 0 replicas after {took:.0f} s"


@dataclass
class Lane:
    """The lane as Kafka has it, and as its senders would tell it."""

    servers: str
    owned: bool = False
    unsettled: int = 0

    def __post_init__(self) -> None:
        self.topic, self.group = f"t{time.time_ns()}.mail.dispatch.bulk", f"g{time.time_ns()}.sender.bulk"
        admin = AdminClient({"bootstrap.servers": self.servers})
        admin.create_topics([NewTopic(self.topic, PARTITIONS, 1)])[self.topic].result(30)
        self._ends = dict.fromkeys(range(PARTITIONS), 0)
        self._positions = dict(self._ends)
        self.produce(PARTITIONS)  # what the last transaction left at each end, as an idle lane has it
        self._commit(dict.fromkeys(self._ends, 0))

    @property
    def lag(self) -> int:
        """High watermarks − committed."""
        return sum(self._ends.values()) - sum(self._committed.values())

    def produce(self, count: int) -> None:
        """So many records, evenly over the partitions."""
        producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 20, "log_level": 0})
        for n in range(count):
            number = n % PARTITIONS
            producer.produce(self.topic, b"x", partition=number)
            self._ends[number] += 1
            if n % QUEUED_MAX == 0:
                producer.flush(60)
        assert producer.flush(60) == 0

    def settle(self, *, behind_one_slow_mail: bool = False) -> None:
        """Everything was read and settled, up to the control record at each end; or one mail at O holds O back."""
        self._positions = {number: end - 1 for number, end in self._ends.items()}
        self.unsettled = 1 if behind_one_slow_mail else 0
        if not behind_one_slow_mail:
            self._commit(self._positions)

    def gauges(self) -> dict[str, float]:
        """The sums over all senders; empty while there are none."""
        if not self.owned:
            return {}
        unread = sum(self._ends[n] - self._positions[n] for n in self._ends)
        return {"partitions": PARTITIONS, "backlog_records": unread, "unsettled": self.unsettled}

    def _commit(self, positions: dict[int, int]) -> None:
        conf = {"bootstrap.servers": self.servers, "group.id": self.group, "enable.auto.commit": False, "log_level": 0}
        consumer = Consumer(conf)
        offsets = [TopicPartition(self.topic, number, offset) for number, offset in positions.items()]
        deadline = time.monotonic() + COORDINATOR_WAIT_S
        while True:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
                break
            except KafkaException:  # a broker that has only just begun coordinates no group yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        consumer.close()
        self._committed = dict(positions)


def _objects(servers: str, prometheus: str, lane: Lane) -> list[Doc]:
    """The manifests' own, with the addresses of the test and shorter periods."""
    docs = production_with("keda-to-zero")
    scaled = named(docs, "ScaledObject", SENDER)
    spec = scaled["spec"]
    spec |= {"pollingInterval": 2, "cooldownPeriod": 5}
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    behavior["scaleDown"] |= {"stabilizationWindowSeconds": 3}
    for policy in behavior["scaleDown"]["policies"] + behavior["scaleUp"]["policies"]:
        policy["periodSeconds"] = 5
    away = (time.gmtime().tm_min + 30) % 60
    for trigger in spec["triggers"]:
        told = trigger["metadata"]
        match trigger["type"]:
            case "prometheus":
                told["serverAddress"] = prometheus
            case "kafka":
                told |= {"bootstrapServers": servers, "consumerGroup": lane.group, "topic": lane.topic}
                del told["tls"], trigger["authenticationRef"]
            case "cron":  # not while this runs
                told |= {"start": f"{away} * * * *", "end": f"{(away + 1) % 60} * * * *"}
    kinds = ("Namespace", "PriorityClass", "ServiceAccount", "ConfigMap")
    return [named(docs, "StatefulSet", SENDER), scaled, *(d for d in docs if d["kind"] in kinds)]


@contextmanager
def _kafka(bootstrap: str | None, folder: Path) -> Iterator[str]:
    if bootstrap is not None:
        yield bootstrap
        return
    kafka = KafkaCluster(folder, brokers=1, port=0, tied=True)
    kafka.start()
    try:
        yield kafka.bootstrap_servers
    finally:
        kafka.stop()


@contextmanager
def _prometheus(lane: Lane, address: str) -> Iterator[str]:
    """Answers instant queries for sums of the lane's gauges as Prometheus does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            found = re.fullmatch(r'sum\(postlane_sender_(\w+)\{lane="bulk"\}\)', query)
            value = lane.gauges().get(found[1]) if found else None
            result: list[Any] = [] if value is None else [{"metric": {}, "value": [time.time(), str(value)]}]
            body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Queries come every two seconds: not logged."""

    server = ThreadingHTTPServer((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
