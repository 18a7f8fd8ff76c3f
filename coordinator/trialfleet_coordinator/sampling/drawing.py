"""Drawing points that differ: what was drawn before is drawn again, a bounded number of times, until something new comes.

Where chance finds nothing new, the space is enumerated, if it is small enough for that beside what was drawn already.
So a finite space of up to `ENUMERATED` points is exhausted exactly; of a larger one points may come again until a quarter of it
was drawn. A continuous one pays a set lookup per draw.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.points import draw_point
from trialfleet_coordinator.sampling.spread import Spread
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params, Scalar, Space

#: Uniform draws of one trial before the space is enumerated.
REDRAWS = 50
#: Points that are enumerated in any case, if need be; beyond that, up to four times as many as were drawn.
ENUMERATED = 10_000


class Drawing:
    """The points of a space that were drawn, and new ones.

    Args:
        space: where to draw from.
        seed: the random stream; trial `n` draws from the stream (seed, n), however the trials are batched.
    """

    def __init__(self, space: Space, *, seed: int) -> None:
        self.space = space
        self._seed = seed % 2**64
        self._spread = Spread(self._seed)
        self._seen: set[bytes] = set()
        #: Points left of an enumerated space.
        self._left: dict[bytes, Draw] | None = None
        #: No enumeration before so many points were drawn: the last one met too many.
        self._enumerate_from = 0

    def __len__(self) -> int:
        return len(self._seen)

    def generator(self, number: int) -> np.random.Generator:
        """The random stream of trial `number`."""
        return np.random.default_rng((self._seed, number))

    def add(self, params: Params) -> bool:
        """Count `params` as drawn; False when they were drawn before."""
        key = canonical_params(params)
        if key in self._seen:
            return False
        self._seen.add(key)
        if self._left is not None:
            self._left.pop(key, None)
        return True

    def uniform(self, number: int) -> Draw | None:
        """A point for trial `number`, uniform among those that were not drawn yet; None when there are none.

        Points of successive trials are spread evenly (see `spread.py`), as far as they have not been drawn before.
        A space too large to enumerate may repeat a point where `REDRAWS` draws in a row brought nothing new.
        """
        generator = self.generator(number)
        if self._left is None:
            draw = self._spread_point(number, generator)
            if self.add(draw.params):
                return draw
            for _ in range(REDRAWS):
                draw = draw_point(self.space, lambda _, distribution: uniform_value(distribution, generator.random()))
                if self.add(draw.params):
                    return draw
            self._enumerate()
        if self._left is None:
            return draw
        if not self._left:
            return None
        key = list(self._left)[int(generator.random() * len(self._left))]
        self._seen.add(key)
        return self._left.pop(key)

    def _spread_point(self, number: int, generator: np.random.Generator) -> Draw:
        dimensions = itertools.count()

        def suggest(_: str, distribution: Distribution) -> Scalar:
            return uniform_value(distribution, self._spread.share(number, next(dimensions), generator.random()))

        return draw_point(self.space, suggest)

    def _enumerate(self) -> None:
        if len(self._seen) < self._enumerate_from:
            return
        limit = max(ENUMERATED, 4 * len(self._seen))
        points: dict[bytes, Draw] = {}
        for count, draw in enumerate(enumerate_points(self.space)):
            if draw is None or count == limit:
                self._enumerate_from = limit // 2
                return
            points[canonical_params(draw.params)] = draw
        self._left = {key: draw for key, draw in points.items() if key not in self._seen}


def enumerate_points(space: Space) -> Iterator[Draw | None]:
    """Every point of the space, in lexicographic order; None, and the end, where a parameter is continuous.

    The space is walked as a tree: each walk repeats the choices of the one before it up to the last parameter that
    has a value left, moves that one on, and takes the first value of every parameter after it.
    """
    path: list[int] = []
    while True:
        sizes: list[int] = []
        continuous = False

        def suggest(_: str, distribution: Distribution, sizes: list[int] = sizes) -> Scalar:
            nonlocal continuous
            size = distribution.cardinality()
            continuous = continuous or size is None
            sizes.append(size or 1)
            depth = len(sizes) - 1
            if depth == len(path):
                path.append(0)
            return value_at(distribution, path[depth])

        draw = draw_point(space, suggest)
        if continuous:
            yield None
            return
        yield draw
        while path and path[-1] + 1 == sizes[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


def value_at(distribution: Distribution, index: int) -> Scalar:
    """Value `index` of a distribution, in order; for a continuous one, its least."""
    match distribution:
        case Float(step=None):
            return distribution.min
        case Float():
            return distribution.at(index)
        case Int():
            return distribution.min + index * distribution.step
        case Categorical():
            return distribution.choices[index]


def uniform_value(distribution: Distribution, share: float) -> Scalar:
    """The quantile `share`, 0 <= share < 1, of the uniform (or log-uniform) distribution.

    A whole number that is uniform in its logarithm owns the reals that round to it, as in Optuna.
    """
    if isinstance(distribution, Float) and distribution.step is None:
        if not distribution.log:
            return min(distribution.min + share * (distribution.max - distribution.min), distribution.max)
        low, high = np.log(distribution.min), np.log(distribution.max)
        return min(max(float(np.exp(low + share * (high - low))), distribution.min), distribution.max)
    if isinstance(distribution, Int) and distribution.log:
        low, high = np.log(distribution.min - 0.5), np.log(distribution.high + 0.5)
        return min(max(round(float(np.exp(low + share * (high - low)))), distribution.min), distribution.high)
    size = distribution.cardinality()
    assert size is not None
    return value_at(distribution, min(int(share * size), size - 1))


#: What a sampler remembers of an earlier session: trial number, params, and the distributions they came from.
Drawn = tuple[int, Params, dict[str, Distribution]]
