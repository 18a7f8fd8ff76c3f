"""Candidates for new trials: drawn from the density of the good trials, ranked by its ratio to that of the bad ones."""

import msgspec
import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.normal import Array
from trialfleet_coordinator.sampling.parzen import Indices, make_axis, make_kernels
from trialfleet_shared.space import Distribution, Scalar


class Candidates:
    """Points of the space, each drawn from one component of the good trials' mixture in all its parameters.

    A parameter is drawn when the space first asks for it, for all candidates at once; where a space function asks with
    another range than before, that is a dimension of its own.

    Args:
        columns: values of all trials.
        good: rows of the good trials.
        bad: rows of the bad ones, pending trials among them.
        count: candidates to draw.
        generator: source of randomness.
    """

    def __init__(
        self, columns: Columns, *, good: Indices, bad: Indices, count: int, generator: np.random.Generator
    ) -> None:
        self._columns = columns
        self._good = good
        self._bad = bad
        self._generator = generator
        self._components = generator.integers(len(good) + 1, size=count)
        self._dimensions: dict[str, _Dimension] = {}
        self._others: dict[tuple[str, bytes], _Dimension] = {}

    def suggest(self, candidate: int, name: str, distribution: Distribution) -> Scalar:
        """The candidate's value of a parameter, which is thereby active for it."""
        dimension = self._dimension(name, distribution)
        dimension.active[candidate] = True
        return dimension.value(candidate)

    def activate(self, parameters: dict[str, Distribution]) -> None:
        """These parameters are active for every candidate."""
        for name, distribution in parameters.items():
            self._dimension(name, distribution).active[:] = True

    def _dimension(self, name: str, distribution: Distribution) -> "_Dimension":
        first = self._dimensions.get(name)
        if first is not None and (first.distribution is distribution or first.distribution == distribution):
            return first
        if first is None:
            self._dimensions[name] = self._draw(name, distribution)
            return self._dimensions[name]
        key = name, msgspec.json.encode(distribution)
        if key not in self._others:
            self._others[key] = self._draw(name, distribution)
        return self._others[key]

    def _draw(self, name: str, distribution: Distribution) -> "_Dimension":
        return _Dimension(
            distribution,
            self._columns.gather(name, distribution, self._good),
            self._columns.gather(name, distribution, self._bad),
            self._components,
            self._generator.random(len(self._components)),
        )

    def scores(self) -> Array:
        """Log ratio of the good density to the bad one at every candidate."""
        good = np.zeros((len(self._components), len(self._good) + 1))
        bad = np.zeros((len(self._components), len(self._bad) + 1))
        for dimension in (*self._dimensions.values(), *self._others.values()):
            dimension.add_log_densities(good, bad)
        return _log_mean_exp(good) - _log_mean_exp(bad)


class _Dimension:
    """One parameter of all candidates."""

    def __init__(self, distribution: Distribution, good: Array, bad: Array, components: Indices, shares: Array) -> None:
        self.distribution = distribution
        self._axis = make_axis(distribution)
        self._good = make_kernels(self._axis, good)
        self._bad = make_kernels(self._axis, bad)
        self._points = self._good.sample(components, shares)
        #: Candidates that have the parameter.
        self.active: npt.NDArray[np.bool_] = np.zeros(len(components), dtype=np.bool_)

    def value(self, candidate: int) -> Scalar:
        return self._axis.value(float(self._points[candidate]))

    def add_log_densities(self, good: Array, bad: Array) -> None:
        """Add each active candidate's log density under each component."""
        if self.active.all():
            good += self._good.log_density(self._points)
            bad += self._bad.log_density(self._points)
        elif self.active.any():
            good[self.active] += self._good.log_density(self._points[self.active])
            bad[self.active] += self._bad.log_density(self._points[self.active])


def _log_mean_exp(terms: Array) -> Array:
    highest = terms.max(axis=1)
    mean: Array = np.log(np.exp(terms - highest[:, None]).mean(axis=1)) + highest
    return mean
