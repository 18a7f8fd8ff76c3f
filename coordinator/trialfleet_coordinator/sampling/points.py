"""Points of a space: drawn, and given by somebody. Without numpy, which who only reads a study file need not wait for."""

import math
from typing import Any

from trialfleet_coordinator.events import Draw
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.space import Categorical, Distribution, Int, Params, Scalar, Space, Suggest
from trialfleet_shared.tables import nearest, show


def draw_point(space: Space, suggest: Suggest) -> Draw:
    """The point that `suggest` makes of the space, with the distributions it was asked for."""
    distributions: dict[str, Distribution] = {}

    def noting(name: str, distribution: Distribution) -> Scalar:
        distributions[name] = distribution
        return suggest(name, distribution)

    return Draw(space.draw(noting), distributions)


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
        return as_drawn(value, distribution)

    draw = draw_point(space, given)
    for name in values:
        if name not in draw.params:
            raise ConfigurationError(f"{key}.{name}: the point has no such parameter{nearest(name, draw.params)}")
    return draw


def as_drawn(value: Any, distribution: Distribution) -> Scalar:
    """The value as a sampler would have drawn it: objectives tell 1 from 1.0, and a point of a grid is one number, not two."""
    if isinstance(distribution, Categorical):
        return distribution.choices[distribution.index(value)]
    if isinstance(distribution, Int):
        return int(value)
    if distribution.step is None:
        return float(value)
    return distribution.at(round((value - distribution.min) / distribution.step))


def _allowed(distribution: Distribution) -> str:
    if isinstance(distribution, Categorical):
        return " or ".join(map(show, distribution.choices))
    step = "" if distribution.step is None else f" in steps of {distribution.step}"
    return f"{distribution.min} to {distribution.high}{step}"
