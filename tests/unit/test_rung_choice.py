"""Which rungs are left out as a study runs."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialfleet_coordinator.rung_choice import (
    FEWEST_COSTS,
    FEWEST_RANKS,
    FULL_START_AFTER,
    RANKS_POOL,
    Finished,
    RungChoice,
)
from trialfleet_shared.ladder import Ladder, Rung

LADDER = Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1), Rung(1.0, 5)))


def climb(
    choice: RungChoice, *, seconds: tuple[float, ...], scores: tuple[float, ...], first_of_its_slot: bool = False
) -> None:
    marks = [
        Finished(rung, *mark, typical=rung > 0 or not first_of_its_slot)
        for rung, mark in enumerate(zip(seconds, scores, strict=True))
    ]
    for place, mark in enumerate(marks):
        choice.observe(marks[:place], mark)


def test_every_rung_is_climbed_while_nothing_is_known() -> None:
    choice = RungChoice(LADDER, 3.0)
    assert choice.climbed == (0, 1, 2, 3)
    assert (choice.first, choice.above(0), choice.left_out) == (0, 1, ())


def test_once_some_trials_have_climbed_to_all_rows_every_tenth_starts_there() -> None:
    choice = RungChoice(LADDER, 3.0)
    for trial in range(FULL_START_AFTER):
        assert {choice.start(trial) for trial in range(100)} == {0}
        climb(choice, seconds=(1.0, 3.0), scores=(trial, trial))
        climb(choice, seconds=(1.0, 3.0, 10.0, 10.0), scores=(trial, trial, trial, trial))
    assert [trial for trial in range(50, 100) if choice.start(trial) != 0] == [50, 60, 70, 80, 90]
    assert choice.start(50) == 2, "on the lowest rung that has them"


def test_rungs_that_save_enough_stay() -> None:
    choice = RungChoice(LADDER, 3.0)
    for trial in range(20):
        climb(choice, seconds=(1.0, 3.0, 10.0), scores=(trial, trial, trial))
    assert choice.left_out == ()


def test_a_rung_that_costs_nearly_as_much_as_the_next_is_left_out() -> None:
    choice = RungChoice(LADDER, 3.0)
    for _ in range(FEWEST_COSTS):
        assert choice.left_out == ()
        climb(choice, seconds=(1.0, 8.0, 10.0), scores=(0.0, 0.0, 0.0))
    assert choice.left_out == (1,)
    assert choice.above(0) == 2
    assert choice.above(1) == 2, "who waits on a rung that is left out may still climb"


def test_evaluations_shorter_than_their_overhead_have_no_use_for_a_ladder() -> None:
    choice = RungChoice(LADDER, 3.0)
    for _ in range(FEWEST_COSTS):
        climb(choice, seconds=(1e-5, 3e-5, 1e-4), scores=(0.0, 0.0, 0.0))
    assert choice.climbed == (2, 3)


def test_what_a_slot_does_first_says_nothing_of_costs() -> None:
    choice = RungChoice(LADDER, 3.0)
    for _ in range(FEWEST_COSTS):
        climb(choice, seconds=(3.0, 3.0, 10.0), scores=(0.0, 0.0, 0.0), first_of_its_slot=True)
    assert choice.left_out == ()
    for _ in range(FEWEST_COSTS):
        climb(choice, seconds=(3.0, 3.0, 10.0), scores=(0.0, 0.0, 0.0))
    assert choice.left_out == (0,)


def test_what_a_few_trials_do_once_leaves_no_rung_out() -> None:
    choice = RungChoice(LADDER, 3.0)
    for trial in range(FEWEST_COSTS + 4):
        once = 20.0 if trial in (0, 4) else 0.0
        climb(choice, seconds=(1.0 + once, 3.0, 10.0), scores=(0.0, 0.0, 0.0))
        assert choice.left_out == ()


def test_a_rung_that_saves_on_the_dear_ones_alone_stays() -> None:
    choice = RungChoice(LADDER, 3.0)
    for trial in range(FEWEST_COSTS):
        climb(choice, seconds=(1.0, 10.0, 100.0) if trial == 1 else (0.9, 0.95, 1.0), scores=(0.0, 0.0, 0.0))
    assert 0 in choice.climbed


def test_a_rung_costs_all_of_its_folds() -> None:
    choice = RungChoice(Ladder((Rung(0.3, 1), Rung(0.5, 5), Rung(1.0, 5))), 3.0)
    for _ in range(FEWEST_COSTS):
        climb(choice, seconds=(9.0, 9.0, 30.0), scores=(0.0, 0.0, 0.0))
    assert choice.left_out == (), "one fold is a fifth of five that cost as much each"


def test_folds_that_count_on_the_next_rung_cost_nothing() -> None:
    choice = RungChoice(Ladder((Rung(0.3, 4), Rung(0.3, 5), Rung(1.0, 5))), 3.0)
    for trial in range(FEWEST_RANKS):
        climb(choice, seconds=(3.0, 3.0, 10.0), scores=(-trial, trial, trial))
    assert choice.left_out == ()


def test_a_rung_that_ranks_the_other_way_round_is_left_out() -> None:
    choice = RungChoice(LADDER, 3.0)
    for trial in range(FEWEST_RANKS):
        assert choice.left_out == ()
        climb(choice, seconds=(1.0, 3.0, 10.0), scores=(-trial, trial, trial))
    assert choice.left_out == (0,)


@pytest.mark.parametrize(("contrary", "left_out"), [(33, ()), (34, (0,))])
def test_two_rankings_contradict_each_other_beyond_two_standard_errors(
    contrary: int, left_out: tuple[int, ...]
) -> None:
    """Of ten trials there are 45 pairs. Kendall's tau has the variance 2 (2 n + 5) / (9 n (n - 1)) by chance, so -0.497 is two
    errors below zero: more than 33 pairs the other way round."""
    choice = RungChoice(LADDER, 3.0)
    trials = 10
    order: list[int] = []
    for trial in range(trials):  # it comes before as many of those that are less as may be
        order.insert(max(len(order) - contrary, 0), trial)
        contrary -= min(contrary, trial)
    assert contrary == 0
    for trial in range(trials):
        climb(choice, seconds=(1.0, 3.0, 10.0), scores=(order.index(trial), trial, trial))
    assert choice.left_out == left_out


def test_rankings_are_those_of_the_latest_trials() -> None:
    choice = RungChoice(LADDER, 3.0)
    for trial in range(RANKS_POOL):
        climb(choice, seconds=(1.0, 3.0, 10.0), scores=(trial, trial, trial))
    for trial in range(RANKS_POOL):
        climb(choice, seconds=(1.0, 3.0, 10.0), scores=(1000 - trial, 1000 + trial, 1000 + trial))
    assert choice.left_out == (0,)


def test_rankings_that_have_nothing_to_do_with_each_other_are_seldom_taken_for_contrary_ones() -> None:
    left_out = 0
    for seed in range(100):
        choice, draw = RungChoice(LADDER, 3.0), random.Random(seed)
        for _ in range(FEWEST_RANKS):
            climb(choice, seconds=(1.0, 3.0, 10.0), scores=(draw.random(), trial := draw.random(), trial))
        left_out += bool(choice.left_out)
    assert left_out <= 5, "2.3% of the time by chance, where a single standard error has 16%"


def test_a_rung_whose_ranking_is_loose_stays() -> None:
    choice = RungChoice(LADDER, 3.0)
    draw = random.Random(0)
    for trial in range(300):
        noise = draw.gauss(0, 300)
        climb(choice, seconds=(1.0, 3.0, 10.0), scores=(trial + noise, trial, trial))
    assert choice.left_out == ()


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0, 100), min_size=3, max_size=3), st.lists(st.integers(-3, 3), min_size=3, max_size=3)
        ),
        max_size=150,
    ),
    st.floats(1.1, 10),
)
def test_all_rows_are_always_climbed_and_every_rung_leads_up(
    trials: list[tuple[list[float], list[int]]], factor: float
) -> None:
    choice = RungChoice(LADDER, factor)
    for seconds, scores in trials:
        climb(choice, seconds=tuple(seconds), scores=tuple(scores))
        assert choice.climbed[-2:] == (2, 3)
        assert sorted((*choice.climbed, *choice.left_out)) == [0, 1, 2, 3]
        assert all(choice.above(rung) > rung for rung in range(3))
