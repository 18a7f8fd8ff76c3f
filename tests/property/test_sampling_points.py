"""Any space: what is drawn belongs to it, no point comes twice, and what is enumerated is all there is."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.drawing import uniform_value
from trialfleet_coordinator.sampling.parzen import NumberAxis, make_axis, make_kernels
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


@given(distributions, shares)
def test_uniform_values_belong_to_the_distribution(distribution: Distribution, share: float) -> None:
    assert distribution.contains(uniform_value(distribution, share))


@given(floats() | ints(), st.lists(shares, max_size=30), st.lists(shares, min_size=1, max_size=10))
def test_kernels_sample_values_of_the_distribution_with_finite_density(
    distribution: Float | Int, seen: list[float], asked: list[float]
) -> None:
    axis = make_axis(distribution)
    observed = np.array([uniform_value(distribution, share) for share in seen], dtype=np.float64)
    if len(observed):
        observed[0] = np.nan
    kernels = make_kernels(axis, observed)
    components = np.arange(len(asked)) % (len(seen) + 1)
    points = kernels.sample(components, np.array(asked))
    assert all(distribution.contains(axis.value(float(point))) for point in points)
    density = kernels.log_density(points)
    assert density.shape == (len(asked), len(seen) + 1)
    # The prior, in the last place, keeps every mixture positive everywhere.
    assert np.isfinite(density[:, -1]).all()


@given(ints().filter(lambda one: one.cardinality() < 5000), st.lists(shares, max_size=20))
def test_the_probabilities_of_a_grids_points_sum_to_one(distribution: Int, seen: list[float]) -> None:
    axis = make_axis(distribution)
    assert isinstance(axis, NumberAxis)
    if axis.exact != distribution.cardinality():
        return  # Fine grids have a density.
    observed = np.array([uniform_value(distribution, share) for share in seen], dtype=np.float64)
    values = np.arange(distribution.min, distribution.max + 1, distribution.step, dtype=np.float64)
    probability = np.exp(make_kernels(axis, observed).log_density(axis.unit(values)))
    assert np.abs(probability.sum(axis=0) - 1).max() < 1e-6


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
