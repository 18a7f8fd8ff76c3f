"""Points that somebody wants evaluated before a sampler draws its own: the params in use today, say."""

from collections.abc import Sequence

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.ports import Sampler
from trialfleet_coordinator.sampling.drawing import Drawn
from trialfleet_shared.fingerprint import canonical_params


class GivenPoints:
    """A sampler whose first draws are given; none of them is drawn twice, in later sessions either.

    Args:
        sampler: draws all others, and learns from these too.
        points: in the order in which they are drawn.
    """

    def __init__(self, sampler: Sampler, points: Sequence[Draw]) -> None:
        self._sampler = sampler
        self._left = {canonical_params(point.params): point for point in points}

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        """Take up where an earlier session ended.

        Args:
            draws: its trials, by number.
            observations: what it was told.
        """
        self._forget(draws)
        self._sampler.restore(draws, observations)

    def add(self, draws: Sequence[Drawn]) -> None:
        """These trials were drawn elsewhere."""
        self._forget(draws)
        self._sampler.add(draws)

    def ask(self, numbers: range) -> list[Draw]:
        """One draw for each trial number; fewer when every point of the space was drawn already."""
        given: list[Draw] = []
        while self._left and len(given) < len(numbers):
            given.append(self._left.pop(next(iter(self._left))))
        self._sampler.add([(number, *draw) for number, draw in zip(numbers, given, strict=False)])
        others = numbers[len(given) :]
        return [*given, *self._sampler.ask(others)] if others else given

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; a trial is observed once per rung it finished."""
        self._sampler.tell(observations)

    def _forget(self, draws: Sequence[Drawn]) -> None:
        for _, params, _ in draws:
            self._left.pop(canonical_params(params), None)
