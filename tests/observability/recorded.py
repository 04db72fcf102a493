"""Scrapes of real services -> series for promtool: what was counted between two scrapes is spread over an hour."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from postlane.ops.backup import textfile

MINUTES = 60


def series(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """By instance ("sender-1": its /metrics); counters grow from the one to the other, gauges stay as they ended."""
    made: dict[str, str] = {f'{textfile.LAST_SUCCESS}{{prefix=""}}': f"0x{MINUTES}"}
    for instance, text in after.items():
        job = f"postlane-{instance.partition('-')[0]}"
        made[f'up{{instance="{instance}",job="{job}"}}'] = f"1x{MINUTES}"
        began = _samples(before[instance])
        for name, (value, counts) in _samples(text).items():
            metric, labels = name
            own = {**dict(labels), "instance": instance, "job": job}
            inner = ",".join(f'{label}="{said}"' for label, said in sorted(own.items()))
            first = began.get(name, (0.0, counts))[0]
            step = (value - first) / MINUTES
            made[f"{metric}{{{inner}}}"] = f"{first}+{step}x{MINUTES}" if counts else f"{value}x{MINUTES}"
    return made


def _samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, bool]]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(("postlane_", "process_start")):
                counts = family.type in ("counter", "histogram")
                found[(sample.name, tuple(sorted(sample.labels.items())))] = (sample.value, counts)
    return found
