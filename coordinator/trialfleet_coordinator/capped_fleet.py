"""A fleet of which a study may use a part."""

from collections.abc import Callable, Sequence

from trialfleet_shared.fleet import Fleet, FleetReport, LostEvaluation, Poison
from trialfleet_shared.messages import Evaluation, EvaluationResult, StudySpec


class CappedFleet:
    """`fleet`, with at most `most_slots()` slots at each moment. Implements `trialfleet_shared.fleet.Fleet`.

    The study keeps no more in flight than these slots can take, which leaves the others to other studies.
    """

    def __init__(self, fleet: Fleet, most_slots: Callable[[], int]) -> None:
        self._fleet = fleet
        self._most_slots = most_slots

    def start(self, spec: StudySpec) -> None:
        """See `Fleet.start`."""
        self._fleet.start(spec)

    def slots(self) -> int:
        """Slots that the study may use at this moment."""
        return min(self._fleet.slots(), self._most_slots())

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
