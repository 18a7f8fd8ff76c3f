"""The fleet port: whatever evaluates. `LocalFleet` and `RabbitFleet` implement it; the coordinator's driver uses it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from trialfleet_shared.messages import Evaluation, EvaluationKey, EvaluationResult, StudySpec


class FleetReport(NamedTuple):
    """What the fleet measured of itself since the study started on it."""

    slots: int
    #: Workers alive; 1 for an embedded fleet.
    workers: int
    #: Seconds that slots spent evaluating.
    busy_slot_seconds: float
    #: Seconds that slots were there.
    available_slot_seconds: float
    #: Proportional set size of the fleet's processes at its peak, in bytes.
    pss_bytes: int


class LostEvaluation(NamedTuple):
    """An evaluation that the fleet gives up on: whoever held it is gone."""

    key: EvaluationKey
    attempt: int
    reason: str


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One try at an evaluation that brought no answer."""

    attempt: int
    #: When this was heard, in seconds since 1970-01-01 UTC.
    at: float
    #: Who evaluated; empty when that is not known.
    worker: str
    #: What happened, for people.
    what: str


class Poison(NamedTuple):
    """An evaluation that is not tried again, though it has no answer."""

    evaluation: Evaluation
    reason: str
    #: What came of it each time, oldest first.
    attempts: tuple[Attempt, ...]


class Fleet(Protocol):
    """Whatever evaluates. One fleet object serves one study; methods are called from one thread."""

    def start(self, spec: StudySpec) -> None:
        """Get ready. Raises TrialfleetError when that can not be done."""
        ...

    def slots(self) -> int:
        """Slots at this moment; 0 while no worker is there."""
        ...

    def workers(self) -> frozenset[str]:
        """Names of the workers that are there at this moment, as their results tell them."""
        ...

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Have them evaluated, in this order as far as the fleet has an order. Does not wait for their end."""
        ...

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """What came in, waiting up to `timeout` seconds for the first; at-least-once, in any order."""
        ...

    def acknowledge(self) -> None:
        """All results that `poll` returned so far are safely recorded: never deliver them again."""
        ...

    def bury(self, poison: Poison) -> None:
        """Keep it where people can look at it, if there is such a place; what became of its trial is recorded anyway."""
        ...

    def report(self) -> FleetReport:
        """What the fleet measured of itself."""
        ...

    def close(self) -> None:
        """Give up what is in flight and release everything. May be called twice."""
        ...


class ForwardingFleet:
    """Does what another fleet does, but for what a subclass does otherwise. Implements `Fleet`.

    Args:
        fleet: the other one.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def start(self, spec: StudySpec) -> None:
        """See `Fleet.start`."""
        self._fleet.start(spec)

    def slots(self) -> int:
        """See `Fleet.slots`."""
        return self._fleet.slots()

    def workers(self) -> frozenset[str]:
        """See `Fleet.workers`."""
        return self._fleet.workers()

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """See `Fleet.submit`."""
        self._fleet.submit(evaluations)

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """See `Fleet.poll`."""
        return self._fleet.poll(timeout)

    def acknowledge(self) -> None:
        """See `Fleet.acknowledge`."""
        self._fleet.acknowledge()

    def bury(self, poison: Poison) -> None:
        """See `Fleet.bury`."""
        self._fleet.bury(poison)

    def report(self) -> FleetReport:
        """See `Fleet.report`."""
        return self._fleet.report()

    def close(self) -> None:
        """See `Fleet.close`."""
        self._fleet.close()
