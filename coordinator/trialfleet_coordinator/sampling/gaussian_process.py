"""A Gaussian process over a few hundred points: what is to be expected elsewhere, and how surely.

Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning": Matern kernel with nu = 5/2 and a length scale of
its own for each parameter (equation 4.17, section 5.1), the hyperparameters at the maximum of their posterior (5.4.1).
Values are noisy: where two points close to each other differ, that is taken for chance.

With numpy alone: a coordinator imports no scipy, whose import takes longer than all the fits of a study of a hundred trials.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.normal import Array, Single

#: Mean and standard deviation of the normal priors on the logarithms of a length scale (the cube's side is 1), of the noise's
#: variance, and of the variance that the points explain. Longer length scales, as are usual for many parameters (median 4 and
#: more), lost what shorter ones won on the functions of `benchmarks/sampler_quality.py`.
LENGTH_PRIOR = (-0.5, 1.0)
NOISE_PRIOR = (-3.0, 1.5)
SIGNAL_PRIOR = (0.0, 1.0)
#: Steps of a fit, at most.
MAX_STEPS = 25
#: A fit ends where a step changes the logarithm of the posterior by less.
_SETTLED = 0.1
#: Of what a fit makes least, about; the second derivatives that a fit begins with.
_CURVATURE = 10.0
#: Added to the noise, as a share of what the points explain, so that no matrix is singular to working precision.
_JITTER = 1e-6
#: Noise, as a share of what the points explain, below which single precision is not enough: rounding in it is about 1e-6.
_NOISELESS = 1e-3
#: Deviations of its prior beyond which a fit takes no hyperparameter: at the shortest length scales the distance of points that
#: are the same is what rounding leaves of it, and a matrix that is singular by chance would seem to explain values best.
_FARTHEST = 6.0
#: Deviations below the best beyond which the expected improvement is told by its asymptotic series.
_FAR = -20.0
#: Rows by which the inverse of a factor grows.
_BLOCK = 32

#: In the precision that is given.
_Real = TypeVar("_Real", Array, Single)

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
        self._forget()

    def fit(self, points: Array, values: Array) -> None:
        """Take the hyperparameters that explain `values` at `points` best, beginning with those it has.

        Args:
            points: one row each.
            values: quantiles of the normal distribution, or the like: the priors expect numbers of about 1.
        """
        self._theta = _least(lambda theta: self._loss(theta, points, values), self._theta)
        self._forget()

    def _forget(self) -> None:
        """Nothing is kept of other hyperparameters."""
        self._known: Array = np.empty((0, len(self._parameter)))
        self._inverse_factor: Array = np.empty((0, 0))

    @property
    def noise(self) -> float:
        """Variance of the noise."""
        return math.exp(self._theta[-2])

    @property
    def signal(self) -> float:
        """Variance of the values far from all points, the noise apart."""
        return math.exp(self._theta[-1])

    @property
    def nugget(self) -> float:
        """What two values at the same point do not share of their variance."""
        return self.noise + _JITTER * self.signal

    def between(self, first: Array, second: Array) -> Array:
        """Covariances of what the points explain, by point of each of the two."""
        return _matern(_squared_distances(self.scaled(first), self.scaled(second)), self.signal)[0]

    def scaled(self, points: Array) -> Array:
        """Coordinates in length scales."""
        scaled: Array = points * np.exp(-self._theta[self._parameter])
        return scaled

    def inverse_factor(self, points: Array) -> Array:
        """The inverse of the Cholesky factor of the values' covariance at these points, noise included.

        Until the next fit it is kept: a study's points are those of the last time and a few new ones.
        """
        known = len(self._known)
        if not np.array_equal(points[:known], self._known):
            known = 0
        self._inverse_factor = self.extended(self._inverse_factor[:known, :known], points)
        self._known = points
        return self._inverse_factor

    def extended(self, inverse_factor: Array, points: Array) -> Array:
        """The inverse factor of these points, given that of the first of them."""
        known = len(inverse_factor)
        rows = self.between(points[known:], points)
        rows[np.arange(len(rows)), np.arange(known, len(points))] += self.nugget
        return _extended(inverse_factor, rows)

    def _loss(self, theta: Array, points: Array, values: Array) -> tuple[float, Array]:
        """Negative logarithm of the hyperparameters' posterior density, a constant apart, and its gradient."""
        away = (theta - self._prior[0]) / self._prior[1]
        if np.abs(away).max() > _FARTHEST:
            return math.inf, np.zeros_like(theta)
        scaled = points * np.exp(-theta[self._parameter])
        noise, signal = np.exp(theta[-2:])
        matrix, slope = _matern(_squared_distances(scaled, scaled), signal)
        matrix[np.diag_indices(len(points))] += noise + _JITTER * signal
        try:
            inverse_factor = _extended(np.empty((0, 0)), matrix)
        except np.linalg.LinAlgError:
            return math.inf, np.zeros_like(theta)
        inverse = inverse_factor.T @ inverse_factor
        weights = inverse @ values
        explained = values @ weights
        loss = 0.5 * explained - np.log(np.diag(inverse_factor)).sum() + 0.5 * away @ away
        # The derivative by the covariances is half of the inverse without the weights' products; then by what they depend on.
        by_noise = 0.5 * (np.trace(inverse) - weights @ weights)
        inverse -= np.outer(weights, weights)
        inverse *= slope
        by_column = inverse.sum(axis=1) @ (scaled * scaled) - (scaled * (inverse @ scaled)).sum(axis=0)
        by_column *= 5.0 / 3.0
        gradient = away / self._prior[1]
        gradient[:-2] += np.add.reduceat(by_column, self._first_column)
        gradient[-2] += by_noise * noise
        gradient[-1] += 0.5 * (len(points) - explained) - by_noise * noise
        return float(loss), gradient


class Posterior:
    """What is known at some points, given values elsewhere.

    What is looked for is in single precision, which takes half the time, unless there is next to no noise; the inverse factor
    that it follows from is not.

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
        self._signal, self._nugget = process.signal, process.nugget
        self._precision = np.float32 if self._nugget > _NOISELESS * self._signal else np.float64
        leading = process.inverse_factor(points)
        weights = leading.T @ (leading @ values)
        known = np.concatenate((points, pending))
        inverse_factor = process.extended(leading, known).astype(self._precision, copy=False)
        self._at = process.scaled(at)
        cross = self._covariances(process.scaled(known))
        #: Such that the product of two points' columns is what the known ones explain of their covariance. A row for each of
        #: those, and for those that are expected.
        self._explained = np.empty((len(known) + expectations, len(at)), dtype=self._precision)
        self._known = len(known)
        explained = np.matmul(inverse_factor, cross, out=self._explained[: len(known)])
        #: The expected values at the points to look at, and their variance, both without the noise.
        self.mean: Array = weights @ cross[: len(points)]
        self.variance: Array = self._signal - np.einsum("ij,ij->j", explained, explained).astype(np.float64)
        #: The expected values where there are some.
        self.at_points: Array = values - self._nugget * weights

    def expect(self, place: int) -> None:
        """The value at this point is to come: it is taken to be as expected."""
        known = self._explained[: self._known]
        covariance = self._covariances(self._at[place : place + 1])[0]
        covariance -= known[:, place] @ known
        covariance /= math.sqrt(max(float(self.variance[place]), 0.0) + self._nugget)
        self._explained[self._known] = covariance
        self._known += 1
        self.variance -= covariance * covariance

    def _covariances(self, scaled: Array) -> Array | Single:
        """Of each of these points with those to look at."""
        squared = _squared_distances(scaled, self._at)
        if self._precision is np.float64:
            return _matern(squared, self._signal)[0]
        return _matern(squared.astype(np.float32), self._signal)[0]


def log_expected_improvement(mean: Array, variance: Array, best: float) -> Array:
    """Logarithm of the expected excess over `best` of normally distributed values.

    Jones, Schonlau and Welch 1998 ("Efficient Global Optimization of Expensive Black-Box Functions"); the logarithm because
    where all candidates are hopeless they still rank (Ament et al. 2023, "Unexpected Improvements to Expected Improvement").
    """
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    excess = (mean - best) / deviation
    improvement: Array = np.interp(excess, _EXCESSES, _IMPROVEMENTS)
    below = np.minimum(excess, 0.0)
    improvement -= 0.5 * below * below
    improvement += np.log(deviation)
    return improvement


def _log_improvement(excess: float) -> float:
    """Logarithm of what a standard normal value is expected to exceed `-excess` by, plus half the square of an excess < 0."""
    if excess > _FAR:
        density = math.exp(-0.5 * excess * excess) / math.sqrt(2 * math.pi)
        improvement = math.log(density + 0.5 * excess * math.erfc(-excess / math.sqrt(2)))
        return improvement + 0.5 * min(excess, 0.0) ** 2
    inverse = excess**-2.0
    series = inverse * (1.0 + inverse * (-3.0 + inverse * (15.0 - 105.0 * inverse)))
    return math.log(series) - 0.5 * math.log(2 * math.pi)


#: Denser the nearer to 0; between them a line is right to 1e-5. Whatever is beyond them is taken for the last one.
_EXCESSES = np.sinh(np.linspace(-9.0, 9.0, 4097))
_IMPROVEMENTS = np.array([_log_improvement(excess) for excess in _EXCESSES.tolist()])


def _squared_distances(first: Array, second: Array) -> Array:
    squared = (-2.0 * first) @ second.T
    squared += np.einsum("ij,ij->i", first, first)[:, None]
    squared += np.einsum("ij,ij->i", second, second)
    return np.maximum(squared, 0.0, out=squared)


def _matern(squared: _Real, signal: float) -> tuple[_Real, _Real]:
    """The kernel at these squared distances, which it overwrites, and by them its derivative, times -6/5."""
    squared *= 5.0
    root = np.sqrt(squared)
    decay = np.exp(-root)
    decay *= signal
    root += 1.0
    root *= decay
    squared *= decay
    squared /= 3.0
    squared += root
    return squared, root


def _extended(inverse_factor: Array, rows: Array) -> Array:
    """The inverse of a Cholesky factor, given that of the matrix's leading part and the rows that come after this.

    A block at a time, as numpy inverts a triangle as if it were any matrix.
    """
    known, count = len(inverse_factor), rows.shape[1]
    inverse = np.zeros((count, count))
    inverse[:known, :known] = inverse_factor
    for first in range(known, count, _BLOCK):
        last = min(first + _BLOCK, count)
        leading, block = inverse[:first, :first], rows[first - known : last - known]
        explained = block[:, :first] @ leading.T
        corner = np.linalg.inv(np.linalg.cholesky(block[:, first:last] - explained @ explained.T))
        inverse[first:last, :first] = -(corner @ explained) @ leading
        inverse[first:last, first:last] = corner
    return inverse


def _least(function: _Function, start: Array) -> Array:
    """Near where a function is least, by the method of Broyden, Fletcher, Goldfarb and Shanno (Nocedal, Wright 2006, 6.1)."""
    place = start
    loss, gradient = function(place)
    identity: npt.NDArray[np.float64] = np.eye(len(start))
    inverse: Array = identity / _CURVATURE
    for _ in range(MAX_STEPS):
        direction = -inverse @ gradient
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
            return place
        change = new_gradient - gradient
        curvature = float(change @ step)
        if curvature > 1e-10:
            left = identity - np.outer(step, change) / curvature
            inverse = left @ inverse @ left.T + np.outer(step, step) / curvature
        won, place, loss, gradient = loss - new_loss, place + step, new_loss, new_gradient
        if won < _SETTLED:
            break
    return place
