"""What can happen to a study. `StudyState.handle` takes these and nothing else."""

from typing import NamedTuple

from trialfleet_shared.messages import EvaluationKey, EvaluationResult
from trialfleet_shared.space import Distribution, Params


class Draw(NamedTuple):
    """One point that a sampler drew."""

    params: Params
    #: The distribution each value came from.
    distributions: dict[str, Distribution]


class FleetChanged(NamedTuple):
    """The fleet has another number of slots, or other workers."""

    slots: int
    #: Names of the workers that are there, as results tell them; empty where that is not known.
    workers: frozenset[str] = frozenset()


class TrialsDrawn(NamedTuple):
    """The sampler's answer to `DrawTrials`; fewer draws than asked for mean that the space is exhausted."""

    draws: list[Draw]


class EvaluationFinished(NamedTuple):
    """A result arrived, from the fleet or from a cache; perhaps not for the first time."""

    result: EvaluationResult


class EvaluationLost(NamedTuple):
    """Whoever held the evaluation is gone, and nobody else has it."""

    key: EvaluationKey
    attempt: int
    reason: str


class TimePassed(NamedTuple):
    """The clock moved on; `elapsed` are seconds that the study ran, over all its sessions."""

    elapsed: float


class StopRequested(NamedTuple):
    """Somebody wants the study to stop: take up nothing new, finish what is in flight."""

    cause: str


Event = FleetChanged | TrialsDrawn | EvaluationFinished | EvaluationLost | TimePassed | StopRequested
