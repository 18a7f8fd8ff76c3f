"""Warm start: an earlier study's trials seed the sampler of a new one.

A trial fits when the new space, drawn with the trial's values, takes every one of them. Values of the objective are not
taken over, because the two studies may differ in data or objective: what counts is the trials' order among themselves.
"""

from collections import Counter
from collections.abc import Sequence

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.drawing import draw_point
from trialfleet_coordinator.sampling.ranking import Ranking
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params, Scalar, Space


def warm_start(sampler: TpeSampler, observations: Sequence[Observation], *, maximize: bool) -> int:
    """Seed a sampler, before it is restored or asked.

    Args:
        sampler: of the new study.
        observations: of the earlier study.
        maximize: whether higher values were better in the earlier study.

    Returns:
        How many different points it learnt from.

    Raises:
        ConfigurationError: no trial with a value fits the new space; the message says why.
    """
    ranking = Ranking(maximize=maximize)
    trials = {observation.trial: observation for observation in observations}
    ranking.observe(observations)
    draws: dict[bytes, Draw] = {}
    misfits: Counter[str] = Counter()
    for number in ranking.at(range(ranking.scored)):
        try:
            draw = fit(sampler.space, trials[number].params)
        except _MisfitError as error:
            misfits[str(error)] += 1
        else:
            draws.setdefault(canonical_params(draw.params), draw)
    if not draws:
        reasons = "; ".join(f"{reason} ({count} of them)" for reason, count in misfits.most_common(3))
        raise ConfigurationError(
            f"none of the earlier study's {ranking.scored} trials with a value fits the search space"
            + (f": {reasons}" if reasons else "")
        )
    sampler.learn_from(list(draws.values()))
    return len(draws)


class _MisfitError(Exception):
    """A trial does not fit the space."""


def fit(space: Space, params: Params) -> Draw:
    """The point of the space that has these values; values that it does not ask for are left out."""

    def suggest(name: str, distribution: Distribution) -> Scalar:
        if name not in params:
            raise _MisfitError(f"{name!r} is missing")
        value = params[name]
        if not distribution.contains(value):
            raise _MisfitError(f"{name!r} is outside {_range(distribution)}")
        # A number keeps its value and takes the distribution's type: canonical params do not tell 1 from 1.0.
        if isinstance(distribution, Int):
            return int(value)  # type: ignore[arg-type]  # an Int contains numbers only
        return float(value) if isinstance(distribution, Float) else value  # type: ignore[arg-type]  # as above

    return draw_point(space, suggest)


def _range(distribution: Distribution) -> str:
    if isinstance(distribution, Categorical):
        return f"the choices {distribution.choices!r}"
    step = f" step {distribution.step}" if distribution.step not in (None, 1) else ""
    return f"{distribution.min} to {distribution.max}{step}"
