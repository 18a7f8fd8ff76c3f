"""Parzen estimators over the parameters of a space: one kernel per trial, and one prior, in each parameter.

Numbers are modelled on the unit interval, in their logarithm where the distribution says so, by Gaussians truncated to
it. Points of a grid own the interval around them, and have its probability. Bandwidths are the wider gap to the
neighbouring trials, at least 1/100 of the range (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization";
the lower bound and the prior's weight as in Optuna; Watanabe 2023, "Tree-Structured Parzen Estimator: Understanding Its
Algorithm Components", compares the choices).
"""

import math

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.normal import Array, cdf, quantile
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Scalar

Indices = npt.NDArray[np.intp]

#: The narrowest bandwidth is a share 1/n of the range with n kernels, and never below 1 / MAX_RESOLUTION.
MAX_RESOLUTION = 100.0
#: A grid's intervals wider than this have their exact probability; narrower ones density times width, which is within
#: 0.1% for the narrowest kernel.
_EXACT_WIDTH = 1 / 256
#: Stands for the probability of what a kernel all but excludes.
_TINY = 1e-12
#: Nodes between which a mixture's log density is interpolated: the narrowest kernel spans ten of them.
_NODES = 257
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class NumberAxis:
    """A numeric distribution on the unit interval.

    A point is its coordinate, on a grid the coordinate of the middle of its interval.
    """

    def __init__(self, distribution: Float | Int) -> None:
        self.distribution = distribution
        step = distribution.step or 0
        low, high = distribution.min - step / 2, distribution.high + step / 2
        self._low, self._high = (math.log(low), math.log(high)) if distribution.log else (low, high)
        self._span = (self._high - self._low) or 1.0
        size = distribution.cardinality()
        #: Inner bounds of a grid's intervals; empty for a continuum, and for a grid too fine to be told from one.
        self.bounds: Array = np.empty(0)
        #: Intervals from the first one that have their exact probability.
        self.exact = 0
        if step and size is not None and size > 1:
            wide = size if self._width(size - 1) > _EXACT_WIDTH else self._wide(size)
            self.exact = wide
            self.bounds = self.unit(np.asarray(distribution.min + (np.arange(wide + 1) - 0.5) * step, dtype=np.float64))

    def _width(self, index: int) -> float:
        """Width of a grid point's interval."""
        middle = self.distribution.min + index * (self.distribution.step or 0)
        half = (self.distribution.step or 0) / 2
        low, high = self.unit(np.array([middle - half, middle + half]))
        return float(high - low)

    def _wide(self, size: int) -> int:
        """How many intervals, from the first, are wider than `_EXACT_WIDTH`: in a logarithm they shrink."""
        low, high = 0, size
        while low < high:
            middle = (low + high) // 2
            if self._width(middle) > _EXACT_WIDTH:
                low = middle + 1
            else:
                high = middle
        return low

    def unit(self, values: Array) -> Array:
        """Coordinates of values."""
        return ((np.log(values) if self.distribution.log else values) - self._low) / self._span

    def snap(self, points: Array) -> Array:
        """Coordinates of the values nearest to these coordinates: themselves in a continuum."""
        step = self.distribution.step
        if not step:
            return points
        raw = self._raw(points)
        index = np.clip(np.rint((raw - self.distribution.min) / step), 0, self._last)
        return self.unit(self.distribution.min + index * step)

    @property
    def _last(self) -> int:
        return (self.distribution.cardinality() or 1) - 1

    def _raw(self, points: Array) -> Array:
        raw = self._low + points * self._span
        return np.exp(raw) if self.distribution.log else raw

    def value(self, point: float) -> Scalar:
        """The value at a coordinate."""
        distribution = self.distribution
        raw = float(self._raw(np.array([point]))[0])
        if isinstance(distribution, Float) and distribution.step is None:
            return min(max(raw, distribution.min), distribution.max)
        assert distribution.step is not None
        index = min(max(round((raw - distribution.min) / distribution.step), 0), self._last)
        return (
            distribution.at(index) if isinstance(distribution, Float) else distribution.min + index * distribution.step
        )


class NumberKernels:
    """Truncated Gaussians around the observed coordinates, and the prior around the middle, in the last place.

    Args:
        axis: of the parameter.
        observed: values, NaN where a trial does not have the parameter: its kernel is the prior's.
    """

    def __init__(self, axis: NumberAxis, observed: Array) -> None:
        self._axis = axis
        centres = np.append(axis.unit(np.where(np.isnan(observed), axis.distribution.min, observed)), 0.5)
        widths = np.ones(len(centres))
        active = np.flatnonzero(~np.isnan(observed))
        centres[np.flatnonzero(np.isnan(observed))] = 0.5
        widths[active] = _bandwidths(centres[active])
        self.centres, self.widths = centres, widths
        self._below = cdf(-centres / widths)
        self._inside = cdf((1 - centres) / widths) - self._below
        self._log_scale = -np.log(widths * self._inside) - _HALF_LOG_2_PI

    def __len__(self) -> int:
        return len(self.centres)

    def sample(self, components: Indices, shares: Array) -> Array:
        """One point from each of these components, by inversion of the uniform `shares`."""
        levels = self._below[components] + shares * self._inside[components]
        points = self.centres[components] + self.widths[components] * quantile(np.clip(levels, 1e-16, 1 - 1e-16))
        return self._axis.snap(np.clip(points, 0.0, 1.0))

    def log_density(self, points: Array) -> Array:
        """Log density (of wide grid intervals: probability) of each point under each component."""
        precision = 1.0 / (self.widths * self.widths)
        # ((x - c) / w)^2 as a matrix product: x^2 / w^2 - 2 x c / w^2 + c^2 / w^2
        features = np.column_stack([points * points, points, np.ones_like(points)])
        factors = np.vstack(
            [
                -0.5 * precision,
                self.centres * precision,
                self._log_scale - 0.5 * self.centres * self.centres * precision,
            ]
        )
        density: Array = features @ factors
        if self._axis.exact:
            index = np.searchsorted(self._axis.bounds, points) - 1
            wide = index < self._axis.exact
            density[wide] = self._table()[index[wide]]
        return density

    def log_mean_density(self, points: Array) -> Array:
        """Logarithm of the mixture's density at each point."""
        if self._axis.exact or len(points) <= _NODES:
            return log_mean_exp(self.log_density(points))
        nodes = np.linspace(0.0, 1.0, _NODES)
        return np.interp(points, nodes, log_mean_exp(self.log_density(nodes)))

    def _table(self) -> Array:
        """Log probability of every wide interval under every component."""
        kinds, kind = np.unique(np.column_stack([self.centres, self.widths]), axis=0, return_inverse=True)
        below = cdf((self._axis.bounds[:, None] - kinds[:, 0]) / kinds[:, 1])
        inside = np.diff(below, axis=0) / (cdf((1 - kinds[:, 0]) / kinds[:, 1]) - cdf(-kinds[:, 0] / kinds[:, 1]))
        table: Array = np.log(np.maximum(inside, _TINY))[:, kind.reshape(-1)]
        return table


class ChoiceAxis:
    """A categorical distribution; a point is a position among its choices."""

    def __init__(self, distribution: Categorical) -> None:
        self.distribution = distribution

    def value(self, point: float) -> Scalar:
        """The choice at a position."""
        return self.distribution.choices[int(point)]


class ChoiceKernels:
    """Observed choices, smoothed by the prior's share; the prior, uniform, in the last place.

    Args:
        axis: of the parameter.
        observed: positions, NaN where a trial does not have the parameter: its kernel is the prior's.
    """

    def __init__(self, axis: ChoiceAxis, observed: Array) -> None:
        size = len(axis.distribution.choices)
        kernels = len(observed) + 1
        weights = np.full((kernels, size), 1.0 / kernels)
        active = np.flatnonzero(~np.isnan(observed))
        weights[active, observed[active].astype(np.intp)] += 1.0
        weights /= weights.sum(axis=1, keepdims=True)
        self._cumulative = np.cumsum(weights, axis=1)
        self._log_weights = np.ascontiguousarray(np.log(weights).T)

    def __len__(self) -> int:
        return len(self._cumulative)

    def sample(self, components: Indices, shares: Array) -> Array:
        """One point from each of these components, by inversion of the uniform `shares`."""
        chosen = (shares[:, None] >= self._cumulative[components, :-1]).sum(axis=1)
        return np.asarray(chosen, dtype=np.float64)

    def log_density(self, points: Array) -> Array:
        """Log probability of each point under each component."""
        density: Array = self._log_weights[points.astype(np.intp)]
        return density

    def log_mean_density(self, points: Array) -> Array:
        """Logarithm of the mixture's probability of each point."""
        return log_mean_exp(self._log_weights)[points.astype(np.intp)]


Axis = NumberAxis | ChoiceAxis
Kernels = NumberKernels | ChoiceKernels


def make_axis(distribution: Distribution) -> Axis:
    """The axis of a distribution."""
    return ChoiceAxis(distribution) if isinstance(distribution, Categorical) else NumberAxis(distribution)


def make_kernels(axis: Axis, observed: Array) -> Kernels:
    """The kernels of the observed values on an axis."""
    return ChoiceKernels(axis, observed) if isinstance(axis, ChoiceAxis) else NumberKernels(axis, observed)


def log_mean_exp(terms: Array) -> Array:
    """Logarithm of the mean exponential of each row."""
    highest = terms.max(axis=1)
    mean: Array = np.log(np.exp(terms - highest[:, None]).mean(axis=1)) + highest
    return mean


def _bandwidths(centres: Array) -> Array:
    """Per centre the wider gap to its neighbours; the outermost have one neighbour, one alone has the range's ends."""
    count = len(centres)
    if count == 0:
        return np.empty(0)
    order = np.argsort(centres, kind="stable")
    gaps = np.diff(centres[order], prepend=0.0, append=1.0)
    if count > 1:
        gaps[0], gaps[-1] = 0.0, 0.0
    widths = np.empty(count)
    widths[order] = np.maximum(gaps[:-1], gaps[1:])
    return np.clip(widths, 1.0 / min(MAX_RESOLUTION, 2.0 + count), 1.0)
