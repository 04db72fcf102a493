"""The overlays as `kubectl kustomize` renders them, and moved into namespaces of a test."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "production")
KUBECTL = Path(sys.executable).parent / "kubectl"
CLUSTER_KINDS = frozenset({"Namespace", "PriorityClass"})
Doc = dict[str, Any]


def render(folder: Path) -> list[Doc]:
    """Every object of a kustomization. AssertionError with what kustomize says."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def overlay(name: str) -> list[Doc]:
    """One of OVERLAYS."""
    return render(ROOT / "k8s" / "overlays" / name)


def production_with(component: str) -> list[Doc]:
    """The production overlay with a component that it does not have by itself."""
    with tempfile.TemporaryDirectory(dir=ROOT / "k8s" / "overlays") as folder:
        body = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../production"],
            "components": [f"../../components/{component}"],
        }
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(body))
        return [copy.deepcopy(doc) for doc in render(Path(folder))]


def pod_specs(docs: Iterable[Doc]) -> Iterator[tuple[str, Doc]]:
    """(kind/name, pod spec) of everything that makes pods."""
    for doc in docs:
        template = pod_template(doc)
        if template is not None:
            yield f"{doc['kind']}/{doc['metadata']['name']}", template["spec"]


def pod_template(doc: Doc) -> Doc | None:
    """The template of the pods that this object makes."""
    spec: Doc = doc.get("spec", {})
    match doc["kind"]:
        case "CronJob":
            spec = spec["jobTemplate"]["spec"]
        case "Deployment" | "StatefulSet" | "Job":
            pass
        case _:
            return None
    template: Doc = spec["template"]
    return template


def named(docs: Iterable[Doc], kind: str, name: str) -> Doc:
    """The object of that kind and name."""
    return next(doc for doc in docs if doc["kind"] == kind and doc["metadata"]["name"] == name)


def moved(docs: Iterable[Doc], namespace: str) -> list[Doc]:
    """Copies for a namespace of a test: nothing of them has the name of anything of an installation.

    Priority classes, which have no namespace, get the namespace's name in front; pods get the label `postlane-test`.
    """
    copies = []
    for original in docs:
        doc = copy.deepcopy(original)
        if doc["kind"] == "Namespace":
            doc["metadata"]["name"] = namespace
        elif doc["kind"] == "PriorityClass":
            doc["metadata"]["name"] = f"{namespace}-{doc['metadata']['name']}"
        else:
            doc["metadata"]["namespace"] = namespace
        template = pod_template(doc)
        if template is not None:
            template["metadata"].setdefault("labels", {})["postlane-test"] = namespace
            if name := template["spec"].get("priorityClassName"):
                template["spec"]["priorityClassName"] = f"{namespace}-{name}"
        copies.append(doc)
    return copies
