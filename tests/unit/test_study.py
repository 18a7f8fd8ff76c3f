"""What a study decides about its trials, one rule at a time."""

import pytest

from tests.support.study_bench import FOLDS, THREE_RUNGS, Bench, trial_number
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    DrawTrials,
    Observe,
    StartEvaluations,
    TrialState,
)
from trialfleet_coordinator.events import (
    EvaluationFinished,
    EvaluationLost,
    FleetChanged,
    TimePassed,
)
from trialfleet_coordinator.promotion import Promotion
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig


def test_results_that_came_together_are_made_up_for_by_one_draw() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=9), slots=3)
    first, second = (
        EvaluationFinished(EvaluationResult(each.trial, 0, 0, 0, Outcome.OK, value=1.0, wall_seconds=0.1))
        for each in bench.in_flight[:2]
    )
    commands = bench.state.handle(first, second)
    assert [command for command in commands if isinstance(command, DrawTrials)] == [DrawTrials(range(6, 8))]


def test_promising_trials_climb_and_the_others_see_the_lowest_rung_only() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=27))
    bench.answer_all(trial_number)
    mix = bench.state.standings.rung_mix()
    assert mix[0] >= 27 / 2, "most trials never climb, though each is better than all before it"
    assert mix[2] >= 3, "the finalists are checked on all rows"
    assert set(bench.reasons().values()) == {"complete", "halving"}


def test_the_first_to_finish_wait_for_as_many_as_are_under_way() -> None:
    """The quick ones are no fair choice: on many slots the best of the first three would be next to anyone."""
    slots = 16
    bench = Bench(THREE_RUNGS, Budget(trials=1000), slots=slots)
    bench.seconds = lambda _: 1.0  # one is kept ahead of each slot
    while not any(evaluation.rung for evaluation in bench.in_flight):
        bench.answer(trial_number(bench.in_flight[0]))
    finished = bench.state.standings.halving.finished(0)
    assert finished >= 2 * slots - 1
    climbed = [evaluation.trial for evaluation in bench.in_flight if evaluation.rung]
    assert climbed[0] == finished - 1, "the best of them"


def test_rungs_that_cost_as_much_as_the_next_are_left_out() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=60))
    bench.seconds = lambda evaluation: 1000.0
    bench.answer_all(trial_number)
    assert bench.state.standings.choice.left_out == (0, 1)
    mix = bench.state.standings.rung_mix()
    assert mix[2] > 40, "new trials start on all rows"
    started = [c.evaluations[0] for c in bench.of(StartEvaluations)]
    assert {evaluation.rung for evaluation in started if evaluation.trial >= 20} == {2}


def test_a_resumed_study_leaves_out_the_same_rungs() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=60))
    bench.seconds = lambda evaluation: 1000.0 if evaluation.fraction < 1 else 1200.0
    for _ in range(40):
        bench.answer(trial_number(bench.in_flight[0]))
    resumed = bench.resumed()
    assert resumed.standings.choice.left_out == bench.state.standings.choice.left_out == (0, 1)


def test_what_later_folds_cost_changes_no_choice_when_a_study_is_resumed() -> None:
    bench = Bench(Ladder((Rung(0.5, 1), Rung(1.0, 1), Rung(1.0, 3))), Budget(trials=30))
    bench.seconds = lambda evaluation: 9000.0 if evaluation.fold else 1000.0 + 100.0 * evaluation.fraction
    bench.answer_all(trial_number)
    assert bench.state.standings.choice.left_out == (0,), "half of the rows costs as much as all, on the first fold"
    assert bench.resumed().standings.choice.left_out == (0,)


def test_what_each_slot_takes_for_its_first_evaluation_leaves_no_rung_out() -> None:
    slots = 8
    bench = Bench(THREE_RUNGS, Budget(trials=40), slots=slots)
    bench.seconds = lambda evaluation: evaluation.fraction + 100.0 * (evaluation.trial < slots and evaluation.rung == 0)
    for slot in range(slots):
        bench.answer(trial_number(bench.in_flight[0]), slot=slot)
    while bench.in_flight:
        bench.answer(-trial_number(bench.in_flight[0]), slot=0)
    assert bench.state.standings.choice.left_out == ()
    assert bench.resumed().standings.choice.left_out == ()


@pytest.mark.parametrize("budget", [Budget(seconds=60.0), Budget(trials=1000, cpu_seconds=60.0)])
def test_a_study_that_may_end_with_its_time_promotes_early_in_any_case(budget: Budget) -> None:
    bench = Bench(THREE_RUNGS, budget, config=EfficiencyConfig(adaptive_trial_allocation=False))
    bench.seconds = lambda evaluation: evaluation.fraction
    reached = 0
    for _ in range(40):
        reached = max(reached, bench.answer(trial_number(bench.in_flight[0])).rung)
    assert reached == 2


def test_without_adaptive_allocation_new_trials_come_before_promotions() -> None:
    order = []
    bench = Bench(THREE_RUNGS, Budget(trials=9), config=EfficiencyConfig(adaptive_trial_allocation=False))
    while bench.in_flight:
        order.append(bench.answer(trial_number(bench.in_flight[0])).rung)
    assert order[:9] == [0] * 9
    assert max(order[9:]) == 2


def test_the_threshold_rule_prunes_what_is_a_factor_worse_once_there_are_enough_scores() -> None:
    config = EfficiencyConfig(pruning_threshold=0.5, min_trials_before_pruning=2)
    bench = Bench(THREE_RUNGS, Budget(trials=50), config=config)
    for value in (1.0, 0.1, 0.1):
        bench.answer(value)
    assert bench.reasons() == {2: "threshold"}
    switched_off = Bench(
        THREE_RUNGS,
        Budget(trials=50),
        config=EfficiencyConfig(pruning_threshold=0.5, min_trials_before_pruning=2, enable_aggressive_pruning=False),
    )
    for value in (1.0, 0.1, 0.1):
        switched_off.answer(value)
    assert switched_off.reasons() == {}


def test_racing_stops_a_trial_after_the_folds_that_settle_it() -> None:
    bench = Bench(FOLDS, Budget(trials=10))
    bench.answer_all(lambda e: 10.0 - e.trial + 0.1 * ((e.fold * 7 + e.trial) % 5))
    folds = {trial.number: len(trial.results) for trial in bench.state.trials}
    assert folds[0] == folds[1] == 5, "an incumbent, and one to learn the noise from"
    assert folds[9] == 1
    assert bench.reasons()[9] == "racing"
    assert sum(folds.values()) < 10 * 5 / 2


def test_without_racing_every_fold_is_run() -> None:
    bench = Bench(FOLDS, Budget(trials=6), config=EfficiencyConfig(fold_racing=False))
    bench.answer_all(trial_number)
    assert all(len(trial.results) == 5 for trial in bench.state.trials)


def test_the_sampler_learns_what_a_raced_out_trial_would_have_scored() -> None:
    bench = Bench(FOLDS, Budget(trials=6))
    bench.answer_all(lambda e: 10.0 - e.trial + (1.0 if e.fold == 0 else 0.0) + 0.01 * (e.fold * e.trial % 3))
    told = {c.observation.trial: c.observation.value for c in bench.commands if isinstance(c, Observe)}
    assert told[5] == pytest.approx(10.0 - 5 + 0.2, abs=0.05), "fold 0 is the easy one, and the incumbent knows it"


def test_a_failed_evaluation_fails_its_trial_and_the_study_goes_on() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=6))
    bench.answer(1.0)
    bench.answer(None, Outcome.ERROR)
    bench.answer_all(trial_number)
    assert bench.state.tally.decided[TrialState.FAIL] == 1
    assert bench.reasons()[1] == "error: because"
    assert bench.state.ended is Ended.TRIALS


def test_the_sampler_hears_of_trials_that_their_objective_prunes() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=3))
    bench.answer(None, Outcome.PRUNED)
    told = [command.observation for command in bench.of(Observe)]
    assert [(one.trial, one.value, one.pruned) for one in told] == [(0, None, True)]
    assert bench.resumed().standings.observations() == told


def test_the_best_trial_alone_is_scored_on_the_test_part_at_the_end() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=6), test=True)
    tested = []
    while bench.in_flight:
        evaluation = bench.answer(trial_number(bench.in_flight[0]))
        if evaluation.fold == TEST_FOLD:
            tested.append((evaluation.trial, evaluation.fraction))
    assert tested == [(5, 1.0)]
    assert bench.state.test == (5, 5.0)


def test_the_test_parts_model_sees_all_rows_where_none_else_does() -> None:
    bench = Bench(Ladder((Rung(0.3, 1),)), Budget(trials=2), test=True)
    fractions = []
    while bench.in_flight:
        fractions.append(bench.answer(1.0).fraction)
    assert fractions == [0.3, 0.3, 1.0]


def test_a_trial_that_is_lost_after_it_climbed_leaves_its_place_to_another() -> None:
    bench = Bench(Ladder((Rung(0.3, 1), Rung(1.0, 1))), Budget(trials=30))

    while not bench.in_flight[0].rung:
        bench.answer(trial_number(bench.in_flight[0]))
    victim = bench.state.trials[bench.in_flight[0].trial]
    while not victim.decided:
        lost = next(evaluation for evaluation in bench.in_flight if evaluation.trial == victim.number)
        bench.in_flight.remove(lost)
        bench.happen(EvaluationLost(lost.key, lost.attempt, "its worker is gone"))
    assert victim.reason.startswith("lost")
    (another,) = [evaluation.trial for evaluation in bench.in_flight if evaluation.rung]
    assert bench.resumed().standings.candidate(closing=False) == Promotion(another, 0), "also in a later session"


def test_a_failing_test_evaluation_does_not_fail_the_trial() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1), test=True)
    for _ in range(3):
        bench.answer(1.0)
    bench.answer(None, Outcome.TIMEOUT)
    assert bench.state.finished
    assert bench.state.test is None
    assert bench.state.tally.decided[TrialState.COMPLETE] == 1
    assert "test part" in bench.state.tally.failures[-1]
    resumed = bench.resumed()
    assert not [command for command in resumed.handle(TimePassed(0.0)) if isinstance(command, StartEvaluations)]
    assert resumed.finished, "nor is it tried again by a later session"


def test_in_flight_never_exceeds_what_the_slots_can_take() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=50), slots=4)
    for _ in range(20):
        bench.answer(1.0)
        assert len(bench.in_flight) <= 8
    assert len(bench.in_flight) == 4, "slow evaluations are not kept ahead"


def test_of_equal_trials_the_first_in_number_is_best_whichever_was_first_in_time() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=2), slots=2)
    bench.in_flight.reverse()
    bench.answer(1.0)
    bench.answer(1.0)
    assert bench.state.best == bench.resumed().best
    assert bench.state.best is not None
    assert bench.state.best.trial == 0


def test_a_study_whose_slots_are_others_has_nothing_in_flight_and_one_without_a_fleet_has_one() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=5), slots=0)
    assert len(bench.in_flight) == 1, "it waits for the first worker to come"
    bench.happen(FleetChanged(0, frozenset({"w"})))
    bench.answer(1.0)
    assert not bench.in_flight, "all slots are other studies'"
    bench.happen(FleetChanged(1, frozenset({"w"})))
    bench.answer_all(trial_number)
    assert bench.state.finished


def test_a_study_that_closes_brings_its_trials_to_their_end_though_all_slots_are_others() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=3), slots=3)
    assert bench.state.ended is Ended.TRIALS
    bench.happen(FleetChanged(0, frozenset({"w"})))
    bench.answer_all(trial_number)
    assert bench.state.finished
    assert bench.state.tally.decided[TrialState.COMPLETE] > 0
