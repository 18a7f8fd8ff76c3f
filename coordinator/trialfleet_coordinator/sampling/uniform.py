"""Uniform sampling without repetition."""

from collections.abc import Sequence

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.drawing import Drawing, Drawn
from trialfleet_shared.space import Space


class UniformSampler:
    """Draws every parameter uniformly (or log-uniformly) from its range; no point twice.

    Args:
        space: where to draw from.
        seed: of the random stream; equal seeds draw equal trials, however they are batched.
    """

    def __init__(self, space: Space, *, seed: int) -> None:
        self._drawing = Drawing(space, seed=seed)

    def ask(self, numbers: range) -> list[Draw]:
        """One draw for each trial number; fewer when every point of the space was drawn already."""
        draws = []
        for number in numbers:
            draw = self._drawing.uniform(number)
            if draw is None:
                break
            draws.append(draw)
        return draws

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn that these points were drawn; their values do not matter."""
        for observation in observations:
            self._drawing.add(observation.params)

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        """Take up where an earlier session ended.

        Args:
            draws: its trials, by number.
            observations: what it was told.
        """
        self.add(draws)
        self.tell(observations)

    def add(self, draws: Sequence[Drawn]) -> None:
        """These trials were drawn elsewhere."""
        for _, params, _ in draws:
            self._drawing.add(params)
