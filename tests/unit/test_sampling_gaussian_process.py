"""The Gaussian process: its posterior, its fit, and the expected improvement, against what is known of them."""

import math

import numpy as np
import pytest

from trialfleet_coordinator.sampling.gaussian_process import (
    _FARTHEST,
    GaussianProcess,
    Posterior,
    _least,
    log_expected_improvement,
)
from trialfleet_coordinator.sampling.normal import Array

NOWHERE = np.empty((0, 3))


def process_and_data(count: int = 40) -> tuple[GaussianProcess, Array, Array]:
    """A function of the first of two parameters, the second of which has two columns; fitted."""
    points = np.random.default_rng(0).random((count, 3))
    values = np.sin(6 * points[:, 0])
    process = GaussianProcess([1, 2])
    process.fit(points, values)
    return process, points, values


def covariance(process: GaussianProcess, points: Array) -> Array:
    """Of the values, noise included."""
    return process.between(points, points) + process.nugget * np.eye(len(points))


def test_a_fit_tells_what_is_between_the_points() -> None:
    process, points, values = process_and_data()
    at = np.random.default_rng(1).random((50, 3))
    posterior = Posterior(process, points, values, NOWHERE, at)
    assert np.abs(posterior.mean - np.sin(6 * at[:, 0])).max() < 0.1
    assert process.noise < 0.01


def test_a_fit_takes_noise_for_noise() -> None:
    generator = np.random.default_rng(0)
    points = generator.random((150, 2))
    values = np.sin(6 * points[:, 0]) + generator.normal(0, 0.5, len(points))
    process = GaussianProcess([1, 1])
    process.fit(points, values)
    assert process.noise == pytest.approx(0.25, rel=0.4)
    posterior = Posterior(process, points, values, np.empty((0, 2)), points)
    assert np.abs(posterior.mean - np.sin(6 * points[:, 0])).mean() < 0.15


def test_the_posterior_is_the_textbooks() -> None:
    process, points, values = process_and_data(12)
    at = np.random.default_rng(1).random((5, 3))
    posterior = Posterior(process, points, values, NOWHERE, at)
    inverse = np.linalg.inv(covariance(process, points))
    cross = process.between(at, points)
    assert posterior.mean == pytest.approx(cross @ inverse @ values, abs=1e-4)
    assert posterior.variance == pytest.approx(process.signal - np.diag(cross @ inverse @ cross.T), abs=1e-4)
    assert posterior.at_points == pytest.approx(process.between(points, points) @ inverse @ values, abs=1e-8)


@pytest.mark.parametrize("count", [1, 32, 33, 100])
def test_an_inverse_factor_is_that_of_the_covariance(count: int) -> None:
    process, points, _ = process_and_data(count)
    found = process.inverse_factor(points)
    assert found @ covariance(process, points) @ found.T == pytest.approx(np.eye(count), abs=1e-6)
    assert np.abs(np.triu(found, 1)).max() < 1e-9


def test_an_inverse_factor_grows_with_the_points_and_is_theirs() -> None:
    process, points, values = process_and_data(80)
    whole = process.inverse_factor(points)
    others = points[::-1].copy()
    for known in (points[:50], points, points[:20], others):
        found = process.inverse_factor(known)
        assert found == pytest.approx(process.extended(np.empty((0, 0)), known), abs=1e-4)
    process.fit(points[:30], values[::-1][:30])
    assert np.abs(process.inverse_factor(points) - whole).max() > 0.01


def test_what_is_known_of_an_inverse_factor_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process, points, _ = process_and_data(50)
    known: list[int] = []
    original = GaussianProcess.extended

    def noting(self: GaussianProcess, inverse_factor: Array, points: Array) -> Array:
        known.append(len(inverse_factor))
        return original(self, inverse_factor, points)

    monkeypatch.setattr(GaussianProcess, "extended", noting)
    for count in (20, 30, 50, 50):
        process.inverse_factor(points[:count])
    assert known == [0, 20, 30, 50]


@pytest.mark.parametrize("signal", [-20.0, 0.0, 20.0])
def test_no_hyperparameters_make_a_matrix_singular(signal: float) -> None:
    process = GaussianProcess([1, 2])
    process._theta = np.array([2.0, 20.0, -30.0, signal])
    points = np.repeat(np.random.default_rng(0).random((150, 3)), 2, axis=0)
    grown = process.inverse_factor(points[:190])
    assert np.isfinite(process.extended(grown, points)).all()


def test_a_point_that_is_expected_is_one_that_is_pending() -> None:
    process, points, values = process_and_data(12)
    at = np.random.default_rng(1).random((5, 3))
    posterior = Posterior(process, points, values, NOWHERE, at, expectations=2)
    mean, before = posterior.mean.copy(), posterior.variance.copy()
    posterior.expect(0)
    posterior.expect(2)
    pending = Posterior(process, points, values, at[[0, 2]], at)
    assert posterior.variance == pytest.approx(pending.variance, abs=1e-4)
    assert (posterior.variance < before).all()
    assert posterior.mean == pytest.approx(mean)


def test_a_fit_takes_no_chance_of_rounding_for_an_explanation() -> None:
    """Two choices, and values that are the same but for a few: at length scales that are short enough the loss is arbitrary."""
    generator = np.random.default_rng(0)
    points = np.column_stack((np.sqrt(0.5) * np.eye(2)[generator.integers(2, size=300)], generator.random((300, 2))))
    process = GaussianProcess([2, 1, 1])
    assert process._loss(np.array([-20.0, 0.0, 0.0, -3.0, 0.0]), points, np.zeros(300))[0] == math.inf
    process._theta = np.array([-6.4, 5.4, 5.4, -11.9, 0.0])
    process.fit(points[:128], np.where(np.arange(128) % 40, -0.03, 2.3))
    assert np.abs((process._theta - process._prior[0]) / process._prior[1]).max() <= _FARTHEST
    grown = process.inverse_factor(points[:200])
    assert np.isfinite(process.extended(grown, points)).all()


def test_without_noise_a_posterior_is_as_exact() -> None:
    """In single precision the variances of points that are expected would come below zero, and from there without bounds."""
    process, generator = GaussianProcess([1]), np.random.default_rng(0)
    process._theta = np.array([1.0, -20.0, 0.0])
    points, at = generator.random((100, 1)), generator.random((200, 1))
    values = np.where(points[:, 0] > 0.5, 1.0, -1.0)
    posterior = Posterior(process, points, values, np.empty((0, 1)), at, expectations=100)
    inverse = np.linalg.inv(covariance(process, points))
    assert posterior.mean == pytest.approx(process.between(at, points) @ inverse @ values, abs=1e-4)
    for place in range(100):
        posterior.expect(place)
    assert (posterior.variance > 0.0).all()
    pending = Posterior(process, points, values, at[:100], at)
    assert posterior.variance == pytest.approx(pending.variance, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_is_that_of_the_loss(seed: int) -> None:
    generator = np.random.default_rng(seed)
    process = GaussianProcess([1, 3, 2])
    points, values = generator.random((20, 6)), generator.normal(size=20)
    theta = generator.normal(-0.5, 0.5, size=5)
    _, gradient = process._loss(theta, points, values)
    for place in range(len(theta)):
        step = np.zeros(5)
        step[place] = 1e-5
        above, below = (process._loss(theta + sign * step, points, values)[0] for sign in (1, -1))
        assert gradient[place] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-4)


def test_a_fit_of_points_that_are_all_the_same_is_none_the_worse() -> None:
    process = GaussianProcess([2])
    points = np.full((30, 2), 0.3)
    values = np.random.default_rng(0).normal(size=30)
    process.fit(points, values)
    posterior = Posterior(process, points, values, np.empty((0, 2)), points[:1])
    assert posterior.mean[0] == pytest.approx(values.mean(), abs=0.2)


@pytest.mark.parametrize("excess", [30.0, 3.0, 0.0, -1.0, -5.0, -12.0, -19.9, -20.1, -25.0])
def test_the_expected_improvement_is_that_of_a_normal_value(excess: float) -> None:
    deviation, best = 0.4, 2.0
    density = math.exp(-0.5 * excess**2) / math.sqrt(2 * math.pi)
    improvement = deviation * (density + excess * 0.5 * math.erfc(-excess / math.sqrt(2)))
    found = log_expected_improvement(np.array([best + deviation * excess]), np.array([deviation**2]), best)
    assert found[0] == pytest.approx(math.log(improvement), abs=2e-5)


def test_hopeless_points_still_rank() -> None:
    found = log_expected_improvement(np.array([-1e3, -1e2, -1e1]), np.ones(3), 0.0)
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


def test_a_narrow_valley_is_followed_in_steps_that_are_not_too_long() -> None:
    scales, places = np.array([300.0, 10.0, 1.0]), []

    def valley(place: Array) -> tuple[float, Array]:
        places.append(place)
        away = place - 3.0
        return float(0.5 * scales @ (away * away)), scales * away

    found = _least(valley, np.zeros(3))
    assert found == pytest.approx([3.0, 3.0, 3.0], abs=0.3)
    assert len(places) < 15, "it learns how the function bends"
    assert np.abs(places[1]).max() <= 1.0


def test_where_nothing_is_less_the_place_remains() -> None:
    start = np.ones(2)
    assert _least(lambda place: (float(place @ place), -place), start).tolist() == start.tolist(), "uphill"
    assert _least(lambda place: (float(place @ place), 2 * place), np.zeros(2)).tolist() == [0.0, 0.0]
