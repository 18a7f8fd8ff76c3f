"""A Gaussian process over a few hundred points: what is to be expected elsewhere, and how surely.

Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning": Matern kernel with nu = 5/2 and a length scale of
its own for each parameter (equation 4.17, section 5.1), the hyperparameters at the maximum of their posterior (5.4.1).
Values are noisy: where two points close to each other differ, that is taken for chance.

With numpy alone: a coordinator imports no scipy, whose import takes longer than all the fits of a study of a hundred trials.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.normal import Array, cdf

#: Mean and standard deviation of the normal priors on the logarithms of a length scale (the cube's side is 1), of the noise's
#: variance, and of the variance that the points explain. Longer length scales, as are usual for many parameters (median 4 and
#: more), lost what shorter ones won on the functions of `benchmarks/sampler_quality.py`.
LENGTH_PRIOR = (-0.5, 1.0)
NOISE_PRIOR = (-3.0, 1.5)
SIGNAL_PRIOR = (0.0, 1.0)
#: Steps of a fit, at most.
MAX_STEPS = 25
#: A fit ends where a step changes the logarithm of the posterior by less.
_SETTLED = 1e-2
#: Added to the noise, so that points which are the same can be told from a singular matrix.
_JITTER = 1e-6
#: Deviations below the best beyond which the expected improvement is told by its asymptotic series.
_FAR = -5.0

#: The function to be least, with its gradient.
_Function = Callable[[Array], tuple[float, Array]]


class GaussianProcess:
    """A prior over functions of points in the unit cube.

    Args:
        columns: of each parameter, how many columns of a point are its own: they have one length scale.
    """

    def __init__(self, columns: Sequence[int]) -> None:
        self._parameter = np.repeat(np.arange(len(columns)), columns)
        self._first_column = np.concatenate(([0], np.cumsum(columns)[:-1])).astype(np.intp)
        count = len(columns)
        self._prior = np.array([*[LENGTH_PRIOR] * count, NOISE_PRIOR, SIGNAL_PRIOR]).T
        #: Logarithms: length scales, variance of the noise, variance that the points explain.
        self._theta = self._prior[0].copy()

    def fit(self, points: Array, values: Array) -> None:
        """Take the hyperparameters that explain `values` at `points` best, beginning with those it has.

        Args:
            points: one row each.
            values: of mean 0 and variance 1 or so.
        """
        self._theta = _least(lambda theta: self._loss(theta, points, values), self._theta)

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return math.exp(self._theta[-2])

    @property
    def signal(self) -> float:
        """Variance of the values far from all points, the noise apart."""
        return math.exp(self._theta[-1])

    def covariance(self, points: Array) -> Array:
        """Of the values at these points, noise included."""
        matrix = self.between(points, points)
        matrix[np.diag_indices(len(points))] += self.noise + _JITTER
        return matrix

    def between(self, first: Array, second: Array) -> Array:
        """Covariances of what the points explain, by point of each of the two."""
        scales = np.exp(-self._theta[self._parameter])
        root = np.sqrt(5.0 * _squared_distances(first * scales, second * scales))
        matern: Array = self.signal * (1.0 + root + root * root / 3.0) * np.exp(-root)
        return matern

    def _loss(self, theta: Array, points: Array, values: Array) -> tuple[float, Array]:
        """Negative logarithm of the hyperparameters' posterior density, a constant apart, and its gradient."""
        scaled = points * np.exp(-theta[self._parameter])
        noise, signal = np.exp(theta[-2:])
        root = np.sqrt(5.0 * _squared_distances(scaled, scaled))
        decay = signal * np.exp(-root)
        kernel = (1.0 + root + root * root / 3.0) * decay
        matrix = kernel.copy()
        matrix[np.diag_indices(len(points))] += noise + _JITTER
        try:
            factor = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            return math.inf, np.zeros_like(theta)
        inverse_factor = np.linalg.inv(factor)
        inverse = inverse_factor.T @ inverse_factor
        weights = inverse @ values
        away = (theta - self._prior[0]) / self._prior[1]
        loss = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        # The derivative by the covariances, then by what they depend on.
        sensitivity = 0.5 * (inverse - np.outer(weights, weights))
        slope = sensitivity * (5.0 / 3.0) * (1.0 + root) * decay
        by_column = 2.0 * (slope.sum(axis=1) @ (scaled * scaled) - (scaled * (slope @ scaled)).sum(axis=0))
        gradient = away / self._prior[1]
        gradient[:-2] += np.add.reduceat(by_column, self._first_column)
        gradient[-2] += np.trace(sensitivity) * noise
        gradient[-1] += (sensitivity * kernel).sum()
        return float(loss), gradient


class Posterior:
    """What is known at some points, given values elsewhere.

    Args:
        process: the prior.
        points: where there are values, one row each.
        values: there.
        pending: where values are to come; taken to be as expected, so that they make nothing but the rest more certain.
        at: where to look, one row each.
        expectations: how often `expect` will be called, at most.
    """

    def __init__(
        self,
        process: GaussianProcess,
        points: Array,
        values: Array,
        pending: Array,
        at: Array,
        *,
        expectations: int = 0,
    ) -> None:
        self._process = process
        self._at = at
        known = np.concatenate((points, pending))
        inverse_factor = np.linalg.inv(np.linalg.cholesky(process.covariance(known)))
        # The leading part of the factor is the factor of the leading part.
        leading = inverse_factor[: len(points), : len(points)]
        weights = leading.T @ (leading @ values)
        cross = process.between(known, at)
        #: Such that the product of two points' columns is what the known ones explain of their covariance. A row for each of
        #: those, and for those that are expected.
        self._explained = np.empty((len(known) + expectations, len(at)))
        self._known = len(known)
        explained = np.matmul(inverse_factor, cross, out=self._explained[: len(known)])
        #: The expected values at the points to look at, and their variance, both without the noise.
        self.mean: Array = weights @ cross[: len(points)]
        self.variance: Array = process.signal - (explained * explained).sum(axis=0)
        #: The expected values where there are some.
        self.at_points: Array = values - (process.noise + _JITTER) * weights

    def expect(self, place: int, *, rest: int) -> None:
        """The value at this point is to come: it is taken to be as expected. Only points from `rest` on learn of it."""
        known = self._explained[: self._known]
        covariance = self._process.between(self._at[rest:], self._at[place : place + 1])[:, 0]
        covariance -= known[:, rest:].T @ known[:, place]
        covariance /= math.sqrt(max(float(self.variance[place]), 0.0) + self._process.noise + _JITTER)
        self._explained[self._known, rest:] = covariance
        self._known += 1
        self.variance[rest:] -= covariance * covariance


def log_expected_improvement(mean: Array, variance: Array, best: float) -> Array:
    """Logarithm of the expected excess over `best` of normally distributed values.

    Jones, Schonlau and Welch 1998 ("Efficient Global Optimization of Expensive Black-Box Functions"); the logarithm because
    where all candidates are hopeless they still rank (Ament et al. 2023, "Unexpected Improvements to Expected Improvement").
    """
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    excess = (mean - best) / deviation
    near = np.maximum(excess, _FAR)
    log_density = -0.5 * excess * excess - 0.5 * math.log(2 * math.pi)
    close = np.log(near * cdf(near) + np.exp(-0.5 * near * near) / math.sqrt(2 * math.pi))
    inverse = np.minimum(excess, _FAR) ** -2.0
    far = log_density + np.log(inverse) + np.log1p(inverse * (-3.0 + inverse * (15.0 - 105.0 * inverse)))
    improvement: Array = np.where(excess > _FAR, close, far) + np.log(deviation)
    return improvement


def _squared_distances(first: Array, second: Array) -> Array:
    squared = (first * first).sum(axis=1)[:, None] + (second * second).sum(axis=1) - 2.0 * (first @ second.T)
    distances: Array = np.maximum(squared, 0.0)
    return distances


def _least(function: _Function, start: Array) -> Array:
    """Near where a function is least, by the method of Broyden, Fletcher, Goldfarb and Shanno (Nocedal, Wright 2006, 6.1)."""
    place = start
    loss, gradient = function(place)
    identity: npt.NDArray[np.float64] = np.eye(len(start))
    inverse = identity
    for _ in range(MAX_STEPS):
        direction = -inverse @ gradient
        slope = float(direction @ gradient)
        if slope >= 0.0:
            inverse, direction = identity, -gradient
            slope = float(direction @ gradient)
        # No hyperparameter moves by more than a factor e at a time: far out the function says nothing.
        size = min(1.0, 1.0 / max(float(np.abs(direction).max()), 1e-12))
        while True:
            step = size * direction
            new_loss, new_gradient = function(place + step)
            if new_loss <= loss + 1e-4 * size * slope or size < 1e-4:
                break
            size *= 0.3
        if not new_loss < loss:
            break
        change = new_gradient - gradient
        curvature = float(change @ step)
        if curvature > 1e-10:
            left = identity - np.outer(step, change) / curvature
            inverse = left @ inverse @ left.T + np.outer(step, step) / curvature
        won, place, loss, gradient = loss - new_loss, place + step, new_loss, new_gradient
        if won < _SETTLED:
            break
    return place
