"""Every overlay is taken by a real API server, by the admission of Pod Security, and by the controllers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.k8s.cluster import Cluster, group_kind
from tests.k8s.render import OVERLAYS, Doc, moved, overlay

OWNED = ("StatefulSet", "Deployment")
_VIOLATES = "violates PodSecurity"


def run(cluster: Cluster) -> Iterator[str]:
    """A line for each thing that was seen to hold."""
    for name in OVERLAYS:
        yield from _one(cluster, name)


def _one(cluster: Cluster, name: str) -> Iterator[str]:
    docs = overlay(name)
    kinds = cluster.kinds()
    with cluster.namespace(docs) as namespace:
        docs = moved(docs, namespace)
        missing = Counter(group_kind(doc) for doc in docs if group_kind(doc) not in kinds)
        docs = [doc for doc in docs if group_kind(doc) in kinds]
        if missing:
            yield f"{name}: SKIPPED, the cluster has no such kinds: {dict(missing)}"
        said = cluster.apply(docs, dry_run=True)
        yield f"{name}: {len(said)} objects pass a dry run on the server, unknown fields refused"
        cluster.apply(docs)
        yield f"{name}: {len(docs)} objects applied"
        again = cluster.apply(docs)
        assert len(again) == len(docs)
        yield f"{name}: applied again without a conflict"
        made = cluster.until(lambda: _pods_made(cluster, docs, namespace), f"{name}: the pods are made", 180)
        told = [event["message"] for event in cluster.get("events", namespace=namespace)]
        refused = [message for message in told if _VIOLATES in message]
        assert not refused, refused[0]
        yield f"{name}: {made} pods made, none refused by Pod Security (restricted)"
        assert _VIOLATES in cluster.refusal(lambda: cluster.apply([_privileged(namespace)]))
        yield f"{name}: a privileged pod is refused there: the admission is on"


def _pods_made(cluster: Cluster, docs: list[Doc], namespace: str) -> int:
    """How many pods the controllers made, once all of them are; 0 before."""
    made = 0
    for doc in docs:
        if doc["kind"] in OWNED:
            found = cluster.get(doc["kind"], doc["metadata"]["name"], namespace)
            wanted = found["spec"]["replicas"]
            if found.get("status", {}).get("replicas", 0) < wanted:
                return 0
            made += wanted
    return made


def _privileged(namespace: str) -> Doc:
    container = {"name": "x", "image": "x", "securityContext": {"privileged": True}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "namespace": namespace},
        "spec": {"containers": [container]},
    }
