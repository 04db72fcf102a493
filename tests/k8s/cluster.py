"""A cluster as kubectl shows it."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.render import KUBECTL, Doc

MANAGER = "postlane-test"


class Skipped(Exception):
    """A part that this cluster cannot be asked; the message says what it lacks."""


class Refused(AssertionError):
    """The API server said no."""


class Cluster:
    """kubectl with one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def kubectl(self, *words: str, stdin: str | None = None, timeout_s: float = 180.0) -> str:
        """What it prints. Raises Refused with its complaint."""
        done = subprocess.run(
            [KUBECTL, "--kubeconfig", self._kubeconfig, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise Refused(f"kubectl {' '.join(words)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def get(self, kind: str, name: str = "", namespace: str = "", selector: str = "") -> Any:
        """An object, or the items of a list."""
        words = ["get", kind, *([name] if name else []), "-o", "json"]
        words += ["-n", namespace] if namespace else []
        words += ["-l", selector] if selector else []
        found = json.loads(self.kubectl(*words))
        return found if name else found["items"]

    def kinds(self) -> frozenset[str]:
        """`kind.group` of everything that the cluster knows, the core group as `kind.`."""
        found = set()
        for line in self.kubectl("api-resources", "--no-headers").splitlines():
            api, _, kind = line.split()[-3:]
            found.add(f"{kind}.{api.rpartition('/')[0]}")
        return frozenset(found)

    def apply(self, docs: Iterable[Doc], *, dry_run: bool = False) -> list[str]:
        """Server-side, unknown fields refused; one line of answer for each object."""
        words = ["apply", "--server-side", f"--field-manager={MANAGER}", "--validate=strict", "-f", "-"]
        words += ["--dry-run=server"] if dry_run else []
        return self.kubectl(*words, stdin=yaml.safe_dump_all(docs)).splitlines()

    @contextmanager
    def namespace(self, docs: Iterable[Doc]) -> Iterator[str]:
        """A namespace of the test's own with the labels that these manifests give theirs; gone afterwards."""
        name = f"postlane-test-{uuid.uuid4().hex[:6]}"
        (labels,) = [doc["metadata"].get("labels", {}) for doc in docs if doc["kind"] == "Namespace"]
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}])
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")
            for found in self.get("priorityclasses"):
                if found["metadata"]["name"].startswith(f"{name}-"):
                    self.kubectl("delete", "priorityclass", found["metadata"]["name"])

    def refusal(self, asked: Callable[[], object]) -> str:
        """The server's words when it says no to this. AssertionError when it does not."""
        try:
            asked()
        except Refused as error:
            return str(error)
        raise AssertionError("the server took what it should have refused")

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
        """What the condition returns once it is true. AssertionError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(0.5)
        return found


def group_kind(doc: Doc) -> str:
    """`kind.group` of an object."""
    return f"{doc['kind']}.{doc['apiVersion'].rpartition('/')[0]}"


def is_ready(pod: Doc) -> bool:
    """Whether a pod is ready and stays."""
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
