"""A study on the bench: a state machine that is fed by hand, and whose every step is checked."""

import itertools
from collections.abc import Callable, Iterator

from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import (
    Command,
    DrawTrials,
    RecordDecision,
    StartEvaluations,
    TrialState,
)
from trialfleet_coordinator.events import (
    Draw,
    EvaluationFinished,
    Event,
    FleetChanged,
    TrialsDrawn,
)
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord, TrialRecord
from trialfleet_coordinator.study import StudyState
from trialfleet_coordinator.trial import DECIDED
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome
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
