"""A node that is drained waits for the disruption budget: never more than one sender of a lane is away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

from tests.k8s.cluster import Cluster, Skipped, is_ready
from tests.k8s.render import Doc, moved, named, overlay

SENDER = "sender-transactional"
REPLICAS = 6
READY_TIMEOUT_S = 180.0
DRAIN_TIMEOUT_S = 300.0


def run(cluster: Cluster) -> Iterator[str]:
    """A line for each thing that was seen to hold."""
    nodes = [n for n in cluster.get("nodes") if not n["spec"].get("unschedulable")]
    if len(nodes) < 2:
        raise Skipped(f"{len(nodes)} schedulable node: a drain needs two")
    docs = overlay("production")
    with cluster.namespace(docs) as namespace:
        cluster.apply(moved(_senders(docs), namespace))
        try:
            cluster.until(lambda: len(_ready(cluster, namespace)) == REPLICAS, "ready", READY_TIMEOUT_S)
        except AssertionError:
            raise Skipped("the senders' pods do not become ready here (no image, no room, or no network)") from None
        yield f"{REPLICAS} senders are ready on {len(nodes)} nodes"
        yield from _evict_two(cluster, namespace)
        cluster.until(lambda: len(_ready(cluster, namespace)) == REPLICAS, "all are back", READY_TIMEOUT_S)
        yield from _drain(cluster, namespace)


def _senders(docs: list[Doc]) -> list[Doc]:
    """The senders of one lane, with what they need, as many as the test wants."""
    sender = named(docs, "StatefulSet", SENDER)
    sender["spec"]["replicas"] = REPLICAS
    kinds = ("PriorityClass", "ServiceAccount", "ConfigMap")
    return [sender, named(docs, "PodDisruptionBudget", SENDER), *(d for d in docs if d["kind"] in kinds)]


def _ready(cluster: Cluster, namespace: str) -> list[Doc]:
    return [pod for pod in cluster.get("pods", namespace=namespace) if is_ready(pod)]


def _evict_two(cluster: Cluster, namespace: str) -> Iterator[str]:
    first, second = (pod["metadata"]["name"] for pod in _ready(cluster, namespace)[:2])
    cluster.until(lambda: _allowed(cluster, namespace) == 1, "the budget allows one")
    _evict(cluster, namespace, first)
    assert "disruption budget" in cluster.refusal(lambda: _evict(cluster, namespace, second))
    yield "a second eviction is refused while the first sender is away"


def _allowed(cluster: Cluster, namespace: str) -> int:
    budget = cluster.get("poddisruptionbudget", SENDER, namespace)
    return int(budget.get("status", {}).get("disruptionsAllowed", 0))


def _evict(cluster: Cluster, namespace: str, pod: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def _drain(cluster: Cluster, namespace: str) -> Iterator[str]:
    on = [pod["spec"]["nodeName"] for pod in _ready(cluster, namespace)]
    node = max(set(on), key=on.count)
    ended, seen = threading.Event(), []

    def watch() -> None:
        while not ended.is_set():
            seen.append(len(_ready(cluster, namespace)))
            time.sleep(0.2)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        # Only the test's own pods are evicted, whatever else runs on the node.
        cluster.kubectl(
            "drain",
            node,
            f"--pod-selector=postlane-test={namespace}",
            "--delete-emptydir-data",
            "--ignore-daemonsets",
            f"--timeout={DRAIN_TIMEOUT_S:.0f}s",
            timeout_s=DRAIN_TIMEOUT_S + 30,
        )
        cluster.until(lambda: len(_ready(cluster, namespace)) == REPLICAS, "all are ready elsewhere", READY_TIMEOUT_S)
    finally:
        ended.set()
        watching.join(30)
        cluster.kubectl("uncordon", node)
    left = [pod for pod in _ready(cluster, namespace) if pod["spec"]["nodeName"] == node]
    assert not left, f"{len(left)} senders are still on {node}"
    assert min(seen) >= REPLICAS - 1, f"only {min(seen)} of {REPLICAS} senders were ready during the drain"
    yield f"a drain of {node}, with {on.count(node)} of them, left {min(seen)} or more ready ({len(seen)} looks)"
