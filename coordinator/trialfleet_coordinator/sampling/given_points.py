"""Points that somebody wants evaluated before a sampler draws its own: the params in use today, say."""

import math
from collections.abc import Sequence

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.ports import Sampler
from trialfleet_coordinator.sampling.drawing import Drawn, draw_point
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import Categorical, Distribution, Float, Params, Scalar, Space
from trialfleet_shared.tables import nearest, show


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


def point_of(space: Space, values: Params, key: str) -> Draw:
    """The point of the space that has these values.

    Args:
        space: the space.
        values: of every parameter that the point has.
        key: where they were given, for messages.

    Raises:
        ConfigurationError: a value is missing, out of its range, or of no parameter; the message says which are allowed.
    """

    def given(name: str, distribution: Distribution) -> Scalar:
        if name not in values:
            raise ConfigurationError(f"{key}.{name} is missing: a point has a value of each of its parameters")
        value = values[name]
        if (isinstance(value, float) and not math.isfinite(value)) or not distribution.contains(value):
            raise ConfigurationError(f"{key}.{name} = {show(value)}: allowed is {_allowed(distribution)}")
        # As a sampler would have drawn it: 1 and 1.0 are told apart by what objectives make of them.
        if isinstance(distribution, Categorical):
            return distribution.choices[distribution.index(value)]
        return float(value) if isinstance(distribution, Float) else int(value)  # type: ignore[arg-type]  # it is a number

    draw = draw_point(space, given)
    for name in values:
        if name not in draw.params:
            raise ConfigurationError(f"{key}.{name}: the point has no such parameter{nearest(name, draw.params)}")
    return draw


def _allowed(distribution: Distribution) -> str:
    if isinstance(distribution, Categorical):
        return " or ".join(map(show, distribution.choices))
    step = "" if distribution.step is None else f" in steps of {distribution.step}"
    return f"{distribution.min} to {distribution.high}{step}"
