"""The sketch of answer times: merging is associative and loses nothing, quantiles keep their error, all is bounded."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from postlane.core.health_facts import Tally
from postlane.core.health_sketch import BUCKETS_MAX, FIRST_S, RELATIVE_ERROR, Sketch, bucket_of
from postlane.core.health_sums import ByDomain, Kind, Sums

times = st.lists(st.floats(min_value=0.001, max_value=3600), max_size=60)
SOME = settings(max_examples=60, deadline=None)


def sketch(values: list[float]) -> Sketch:
    made = Sketch()
    for value in values:
        made.add(value)
    return made


def merged(*sketches: Sketch) -> Sketch:
    made = Sketch()
    for one in sketches:
        made.merge(one.buckets)
    return made


@SOME
@given(times, times, times)
def test_merging_is_associative_and_commutative_and_the_same_as_one_sketch_of_all(
    a: list[float], b: list[float], c: list[float]
) -> None:
    left = merged(merged(sketch(a), sketch(b)), sketch(c)).buckets
    right = merged(sketch(c), merged(sketch(b), sketch(a))).buckets
    assert left == right == sketch(a + b + c).buckets


@SOME
@given(times.filter(bool), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_its_error_of_the_true_one(values: list[float], q: float) -> None:
    true = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    told = sketch(values).quantile(q)
    assert told is not None
    assert abs(told - true) <= true * RELATIVE_ERROR * 1.001


@SOME
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_whatever_is_called_a_time_falls_into_a_bucket(value: float) -> None:
    assert 0 <= bucket_of(value) <= BUCKETS_MAX


def test_none_of_none_and_the_shortest_is_the_first_bucket() -> None:
    assert Sketch().quantile(0.5) is None
    assert sketch([0.0, -1.0, 0.0005]).quantile(1) == FIRST_S


kinds = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(list(Kind))), max_size=30)


@SOME
@given(kinds, kinds)
def test_sums_of_two_senders_are_the_sums_of_all_their_results(one: list, other: list) -> None:
    apart, together = ByDomain(), ByDomain()
    for results in (one, other):
        sums = ByDomain()
        for domain, kind in results:
            sums.note(domain, kind, 0.02)
            together.note(domain, kind, 0.02)
        apart.merge(sums.total.tally, [(domain, s.tally) for domain, s in sums.named().items()])
    assert apart.total.tally == together.total.tally
    assert {d: s.tally for d, s in apart.domains.items()} == {d: s.tally for d, s in together.domains.items()}


def test_a_flood_of_domains_is_bounded_and_loses_no_result() -> None:
    sums = ByDomain()
    for number in range(5000):
        sums.note(f"d{number}.example", Kind.DELIVERED)
        sums.note("big.example", Kind.DEFERRED)
    named = sums.named()
    assert len(named) == 65
    assert named["big.example"].counts[Kind.DEFERRED] == 5000
    assert sum(s.count for s in named.values()) == sums.total.count == 10_000


def test_answered_is_what_the_provider_said_itself() -> None:
    sums = Sums()
    sums.merge(Tally(delivered=3, bounced=2, deferred=1, failed=4, unreached=5))
    assert (sums.count, sums.answered) == (15, 6)
    assert sums.share(Kind.FAILED, Kind.UNREACHED) == 9 / 15
    assert Sums().share(Kind.FAILED) == 0
