"""A sampler that draws points of a small grid, so that trials repeat or the space runs out; and checks what it is told."""

from collections.abc import Sequence

from simulation.plan import Plan
from simulation.world import Violation, World
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.ports import Observation
from trialfleet_coordinator.sampling.drawing import Drawn
from trialfleet_shared.space import Distribution, Int


class GridSampler:
    """Implements `trialfleet_coordinator.ports.Sampler`."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._random = world.random
        self._distributions: dict[str, Distribution] = {"x": Int(0, plan.points - 1)}
        self._left = list(range(plan.points)) if plan.distinct else None
        self._points = plan.points
        self._told: set[tuple[int, int, bool]] = set()

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        if self._left is not None:
            drawn = {params["x"] for _, params, _ in draws}
            self._left = [x for x in self._left if x not in drawn]
        self.tell(observations)

    def ask(self, numbers: range) -> list[Draw]:
        if self._left is None:
            points = [self._random.randrange(self._points) for _ in numbers]
        else:
            points = self._random.sample(self._left, min(len(numbers), len(self._left)))
            self._left = [x for x in self._left if x not in points]
        return [Draw({"x": x}, self._distributions) for x in points]

    def tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            key = (observation.trial, observation.rung, observation.value is None)
            if key in self._told:
                raise Violation(f"trial {observation.trial} is observed twice on rung {observation.rung}")
            self._told.add(key)
