"""Which metrics an expression names, and which exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from observability.__main__ import HERE

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABELS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)")
_WORDS = {"sum", "min", "max", "avg", "count", "rate", "increase", "deriv", "changes", "absent", "vector", "time"}
_WORDS |= {"label_replace", "histogram_quantile", "max_over_time", "avg_over_time", "and", "or", "unless", "bool"}
_WORDS |= {"offset"}
# Of exporters and of Prometheus itself; the alerts that use them say so in `needs`.
FOREIGN = frozenset({"up", "ALERTS", "node_filesystem_avail_bytes", "node_filesystem_size_bytes"})


def named(expr: str) -> set[str]:
    """The metric names in a PromQL expression."""
    bare = _LABELS.sub(" ", _STRING.sub(" ", expr))
    return {word for word in _NAME.findall(bare) if word not in _WORDS and not word.isdigit()}


def rules() -> list[dict[str, Any]]:
    """Every rule of rules.yml."""
    groups = yaml.safe_load((HERE / "prometheus" / "rules.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """(where, expression) of every query of the dashboards."""
    for path in sorted((HERE / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"]


def used() -> dict[str, set[str]]:
    """Every metric that a rule or a dashboard names, with where; recorded series are taken apart already."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    where: dict[str, set[str]] = {}
    for rule in rules():
        for name in named(rule["expr"]):
            where.setdefault(name, set()).add(rule.get("alert") or rule["record"])
    for place, expr in queries():
        for name in named(expr):
            where.setdefault(name, set()).add(place)
    return {name: places for name, places in where.items() if name not in recorded}


def series_of(families: Iterable[Any]) -> set[str]:
    """The names of series that metric families expose, samples or not."""
    names: set[str] = set()
    for family in families:
        if family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "count", "sum")}
        elif family.type == "counter":
            names.add(f"{family.name}_total")
        else:
            names.add(family.name)
    return names
