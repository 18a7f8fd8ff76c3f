"""Uniform draws: in range, without repetition, exhausted exactly, the same in every session."""

import pytest

from trialfleet_coordinator.sampling.drawing import ENUMERATED, enumerate_points, uniform_value
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import Categorical, Float, FunctionSpace, Int, SearchSpace, Space, SpaceTrial

FOREST = SearchSpace(
    {
        "model": Categorical(["forest", "linear"]),
        "depth": Int(1, 3, when={"model": ["forest"]}),
        "penalty": Float(0.0, 1.0, step=0.25, when={"model": ["linear"]}),
    }
)


def branching(trial: SpaceTrial) -> None:
    if trial.suggest_categorical("model", ["forest", "linear"]) == "forest":
        trial.suggest_int("depth", 1, 3)
    else:
        trial.suggest_float("penalty", 0, 1, step=0.25)


@pytest.mark.parametrize("space", [FOREST, FunctionSpace(branching, digest="")], ids=["data", "function"])
def test_exhausts_a_conditional_space_exactly(space: Space) -> None:
    draws = UniformSampler(space, seed=3).ask(range(100))
    assert len(draws) == 3 + 5
    assert len({canonical_params(draw.params) for draw in draws}) == 8
    assert all(draw.params.keys() == draw.distributions.keys() for draw in draws)


def test_exhausts_a_space_too_large_to_enumerate_at_first() -> None:
    size = 3 * ENUMERATED
    sampler = UniformSampler(SearchSpace({"n": Int(1, size)}), seed=0)
    draws = sampler.ask(range(size + 1000))
    assert sorted(draw.params["n"] for draw in draws) == list(range(1, size + 1))  # type: ignore[type-var]
    assert sampler.ask(range(size, size + 1)) == []


def test_a_continuous_parameter_is_never_exhausted() -> None:
    space = SearchSpace({"kind": Categorical(["a", "b"]), "x": Float(0, 1, when={"kind": ["a"]})})
    draws = UniformSampler(space, seed=0).ask(range(300))
    assert len(draws) == 300
    assert sum(draw.params["kind"] == "b" for draw in draws) == 1


def test_enumerates_in_order_and_gives_up_on_a_continuum() -> None:
    points = [draw and draw.params for draw in enumerate_points(SearchSpace({"a": Int(1, 2), "b": Int(0, 1)}))]
    assert points == [{"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0}, {"a": 2, "b": 1}]
    assert list(enumerate_points(SearchSpace({"x": Float(0, 1)}))) == [None]


def test_trials_do_not_depend_on_batches_or_sessions() -> None:
    space = SearchSpace({"x": Float(1e-3, 1, log=True), "n": Int(1, 100, log=True)})
    whole = UniformSampler(space, seed=5).ask(range(20))
    first = UniformSampler(space, seed=5)
    before = first.ask(range(7))
    resumed = UniformSampler(space, seed=5)
    resumed.restore([(number, draw.params, draw.distributions) for number, draw in enumerate(before)], [])
    assert before + resumed.ask(range(7, 20)) == whole
    assert UniformSampler(space, seed=6).ask(range(20)) != whole


def test_resumed_exhaustion_counts_earlier_draws() -> None:
    before = UniformSampler(FOREST, seed=0).ask(range(5))
    resumed = UniformSampler(FOREST, seed=0)
    resumed.restore([(number, draw.params, draw.distributions) for number, draw in enumerate(before)], [])
    assert len(resumed.ask(range(5, 50))) == 3


def test_log_ranges_are_uniform_in_the_logarithm() -> None:
    assert uniform_value(Float(1e-4, 1, log=True), 0.5) == pytest.approx(1e-2)
    shares = [uniform_value(Int(1, 100, log=True), share / 1000) for share in range(1000)]
    assert shares.count(1) / 1000 == pytest.approx(0.207, abs=0.01)  # ln(1.5 / 0.5) / ln(100.5 / 0.5)
    assert {uniform_value(Int(1, 1000, step=333), share / 10) for share in range(10)} == {1, 334, 667, 1000}
