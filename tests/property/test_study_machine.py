"""The study under every order of events: duplicated, reordered, lost, interrupted and resumed."""

import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trialfleet_coordinator.attempts import REFUSALS
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    DrawTrials,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTest,
    RecordTrial,
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
from trialfleet_coordinator.study import StudyState
from trialfleet_coordinator.trial import TRANSITIONS, InvalidTransitionError, Phase
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, Evaluation, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Float

LADDERS = [
    Ladder((Rung(1.0, 1),)),
    Ladder((Rung(1.0, 4),)),
    Ladder((Rung(0.3, 1), Rung(1.0, 1))),
    Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1), Rung(1.0, 3))),
    Ladder((Rung(0.2, 2), Rung(1.0, 3))),
]
DISTRIBUTIONS = {"x": Float(0.0, 1.0)}
WORKERS = st.sampled_from("abc")


def answer(
    evaluation: Evaluation, outcome: Outcome, *, value: float, cached: bool = False, worker: str = ""
) -> EvaluationResult:
    return EvaluationResult(
        trial=evaluation.trial,
        rung=evaluation.rung,
        fold=evaluation.fold,
        attempt=evaluation.attempt,
        outcome=outcome,
        value=value if outcome is Outcome.OK else None,
        wall_seconds=evaluation.fraction,
        cpu_seconds=evaluation.fraction,
        cached=cached,
        worker=worker,
    )


def score(evaluation: Evaluation) -> float:
    """Deterministic, noisy, different on every fold and fraction."""
    x = float(evaluation.params["x"])  # type: ignore[arg-type]
    noise = random.Random(f"{x}/{evaluation.fold}/{evaluation.fraction}").uniform(-0.1, 0.1)
    return x + noise


class StudyMachine(RuleBasedStateMachine):
    """A driver, store and fleet reduced to dictionaries; Hypothesis decides what happens next."""

    @initialize(
        ladder=st.sampled_from(LADDERS),
        maximize=st.booleans(),
        trials=st.integers(1, 30),
        patience=st.none() | st.integers(2, 10),
        test=st.booleans(),
        racing=st.booleans(),
        early=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def begin(
        self,
        ladder: Ladder,
        maximize: bool,
        trials: int,
        patience: int | None,
        test: bool,
        racing: bool,
        early: bool,
        seed: int,
    ) -> None:
        self.ladder, self.maximize, self.has_test = ladder, maximize, test
        self.budget = Budget(trials=trials, patience=patience)
        self.config = EfficiencyConfig(fold_racing=racing, adaptive_trial_allocation=early, min_trials_before_pruning=3)
        self.random = random.Random(seed)
        self.record = StudyRecord(
            definition=StudyDefinition("s", "maximize", {}, "o", "", "", ladder, 0), trials=[], elapsed=0.0, test=None
        )
        self.in_flight: list[Evaluation] = []
        self.answered: list[EvaluationResult] = []
        self.published: Counter[tuple[int, int, int]] = Counter()
        self.rungs_recorded: dict[int, int] = {}
        self.state = self.new_state()
        self.happen(FleetChanged(2))

    def new_state(self) -> StudyState:
        return StudyState(
            ladder=self.ladder,
            maximize=self.maximize,
            config=self.config,
            budget=self.budget,
            has_test=self.has_test,
            record=self.record,
        )

    # The driver

    def happen(self, event: Event) -> None:
        events = [event]
        while events:
            for command in self.state.handle(events.pop(0)):
                match command:
                    case DrawTrials(numbers):
                        draws = [Draw({"x": self.random.random()}, DISTRIBUTIONS) for _ in numbers]
                        events.insert(0, TrialsDrawn(draws))
                    case StartEvaluations(evaluations):
                        for evaluation in evaluations:
                            self.published[evaluation.key] += 1
                        self.in_flight.extend(evaluations)
                    case _:
                        self.store(command)
            self.state.validate()

    def store(self, command: object) -> None:
        trials = self.record.trials
        match command:
            case RecordTrial(number, params, distributions):
                assert number == len(trials)
                trials.append(TrialRecord(number, params, distributions, TrialState.RUNNING, None, "", []))
            case RecordEvaluation(result):
                assert not trials[result.trial].state.decided or result.fold == TEST_FOLD
                assert all(result.key != known.key for known in trials[result.trial].results), "counted twice"
                trials[result.trial].results.append(result)
            case RecordRung(trial, rung, _):
                assert self.rungs_recorded.get(trial, -1) < rung, "rungs are climbed upwards"
                self.rungs_recorded[trial] = rung
            case RecordDecision(trial, state, value, reason, effort):
                assert not trials[trial].state.decided, "decided twice"
                assert state.decided
                results = trials[trial].results
                assert effort.rung == max((result.rung for result in results), default=0)
                assert (effort.evaluations, effort.cached) == (len(results), sum(one.cached for one in results))
                trials[trial].state, trials[trial].value, trials[trial].reason = state, value, reason
            case RecordTest(trial, value):
                self.record.test = (trial, value)

    # What may happen

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), cached=st.booleans(), worker=WORKERS)
    def a_result_arrives(self, data: st.DataObject, cached: bool, worker: str) -> None:
        evaluation = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        result = answer(evaluation, Outcome.OK, value=score(evaluation), cached=cached, worker=worker)
        self.answered.append(result)
        self.happen(EvaluationFinished(result))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), outcome=st.sampled_from([o for o in Outcome if o is not Outcome.OK]), worker=WORKERS)
    def an_evaluation_fails(self, data: st.DataObject, outcome: Outcome, worker: str) -> None:
        evaluation = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        result = answer(evaluation, outcome, value=0.0, worker=worker)
        self.answered.append(result)
        self.happen(EvaluationFinished(result))

    @precondition(lambda self: self.answered)
    @rule(data=st.data())
    def a_result_arrives_again(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.answered))
        before = [(t.phase, t.value, len(t.results)) for t in self.state.trials]
        trial = self.state.trials[known.trial]
        # What was answered after the study had stopped may answer it once it is resumed.
        news = not trial.decided and known.key not in {result.key for result in trial.results}
        self.happen(EvaluationFinished(known))
        if not news:
            assert before == [(t.phase, t.value, len(t.results)) for t in self.state.trials]

    @rule(trial=st.integers(0, 10**6))
    def a_stranger_answers(self, trial: int) -> None:
        stray = Evaluation(trial=trial, rung=7, fold=3, fraction=1.0, params={"x": 0.0})
        self.happen(EvaluationFinished(answer(stray, Outcome.OK, value=9.0)))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def an_evaluation_is_lost(self, data: st.DataObject) -> None:
        evaluation = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(evaluation)
        self.happen(EvaluationLost(evaluation.key, evaluation.attempt, "its worker is gone"))

    @rule(slots=st.integers(0, 9), workers=st.frozensets(WORKERS))
    def workers_come_and_go(self, slots: int, workers: frozenset[str]) -> None:
        self.happen(FleetChanged(slots, workers))

    @rule(elapsed=st.floats(0, 10))
    def time_passes(self, elapsed: float) -> None:
        self.happen(TimePassed(elapsed))

    @rule()
    def somebody_stops_it(self) -> None:
        self.happen(StopRequested("SIGINT"))

    @rule(more=st.integers(0, 5))
    def the_coordinator_is_killed_and_runs_again(self, more: int) -> None:
        """What was in flight still answers, perhaps after it was published a second time."""
        self.budget = Budget(trials=(self.budget.trials or 0) + more, patience=self.budget.patience)
        self.state = self.new_state()
        self.happen(FleetChanged(2))

    # What holds at every moment

    @invariant()
    def no_more_trials_than_the_budget(self) -> None:
        if hasattr(self, "state"):
            assert len(self.record.trials) <= (self.budget.trials or 0)

    @invariant()
    def it_finishes_with_nothing_in_flight(self) -> None:
        if hasattr(self, "state") and self.state.finished:
            assert not self.state.pending

    def teardown(self) -> None:
        """Run to the end: whatever happened, every trial is decided exactly once."""
        if not hasattr(self, "state"):
            return
        self.state = self.new_state()
        self.in_flight.clear()
        self.happen(FleetChanged(3))
        for _ in range(10_000):
            if self.state.finished:
                break
            evaluation = self.in_flight.pop(0)
            self.happen(EvaluationFinished(answer(evaluation, Outcome.OK, value=score(evaluation))))
        assert self.state.finished
        if self.state.ended is not Ended.FAILED:
            assert len(self.record.trials) == self.budget.trials or self.state.ended is Ended.PATIENCE
            assert all(trial.state.decided for trial in self.record.trials)
        if self.has_test and self.state.best is not None and self.state.best.complete:
            untested = self.record.trials[self.state.best.trial].results[-1]
            failed = untested.fold == TEST_FOLD and untested.outcome is not Outcome.OK
            assert failed or self.record.test is not None
        restored = self.new_state()
        assert restored.standings.rung_mix() == self.state.standings.rung_mix() or any(
            t.reason == "racing" for t in restored.trials
        )
        assert sorted(map(repr, restored.standings.observations())) == sorted(
            map(repr, self.state.standings.observations())
        )


StudyMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStudyMachine = StudyMachine.TestCase


def test_every_phase_is_reached_and_final_ones_are_left_by_no_step() -> None:
    assert {finish for _, finish in TRANSITIONS} == set(Phase)
    assert {start for start, _ in TRANSITIONS} == {Phase.EVALUATING, Phase.WAITING}


def test_an_illegal_step_names_the_trial_and_tells_its_story() -> None:
    machine = StudyMachine()
    machine.begin(LADDERS[0], True, 1, None, False, False, True, 0)
    evaluation = machine.in_flight.pop()
    machine.happen(EvaluationFinished(answer(evaluation, Outcome.OK, value=1.0)))
    with pytest.raises(
        InvalidTransitionError, match=r"trial 0 can not go from complete to waiting.*evaluating -> complete"
    ):
        machine.state._story.move(machine.state.trials[0], Phase.WAITING, "nothing")


def test_a_refusal_is_final_only_after_others_had_the_chance() -> None:
    machine = StudyMachine()
    machine.begin(LADDERS[0], True, 1, None, False, False, True, 0)
    for _ in range(REFUSALS):
        evaluation = machine.in_flight.pop()
        machine.happen(EvaluationFinished(answer(evaluation, Outcome.REFUSED, value=0.0)))
    assert [trial.state for trial in machine.record.trials] == [TrialState.FAIL]
    assert evaluation.attempt == REFUSALS - 1
