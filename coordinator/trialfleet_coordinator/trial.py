"""One trial of a running study, and the steps that it may take."""

from collections import deque
from collections.abc import Iterable
from enum import Enum

import msgspec

from trialfleet_coordinator.commands import Effort, Observation, TrialState
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import TEST_FOLD, Evaluation, EvaluationResult
from trialfleet_shared.space import Distribution, Params

#: Steps that `Story` remembers.
STORY_LENGTH = 2000


class Phase(Enum):
    """Where a trial stands."""

    EVALUATING = "evaluating"
    WAITING = "waiting"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"


#: Every step that a trial may take.
TRANSITIONS: frozenset[tuple[Phase, Phase]] = frozenset(
    {
        (Phase.EVALUATING, Phase.WAITING),  # finished a rung
        (Phase.EVALUATING, Phase.COMPLETE),  # finished the last one
        (Phase.EVALUATING, Phase.PRUNED),  # threshold rule, racing, objective, end of the budget
        (Phase.EVALUATING, Phase.FAIL),  # an evaluation failed
        (Phase.WAITING, Phase.EVALUATING),  # promoted
        (Phase.WAITING, Phase.PRUNED),  # never promoted
    }
)

#: What Optuna calls the phases in which a trial is decided.
DECIDED = {
    Phase.COMPLETE: TrialState.COMPLETE,
    Phase.PRUNED: TrialState.PRUNED,
    Phase.FAIL: TrialState.FAIL,
}


class InvalidTransitionError(TrialfleetError):
    """A trial was to take a step that `TRANSITIONS` does not know: a bug in trialfleet."""

    def __init__(self, number: int, start: Phase, finish: Phase, story: Iterable[str]) -> None:
        steps = "; ".join(story)
        super().__init__(f"trial {number} can not go from {start.value} to {finish.value}; its story: {steps}")


class Trial(msgspec.Struct, eq=False, gc=False):
    """One trial of the study; mutated by `StudyState` alone."""

    number: int
    params: Params
    distributions: dict[str, Distribution]
    phase: Phase = Phase.EVALUATING
    #: The rung it is on or was decided on.
    rung: int = 0
    #: Values by (fraction, fold): a value counts on every rung that has both.
    values: dict[tuple[float, int], float] = {}
    #: Results that counted, in order.
    results: list[EvaluationResult] = []
    #: Its value once decided; while undecided, its mean on the highest rung it finished.
    value: float | None = None
    reason: str = ""

    @property
    def decided(self) -> bool:
        """Whether it is COMPLETE, PRUNED or FAIL."""
        return self.phase in DECIDED

    @property
    def judged(self) -> bool:
        """Whether anything is known of its worth: it finished a rung, or is decided."""
        return self.value is not None or self.decided

    @property
    def effort(self) -> Effort:
        """What was evaluated for it."""
        results = self.results
        return Effort(
            rung=max([result.rung for result in results], default=0),
            evaluations=len(results),
            cached=sum([result.cached for result in results]),
        )

    def fold_values(self, ladder: Ladder, rung: int) -> list[float]:
        """Its values on folds 0, 1, … of the rung, up to the first that is missing."""
        fraction, folds = ladder.rungs[rung].fraction, ladder.rungs[rung].folds
        values = []
        for fold in range(folds):
            value = self.values.get((fraction, fold))
            if value is None:
                break
            values.append(value)
        return values

    def finished(self, ladder: Ladder) -> list[int]:
        """The rungs of which it has all folds, lowest first."""
        rungs = range(self.rung + 1)
        return [rung for rung in rungs if len(self.fold_values(ladder, rung)) == ladder.rungs[rung].folds]

    def observation(self, rung: int, value: float | None, *, pruned: bool = False) -> Observation:
        """What a sampler learns of it."""
        return Observation(self.number, self.params, self.distributions, rung, value, pruned)

    def evaluation(self, ladder: Ladder, fold: int, attempt: int = 0) -> Evaluation:
        """What is to be evaluated for a fold of the rung it is on."""
        return Evaluation(
            trial=self.number,
            rung=self.rung,
            fold=fold,
            fraction=fraction_of(ladder, self.rung, fold),
            params=self.params,
            attempt=attempt,
        )


def fraction_of(ladder: Ladder, rung: int, fold: int) -> float:
    """The share of the rows that a fold is evaluated on: the test part's model sees all, whatever the rung."""
    return 1.0 if fold == TEST_FOLD else ladder.rungs[rung].fraction


class Story:
    """Has trials take their steps, and remembers the latest of all."""

    def __init__(self) -> None:
        #: Of each step the trial, the phases before and after it, and its cause.
        self._steps: deque[tuple[int, Phase, Phase, str]] = deque(maxlen=STORY_LENGTH)

    def move(self, trial: Trial, phase: Phase, cause: str) -> None:
        """The trial takes a step. Raises InvalidTransitionError."""
        if (trial.phase, phase) not in TRANSITIONS:
            raise InvalidTransitionError(trial.number, trial.phase, phase, self.of(trial.number))
        self._steps.append((trial.number, trial.phase, phase, cause))
        trial.phase = phase

    def of(self, trial: int) -> list[str]:
        """The latest steps of a trial, oldest first."""
        steps = (step for step in self._steps if step[0] == trial)
        return [f"{before.value} -> {after.value} ({cause})" for _, before, after, cause in steps]
