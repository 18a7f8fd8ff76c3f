"""CPU seconds spent and saved, counted while a study runs."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.exposition import LADDER, a_result

from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.ports import TrialRecord
from trialfleet_coordinator.report import TrialCosts, estimate_savings
from trialfleet_coordinator.savings import RunningSavings
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, EvaluationResult, Outcome

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def run(savings: RunningSavings, trial: int, state: TrialState, *results: EvaluationResult) -> None:
    for result in results:
        savings.answered(result)
    savings.decided(trial, state)


def test_a_trial_pruned_on_the_lowest_rung_saved_all_above_it() -> None:
    savings = RunningSavings(LADDER)
    run(savings, 0, PRUNED, a_result(0, cpu=2.0))
    assert savings.spent == 2
    assert savings.baseline == pytest.approx(5 * 20), "five folds at ten times the rows"
    assert savings.pruning == pytest.approx(4 * 20)
    assert savings.subsampling == pytest.approx(20 - 2)
    assert savings.caching == 0


def test_a_trial_is_priced_at_the_ratio_that_was_measured() -> None:
    savings = RunningSavings(Ladder((Rung(0.1, 1), Rung(1.0, 1))))
    run(savings, 0, COMPLETE, a_result(0, cpu=2.0), a_result(0, 1, cpu=6.0))
    assert savings.baseline == 8, "all that was spent is told, though the baseline needs two seconds less"
    run(savings, 1, PRUNED, a_result(1, cpu=3.0))
    assert savings.baseline == pytest.approx(6 + 9), "three times as much on all rows, not ten times"


def test_what_a_slot_evaluates_first_is_priced_as_the_others_are() -> None:
    savings = RunningSavings(Ladder((Rung(0.5, 1), Rung(1.0, 1))))
    run(savings, 0, PRUNED, a_result(0, cpu=2.0))
    run(savings, 1, PRUNED, msgspec.structs.replace(a_result(1, cpu=50.0), worker="w", slot=0))
    assert savings.baseline == 4 + 50, "all that was spent is told, though the baseline needs 46 seconds less"
    for trial in range(2, 40):
        run(savings, trial, PRUNED, msgspec.structs.replace(a_result(trial, cpu=2.0), worker="w", slot=0))
    assert savings.baseline == 40 * 4


def test_only_what_a_slot_evaluates_first_is_priced_as_the_others_are_in_the_mean() -> None:
    savings = RunningSavings(Ladder((Rung(0.5, 1), Rung(1.0, 1))))
    for trial, seconds in enumerate((2.0, 4.0)):
        run(savings, trial, PRUNED, a_result(trial, cpu=seconds))
    first, second = (msgspec.structs.replace(a_result(trial, cpu=1.0), worker="w", slot=0) for trial in (2, 3))
    run(savings, 2, PRUNED, first)
    assert savings.baseline == 2 * (2.0 + 4.0 + 3.0)
    run(savings, 3, PRUNED, second)
    assert savings.baseline == 2 * (2.0 + 4.0 + 3.0 + 1.0)


def test_what_earlier_sessions_measured_informs_and_is_not_counted() -> None:
    ladder = Ladder((Rung(0.1, 1), Rung(1.0, 1)))
    earlier = [
        TrialRecord(0, {}, {}, COMPLETE, 1.0, "complete", [a_result(0, cpu=2.0), a_result(0, 1, cpu=6.0)]),
        TrialRecord(1, {}, {}, TrialState.RUNNING, None, "", [a_result(1, cpu=3.0)]),
    ]
    savings = RunningSavings(ladder, earlier)
    assert (savings.spent, savings.baseline) == (0, 0)
    run(savings, 1, PRUNED)
    assert savings.spent == 0
    assert savings.subsampling == pytest.approx(9 - 3)


def test_cached_evaluations_cost_nothing_and_save_what_they_cost_once() -> None:
    savings = RunningSavings(Ladder((Rung(1.0, 1),)))
    run(savings, 0, COMPLETE, a_result(0, cpu=4.0, cached=True))
    assert (savings.spent, savings.caching, savings.baseline) == (0, 4, 4)


def test_a_trial_that_failed_saved_nothing() -> None:
    savings = RunningSavings(LADDER)
    run(savings, 0, FAIL, a_result(0, cpu=2.0, outcome=Outcome.ERROR))
    assert (savings.spent, savings.baseline, savings.pruning, savings.subsampling) == (2, 2, 0, 0)


def test_the_test_part_is_spent_and_nothing_else() -> None:
    savings = RunningSavings(Ladder((Rung(1.0, 1),)))
    run(savings, 0, COMPLETE, a_result(0, cpu=4.0))
    savings.answered(a_result(0, fold=TEST_FOLD, cpu=3.0))
    assert (savings.spent, savings.baseline) == (7, 7)


def test_a_ladder_that_cost_more_than_it_saved_owes_it() -> None:
    savings = RunningSavings(Ladder((Rung(0.1, 1), Rung(1.0, 1))))
    run(savings, 0, COMPLETE, a_result(0, cpu=5.0), a_result(0, 1, cpu=6.0))
    assert savings.subsampling == 0
    assert savings.baseline == 11, "a counter can not take back what was told when the evaluations ended"
    run(savings, 1, PRUNED, a_result(1, cpu=5.0))
    assert savings.subsampling == 0, "one second saved pays off a part of the five"
    run(savings, 2, PRUNED, a_result(2, cpu=50.0))
    assert savings.subsampling == pytest.approx(1 + 10 - 5)
    assert savings.baseline == pytest.approx(6 + 6 + 60)


RESULTS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from([0.5, 1.0, 8.0]), st.booleans(), st.sampled_from([Outcome.OK, Outcome.ERROR])
    ),
    min_size=1,
    max_size=4,
)


@given(st.lists(st.tuples(RESULTS, st.sampled_from([COMPLETE, PRUNED, FAIL])), max_size=8))
def test_figures_never_fall_and_never_claim_more_than_there_is(
    trials: list[tuple[list[tuple[int, float, bool, Outcome]], TrialState]],
) -> None:
    savings = RunningSavings(LADDER)
    before = [0.0] * 5
    for number, (results, state) in enumerate(trials):
        for fold, (rung, cpu, cached, outcome) in enumerate(results):
            savings.answered(a_result(number, rung, fold, cpu=cpu, cached=cached, outcome=outcome))
        savings.decided(number, state)
        after = [savings.spent, savings.baseline, savings.pruning, savings.subsampling, savings.caching]
        assert all(now >= then for then, now in zip(before, after, strict=True))
        assert savings.baseline <= savings.spent + sum(after[2:]) + 1e-9
        before = after


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])  # else something is owed
def test_it_agrees_with_the_report_where_the_ratio_is_known(order: tuple[int, ...]) -> None:
    ladder = Ladder((Rung(0.5, 1), Rung(1.0, 1), Rung(1.0, 3)))
    folds = [a_result(9, 2, fold, cpu=2.0) for fold in (1, 2)]
    earlier = [a_result(9, 0, cpu=1.0), a_result(9, 1, cpu=2.0), *folds]
    trials = [
        [a_result(0, 0, cpu=1.0)],
        [a_result(1, 0, cpu=2.0), a_result(1, 1, cpu=4.0)],
        [a_result(2, 0, cpu=3.0, cached=True)],
    ]
    savings = RunningSavings(ladder, [TrialRecord(9, {}, {}, COMPLETE, 1.0, "complete", earlier)])
    for number in order:
        run(savings, number, PRUNED, *trials[number])
    own = estimate_savings([TrialCosts(results, failed=False) for results in trials], ladder, cpu=True)
    assert savings.spent == own.spent
    assert savings.baseline == pytest.approx(own.baseline)
    assert savings.pruning == pytest.approx(own.pruning)
    assert savings.subsampling == pytest.approx(own.subsampling)
    assert savings.caching == pytest.approx(own.caching)
