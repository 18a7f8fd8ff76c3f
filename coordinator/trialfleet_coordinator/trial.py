"""One trial of a running study, and the steps that it may take."""

from collections.abc import Iterable
from enum import Enum

from trialfleet_coordinator.commands import TrialState
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.messages import EvaluationResult
from trialfleet_shared.space import Distribution, Params


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


class Trial:
    """One trial of the study; mutated by `StudyState` alone."""

    __slots__ = ("distributions", "number", "params", "phase", "reason", "results", "rung", "value", "values")

    def __init__(self, number: int, params: Params, distributions: dict[str, Distribution]) -> None:
        self.number = number
        self.params = params
        self.distributions = distributions
        self.phase = Phase.EVALUATING
        #: The rung it is on or was decided on.
        self.rung = 0
        #: Values by (fraction, fold): a value counts on every rung that has both.
        self.values: dict[tuple[float, int], float] = {}
        #: Results that counted, in order.
        self.results: list[EvaluationResult] = []
        #: Its value once decided; while undecided, its mean on the highest rung it finished.
        self.value: float | None = None
        self.reason = ""

    @property
    def decided(self) -> bool:
        """Whether it is COMPLETE, PRUNED or FAIL."""
        return self.phase in DECIDED

    @property
    def judged(self) -> bool:
        """Whether anything is known of its worth: it finished a rung, or is decided."""
        return self.value is not None or self.decided
