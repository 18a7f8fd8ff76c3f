"""Parzen estimators over the parameters of a space: one kernel per trial, and one prior, in each parameter.

Numbers are modelled on the unit interval, in their logarithm where the distribution says so, by Gaussians truncated to
it. Bandwidths are the wider gap to the neighbouring trials, at least 1/100 of the range (Bergstra et al. 2011,
"Algorithms for Hyper-Parameter Optimization"; the lower bound and the prior's weight as in Optuna; Watanabe 2023,
"Tree-Structured Parzen Estimator: Understanding Its Algorithm Components", compares the choices).

Points of a grid own the interval around them. A kernel there is at least half an interval wide: narrower ones would hold
one point only, and from half an interval on the density in its middle, times its width, is its probability to 2%. The
width is the same in both densities and leaves their ratio.

All parameters of a kind are one array, because a model's cost is the number of numpy's calls, not their sizes. Densities
are in single precision: they rank candidates, and are twice as fast.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.normal import Array, Single, cdf, quantile
from trialfleet_shared.space import Categorical, Float, Int, Scalar

Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

#: The narrowest bandwidth is 1/(n + 1) of the range with n kernels, and never below 1 / MAX_RESOLUTION.
MAX_RESOLUTION = 100.0
#: Intervals between the nodes at which a mixture's log density is tabulated: the narrowest kernel spans five.
_INTERVALS = 128
#: What is less has an exponential that is nothing beside a prior's. Not so little that products with weights come below the
#: least normal number of single precision: arithmetic on those takes many times as long.
_LEAST = np.float32(-60.0)
#: Rows of a matrix product's pieces: OpenBLAS does up to 2^18 multiplications on one thread.
_PIECE = 8


class NumberAxes:
    """Numeric distributions on the unit interval; arrays have one column for each.

    A point is its coordinate, on a grid the coordinate of the middle of its interval.
    """

    def __init__(self, distributions: Sequence[Float | Int]) -> None:
        self.distributions = tuple(distributions)
        steps = np.array([one.step or 0 for one in distributions], dtype=np.float64)
        self._min = np.array([one.min for one in distributions], dtype=np.float64)
        self._step = np.where(steps > 0, steps, 1.0)
        self._last = np.array([(one.cardinality() or 1) - 1 for one in distributions], dtype=np.float64)
        self._max = np.array([one.high for one in distributions], dtype=np.float64)
        low, high = self._min - steps / 2, self._max + steps / 2
        self._log = np.flatnonzero([one.log for one in distributions])
        self._grid = np.flatnonzero(steps)
        low[self._log], high[self._log] = np.log(low[self._log]), np.log(high[self._log])
        self._low = low
        self._span = np.where(high > low, high - low, 1.0)
        self._half = 0.5 * steps / self._span
        self._log_grid = np.intersect1d(self._grid, self._log)
        #: Where those stand among the distributions that have a grid.
        self._grid_logs = np.searchsorted(self._grid, self._log_grid)

    def __len__(self) -> int:
        return len(self.distributions)

    def observed(self, values: Array) -> Array:
        """Coordinates of values; NaN where a value is NaN, or outside its distribution's range."""
        units = values.copy()
        if len(self._log):
            with np.errstate(invalid="ignore", divide="ignore"):
                units[:, self._log] = np.log(units[:, self._log])
        units -= self._low
        units /= self._span
        units[(units < -1e-9) | (units > 1 + 1e-9)] = np.nan
        return units

    def snap(self, points: Array) -> Array:
        """Coordinates of the values nearest to these coordinates: themselves in a continuum."""
        grid = self._grid
        if not len(grid):
            return points
        low, span, first, step = self._low[grid], self._span[grid], self._min[grid], self._step[grid]
        logs = self._grid_logs
        raw = low + points[:, grid] * span
        raw[:, logs] = np.exp(raw[:, logs])
        values = first + np.minimum(np.maximum(np.rint((raw - first) / step), 0), self._last[grid]) * step
        values[:, logs] = np.log(values[:, logs])
        snapped = points.copy()
        snapped[:, grid] = (values - low) / span
        return snapped

    def half_intervals(self, centres: Array) -> Array:
        """Half the width of the interval around each point of a grid; 0 in a continuum."""
        halves = np.repeat(self._half[None], len(centres), axis=0)
        both = self._log_grid
        if len(both):
            step = self._step[both]
            raw = np.maximum(np.exp(self._low[both] + centres[:, both] * self._span[both]), self._min[both])
            halves[:, both] = 0.5 * np.log((raw + step / 2) / (raw - step / 2)) / self._span[both]
        return halves

    def values(self, points: Array) -> list[list[Scalar]]:
        """The values at coordinates, a list for each distribution."""
        raw = self._low + points * self._span
        raw[:, self._log] = np.exp(raw[:, self._log])
        indices = np.clip(np.rint((raw - self._min) / self._step), 0, self._last).astype(np.int64).T.tolist()
        np.clip(raw, self._min, self._max, out=raw)
        return [
            _on_grid(one, places) if one.step else inside
            for one, places, inside in zip(self.distributions, indices, raw.T.tolist(), strict=True)
        ]


class NumberKernels:
    """Truncated Gaussians around the observed coordinates, and the prior around the middle, in the last row.

    Args:
        axes: of the parameters, one column each.
        observed: coordinates, NaN where a trial does not have the parameter: its kernel is the prior's.
    """

    def __init__(self, axes: NumberAxes, observed: Array) -> None:
        self._axes = axes
        present = ~np.isnan(observed)
        self.components = Components(present)
        centres = np.full((len(observed) + 1, len(axes)), 0.5)
        widths = np.ones_like(centres)
        centres[:-1][present] = observed[present]
        floors = axes.half_intervals(centres[:-1])
        widths[:-1] = np.where(present, np.clip(_bandwidths(observed, present), floors, 1.0), 1.0)
        self.centres, self.widths = centres, widths
        ends = cdf(np.stack((-centres, 1 - centres)) / widths)
        self._below, self._inside = ends[0], ends[1] - ends[0]
        precision = 1.0 / (widths * widths)
        # log density = -x^2 / 2w^2 + x c / w^2 + constant, x and c counted from the middle of the range.
        middle = centres - 0.5
        constant = -np.log(math.sqrt(2 * math.pi) * widths * self._inside) - 0.5 * middle * middle * precision
        #: By parameter, factor and kernel.
        self._factors = np.stack((-0.5 * precision, middle * precision, constant), axis=1).T.astype(
            np.float32, order="C"
        )
        # From (kernel, factor, parameter) transposed: (parameter, factor, kernel).

    def sample(self, rows: Indices, shares: Array) -> Array:
        """A point from the kernel in each of these rows, by inversion of the uniform `shares`."""
        at = rows * len(self._axes) + np.arange(len(self._axes))
        levels = self._below.take(at) + shares * self._inside.take(at)
        np.clip(levels, 1e-16, 1 - 1e-16, out=levels)
        points = self.centres.take(at) + self.widths.take(at) * quantile(levels)
        return self._axes.snap(np.minimum(np.maximum(points, 0.0), 1.0))

    def features(self, points: Array, active: Mask) -> Single:
        """What the kernels' `factors` are multiplied with: x^2, x and 1 for each parameter, 0 where it is not active."""
        middle = points - 0.5
        stacked = np.stack((middle * middle, middle, np.ones_like(middle)), axis=2).astype(np.float32)
        stacked *= active[:, :, None]
        features: Single = stacked.reshape(len(points), -1)
        return features

    def factors(self) -> Single:
        """Such that features @ factors is the sum over the parameters of each kernel's log density."""
        return self._factors.reshape(-1, self._factors.shape[2])

    def log_mixture(self, points: Array) -> Array:
        """Log density of each parameter's own mixture at each point."""
        middle = (points.T - 0.5).astype(np.float32)
        features = np.stack((middle * middle, middle, np.ones_like(middle)), axis=2)
        density = _exp(np.matmul(features, self._factors))
        weights = self.components.weights.astype(np.float32, order="C")
        mixture: Array = np.log(np.einsum("dpk,dk->pd", density, weights))
        return mixture


class ChoiceAxes:
    """Categorical distributions; a point is a position among the choices, arrays have one column for each."""

    def __init__(self, distributions: Sequence[Categorical]) -> None:
        self.distributions = tuple(distributions)
        self.sizes = np.array([len(one.choices) for one in distributions], dtype=np.intp)
        #: Where each distribution's choices begin among the choices of all.
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.intp)

    def __len__(self) -> int:
        return len(self.distributions)

    def observed(self, values: Array) -> Array:
        """Positions are what is observed."""
        return values

    def values(self, points: Array) -> list[list[Scalar]]:
        """The choices at positions, a list for each distribution."""
        return [
            [one.choices[place] for place in places]
            for one, places in zip(self.distributions, points.astype(np.intp).T.tolist(), strict=True)
        ]


class ChoiceKernels:
    """Observed choices, smoothed by the prior's share; the prior, uniform, in the last row.

    Args:
        axes: of the parameters, one column each.
        observed: positions, NaN where a trial does not have the parameter: its kernel is the prior's.
    """

    def __init__(self, axes: ChoiceAxes, observed: Array) -> None:
        self._axes = axes
        present = ~np.isnan(observed)
        self.components = Components(present)
        share = 1.0 / (present.sum(axis=0) + 1.0)
        total = 1.0 + axes.sizes * share
        self._hit, self._miss = (1.0 + share) / total, share / total
        self._observed = np.vstack((np.where(present, observed, -1), np.full(len(axes), -1))).astype(np.intp)

    def sample(self, rows: Indices, shares: Array) -> Array:
        """A point from the kernel in each of these rows, by inversion of the uniform `shares`."""
        sizes, extra = self._axes.sizes, self._hit - self._miss
        seen = self._observed[rows, np.arange(len(self._axes))]
        kept = (seen >= 0) & (shares < extra)
        rest = np.where(seen >= 0, (shares - extra) / (1.0 - extra), shares)
        uniform = np.minimum(np.floor(np.maximum(rest, 0.0) * sizes), sizes - 1)
        return np.where(kept, seen, uniform)

    def features(self, points: Array, active: Mask) -> Single:
        """What the kernels' `factors` are multiplied with: one for each choice of each parameter, 1 for the chosen."""
        features = np.zeros((len(points), int(self._axes.sizes.sum())), dtype=np.float32)
        at = points.astype(np.intp) + self._axes.offsets
        features[np.arange(len(points))[:, None], at] = active
        return features

    def factors(self) -> Single:
        """Such that features @ factors is the sum over the parameters of each kernel's log probability."""
        sizes = self._axes.sizes
        missed = np.where(self._observed >= 0, np.log(self._miss), -np.log(sizes))
        factors = np.repeat(missed, sizes, axis=1).T
        rows, columns = np.nonzero(self._observed >= 0)
        factors[self._observed[rows, columns] + self._axes.offsets[columns], rows] = np.log(self._hit)[columns]
        return factors.astype(np.float32)

    def log_mixture(self, points: Array) -> Array:
        """Log probability of each parameter's own mixture at each point."""
        mixture: Array = self._table()[points.astype(np.intp) + self._axes.offsets]
        return mixture

    def _table(self) -> Array:
        """Log probability of every choice of every parameter."""
        sizes, offsets = self._axes.sizes, self._axes.offsets
        rows, columns = np.nonzero(self._observed >= 0)
        counts = np.bincount(self._observed[rows, columns] + offsets[columns], minlength=int(sizes.sum()))
        seen = np.repeat(np.add.reduceat(counts, offsets), sizes)
        prior, hit, miss = (np.repeat(one, sizes) for one in (1.0 / sizes, self._hit, self._miss))
        table: Array = np.log((counts * hit + (seen - counts) * miss + prior) / (seen + 1.0))
        return table


class Components:
    """Which kernels are in each parameter's own mixture: those of trials that have it, and the prior, all alike.

    Args:
        present: of each trial and parameter, whether the trial has it.
    """

    def __init__(self, present: Mask) -> None:
        self._present = np.vstack((present, np.ones(present.shape[1], dtype=np.bool_)))
        self._counts = self._present.sum(axis=0)

    @property
    def weights(self) -> Array:
        """Of each parameter's kernels, by parameter and kernel."""
        weights: Array = (self._present / self._counts).T
        return weights

    def choose(self, shares: Array) -> Indices:
        """A kernel's row for each uniform share, one column for each parameter."""
        rows: Indices = np.minimum((shares * self._counts).astype(np.intp), self._counts - 1)
        if not self._present.all():
            rows = np.argsort(~self._present, axis=0, kind="stable")[rows, np.arange(rows.shape[1])]
        return rows


Axes = NumberAxes | ChoiceAxes
Kernels = NumberKernels | ChoiceKernels


def _on_grid(distribution: Float | Int, places: list[int]) -> list[Scalar]:
    if isinstance(distribution, Float):
        return [distribution.at(place) for place in places]
    return [distribution.min + place * distribution.step for place in places]


def make_kernels(axes: Axes, observed: Array) -> Kernels:
    """The kernels of what was observed on these axes."""
    return ChoiceKernels(axes, observed) if isinstance(axes, ChoiceAxes) else NumberKernels(axes, observed)


def log_ratio(good: Kernels, bad: Kernels, points: Array) -> Array:
    """Log ratio of two mixtures' densities at each point; numbers' are from a table where the points are many."""
    if len(points) <= _INTERVALS or isinstance(good, ChoiceKernels):
        return good.log_mixture(points) - bad.log_mixture(points)
    nodes = np.repeat(np.linspace(0.0, 1.0, _INTERVALS + 1)[:, None], points.shape[1], axis=1)
    table = good.log_mixture(nodes) - bad.log_mixture(nodes)
    scaled = points * _INTERVALS
    node = np.minimum(scaled.astype(np.intp), _INTERVALS - 1)
    at = node * points.shape[1] + np.arange(points.shape[1])
    lower = table.take(at)
    ratio: Array = lower + (scaled - node) * (table.take(at + points.shape[1]) - lower)
    return ratio


def log_densities(features: Single, factors: Single) -> Single:
    """The matrix product features @ factors, in pieces that one thread works on.

    OpenBLAS divides large products among threads, and waits for them: 16 ms instead of 0.2 where the cores are busy, as
    those of a machine that evaluates trials are.
    """
    count = len(features)
    padded = np.zeros((-(-count // _PIECE), _PIECE, features.shape[1]), dtype=np.float32)
    padded.reshape(-1, features.shape[1])[:count] = features
    product: Single = np.matmul(padded, factors).reshape(-1, factors.shape[1])[:count]
    return product


def log_mean_exp(terms: Single) -> Array:
    """Logarithm of the mean exponential of each row; overwrites the terms."""
    highest = terms.max(axis=1)
    terms -= highest[:, None]
    mean: Array = np.log(_exp(terms).mean(axis=1)) + highest
    return mean


def _exp(terms: Single) -> Single:
    """The exponential, in place; what is less than `_LEAST` counts as that."""
    np.maximum(terms, _LEAST, out=terms)
    np.exp(terms, out=terms)
    return terms


def _bandwidths(observed: Array, present: Mask) -> Array:
    """Per point the wider gap to its neighbours; the outermost have one neighbour, one alone has the range's ends."""
    rows = len(observed)
    if rows == 0:
        return np.empty_like(observed)
    order = np.argsort(observed, axis=0, kind="stable")  # NaN last
    columns = np.arange(observed.shape[1])
    ordered = observed[order, columns]
    counts = present.sum(axis=0)
    gaps = np.zeros((rows + 1, observed.shape[1]))
    np.subtract(ordered[1:], ordered[:-1], out=gaps[1:-1])
    gaps[np.isnan(gaps)] = 0.0
    alone = np.flatnonzero(counts == 1)
    gaps[0, alone], gaps[1, alone] = ordered[0, alone], 1.0 - ordered[0, alone]
    widths = np.empty_like(observed)
    widths[order, columns] = np.maximum(gaps[:-1], gaps[1:])
    np.maximum(widths, 1.0 / np.minimum(MAX_RESOLUTION, 2.0 + counts), out=widths)
    return widths
