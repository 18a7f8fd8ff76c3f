"""Trials of several rungs in one order."""

import pytest

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.ranking import Ranking


def ranked(*observations: tuple[int, int, float | None], maximize: bool = False) -> list[int]:
    ranking = Ranking(maximize=maximize)
    for trial, rung, value in observations:
        ranking.observe([Observation(trial, {}, {}, rung, value)])
    return ranking.at(range(len(ranking)))


@pytest.mark.parametrize(("maximize", "order"), [(False, [2, 0, 1]), (True, [1, 0, 2])])
def test_ranks_by_value_in_the_studys_direction(maximize: bool, order: list[int]) -> None:
    assert ranked((0, 0, 2.0), (1, 0, 3.0), (2, 0, 1.0), maximize=maximize) == order


def test_who_climbed_ranks_before_who_stayed_whatever_the_values() -> None:
    assert ranked((0, 0, 1.0), (1, 0, 2.0), (2, 0, 3.0), (1, 1, 50.0), (2, 1, 40.0), (2, 2, 90.0)) == [2, 1, 0]


def test_an_earlier_rung_told_late_changes_nothing() -> None:
    assert ranked((0, 1, 5.0), (1, 1, 6.0), (1, 0, -100.0)) == [0, 1]


def test_a_rung_told_again_has_the_later_value() -> None:
    assert ranked((0, 0, 5.0), (1, 0, 6.0), (1, 0, 4.0)) == [1, 0]


def test_failed_trials_come_last_and_stay_there() -> None:
    told = [(0, 0, 1.0), (0, 1, None), (1, 0, 9.0), (2, 0, float("nan")), (2, 1, 0.0), (3, 0, float("inf"))]
    assert ranked(*told) == [1, 3, 0, 2]


def test_counts_trials_once_and_those_with_a_value_apart() -> None:
    ranking = Ranking(maximize=False)
    for trial, rung, value in [(0, 0, 1.0), (0, 1, 1.0), (1, 0, None), (2, 0, 1.0), (2, 1, None)]:
        ranking.observe([Observation(trial, {}, {}, rung, value)])
    assert (len(ranking), ranking.scored) == (3, 1)
    assert 2 in ranking
    assert 3 not in ranking


def test_few_trials_of_the_highest_rung_count_as_good() -> None:
    ranking = Ranking(maximize=True)
    assert ranking.most_good == 0
    ranking.observe([Observation(0, {}, {}, 0, None)])
    assert ranking.most_good == 0
    for trial in range(200):
        ranking.observe([Observation(trial, {}, {}, 0, 1.0)])
        if trial < 40:
            ranking.observe([Observation(trial, {}, {}, 1, 1.0)])
        if trial == 5:
            assert ranking.most_good == 5
    assert ranking.most_good == 12
