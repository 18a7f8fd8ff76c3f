"""The normal distribution on arrays agrees with the standard library's on single numbers."""

import statistics

import numpy as np

from trialfleet_coordinator.sampling.normal import cdf, quantile

NORMAL = statistics.NormalDist()


def test_cdf() -> None:
    points = np.concatenate([np.linspace(-12, 12, 5003), [0.0, 1e-9, -100.0, 100.0]])
    expected = np.array([NORMAL.cdf(point) for point in points])
    assert np.abs(cdf(points) - expected).max() < 1e-12
    assert cdf(points).min() >= 0.0
    assert np.diff(cdf(np.linspace(-9, 9, 100_001))).min() > -1e-12


def test_quantile() -> None:
    levels = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 1001), 10.0 ** -np.arange(7, 300)])
    expected = np.array([NORMAL.inv_cdf(level) for level in levels])
    assert np.abs(quantile(levels) / np.where(expected == 0, 1, expected) - (expected != 0)).max() < 1e-12


def test_they_are_inverse_to_each_other() -> None:
    points = np.linspace(-5, 5, 101)
    assert np.abs(quantile(cdf(points)) - points).max() < 1e-5
    assert np.abs(quantile(cdf(points[30:71])) - points[30:71]).max() < 1e-10


def test_they_keep_the_shape() -> None:
    grid = np.linspace(-1, 1, 12).reshape(3, 4)
    assert cdf(grid).shape == quantile(cdf(grid)).shape == (3, 4)
