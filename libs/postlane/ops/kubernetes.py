"""Strimzi's KafkaTopic and KafkaUser resources, written from the declarations that the code itself uses.

    python -m postlane.ops.kubernetes [--check] [--config postlane.yaml] [--folder k8s/components/strimzi]

Topics are those of `postlane topics` (ops/topics.py) for a cluster of three brokers; users have the rules of
`postlane topics plan --acls` (ops/acls.py), senders one user for each lane. `--check` writes nothing and ends with 1
when a file is not what would be written. Sources: Strimzi's custom resources, version v1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from postlane.config import read_config
from postlane.core.policy import Config
from postlane.eventlog.topics import TopicNames
from postlane.ops.acls import IDENTITIES, Acl, acls
from postlane.ops.topics import declared

BROKERS = 3
CLUSTER_LABEL = {"strimzi.io/cluster": "postlane"}
CONFIG = Path("k8s/overlays/production/postlane.yaml")
FOLDER = Path("k8s/components/strimzi")
_HEAD = "# Written by `make k8s-manifests` from the declaration in the code; change that, not this.\n"
_RESOURCE = {"topic": "topic", "group": "group", "transactional_id": "transactionalId", "cluster": "cluster"}
_PATTERN = {"literal": "literal", "prefixed": "prefix"}
Resource = dict[str, Any]


def topics(names: TopicNames, config: Config) -> list[Resource]:
    """A KafkaTopic for each declared topic."""
    want = declared(names, config, BROKERS)
    return [
        _resource(
            "KafkaTopic",
            spec.name,
            {
                "topicName": spec.name,
                "partitions": spec.partitions,
                "replicas": want.replication,
                "config": dict(spec.config),
            },
        )
        for spec in want.specs
    ]


def users(names: TopicNames, config: Config) -> list[Resource]:
    """A KafkaUser for each identity, for the senders of each lane, and for the autoscaler, which only looks."""
    lanes = tuple(config.lanes)
    found = []
    for identity in IDENTITIES:
        if identity == "sender":
            found += [_user(f"sender-{lane}", map(_rule, acls(names, (lane,), ("sender",)))) for lane in lanes]
        else:
            found.append(_user(identity, map(_rule, acls(names, lanes, (identity,)))))
    found.append(_user("scaler", _looking(names, lanes)))
    return found


def files(names: TopicNames, config: Config) -> Mapping[str, str]:
    """File name -> content."""
    return {"topics.yaml": _text(topics(names, config)), "users.yaml": _text(users(names, config))}


def _looking(names: TopicNames, lanes: Iterable[str]) -> Iterable[Resource]:
    """What KEDA's Kafka scaler asks: where a topic ends, and where a group is."""
    for lane in lanes:
        yield _permission("topic", names.dispatch(lane), "literal", ["Describe"])
        yield _permission("group", names.sender_group(lane), "literal", ["Describe"])


def _rule(acl: Acl) -> Resource:
    return _permission(_RESOURCE[acl.resource], acl.name, _PATTERN[acl.pattern], list(acl.operations))


def _permission(kind: str, name: str, pattern: str, operations: list[str]) -> Resource:
    resource = {"type": kind} if kind == "cluster" else {"type": kind, "name": name, "patternType": pattern}
    return {"resource": resource, "operations": operations}


def _user(name: str, rules: Iterable[Resource]) -> Resource:
    authorization = {"type": "simple", "acls": list(rules)}
    return _resource(
        "KafkaUser", f"postlane-{name}", {"authentication": {"type": "tls"}, "authorization": authorization}
    )


def _resource(kind: str, name: str, spec: Resource) -> Resource:
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": dict(CLUSTER_LABEL)},
        "spec": spec,
    }


def _text(resources: Iterable[Resource]) -> str:
    return _HEAD + "---\n".join(yaml.safe_dump(r, sort_keys=False, width=120) for r in resources)


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m postlane.ops.kubernetes", description="Strimzi resources.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a file differs")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the postlane.yaml of the installation")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are")
    parser.add_argument("--prefix", default="", help="POSTLANE_TOPIC_PREFIX of the installation")
    asked = parser.parse_args()
    stale = []
    for name, text in files(TopicNames(asked.prefix), read_config(asked.config)).items():
        path = asked.folder / name
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(str(path))
        if not asked.check:
            path.write_text(text)
    if stale:
        print(("not as declared: " if asked.check else "written: ") + ", ".join(stale))
    return 1 if stale and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
