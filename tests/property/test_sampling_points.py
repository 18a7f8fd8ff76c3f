"""Any space: what is drawn belongs to it, no point comes twice, and what is enumerated is all there is."""

import math
import sys
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.drawing import uniform_value
from trialfleet_coordinator.sampling.parzen import (
    ChoiceAxes,
    ChoiceKernels,
    NumberAxes,
    NumberKernels,
    log_densities,
    log_mean_exp,
    make_kernels,
)
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import Categorical, Distribution, Float, Int, SearchSpace

bounds = st.floats(-1e6, 1e6, allow_nan=False).map(lambda bound: round(bound, 6))
shares = st.floats(0, 1, exclude_max=True)


@st.composite
def floats(draw: st.DrawFn) -> Float:
    if draw(st.booleans()):
        low, high = sorted((draw(st.floats(1e-9, 1e6)), draw(st.floats(1e-9, 1e6))))
        return Float(low, high, log=True)
    low, high = sorted((draw(bounds), draw(bounds)))
    steps = draw(st.none() | st.integers(1, 400))
    return Float(low, high, step=None if steps is None or low == high else (high - low) / steps)


@st.composite
def ints(draw: st.DrawFn) -> Int:
    if draw(st.booleans()):
        low, high = sorted((draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))))
        return Int(low, high, log=True)
    low, high = sorted((draw(st.integers(-(10**9), 10**9)), draw(st.integers(-(10**9), 10**9))))
    return Int(low, high, step=draw(st.integers(1, max(1, high - low))))


choices = st.lists(st.none() | st.booleans() | st.text(max_size=3), min_size=1, max_size=6, unique_by=repr)
distributions: st.SearchStrategy[Distribution] = floats() | ints() | choices.map(Categorical)


@st.composite
def grids(draw: st.DrawFn) -> Float:
    """Grids at any height, down to the finest that real numbers tell apart."""
    low = draw(st.floats(-1e18, 1e18))
    points = draw(st.integers(2, 1000))
    step = draw(st.floats(2.0, 1e6)) * math.ulp(low)
    high = low + points * step
    assume(step >= max(2 * math.ulp(max(abs(low), abs(high))), sys.float_info.min))
    return Float(low, high, step=step)


@given(grids(), st.integers(0, 10**6), shares)
def test_points_of_a_grid_are_apart_and_belong_to_it(grid: Float, number: int, share: float) -> None:
    points = grid.cardinality()
    assert points is not None
    index = number % (points - 1)
    assert grid.min <= grid.at(index) < grid.at(index + 1) <= grid.max
    assert grid.contains(grid.at(index))
    assert grid.contains(uniform_value(grid, share))
    axes = NumberAxes([grid])
    assert all(grid.contains(value) for value in axes.values(np.array([[share]]))[0])


@given(distributions, shares)
def test_uniform_values_belong_to_the_distribution(distribution: Distribution, share: float) -> None:
    assert distribution.contains(uniform_value(distribution, share))


@given(st.lists(distributions, min_size=1, max_size=3), st.lists(shares, max_size=30), st.integers(1, 10))
def test_kernels_sample_values_of_the_distributions_with_finite_density(
    several: list[Distribution], seen: list[float], count: int
) -> None:
    for kind in (Categorical, Float | Int):
        kinds: list[Any] = [one for one in several if isinstance(one, kind)]
        if not kinds:
            continue
        axes = ChoiceAxes(kinds) if kind is Categorical else NumberAxes(kinds)
        values = [[_observed(one, share) for one in kinds] for share in seen]
        observed = axes.observed(np.array(values, dtype=np.float64).reshape(len(seen), len(kinds)))
        assert not np.isnan(observed).any()
        observed[:1] = np.nan
        kernels = make_kernels(axes, observed)
        random = np.random.default_rng(count)
        rows = random.integers(len(seen) + 1, size=(count, len(kinds)))
        points = kernels.sample(rows, random.random((count, len(kinds))))
        for one, column in zip(kinds, axes.values(points), strict=True):
            assert all(one.contains(value) for value in column)
        active = np.ones(points.shape, dtype=np.bool_)
        density = log_densities(kernels.features(points, active), kernels.factors())
        assert density.shape == (count, len(seen) + 1)
        # The prior, in the last place, keeps every mixture positive everywhere.
        assert np.isfinite(density[:, -1]).all()
        assert np.isfinite(kernels.log_mixture(points)).all()


def _observed(distribution: Distribution, share: float) -> float:
    value = uniform_value(distribution, share)
    return distribution.index(value) if isinstance(distribution, Categorical) else float(str(value))


@given(floats() | ints(), st.lists(shares, min_size=2, max_size=20))
def test_a_mixtures_density_is_that_of_its_kernels(distribution: Float | Int, seen: list[float]) -> None:
    axes = NumberAxes([distribution])
    kernels = NumberKernels(axes, axes.observed(np.array([[_observed(distribution, share)] for share in seen])))
    points = axes.snap(np.linspace(0, 1, 50)[:, None])
    density = log_densities(kernels.features(points, np.ones((50, 1), dtype=np.bool_)), kernels.factors())
    assert log_mean_exp(density) == pytest.approx(kernels.log_mixture(points)[:, 0], abs=1e-3)


@given(st.lists(shares, max_size=20))
def test_a_mixtures_density_integrates_to_one(seen: list[float]) -> None:
    kernels = NumberKernels(NumberAxes([Float(0, 1)]), np.array(seen).reshape(-1, 1))
    nodes = (np.arange(4000) + 0.5) / 4000
    assert np.exp(kernels.log_mixture(nodes[:, None])).mean() == pytest.approx(1, abs=1e-3)


@given(ints().filter(lambda one: not one.log and 1 < one.cardinality() < 500), st.lists(shares, max_size=20))
def test_a_grids_points_have_all_of_the_probability(distribution: Int, seen: list[float]) -> None:
    axes = NumberAxes([distribution])
    kernels = NumberKernels(
        axes, axes.observed(np.array([[_observed(distribution, share)] for share in seen]).reshape(-1, 1))
    )
    values = np.arange(distribution.min, distribution.max + 1, distribution.step, dtype=np.float64)
    assert np.exp(kernels.log_mixture(axes.observed(values[:, None]))).mean() == pytest.approx(1, abs=0.1)


@given(choices.map(Categorical), st.lists(shares, max_size=20))
def test_the_probabilities_of_choices_sum_to_one(distribution: Categorical, seen: list[float]) -> None:
    observed = np.array([[_observed(distribution, share)] for share in seen]).reshape(-1, 1)
    kernels = ChoiceKernels(ChoiceAxes([distribution]), observed)
    positions = np.arange(len(distribution.choices), dtype=np.float64)[:, None]
    assert np.exp(kernels.log_mixture(positions)).sum() == pytest.approx(1)
    active = np.ones(positions.shape, dtype=np.bool_)
    density = log_densities(kernels.features(positions, active), kernels.factors())
    assert np.exp(density).sum(axis=0) == pytest.approx(np.ones(len(seen) + 1), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), distributions, min_size=1),
    st.integers(0, 5),
    st.lists(st.none() | st.floats(allow_nan=True), min_size=30, max_size=30),
)
def test_no_point_of_any_space_comes_twice(parameters: dict[str, Any], seed: int, values: list[float | None]) -> None:
    space = SearchSpace(parameters)
    size = space.cardinality()
    for sampler in (UniformSampler(space, seed=seed), TpeSampler(space, maximize=True, startup=5, seed=seed)):
        seen: set[bytes] = set()
        for number in range(0, 30, 3):
            for place, draw in enumerate(sampler.ask(range(number, number + 3))):
                assert all(parameters[name].contains(value) for name, value in draw.params.items())
                seen.add(canonical_params(draw.params))
                trial = number + place
                sampler.tell([Observation(trial, draw.params, draw.distributions, trial % 2, values[trial])])
        assert len(seen) == (30 if size is None else min(30, size))


def test_far_from_every_trial_the_density_is_the_priors() -> None:
    trials = 200
    kernels = NumberKernels(NumberAxes([Float(0, 1)]), np.linspace(0.05, 0.1, trials)[:, None])
    normal = NormalDist()
    prior = normal.pdf(0.4) / (normal.cdf(0.5) - normal.cdf(-0.5))
    expected = math.log(prior / (trials + 1))
    point = np.array([[0.9]])
    assert kernels.log_mixture(point)[0, 0] == pytest.approx(expected, abs=1e-4)
    density = log_densities(kernels.features(point, np.array([[True]])), kernels.factors())
    assert log_mean_exp(density)[0] == pytest.approx(expected, abs=1e-4)
