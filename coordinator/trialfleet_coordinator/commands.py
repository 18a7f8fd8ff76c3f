"""What a study wants done. Records go to the store, in one transaction per tick, before anything is published."""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from trialfleet_coordinator.attempts import FailedAttempt
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_shared.messages import Evaluation, EvaluationResult
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Distribution, Params


class TrialState(StrEnum):
    """Optuna's trial states."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"

    @property
    def decided(self) -> bool:
        """Whether it is final."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class RecordTrial(NamedTuple):
    """A new trial."""

    number: int
    params: Params
    distributions: dict[str, Distribution]


class RecordEvaluation(NamedTuple):
    """A result that counts: the first for its key."""

    result: EvaluationResult


class RecordRung(NamedTuple):
    """The trial has all folds of a rung; `value` is their mean (Optuna's intermediate value at step `rung`)."""

    trial: int
    rung: int
    value: float


class Effort(NamedTuple):
    """What was evaluated for a trial."""

    #: The highest rung of which it has a result.
    rung: int = 0
    #: Its results, and those of them that a cache answered.
    evaluations: int = 0
    cached: int = 0


class RecordDecision(NamedTuple):
    """The trial is decided: COMPLETE, PRUNED or FAIL. `value` is its score on the highest rung it finished."""

    trial: int
    state: TrialState
    value: float | None
    #: Why, for people and for the report: "complete", "halving", "threshold", "racing", "objective", "error: …" …
    reason: str
    effort: Effort = Effort()


class RecordTest(NamedTuple):
    """The best trial's score on the test part."""

    trial: int
    value: float


class RecordTerms(msgspec.Struct, frozen=True):
    """What the study is run by from now on; another session may come with other terms."""

    config: EfficiencyConfig
    budget: Budget
    #: Why the study took up no new trials any more under these terms, where the rest of its record does not tell.
    ended: Ended | None = None

    def same_as(self, other: "RecordTerms | None") -> bool:
        """Whether the study is run by the same as under the other ones, be it at its end or not."""
        return other is not None and (self.config, self.budget) == (other.config, other.budget)


#: What the store writes.
Record = RecordTrial | RecordEvaluation | RecordRung | RecordDecision | RecordTest | RecordTerms


class Observation(NamedTuple):
    """What a sampler learns: a trial's score on one rung (None: it failed there, or its objective pruned it)."""

    trial: int
    params: Params
    distributions: dict[str, Distribution]
    rung: int
    value: float | None
    pruned: bool = False


class DrawTrials(NamedTuple):
    """Ask the sampler for new trials with these numbers."""

    numbers: range


class StartEvaluations(NamedTuple):
    """Have these evaluated: by the result cache if it can, else by the fleet."""

    evaluations: list[Evaluation]


class GiveUp(NamedTuple):
    """The evaluation is not tried again, though it has no answer; the fleet is to keep it for people to look at."""

    evaluation: Evaluation
    reason: str
    #: What came of it each time, oldest first.
    history: tuple[FailedAttempt, ...]


class Observe(NamedTuple):
    """Tell the sampler."""

    observation: Observation


Command = Record | DrawTrials | StartEvaluations | GiveUp | Observe
