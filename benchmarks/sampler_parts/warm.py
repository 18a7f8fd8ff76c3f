"""What a warm start is worth: trials of a related problem, then few of the problem itself."""

import math

from sampler_parts.problems import PROBLEMS, Problem
from sampler_parts.runs import lowest, normalised, trialfleet
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.warm_start import warm_start
from trialfleet_shared.space import Categorical, Distribution, Float, Params, Scalar

#: Trials of the related problem.
EARLIER = 30
#: How far the related problem's optimum is away in every number, as a share of its range.
SHIFT = 0.05


def cold_and_warm(name: str, *, trials: int, in_flight: int, seed: int) -> tuple[float, float]:
    """Normalised regrets after so many trials, without the related problem's trials and with them."""
    problem = PROBLEMS[name]
    cold = lowest(problem, trialfleet(problem.space, seed), trials=trials, in_flight=in_flight, seed=seed)
    warm = trialfleet(problem.space, seed)
    warm_start(warm, _earlier(problem, seed + 1000), maximize=False)
    found = lowest(problem, warm, trials=trials, in_flight=in_flight, seed=seed)
    return normalised(name, cold), normalised(name, found)


def _earlier(problem: Problem, seed: int) -> list[Observation]:
    """What a study of the shifted problem saw."""
    sampler = trialfleet(problem.space, seed)
    observations = []
    for number in range(EARLIER):
        for draw in sampler.ask(range(number, number + 1)):
            value = problem.function(**_shifted(draw.params, problem.space.parameters))
            observations.append(Observation(number, *draw, 0, value))
            sampler.tell(observations[-1:])
    return observations


def _shifted(params: Params, parameters: dict[str, Distribution]) -> Params:
    return {name: _moved(value, parameters[name]) for name, value in params.items()}


def _moved(value: Scalar, distribution: Distribution) -> Scalar:
    if isinstance(distribution, Categorical) or not isinstance(value, int | float) or distribution.min == 1 == value:
        return value
    if distribution.log:
        moved = value * (distribution.max / distribution.min) ** SHIFT
    else:
        moved = value + SHIFT * (distribution.max - distribution.min)
    moved = min(moved, distribution.high)
    return moved if isinstance(distribution, Float) else math.floor(moved)
