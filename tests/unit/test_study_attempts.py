"""What a study makes of evaluations that are lost, refused, answered late or twice, or kill their slot, and of stragglers."""

import itertools

import pytest

from tests.support.study_bench import THREE_RUNGS, Bench, trial_number
from trialfleet_coordinator.attempts import CRASHES, LOSSES, REFUSALS
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    GiveUp,
    StartEvaluations,
    TrialState,
)
from trialfleet_coordinator.events import (
    EvaluationFinished,
    EvaluationLost,
    FleetChanged,
    StopRequested,
    TimePassed,
)
from trialfleet_coordinator.study import FIRST_FAILURES
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, EvaluationResult, Outcome


def test_a_lost_evaluation_is_published_again_and_fails_its_trial_only_in_the_end() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1))
    for attempt in range(LOSSES):
        evaluation = bench.in_flight.pop()
        assert evaluation.attempt == attempt
        bench.happen(EvaluationLost(evaluation.key, evaluation.attempt, "its worker is gone"))
    assert bench.state.tally.decided[TrialState.FAIL] == 1


def test_what_kills_its_slot_is_tried_elsewhere_and_then_given_up_with_its_history() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=3))
    bench.answer(1.0)
    for attempt in range(CRASHES):
        bench.happen(TimePassed(10.0 * attempt))
        assert bench.answer(None, Outcome.CRASH).attempt == attempt
    (given_up,) = [command for command in bench.commands if isinstance(command, GiveUp)]
    assert given_up.evaluation.trial == 1
    assert given_up.reason == "killed its slot 3 times, the last time: because"
    assert [(one.attempt, one.elapsed, one.worker, one.what) for one in given_up.history] == [
        (0, 0.0, "", "because"),
        (1, 10.0, "", "because"),
        (2, 20.0, "", "because"),
    ]
    bench.answer_all(trial_number)
    assert bench.reasons()[1] == "crash: 3 times, the last time: because"
    assert bench.state.ended is Ended.TRIALS


def test_a_worker_that_refuses_the_study_takes_no_trial_from_one_that_does_not() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=6))
    bench.happen(FleetChanged(2, frozenset({"good", "bad"})))
    for _ in range(6):
        for _ in range(2 * REFUSALS):
            bench.answer(None, Outcome.REFUSED, worker="bad")
        bench.answer(1.0, worker="good")
    bench.answer_all(trial_number)
    assert bench.state.ended is Ended.TRIALS
    assert bench.state.tally.decided == {TrialState.COMPLETE: 6}


def test_a_study_that_every_worker_refuses_fails_with_the_reason() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=100))
    bench.happen(FleetChanged(2, frozenset({"one", "other"})))
    workers = itertools.cycle(["one", "other"])
    for _ in range(100 * REFUSALS):
        if bench.state.finished:
            break
        bench.answer(None, Outcome.REFUSED, worker=next(workers))
    assert bench.state.finished
    assert bench.state.ended is Ended.FAILED
    assert bench.reasons()[0] == "refused: because"
    assert FIRST_FAILURES <= bench.state.tally.decided[TrialState.FAIL] <= 2 * FIRST_FAILURES


def test_once_the_last_worker_that_did_not_refuse_is_gone_refusals_are_final() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=1))
    bench.happen(FleetChanged(2, frozenset({"good", "bad"})))
    bench.answer(None, Outcome.REFUSED, worker="bad")
    bench.happen(FleetChanged(1, frozenset({"bad"})))
    for _ in range(REFUSALS):
        bench.answer(None, Outcome.REFUSED, worker="bad")
    assert bench.state.tally.decided == {TrialState.FAIL: 1}


def test_a_crash_of_the_place_costs_nothing() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1))
    for _ in range(CRASHES - 1):
        bench.answer(None, Outcome.CRASH)
    bench.answer_all(trial_number)
    assert bench.state.tally.decided[TrialState.FAIL] == 0
    assert not [command for command in bench.commands if isinstance(command, GiveUp)]


def test_a_crash_told_twice_is_one() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1))
    crash = EvaluationResult(0, 0, 0, 0, Outcome.CRASH, error="because")
    for _ in range(CRASHES):
        bench.happen(EvaluationFinished(crash))
    assert bench.state.tally.decided[TrialState.FAIL] == 0
    assert [evaluation.attempt for evaluation in bench.in_flight] == [0, 1]


def test_the_test_part_is_not_scored_where_that_kills_the_slot() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=1), test=True)
    bench.answer(1.0)
    for _ in range(CRASHES):
        assert bench.answer(None, Outcome.CRASH).fold == TEST_FOLD
    assert bench.state.finished
    assert bench.state.test is None
    assert [command.evaluation.fold for command in bench.commands if isinstance(command, GiveUp)] == [TEST_FOLD]


def straggling(slots: int = 4) -> Bench:
    """A study that takes up nothing new, whose last trial is in flight for long; the others took a second each."""
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=12), slots=slots)
    for second in range(1, 12):
        bench.happen(TimePassed(float(second)))
        bench.answer(1.0)
    assert [evaluation.trial for evaluation in bench.in_flight] == [11]
    return bench


def test_a_straggler_is_run_a_second_time_and_never_a_third() -> None:
    bench = straggling()
    for elapsed in (12.0, 100.0, 1000.0, 10_000.0):
        bench.happen(TimePassed(elapsed))
    assert [(one.trial, one.attempt) for one in bench.in_flight] == [(11, 0), (11, 1)]


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_answer_to_a_straggler_wins(winner: int) -> None:
    bench = straggling()
    bench.happen(TimePassed(100.0))
    for attempt, value in ((winner, 5.0), (1 - winner, 7.0)):
        bench.happen(EvaluationFinished(EvaluationResult(11, 0, 0, attempt, Outcome.OK, value=value)))
    assert bench.state.finished
    assert bench.state.trials[11].value == 5.0
    assert bench.state.tally.discarded == {"late": 1}


def test_a_straggler_that_crashes_leaves_it_to_its_copy() -> None:
    bench = straggling()
    bench.happen(TimePassed(100.0))
    bench.happen(EvaluationFinished(EvaluationResult(11, 0, 0, 0, Outcome.CRASH, error="killed")))
    assert [(one.trial, one.attempt) for one in bench.in_flight] == [(11, 0), (11, 1)]
    bench.happen(EvaluationFinished(EvaluationResult(11, 0, 0, 1, Outcome.OK, value=5.0)))
    assert bench.state.trials[11].value == 5.0


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.MEMORY])
def test_a_straggler_that_meets_its_limits_leaves_it_to_its_copy(outcome: Outcome) -> None:
    bench = straggling()
    bench.happen(TimePassed(100.0))
    bench.happen(EvaluationFinished(EvaluationResult(11, 0, 0, 0, outcome, error="too much")))
    assert bench.state.tally.discarded == {"late": 1}
    bench.happen(EvaluationFinished(EvaluationResult(11, 0, 0, 1, outcome, error="too much")))
    assert bench.reasons()[11] == f"{outcome.value}: too much"


@pytest.mark.parametrize(("slots", "cause"), [(1, None), (4, "somebody says so")])
def test_nothing_is_run_twice_without_idle_slots_or_in_a_study_that_is_stopped(slots: int, cause: str | None) -> None:
    bench = straggling(slots)
    if cause is not None:
        bench.happen(StopRequested(cause))
    bench.happen(TimePassed(1000.0))
    assert len(bench.in_flight) == 1


def test_an_old_loss_does_not_touch_a_newer_attempt() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=1))
    first = bench.in_flight.pop()
    bench.happen(EvaluationLost(first.key, 0, "gone"))
    bench.happen(EvaluationLost(first.key, 0, "gone, said again"))
    assert [evaluation.attempt for evaluation in bench.in_flight] == [1]


def test_the_first_answer_wins_whichever_attempt_gives_it() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=1))
    first = bench.in_flight.pop()
    bench.happen(EvaluationLost(first.key, 0, "silent"))
    late = EvaluationResult(0, 0, 0, 0, Outcome.OK, value=3.0)
    bench.happen(EvaluationFinished(late))
    assert bench.state.best is not None
    assert bench.state.best.value == 3.0
    bench.happen(EvaluationFinished(EvaluationResult(0, 0, 0, 1, Outcome.OK, value=4.0)))
    assert bench.state.best.value == 3.0


def test_a_resumed_study_takes_what_was_answered_before_it_is_published_again() -> None:
    """A coordinator that is started again finds answers waiting, when it has heard of no worker yet."""
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=3), slots=3)
    resumed = bench.resumed()
    for trial in (2, 1, 2):
        resumed.handle(EvaluationFinished(EvaluationResult(trial, 0, 0, 0, Outcome.OK, value=float(trial))))
    assert resumed.tally.evaluations == 2
    assert resumed.tally.discarded == {"duplicate": 1}
    commands = resumed.handle(FleetChanged(3))
    published = [
        one.trial for command in commands if isinstance(command, StartEvaluations) for one in command.evaluations
    ]
    assert published in ([0], []), "the first is published for the first worker to come"
    assert set(resumed.pending) == {(0, 0, 0)}


def test_a_resumed_study_takes_up_a_trial_without_results_on_the_rung_where_it_started() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=60))
    while (bench.in_flight[0].trial, bench.in_flight[0].rung) != (number := 50, 2):
        bench.answer(-trial_number(bench.in_flight[0]))
    resumed = bench.resumed()
    resumed.validate()
    resumed.handle(EvaluationFinished(EvaluationResult(number, 2, 0, 0, Outcome.OK, value=1.0)))
    resumed.validate()
    assert resumed.best is not None
    assert (resumed.best.trial, resumed.best.complete) == (number, True)
