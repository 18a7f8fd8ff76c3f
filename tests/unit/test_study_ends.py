"""When a study ends, and what becomes of what is under way then."""

import pytest

from tests.support.study_bench import THREE_RUNGS, Bench, trial_number
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    TrialState,
)
from trialfleet_coordinator.events import (
    Draw,
    EvaluationFinished,
    FleetChanged,
    StopRequested,
    TimePassed,
    TrialsDrawn,
)
from trialfleet_coordinator.study import FIRST_FAILURES
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Float


def test_a_study_ends_when_every_trial_of_its_budget_is_decided() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=9))
    bench.answer_all(trial_number)
    assert bench.state.finished
    assert bench.state.ended is Ended.TRIALS
    assert sum(bench.state.tally.decided.values()) == 9
    assert bench.state.best is not None
    assert bench.state.best.trial == 8
    assert bench.state.ended is Ended.TRIALS


def test_a_study_whose_first_trials_all_fail_stops_and_says_why() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=100))
    while not bench.state.finished:
        bench.answer(None, Outcome.ERROR)
    assert bench.state.ended is Ended.FAILED
    assert bench.state.tally.decided[TrialState.FAIL] == FIRST_FAILURES
    assert bench.state.tally.failures[-1] == f"trial {FIRST_FAILURES - 1}: error: because"


def test_what_would_begin_after_the_last_second_is_not_published() -> None:
    bench = Bench(THREE_RUNGS, Budget(seconds=7.0))
    bench.seconds = lambda _: 3.0
    began = []
    for now in (3.0, 6.0, 9.0, 12.0):
        if not bench.in_flight:
            break
        began.append(now - 3.0)
        bench.happen(TimePassed(now))
        bench.answer(1.0)
    assert began == [0.0, 3.0, 6.0]
    assert bench.state.finished


def test_trials_that_fail_at_once_do_not_end_a_study_while_earlier_ones_are_under_way() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=100), slots=8)
    for _ in range(3 * FIRST_FAILURES):
        failing = next(each for each in bench.in_flight if each.trial > 0)
        bench.in_flight.remove(failing)
        bench.happen(EvaluationFinished(EvaluationResult(*failing.key, 0, Outcome.ERROR, error="not here")))
    assert bench.state.ended is None
    first = next(each for each in bench.in_flight if each.trial == 0)
    bench.happen(EvaluationFinished(EvaluationResult(*first.key, 0, Outcome.ERROR, error="nor here")))
    assert bench.state.ended is Ended.FAILED, "none of them was good"


def test_a_short_study_without_any_value_failed_too() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=2))
    while not bench.state.finished:
        bench.answer(None, Outcome.ERROR)
    assert bench.state.ended is Ended.FAILED


def test_the_target_ends_the_study_once_a_complete_trial_reaches_it() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=100, target=0.5), maximize=False)
    for value in (0.9, 0.8, 0.5):
        bench.answer(value)
    assert bench.state.finished
    assert bench.state.ended is Ended.TARGET


def test_trial_after_trial_without_a_better_one_ends_the_study_and_those_under_way_still_climb() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1000, patience=10))
    bench.answer_all(lambda evaluation: -abs(evaluation.trial - 20.0))
    assert bench.state.ended is Ended.PATIENCE
    assert bench.state.best is not None
    assert bench.state.best.trial == 20
    later = [trial for trial in bench.state.trials if trial.number > 20]
    assert 10 <= len(later) <= 20, "a trial climbs for a while before it is known to be the best"
    assert bench.state.finished


def test_patience_counts_before_any_trial_is_complete() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1000, patience=10), config=EfficiencyConfig(reduction_factor=100.0))
    bench.answer_all(lambda evaluation: -abs(evaluation.trial - 4.0))
    assert bench.state.ended is Ended.PATIENCE
    assert len(bench.state.trials) == 15
    assert bench.state.best is not None
    assert (bench.state.best.trial, bench.state.best.complete) == (4, True), "it climbs when the study closes"


def test_a_trial_that_leads_on_a_higher_rung_renews_patience() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1000, patience=10))
    # On the lowest rung the first trial stays the best; above it, later ones are better.
    bench.answer_all(lambda evaluation: -evaluation.trial if evaluation.rung == 0 else min(evaluation.trial, 12))
    assert bench.state.ended is Ended.PATIENCE
    assert len(bench.state.trials) > 11


@pytest.mark.parametrize("points", [None, 12])
def test_a_study_that_has_started_all_its_trials_did_not_stop_early(points: int | None) -> None:
    budget = Budget(trials=12 if points is None else 1000, patience=10)
    bench = Bench(Ladder((Rung(1.0, 1),)), budget, slots=4, points=points)
    bench.answer_all(lambda evaluation: -evaluation.trial)
    assert len(bench.state.trials) == 12
    assert bench.state.standings.since_best >= 10
    assert bench.state.ended is (Ended.TRIALS if points is None else Ended.EXHAUSTED)
    if points is None:  # that a space is exhausted is not recorded
        resumed = bench.resumed()
        resumed.handle(TimePassed(0.0))
        assert resumed.ended is Ended.TRIALS


def test_a_resumed_study_remembers_how_long_nothing_better_came() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=1000, patience=10))
    for _ in range(8):
        bench.answer(-float(bench.in_flight[0].trial))
    resumed = bench.resumed()
    assert resumed.ended is None
    resumed.handle(FleetChanged(1))
    key = next(iter(resumed.pending))
    for number in range(8, 11):
        assert resumed.ended is None
        resumed.handle(EvaluationFinished(EvaluationResult(number, 0, 0, 0, Outcome.OK, value=-1.0)))
        if number < 10:
            resumed.handle(TrialsDrawn([Draw({"x": 1.0}, {"x": Float(0, 1)})]))
    assert resumed.ended is Ended.PATIENCE
    assert key.trial == 8


def test_cpu_seconds_end_the_study() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(cpu_seconds=3500.0))
    bench.answer_all(trial_number)
    assert bench.state.ended is Ended.CPU_SECONDS
    assert len(bench.state.trials) == 4, "each took 1000 CPU seconds"


def test_when_the_seconds_are_over_what_is_in_flight_is_finished_and_nothing_new_begun() -> None:
    bench = Bench(THREE_RUNGS, Budget(seconds=10.0), slots=4)
    for _ in range(5):
        bench.answer(1.0)
    bench.happen(TimePassed(10.0))
    published = bench.state.tally.evaluations + len(bench.in_flight)
    bench.answer_all(trial_number)
    assert bench.state.ended is Ended.SECONDS
    assert bench.state.finished
    assert bench.state.tally.evaluations == published
    assert set(bench.reasons().values()) == {"budget"}


def test_an_interrupted_study_leaves_its_trials_undecided() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=10), slots=2)
    bench.answer(1.0)
    bench.happen(StopRequested("SIGINT"))
    bench.answer_all(trial_number)
    assert bench.state.finished
    assert bench.state.ended is Ended.STOPPED
    assert bench.reasons() == {}


def test_an_exhausted_space_ends_the_study() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=100), points=4)
    bench.answer_all(trial_number)
    assert bench.state.ended is Ended.EXHAUSTED
    assert len(bench.state.trials) == 4
    assert bench.state.best is not None
    assert bench.state.best.complete
