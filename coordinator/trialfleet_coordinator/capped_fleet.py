"""A fleet of which a study may use a part."""

from collections.abc import Callable

from trialfleet_shared.fleet import Fleet, ForwardingFleet


class CappedFleet(ForwardingFleet):
    """`fleet`, with at most `most_slots()` slots at each moment.

    The study keeps no more in flight than these slots can take, which leaves the others to other studies.
    """

    def __init__(self, fleet: Fleet, most_slots: Callable[[], int]) -> None:
        super().__init__(fleet)
        self._most_slots = most_slots

    def slots(self) -> int:
        """Slots that the study may use at this moment."""
        return min(super().slots(), self._most_slots())
