"""What the regret of an instance is measured by, and the unit of its budget; computed once and kept.

The best known score is the best of 20,000 random configurations, of an evolution that starts from their best, and of
all runs (`regret.py` sees to these). Where several of the random configurations share the best score the surrogate is
saturated: it promises 100% at no cost to a good part of the space, and there is nothing to search for. Such instances
are left out.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from trialfleet_coordinator.sampling.drawing import uniform_value
from trialfleet_shared.space import Categorical, Distribution, Int, Params, Scalar
from yahpo_parts.surrogate import SCENARIOS, Problem, Surrogate

DRAWS = 20_000
#: Generations of the evolution, children of each, and parents.
GENERATIONS, CHILDREN, PARENTS = 30, 400, 20
#: Scores closer than this are the same.
EQUAL = 1e-6
#: The unit of budgets is the mean cost of this cheapest share of random configurations at full fidelity: the rest are
#: boosters that cost up to a thousand times the median, and would make it the cost of those few.
CHEAPEST = 0.95


class Anchor(msgspec.Struct, frozen=True):
    """One instance."""

    best: float
    #: Median score of random configurations at full fidelity.
    median: float
    #: Simulated seconds of a usual evaluation at full fidelity; see `CHEAPEST`.
    unit: float
    saturated: bool


def load_anchors(path: Path, data: Path) -> dict[str, dict[str, Anchor]]:
    """Of all instances of all scenarios; computed, and written to `path`, if the file is not there."""
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, Anchor]])
    anchors: dict[str, dict[str, Anchor]] = {}
    for name in SCENARIOS:
        surrogate = Surrogate(data, name)
        anchors[name] = {one: _anchor(Problem(surrogate, name, one)) for one in surrogate.instances}
    path.write_text(json.dumps(msgspec.to_builtins(anchors), indent=1) + "\n")
    return anchors


def chosen(anchors: dict[str, Anchor], count: int) -> list[str]:
    """So many instances, evenly spaced over those that are not saturated, by their number."""
    usable = [name for name, anchor in anchors.items() if not anchor.saturated]
    return [usable[place * len(usable) // count] for place in range(min(count, len(usable)))]


def _anchor(problem: Problem) -> Anchor:
    generator = random.Random(0)
    drawn = [
        problem.space.draw(lambda _, distribution: uniform_value(distribution, generator.random()))
        for _ in range(DRAWS)
    ]
    scores, costs = problem.evaluate(drawn, [1.0] * DRAWS)
    cheapest = sorted(costs)[: round(CHEAPEST * DRAWS)]
    best = max(scores)
    return Anchor(
        best=round(max(best, _evolve(problem, drawn, scores, generator)), 8),
        median=round(float(np.median(scores)), 8),
        unit=round(float(np.mean(cheapest)), 4),
        saturated=sum(score > best - EQUAL for score in scores) > 1,
    )


def _evolve(problem: Problem, drawn: Sequence[Params], scores: Sequence[float], generator: random.Random) -> float:
    """The best score that evolution from the best of these finds."""
    pool = sorted(zip(scores, range(len(scores)), drawn, strict=True), reverse=True)[:PARENTS]
    for _ in range(GENERATIONS):
        children = [
            _child(problem, generator.choice(pool)[2], generator.choice(pool)[2], generator) for _ in range(CHILDREN)
        ]
        found = zip(problem.full_scores(children), range(-CHILDREN, 0), children, strict=True)
        pool = [
            (score, place, params)
            for place, (score, _, params) in enumerate(sorted([*pool, *found], reverse=True)[:PARENTS])
        ]
    return pool[0][0]


def _child(problem: Problem, mother: Params, father: Params, generator: random.Random) -> Params:
    def suggest(name: str, distribution: Distribution) -> Scalar:
        kind = generator.random()
        one, other = mother.get(name), father.get(name)
        if kind < 0.1 or one is None:
            return uniform_value(distribution, generator.random())
        if kind < 0.6 or other is None or isinstance(distribution, Categorical):
            return one
        return _between(distribution, float(one), float(other), generator.gauss(0.0, 0.7))  # type: ignore[arg-type]

    return problem.space.draw(suggest)


def _between(distribution: Distribution, one: float, other: float, share: float) -> float:
    """On the line through both, in logarithms where the distribution is, kept inside its range."""
    assert not isinstance(distribution, Categorical)
    if distribution.log:
        value = math.exp(math.log(one) + share * (math.log(other) - math.log(one)))
    else:
        value = one + share * (other - one)
    value = min(max(value, distribution.min), distribution.max)
    return round(value) if isinstance(distribution, Int) else value
