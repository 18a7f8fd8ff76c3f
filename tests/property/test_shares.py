"""Slots of a fleet among studies: whole, fair over time, nobody starved."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialfleet_coordinator.shares import LOWER_SHARE, Claim, FairShare, entitlements

MANY = 10**6


def claim(study: str, *, weight: float = 1.0, priority: int = 0, wanted: int = MANY, seconds: float = 0.0) -> Claim:
    return Claim(study, weight, priority, wanted, seconds)


claims_lists = st.lists(
    st.tuples(st.floats(0.01, 100), st.integers(-3, 3), st.one_of(st.integers(0, 20), st.just(MANY))), max_size=8
).map(
    lambda rows: [
        claim(f"s{i}", weight=weight, priority=priority, wanted=wanted)
        for i, (weight, priority, wanted) in enumerate(rows)
    ]
)


def had(claims: Sequence[Claim], slots: int, *, seconds: int = 4000) -> Counter[str]:
    """Slot-seconds of each study over so many seconds."""
    share, total = FairShare(), Counter[str]()
    for now in range(seconds):
        total.update(share.allot(claims, slots, float(now)))
    return total


@given(claims_lists, st.integers(0, 40))
def test_slots_are_whole_wanted_and_all_handed_out(claims: list[Claim], slots: int) -> None:
    share = FairShare()
    for now in (0.0, 1.0, 10.0, 11.0, 500.0):
        allotted = share.allot(claims, slots, now)
        assert set(allotted) == {c.study for c in claims}
        assert all(0 <= allotted[c.study] <= c.wanted for c in claims)
        assert sum(allotted.values()) == min(slots, sum(c.wanted for c in claims))


@given(claims_lists.filter(bool), st.integers(1, 40))
def test_entitlements_are_what_there_is_and_nobody_who_wants_is_entitled_to_nothing(
    claims: list[Claim], slots: int
) -> None:
    entitled = entitlements(claims, slots)
    assert sum(entitled.values()) == pytest.approx(min(slots, sum(c.wanted for c in claims)))
    assert all(entitled[c.study] > 0 for c in claims if c.wanted)


def test_equal_studies_get_their_weights_over_time_also_with_fewer_slots_than_studies() -> None:
    total = had([claim("a"), claim("b"), claim("c", weight=2.0)], 2)
    assert total["a"] == pytest.approx(2000, rel=0.02)
    assert total["b"] == pytest.approx(2000, rel=0.02)
    assert total["c"] == pytest.approx(4000, rel=0.02)


def test_a_higher_priority_overtakes_at_once_and_the_lower_one_still_gets_its_part() -> None:
    share = FairShare()
    assert share.allot([claim("low")], 4, 0.0) == {"low": 4}
    both = [claim("low"), claim("high", priority=1)]
    assert share.allot(both, 4, 0.1)["high"] >= 3
    total = had(both, 1)
    assert total["low"] == pytest.approx(4000 * LOWER_SHARE, rel=0.05)


def test_what_one_can_not_use_goes_to_the_others_of_its_priority_then_below() -> None:
    claims = [claim("a", wanted=1), claim("b", weight=0.1), claim("low", priority=-1, wanted=1)]
    assert entitlements(claims, 10) == pytest.approx({"a": 1.0, "b": 8.0, "low": 1.0})


def test_turns_are_longer_than_evaluations() -> None:
    share = FairShare()
    claims = [claim("a", seconds=60.0), claim("b", seconds=60.0)]
    allotted = [tuple(share.allot(claims, 1, float(now)).values()) for now in range(600)]
    changes = sum(one != other for one, other in pairwise(allotted))
    assert 2 <= changes <= 6
