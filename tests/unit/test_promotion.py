"""Halving, the threshold rule and racing, each alone."""

import math
import random
import sys
from collections.abc import Mapping

import pytest

from trialfleet_coordinator.promotion import (
    FINALISTS,
    MOST_FINALISTS,
    RACING_POOL,
    Halving,
    Promotion,
    Racing,
    beyond_threshold,
    mean,
)

#: On no rung is a trial under way.
NOBODY = [0, 0, 0].__getitem__


def halving_with(
    scores: list[float], *, rungs: int = 2, eta: float = 3.0, seconds: Mapping[int, float] | None = None
) -> Halving:
    halving = Halving(rungs, eta, defer_dear=seconds is not None)
    for trial, score in enumerate(scores):
        halving.finish(0, trial, score, (seconds or {}).get(trial, 1.0))
        halving.wait(0, trial, score)
    return halving


def climb(halving: Halving, trial: int, score: float) -> None:
    halving.leave(0, trial, score)
    halving.climb(0)


def test_nobody_climbs_before_a_rung_has_eta_trials() -> None:
    assert halving_with([1.0, 2.0]).candidate(NOBODY, closing=False) is None


def test_nobody_climbs_from_a_rung_on_which_more_are_under_way_than_have_finished_it() -> None:
    halving = halving_with([1.0, 2.0, 3.0], rungs=3)
    assert halving.candidate([4, 0, 0].__getitem__, closing=False) is None
    assert halving.candidate([3, 9, 9].__getitem__, closing=False) == Promotion(2, 0), "other rungs have no say in it"
    assert halving.candidate([4, 0, 0].__getitem__, closing=True) == Promotion(2, 0)


def test_the_best_third_climbs_and_only_once() -> None:
    halving = halving_with([1.0, 5.0, 2.0, 4.0, 3.0, 0.0])
    climbed = []
    while (promotion := halving.candidate(NOBODY, closing=False)) is not None:
        climb(halving, promotion.trial, {1: 5.0, 3: 4.0}[promotion.trial])
        climbed.append(promotion.trial)
    assert climbed == [1, 3]


def test_no_more_than_a_third_climb_though_each_is_better_than_those_before() -> None:
    halving = halving_with([1.0, 2.0, 3.0])
    climb(halving, 2, 3.0)
    halving.finish(0, 3, 4.0, 1.0)
    halving.wait(0, 3, 4.0)
    assert halving.candidate(NOBODY, closing=False) is None
    assert halving.candidate(NOBODY, closing=True) == Promotion(3, 0), "a finalist climbs at the end"


def test_a_promoted_trial_keeps_its_rank_so_that_the_quota_is_of_all_that_finished() -> None:
    halving = halving_with([3.0, 2.0, 1.0])
    climb(halving, 0, 3.0)
    assert halving.candidate(NOBODY, closing=False) is None, "1/3 of three is one, and that one has climbed"


def test_a_higher_rung_is_served_first() -> None:
    halving = halving_with([float(score) for score in range(9)], rungs=3)
    for trial in (8, 7, 6):
        climb(halving, trial, float(trial))
        halving.finish(1, trial, float(trial), 1.0)
        halving.wait(1, trial, float(trial))
    assert halving.candidate(NOBODY, closing=False) == Promotion(8, 1)


def test_a_dear_trial_waits_until_it_is_a_small_part_of_what_was_spent() -> None:
    """The best of six took twenty times as long as the others, the second best climbs."""
    halving = halving_with([1.0, 5.0, 2.0, 4.0, 3.0, 0.0], seconds={1: 20.0})
    assert halving.candidate(NOBODY, closing=False) == Promotion(3, 0)
    climb(halving, 3, 4.0)
    assert halving.candidate(NOBODY, closing=False) is None, "the place is kept for the dear one"
    assert halving.candidate(NOBODY, closing=True) == Promotion(1, 0)
    for trial in range(6, 6 + 1000):
        halving.finish(0, trial, -1.0, 1.0)
    assert halving.candidate(NOBODY, closing=False) == Promotion(1, 0)


def test_a_trial_is_not_dear_by_being_the_longest_of_equals() -> None:
    halving = halving_with([5.0, 1.0, 2.0], seconds={0: 2.5})
    assert halving.candidate(NOBODY, closing=False) == Promotion(0, 0)


@pytest.mark.parametrize(("longest", "climbs"), [(3.25, 0), (3.35, 1)])
def test_dear_is_what_took_three_times_the_median_and_a_tenth_of_a_second(longest: float, climbs: int) -> None:
    halving = halving_with([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], seconds={0: longest, 3: 0.5, 4: 0.5, 5: 0.5})
    assert halving.candidate(NOBODY, closing=False) == Promotion(climbs, 0)


def test_equal_scores_rank_by_trial_number() -> None:
    assert halving_with([1.0, 1.0, 1.0]).candidate(NOBODY, closing=False) == Promotion(0, 0)


def test_the_finalists_climb_at_the_end_however_few_finished() -> None:
    assert halving_with([1.0]).candidate(NOBODY, closing=True) == Promotion(0, 0)
    assert halving_with([1.0]).candidate(NOBODY, closing=False) is None


def test_beyond_the_finalists_nobody_climbs_at_the_end_unless_among_the_best_third() -> None:
    halving = halving_with([-float(trial) for trial in range(FINALISTS + 2)])
    climbed = 0
    while (promotion := halving.candidate(NOBODY, closing=True)) is not None:
        climb(halving, promotion.trial, -float(promotion.trial))
        climbed += 1
    assert climbed == FINALISTS


def test_the_leader_is_the_best_on_the_highest_rung_that_anyone_finished() -> None:
    assert Halving(2, 3.0, defer_dear=False).leader() is None
    halving = halving_with([1.0, 3.0, 2.0])
    assert halving.leader() == (1, 3.0)
    halving.finish(1, 0, -5.0, 1.0)
    assert halving.leader() == (0, -5.0)


def test_who_failed_leads_no_rung_and_takes_no_finalist_s_place() -> None:
    halving = halving_with([-float(trial) for trial in range(FINALISTS + 2)], eta=9.0)
    for trial in range(FINALISTS):
        assert halving.candidate(NOBODY, closing=True) == Promotion(trial, 0)
        climb(halving, trial, -float(trial))
        halving.rule_out(trial)
    assert halving.leader() == (FINALISTS, -float(FINALISTS))
    assert halving.candidate(NOBODY, closing=True) == Promotion(FINALISTS, 0)
    assert halving.hopeless(FINALISTS + 2) == []


def test_where_all_fail_not_all_are_tried() -> None:
    halving = halving_with([-float(trial) for trial in range(30)], eta=30.0)
    tried = 0
    while (promotion := halving.candidate(NOBODY, closing=True)) is not None:
        climb(halving, promotion.trial, -float(promotion.trial))
        halving.rule_out(promotion.trial)
        tried += 1
    assert tried == MOST_FINALISTS


def test_hopeless_are_those_whom_all_trials_to_come_could_not_lift() -> None:
    # Of 12 trials the best four climb: after six, ranks 4 and 5 can not be among them any more.
    halving = halving_with([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert sorted(halving.hopeless(12)) == [4, 5]
    assert halving.hopeless(18) == []


def test_hopeless_leaves_the_finalists_in() -> None:
    halving = halving_with([float(trial) for trial in range(6)])
    assert len(halving.hopeless(6)) == 6 - FINALISTS


@pytest.mark.parametrize(
    ("value", "best", "maximize", "pruned"),
    [
        (0.08, 0.9, True, True),
        (0.10, 0.9, True, False),
        (-0.01, 0.9, True, True),
        (-11.0, -1.0, True, True),
        (-9.0, -1.0, True, False),
        (5.0, 0.0, True, False),
        (-5.0, 0.0, True, False),
        (11.0, 1.0, False, True),
        (9.0, 1.0, False, False),
        (-0.05, -1.0, False, True),
        (-0.2, -1.0, False, False),
        (3.0, -1.0, False, True),
        # Worse by just the factor is not more.
        (0.1, 1.0, True, False),
        (-10.0, -1.0, True, False),
        (10.0, 1.0, False, False),
        (-0.1, -1.0, False, False),
    ],
)
def test_the_threshold_rule_knows_sign_and_direction(value: float, best: float, maximize: bool, pruned: bool) -> None:
    assert beyond_threshold(value, best, threshold=0.1, maximize=maximize) is pruned


def test_a_race_needs_a_measure_of_the_noise_between_folds() -> None:
    racing = Racing(5)
    assert racing.verdict([0.1]).goes_on, "no incumbent"
    racing.complete(0, [0.9, 0.8, 0.9, 0.8, 0.9])
    assert racing.verdict([0.1]).goes_on, "one complete trial has no differences"


def test_a_trial_far_behind_is_out_after_one_fold_and_a_close_one_goes_on() -> None:
    racing = Racing(5)
    racing.complete(0, [0.90, 0.80, 0.90, 0.80, 0.90])
    racing.complete(1, [0.89, 0.80, 0.88, 0.80, 0.89])
    assert not racing.verdict([0.5]).goes_on
    assert racing.verdict([0.899]).goes_on
    assert racing.verdict([0.95]).goes_on


def test_the_expected_score_is_the_incumbents_mean_plus_the_difference_seen() -> None:
    racing = Racing(2)
    racing.complete(0, [0.9, 0.7])
    racing.complete(1, [0.8, 0.7])
    assert racing.verdict([0.5]).expected == pytest.approx(0.8 - 0.4)


@pytest.mark.parametrize(("seen", "furthest"), [(1, 0.8416), (2, 0.4859), (3, 0.2805)])
def test_a_race_is_decided_at_four_fifths_of_what_the_folds_to_come_may_bring(seen: int, furthest: float) -> None:
    """Differences between folds have the variance 4/3. The folds left, of n, differ from the mean of those seen with the
    variance 4/3 (1/seen + 1/left), which counts in the mean over all folds by the square of left/n. The normal
    distribution's quantile is 0.8416."""
    racing = Racing(4)
    racing.complete(0, [7.0, 7.0, 7.0, 7.0])
    racing.complete(1, [6.0, 4.0, 6.0, 4.0])
    assert racing.verdict([7.0 - 0.999 * furthest] * seen).goes_on
    assert not racing.verdict([7.0 - 1.001 * furthest] * seen).goes_on


def test_a_trial_with_all_folds_has_none_to_go_on_with() -> None:
    racing = Racing(3)
    racing.complete(0, [0.9, 0.7, 0.8])
    racing.complete(1, [0.8, 0.7, 0.5])
    assert racing.verdict([2.0, 3.0, 4.0]) == (False, pytest.approx(3.0))


def test_identical_trials_do_not_make_a_race_certain() -> None:
    """Duplicates of the incumbent carry no information on the noise."""
    racing = Racing(3)
    for trial in range(3):
        racing.complete(trial, [0.9, 0.8, 0.7])
    assert racing.verdict([0.1]).goes_on


def test_the_incumbent_is_the_same_in_whichever_order_equal_trials_completed() -> None:
    one, other = Racing(2), Racing(2)
    for racing, entries in ((one, [(0.5, 0.25), (0.25, 0.5)]), (other, [(0.25, 0.5), (0.5, 0.25)])):
        for trial, entry in enumerate(entries):
            racing.complete(trial, entry)
    assert one.verdict([0.1]) == other.verdict([0.1])


def test_the_largest_numbers_there_are_can_race() -> None:
    huge = sys.float_info.max
    racing = Racing(3)
    for trial, scores in enumerate(([huge, huge, huge], [-huge, huge, -huge], [-huge, -huge, -huge])):
        racing.complete(trial, scores)
    assert racing.verdict([-huge]).goes_on, "so large a distance can not be told from any other"
    assert racing.verdict([huge, huge, huge]).expected == pytest.approx(huge)
    steady = Racing(3)
    steady.complete(0, [huge, huge, huge])
    steady.complete(1, [0.0, 0.0, 0.0])
    assert steady.verdict([-huge]) == (True, -huge)


@pytest.mark.parametrize("values", [[-0.0], [-0.0, -0.0]])
def test_a_mean_is_no_negative_zero(values: list[float]) -> None:
    assert math.copysign(1.0, mean(values)) == 1.0


def test_a_race_is_the_same_in_whichever_order_many_trials_completed() -> None:
    chance = random.Random(1)
    entries = [(trial, [chance.gauss(0, 1 + trial / 10) for _ in range(3)]) for trial in range(3 * RACING_POOL)]
    one, other = Racing(3), Racing(3)
    for racing, order in ((one, entries), (other, chance.sample(entries, len(entries)))):
        for trial, scores in order:
            racing.complete(trial, scores)
    for score in range(-20, 20):
        assert one.verdict([float(score)]) == other.verdict([float(score)])
