"""The parts of the harness that need no cluster: what would make a report lie."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import report, soak
from tests.chaos.__main__ import _wanted
from tests.chaos.compare.trial import Outcome
from tests.chaos.faults_storage import _HEADER, _batches, _flip
from tests.chaos.nemesis import Nemesis, Row
from tests.chaos.registry import FAULTS


def sampler(*series: tuple[str, list[float], float]) -> Any:
    samples = [
        soak.Sample(at_s=float(i), name=name, age_s=age_s, rss_mb=rss, fds=10, threads=5)
        for name, values, age_s in series
        for i, rss in enumerate(values)
    ]
    return SimpleNamespace(samples=samples, topics_mb=[])


def flat(verdict: list[dict[str, Any]], service: str, measure: str) -> bool | None:
    return next(row["flat"] for row in verdict if row["service"] == service and row["measure"] in (measure, "all"))


def test_growth_is_not_flat_and_noise_is() -> None:
    rising, noisy = [100.0 + 10 * i for i in range(30)], [100.0 + i % 7 for i in range(30)]
    verdict = soak.verdict(sampler(("sender-1", rising, 300), ("router-1", noisy, 300)))
    assert flat(verdict, "sender", "rss_mb") is False
    assert flat(verdict, "router", "rss_mb") is True
    assert flat(verdict, "sender", "fds") is True


def test_topics_may_grow_and_not_faster_and_faster() -> None:
    steady, faster = [(5.0 * i, 0.3 * i) for i in range(40)], [(5.0 * i, 0.02 * i * i) for i in range(40)]
    steady[20:] = [(at, mb - 6.0) for at, mb in steady[20:]]  # a broker lost its disk
    for topics_mb, expected in ((steady, True), (faster, False)):
        (row,) = soak.verdict(SimpleNamespace(samples=[], topics_mb=topics_mb))  # type: ignore[arg-type]
        assert row["flat"] is expected


def test_young_processes_say_nothing_of_growth() -> None:
    verdict = soak.verdict(sampler(("sender-1", [50.0, 100.0] * 20, 5.0), ("router-1", [100.0] * 4, 300)))
    assert [row["service"] for row in verdict] == ["router"]
    assert flat(verdict, "router", "rss_mb") is None  # too few samples to say anything


def test_throughput_is_normal_when_a_whole_window_keeps_up() -> None:
    nemesis = Nemesis.__new__(Nemesis)
    trickle = [100.0 + i for i in range(10)]
    steady = [112.0 + i / 10 for i in range(40)]
    nemesis.load = SimpleNamespace(per_s=10.0)  # type: ignore[assignment]
    nemesis.oracle = SimpleNamespace(times=trickle)  # type: ignore[assignment]
    assert nemesis._normal_after(100.0) is None
    nemesis.oracle = SimpleNamespace(times=trickle + steady)  # type: ignore[assignment]
    assert nemesis._normal_after(100.0) == pytest.approx(12.0)


def test_a_row_is_good_only_without_a_broken_promise() -> None:
    assert Row("f", "what", 1).good
    for broken in ({"lost": ["x"]}, {"repeated": ["x"]}, {"other": ["x"]}, {"failed": "x"}):
        row = Row("f", "what", 1, **broken)  # type: ignore[arg-type]
        assert not row.good
        assert report.broken([row]) == ["f: x"]
    left_out = report.table([Row("f", "what", 1, not_injected="needs root").as_json()])
    assert "not injected: needs root" in left_out


def test_every_fault_says_what_it_does_and_unknown_names_are_refused() -> None:
    assert all(fault.what for fault in FAULTS.values())
    assert _wanted(["all"]) == [*FAULTS, "mixed"]
    with pytest.raises(SystemExit, match="no-such"):
        _wanted(["no-such"])


def test_batches_are_found_in_a_segment_and_one_bit_flips(tmp_path: Path) -> None:
    segment = tmp_path / "0.log"

    def batch(first: int, payload: bytes, attributes: int) -> bytes:
        length = _HEADER.size - 12 + len(payload)
        return _HEADER.pack(first, length, 0, 2, 0, attributes, 0, 0, 0, 0, 0, 0, 1) + payload

    whole = batch(0, b"a" * 40, 0) + batch(7, b"b" * 10, 0x20)
    segment.write_bytes(whole + struct.pack(">qi", 8, 500))  # a torn third one
    assert list(_batches(segment)) == [(0, 0, _HEADER.size + 40, 0), (7, _HEADER.size + 40, _HEADER.size + 10, 0x20)]
    before = segment.read_bytes()
    _flip(segment, 70, random.Random(1))
    changed = [(i, a ^ b) for i, (a, b) in enumerate(zip(before, segment.read_bytes(), strict=True)) if a != b]
    assert [i for i, _ in changed] == [70]
    assert changed[0][1].bit_count() == 1


def test_a_mail_left_for_a_person_is_not_called_lost() -> None:
    outcome = Outcome("n", "k", 3, 1, ("a",), (), 0, 2, 1, 0, 0, 1.0, "")
    assert (outcome.as_json()["lost"], outcome.as_json()["uncertain"]) == (1, 2)
