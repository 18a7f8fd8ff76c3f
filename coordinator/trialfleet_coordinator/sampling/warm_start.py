"""Warm start: an earlier study's trials seed the sampler of a new one.

A trial fits when the new space, drawn with the trial's values, takes every one of them. Of a parameter that it does not have,
which the space has got since, it says nothing, like a trial on another branch of a conditional space. Values of the objective
are not taken over, because the two studies may differ in data or objective: what counts is the trials' order among themselves.

Which of them were good, the earlier study's direction says, unless the objective is the same function and the new study's
direction another one: then the earlier one had it the wrong way round (`turned`). Its higher rungs have the worst trials, so
all are compared on the lowest rung that each finished.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.drawing import uniform_value
from trialfleet_coordinator.sampling.points import as_drawn, draw_point
from trialfleet_coordinator.sampling.ranking import Ranking
from trialfleet_coordinator.sampling.tpe import EarlierTrial, TpeSampler
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import Categorical, Distribution, Params, Scalar, Space


class Learnt(NamedTuple):
    """What a sampler has learnt of an earlier study."""

    #: How many different points.
    points: int
    #: Parameters of the space that none of them has, sorted.
    unknown: list[str]


def warm_start(
    sampler: TpeSampler, observations: Sequence[Observation], *, maximize: bool, turned: bool = False
) -> Learnt:
    """Seed a sampler, before it is restored or asked.

    Args:
        sampler: of the new study.
        observations: of the earlier study.
        maximize: whether higher ones of its values are better.
        turned: whether it took the lower ones for better then, or the other way round.

    Raises:
        ConfigurationError: no trial with a value fits the new space; the message says why.
    """
    ranking = Ranking(maximize=maximize)
    trials = {observation.trial: observation for observation in observations}
    ranking.observe(_lowest(observations) if turned else observations)
    ranked: dict[bytes, EarlierTrial] = {}
    misfits: Counter[str] = Counter()
    for place, number in enumerate(ranking.at(range(ranking.scored))):
        try:
            trial = fit(sampler.space, trials[number].params, sampler.generator(place).random)
        except _MisfitError as error:
            misfits[str(error)] += 1
        else:
            ranked.setdefault(canonical_params(trial.known.params), trial)
    if not ranked:
        reasons = "; ".join(f"{reason} ({count} of them)" for reason, count in misfits.most_common(3))
        raise ConfigurationError(
            f"none of the earlier study's {ranking.scored} trials with a value fits the search space"
            + (f": {reasons}" if reasons else "")
        )
    sampler.learn_from(list(ranked.values()))
    asked = {name for trial in ranked.values() for name in trial.point.params}
    return Learnt(len(ranked), sorted(asked.difference(*(trial.known.params for trial in ranked.values()))))


def _lowest(observations: Iterable[Observation]) -> Iterable[Observation]:
    """Of each trial, what it did on the lowest rung; that it failed, if it did."""
    lowest: dict[int, Observation] = {}
    for observation in observations:
        known = lowest.setdefault(observation.trial, observation)
        if known.value is not None and (observation.value is None or observation.rung < known.rung):
            lowest[observation.trial] = observation
    return lowest.values()


class _MisfitError(Exception):
    """A trial does not fit the space."""


def fit(space: Space, params: Params, share: Callable[[], float]) -> EarlierTrial:
    """A point of the space that has these values, as far as it asks for them.

    Args:
        space: the space.
        params: the values.
        share: a random number in [0, 1) for each parameter that has none among them.
    """
    known: dict[str, Distribution] = {}

    def suggest(name: str, distribution: Distribution) -> Scalar:
        if name not in params:
            return uniform_value(distribution, share())
        value = params[name]
        if not distribution.contains(value):
            raise _MisfitError(f"{name!r} is outside {_range(distribution)}")
        known[name] = distribution
        return as_drawn(value, distribution)

    point = draw_point(space, suggest)
    if not known:
        raise _MisfitError(f"it has none of {', '.join(map(repr, point.params))}")
    return EarlierTrial(point, Draw({name: point.params[name] for name in known}, known))


def _range(distribution: Distribution) -> str:
    if isinstance(distribution, Categorical):
        return f"the choices {distribution.choices!r}"
    step = f" step {distribution.step}" if distribution.step not in (None, 1) else ""
    return f"{distribution.min} to {distribution.max}{step}"
