"""What the coordinator relies on, of every sampler behind the port."""

import random
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from trialfleet_coordinator.adapters.optuna_samplers import OptunaSampler, optuna_sampler_names
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.ports import Sampler
from trialfleet_coordinator.sampling.drawing import Drawn, uniform_value
from trialfleet_coordinator.sampling.given_points import GivenPoints
from trialfleet_coordinator.sampling.points import draw_point
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.fingerprint import canonical_params
from trialfleet_shared.space import (
    Categorical,
    Distribution,
    Float,
    FunctionSpace,
    Int,
    Scalar,
    SearchSpace,
    Space,
    SpaceTrial,
)


class Restorable(Sampler, Protocol):
    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None: ...


Make = Callable[[Space, int], Restorable]

MIXED = SearchSpace(
    {
        "rate": Float(1e-5, 1, log=True),
        "share": Float(0, 1),
        "grid": Float(-1, 1, step=0.3),
        "leaves": Int(2, 512, log=True),
        "depth": Int(1, 11, step=2),
        "kind": Categorical(["a", True, None, 1.5]),
    }
)
CONDITIONAL = SearchSpace(
    {
        "model": Categorical(["forest", "linear"]),
        "depth": Int(1, 30, when={"model": ["forest"]}),
        "penalty": Float(1e-4, 1, log=True, when={"model": ["linear"]}),
        "solver": Categorical(["x", "y"], when={"model": ["linear"]}),
    }
)
SMALL = SearchSpace({"a": Int(1, 4), "b": Categorical(["x", "y", "z"]), "c": Float(0, 1, step=0.5)})


def branching(trial: SpaceTrial) -> None:
    layers = trial.suggest_int("layers", 1, 3)
    for layer in range(int(layers)):
        trial.suggest_int(f"width{layer}", 4, 128, log=True)
    # One name, another range in each branch.
    trial.suggest_float("dropout", 0, 0.1 * layers)


def _middle(space: Space) -> list[Draw]:
    return [draw_point(space, lambda _, distribution: uniform_value(distribution, 0.5))]


SPACES: dict[str, Space] = {
    "mixed": MIXED,
    "conditional": CONDITIONAL,
    "function": FunctionSpace(branching, digest=""),
}
SAMPLERS: dict[str, Make] = {
    "tpe": lambda space, seed: TpeSampler(space, maximize=False, startup=10, seed=seed),
    "uniform": lambda space, seed: UniformSampler(space, seed=seed),
    "optuna's tpe": lambda space, seed: OptunaSampler("TPESampler", space, maximize=False, seed=seed),
    "optuna's nsga2": lambda space, seed: OptunaSampler("NSGAIISampler", space, maximize=False, seed=seed),
    "given points": lambda space, seed: GivenPoints(UniformSampler(space, seed=seed), _middle(space)),
    "optuna's random": lambda space, seed: OptunaSampler("RandomSampler", space, maximize=False, seed=seed),
}


@pytest.fixture(params=SAMPLERS)
def make(request: pytest.FixtureRequest) -> Make:
    return SAMPLERS[request.param]


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]


def score(draw: Draw) -> float:
    """Any function of a point that is the same in every process."""
    return sum(canonical_params(draw.params)) % 101 / 100


def observe(number: int, draw: Draw, *, rung: int = 0, value: float | None = None, pruned: bool = False) -> Observation:
    return Observation(number, draw.params, draw.distributions, rung, value, pruned)


def check(draw: Draw, space: Space) -> None:
    """The draw is a point of the space, and says which distributions it came from."""
    asked: dict[str, object] = {}

    def suggest(name: str, distribution: Distribution) -> Scalar:
        asked[name] = distribution
        value = draw.params[name]
        assert distribution.contains(value), (name, value)
        if isinstance(distribution, Float):
            assert type(value) is float
        elif isinstance(distribution, Int):
            assert type(value) is int
        else:
            assert type(value) in {type(choice) for choice in distribution.choices}
        return value

    assert space.draw(suggest) == draw.params
    assert asked == draw.distributions


def live(sampler: Restorable, *, batches: Sequence[int], seed: int = 0) -> list[Draw]:
    """Ask for these batches; tell in random order, some late, some of them failed or pruned, some on higher rungs."""
    order = random.Random(seed)
    draws: list[Draw] = []
    open_: list[Observation] = []
    for batch in batches:
        new = sampler.ask(range(len(draws), len(draws) + batch))
        for number, draw in enumerate(new, start=len(draws)):
            value = None if number % 7 == 3 else score(draw)
            open_.append(observe(number, draw, value=value, pruned=number % 14 == 3))
            if number % 3 == 0 and value is not None:
                open_.append(observe(number, draw, rung=1, value=value + 0.01))
        draws += new
        order.shuffle(open_)
        kept = len(open_) // 3
        sampler.tell(open_[kept:])
        del open_[kept:]
    return draws


BATCHES = [1, 7, 16, 1, 9, 16]


def test_draws_points_of_the_space(make: Make, space: Space) -> None:
    draws = live(make(space, 1), batches=BATCHES)
    assert len(draws) == sum(BATCHES)
    for draw in draws:
        check(draw, space)


def test_optuna_hears_of_pruned_trials_as_such() -> None:
    seen: list[TrialState] = []

    class Spy(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            seen[:] = [each.state for each in study.get_trials(deepcopy=False)]
            return {}

    sampler = OptunaSampler(Spy, MIXED, maximize=False, seed=0)
    draws = sampler.ask(range(4))
    sampler.tell([observe(0, draws[0], value=1.0), observe(1, draws[1]), observe(2, draws[2], pruned=True)])
    sampler.tell([observe(0, draws[0], rung=1, pruned=True)])
    sampler.ask(range(4, 5))
    assert seen[:4] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING]


def test_draws_no_point_twice(make: Make) -> None:
    space = SearchSpace({"a": Int(0, 9), "b": Categorical(list("abcdefghij"))})
    draws = live(make(space, 0), batches=[10] * 9)
    assert len({canonical_params(draw.params) for draw in draws}) == len(draws) == 90


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_draws_every_point_of_a_small_space_and_then_no_more(make: Make, batch: int) -> None:
    sampler = make(SMALL, 2)
    draws = live(sampler, batches=[batch] * (-(-36 // batch) + 1))
    assert len({canonical_params(draw.params) for draw in draws}) == len(draws) == 36
    assert sampler.ask(range(36, 40)) == []


def test_exhausts_a_conditional_space(make: Make) -> None:
    space = SearchSpace({"kind": Categorical([True, False]), "n": Int(1, 5, when={"kind": [True]})})
    assert len(live(make(space, 0), batches=[4, 4, 4])) == 6


def test_equal_seeds_and_calls_draw_equal_points(make: Make, space: Space) -> None:
    first, second, other = (live(make(space, seed), batches=BATCHES) for seed in (4, 4, 5))
    assert first == second
    assert first != other


def test_asking_for_nothing_draws_nothing(make: Make) -> None:
    sampler = make(MIXED, 0)
    assert sampler.ask(range(0)) == []
    sampler.tell([])
    assert len(sampler.ask(range(2))) == 2


def test_learns_of_trials_that_it_never_drew(make: Make, space: Space) -> None:
    foreign = UniformSampler(space, seed=9).ask(range(30))
    sampler = make(space, 0)
    sampler.tell([observe(number, draw, value=score(draw)) for number, draw in enumerate(foreign)])
    draws = sampler.ask(range(30, 40))
    seen = {canonical_params(draw.params) for draw in foreign}
    assert len(draws) == 10
    assert not any(canonical_params(draw.params) in seen for draw in draws)


def test_what_was_drawn_elsewhere_is_pending_and_not_drawn_again(make: Make) -> None:
    sampler = make(SMALL, 0)
    foreign = UniformSampler(SMALL, seed=9).ask(range(30))
    sampler.add([(number, *draw) for number, draw in enumerate(foreign)])
    sampler.tell([observe(number, draw, value=score(draw)) for number, draw in enumerate(foreign)][:20])
    drawn = foreign + sampler.ask(range(30, 40))
    assert len({canonical_params(draw.params) for draw in drawn}) == len(drawn) == 36


def test_goes_on_after_a_restore(make: Make, space: Space) -> None:
    before = live(make(space, 1), batches=[20, 10])
    drawn = [(number, *draw) for number, draw in enumerate(before)]
    told = [observe(number, draw, value=score(draw)) for number, draw in enumerate(before[:25])]
    resumed, again = make(space, 1), make(space, 1)
    resumed.restore(drawn, told)
    again.restore(drawn, told)
    after = resumed.ask(range(30, 45))
    seen = {canonical_params(draw.params) for draw in before}
    assert not any(canonical_params(draw.params) in seen for draw in after)
    assert after == again.ask(range(30, 45))
    # What was under way when the session ended is told to the new one.
    resumed.tell([observe(number, draw, value=score(draw)) for number, draw in enumerate(before[25:], start=25)])
    for draw in [*after, *resumed.ask(range(45, 50))]:
        check(draw, space)


def test_survives_trials_that_all_failed_or_scored_the_same(make: Make, space: Space) -> None:
    for value in (None, float("nan"), 1.0, float("inf"), -1e300):
        sampler = make(space, 0)
        draws = sampler.ask(range(25))
        sampler.tell([observe(number, draw, value=value) for number, draw in enumerate(draws)])
        for draw in sampler.ask(range(25, 30)):
            check(draw, space)


def test_a_single_value_is_a_space_too(make: Make) -> None:
    draws = make(SearchSpace({"x": Float(2, 2), "n": Int(3, 3), "c": Categorical(["only"])}), 0).ask(range(3))
    assert [draw.params for draw in draws] == [{"x": 2.0, "n": 3, "c": "only"}]


@pytest.mark.parametrize("name", ["tpe", "optuna's tpe"])
@pytest.mark.parametrize("maximize", [True, False])
def test_finds_the_better_half(name: str, maximize: bool) -> None:
    space = SearchSpace({"x": Float(0, 1), "c": Categorical(["good", "bad"])})
    sampler: Sampler = (
        TpeSampler(space, maximize=maximize, startup=10, seed=0)
        if name == "tpe"
        else OptunaSampler("TPESampler", space, maximize=maximize, seed=0)
    )
    sign = 1 if maximize else -1
    draws: list[Draw] = []
    for number in range(60):
        draws += sampler.ask(range(number, number + 1))
        params = draws[-1].params
        value = sign * (float(str(params["x"])) + (params["c"] == "good"))
        sampler.tell([observe(number, draws[-1], value=value)])
    late = draws[30:]
    assert sum(draw.params["c"] == "good" for draw in late) > 20
    assert sum(float(str(draw.params["x"])) > 0.5 for draw in late) > 20


def test_an_unknown_optuna_sampler_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match=r"'TPESampler\?' is not known; did you mean 'TPESampler'\?"):
        OptunaSampler("TPESampler?", MIXED, maximize=False, seed=0)
    with pytest.raises(ConfigurationError, match=r"allowed are .*CmaEsSampler.*random.*tpe"):
        OptunaSampler("", MIXED, maximize=False, seed=0)
    assert {"TPESampler", "CmaEsSampler", "GPSampler"} < set(optuna_sampler_names())
    assert "GridSampler" not in optuna_sampler_names()


def test_a_space_that_an_optuna_sampler_can_not_draw_from_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'BruteForceSampler' can not draw from this space"):
        OptunaSampler("BruteForceSampler", MIXED, maximize=False, seed=0)


def test_choices_that_are_one_to_optuna_are_refused() -> None:
    space = SearchSpace({"kind": Categorical(["a", 1, True])})
    with pytest.raises(ConfigurationError, match="the choices 1 and True of 'kind' are one to Optuna"):
        OptunaSampler("TPESampler", space, maximize=False, seed=0)


@pytest.mark.parametrize(("name", "package"), [("GPSampler", "torch"), ("CmaEsSampler", "cmaes")])
def test_what_an_optuna_sampler_needs_is_missed_before_anything_is_drawn(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=f"'{name}' needs a package that is not installed: .*{package}"):
        OptunaSampler(name, MIXED, maximize=False, seed=0)


@pytest.mark.parametrize("name", ["RandomSampler", "QMCSampler", "TPESampler"])
def test_a_point_of_a_grid_is_one_number(name: str) -> None:
    space = SearchSpace({"x": Float(0, 1, step=0.1)})
    drawn = live(OptunaSampler(name, space, maximize=False, seed=0), batches=[5] * 6)
    assert sorted(float(str(draw.params["x"])) for draw in drawn) == [
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
    ]


def test_optunas_brute_force_ends_without_a_word() -> None:
    assert len(live(OptunaSampler("BruteForceSampler", SMALL, maximize=False, seed=0), batches=[20, 20])) == 36


def test_an_optuna_sampler_learns_from_the_highest_rung_with_enough_results() -> None:
    space = SearchSpace({"x": Float(0, 1)})
    sampler = OptunaSampler("TPESampler", space, maximize=True, seed=0)
    draws = sampler.ask(range(40))
    xs = [float(str(draw.params["x"])) for draw in draws]
    # On rung 0 low x looks best; on rung 1, which half of the trials reach, high x is.
    sampler.tell([observe(number, draw, value=-x) for number, (draw, x) in enumerate(zip(draws, xs, strict=True))])
    assert sum(float(str(draw.params["x"])) < 0.5 for draw in sampler.ask(range(40, 50))) >= 7
    sampler.tell([observe(number, draws[number], rung=1, value=xs[number]) for number in range(0, 40, 2)])
    assert sum(float(str(draw.params["x"])) > 0.5 for draw in sampler.ask(range(50, 60))) >= 7
