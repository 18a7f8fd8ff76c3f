"""What a study decides, one rule at a time."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from trialfleet_coordinator.attempts import CRASHES, LOSSES, REFUSALS
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    Command,
    DrawTrials,
    Finish,
    GiveUp,
    Observe,
    RecordDecision,
    StartEvaluations,
    TrialState,
)
from trialfleet_coordinator.events import (
    Draw,
    EvaluationFinished,
    EvaluationLost,
    Event,
    FleetChanged,
    StopRequested,
    TimePassed,
    TrialsDrawn,
)
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord, TrialRecord
from trialfleet_coordinator.study import FIRST_FAILURES, StudyState
from trialfleet_coordinator.trial import DECIDED
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, Evaluation, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Float

THREE_RUNGS = Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1)))
FOLDS = Ladder((Rung(1.0, 5),))
DEFINITION = StudyDefinition("s", "maximize", {}, "f", "ab", "", THREE_RUNGS, 0)


class Bench:
    """A study on the bench: every step is a call, draws are 0, 1, 2 …, and invariants are checked after each."""

    def __init__(self, ladder: Ladder, budget: Budget, *, maximize: bool = True, test: bool = False, slots: int = 1,
                 points: int | None = None, config: EfficiencyConfig | None = None) -> None:  # fmt: skip
        self.state = StudyState(
            ladder=ladder, maximize=maximize, config=config or EfficiencyConfig(), budget=budget, has_test=test
        )
        self.points = points
        #: Of an evaluation; so slow that nothing is kept ahead of the slots.
        self.seconds: Callable[[Evaluation], float] = lambda evaluation: 1000 * evaluation.fraction
        self.drawn = 0
        #: When evaluations of known slots start: one after the other.
        self.clock = itertools.count(1.0)
        self.in_flight: list[Evaluation] = []
        self.commands: list[Command] = []
        self.happen(FleetChanged(slots))

    def happen(self, event: Event) -> None:
        events = [event]
        while events:
            for command in self.state.handle(events.pop(0)):
                self.commands.append(command)
                if isinstance(command, StartEvaluations):
                    self.in_flight.extend(command.evaluations)
                elif isinstance(command, DrawTrials):
                    left = len(command.numbers) if self.points is None else self.points - self.drawn
                    count = min(len(command.numbers), left)
                    draws = [Draw({"x": float(self.drawn + i)}, {"x": Float(0, 1e6)}) for i in range(count)]
                    self.drawn += count
                    events.insert(0, TrialsDrawn(draws))
            self.state.validate()

    def answer(
        self, value: float | None, outcome: Outcome = Outcome.OK, *, slot: int | None = None, worker: str = ""
    ) -> Evaluation:
        """Answer the evaluation that is in flight the longest."""
        evaluation = self.in_flight.pop(0)
        self.happen(
            EvaluationFinished(
                EvaluationResult(
                    evaluation.trial,
                    evaluation.rung,
                    evaluation.fold,
                    evaluation.attempt,
                    outcome,
                    value=value,
                    error=None if outcome is Outcome.OK else "because",
                    wall_seconds=self.seconds(evaluation),
                    cpu_seconds=self.seconds(evaluation),
                    worker=worker,
                    slot=slot,
                    started_at=None if slot is None else next(self.clock),
                )
            )
        )
        return evaluation

    def answer_all(self, value: Callable[[Evaluation], float]) -> None:
        while self.in_flight:
            self.answer(value(self.in_flight[0]))

    def resumed(self) -> StudyState:
        """The study as another session would take it up from the record."""
        trials = [
            TrialRecord(
                number=trial.number,
                params=trial.params,
                distributions=trial.distributions,
                state=DECIDED.get(trial.phase, TrialState.RUNNING),
                value=trial.value,
                reason=trial.reason,
                results=trial.results,
            )
            for trial in self.state.trials
        ]
        return StudyState(
            ladder=self.state.ladder,
            maximize=self.state.maximize,
            config=self.state.config,
            budget=self.state.budget,
            has_test=self.state.has_test,
            record=StudyRecord(DEFINITION, trials, elapsed=0.0, test=None),
        )

    def of(self, kind: type[Command]) -> Iterator[Command]:
        return (command for command in self.commands if isinstance(command, kind))

    def reasons(self) -> dict[int, str]:
        return {c.trial: c.reason for c in self.commands if isinstance(c, RecordDecision)}


def trial_number(evaluation: Evaluation) -> float:
    return float(evaluation.trial)


def test_results_that_came_together_are_made_up_for_by_one_draw() -> None:
    bench = Bench(Ladder((Rung(1.0, 1),)), Budget(trials=9), slots=3)
    first, second = (
        EvaluationFinished(EvaluationResult(each.trial, 0, 0, 0, Outcome.OK, value=1.0, wall_seconds=0.1))
        for each in bench.in_flight[:2]
    )
    commands = bench.state.handle(first, second)
    assert [command for command in commands if isinstance(command, DrawTrials)] == [DrawTrials(range(6, 8))]


def test_a_study_ends_when_every_trial_of_its_budget_is_decided() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=9))
    bench.answer_all(trial_number)
    assert bench.state.finished
    assert bench.state.ended is Ended.TRIALS
    assert sum(bench.state.tally.decided.values()) == 9
    assert bench.state.best is not None
    assert bench.state.best.trial == 8
    assert [c.cause for c in bench.of(Finish)] == ["trials"]  # type: ignore[union-attr]


def test_promising_trials_climb_and_the_others_see_the_lowest_rung_only() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=27))
    bench.answer_all(trial_number)
    mix = bench.state.standings.rung_mix()
    assert mix[0] >= 27 / 2, "most trials never climb, though each is better than all before it"
    assert mix[2] >= 3, "the finalists are checked on all rows"
    assert set(bench.reasons().values()) == {"complete", "halving"}


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


def test_the_best_trial_alone_is_scored_on_the_test_part_at_the_end() -> None:
    bench = Bench(THREE_RUNGS, Budget(trials=6), test=True)
    tested = []
    while bench.in_flight:
        evaluation = bench.answer(trial_number(bench.in_flight[0]))
        if evaluation.fold == TEST_FOLD:
            tested.append((evaluation.trial, evaluation.fraction))
    assert tested == [(5, 1.0)]
    assert bench.state.test == (5, 5.0)


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
