"""`make k8s-test`: the manifests on a real cluster, in namespaces of the test's own.

    KUBECONFIG=… python -m tests.k8s [apply] [drain] [scale] [--bootstrap HOST:PORT] [--address HOST]

`scale` needs KEDA (its operator and its metrics server), a Kafka that KEDA reaches, and a Prometheus: without
`--bootstrap` an embedded Kafka is started on 127.0.0.1, and a stand-in for Prometheus listens on `--address`, so by
default KEDA has to run on this machine. Ends with 0 when all that could be tried holds, and says what was skipped and
why; without KUBECONFIG everything is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.k8s import applying, draining, scaling
from tests.k8s.cluster import Cluster, Skipped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="apply, drain, scale; all by default")
    parser.add_argument("--bootstrap", help="a Kafka that KEDA reaches; one is started on 127.0.0.1 without it")
    parser.add_argument("--address", default="127.0.0.1", help="where KEDA reaches this process")
    asked = parser.parse_args()
    parts: dict[str, Callable[[Cluster], Iterator[str]]] = {
        "apply": applying.run,
        "drain": draining.run,
        "scale": lambda cluster: scaling.run(cluster, asked.bootstrap, asked.address),
    }
    if unknown := [part for part in asked.parts if part not in parts]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        print("k8s-test: SKIPPED, all of it: there is no cluster; set KUBECONFIG to that of a test cluster")
        return 0
    cluster, failed = Cluster(Path(kubeconfig)), False
    for name in asked.parts or parts:
        try:
            for line in parts[name](cluster):
                print(f"{name}: {line}", flush=True)
        except Skipped as reason:
            print(f"{name}: SKIPPED: {reason}", flush=True)
        except AssertionError as error:
            failed = True
            print(f"{name}: FAILED: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
