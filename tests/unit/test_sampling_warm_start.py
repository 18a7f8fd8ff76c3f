"""Warm start: what fits is taken over by its rank, helps, and gives way to a study's own results."""

import statistics

import pytest

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.tpe import FIRST_TRIED, TpeSampler
from trialfleet_coordinator.sampling.warm_start import warm_start
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.space import Categorical, Float, FunctionSpace, Int, Params, SearchSpace, Space, SpaceTrial

SQUARE = SearchSpace({f"x{index}": Float(-5, 5) for index in range(4)})


def quadratic(params: Params, centre: float) -> float:
    return sum((float(str(value)) - centre) ** 2 for value in params.values())


def study(seed: int, trials: int, *, centre: float, earlier: list[Observation] | None = None) -> list[Observation]:
    """A sequential study of a quadratic, perhaps seeded by another."""
    sampler = TpeSampler(SQUARE, maximize=False, startup=10, seed=seed)
    if earlier is not None:
        warm_start(sampler, earlier, maximize=False)
    told = []
    for number in range(trials):
        (draw,) = sampler.ask(range(number, number + 1))
        told.append(Observation(number, *draw, 0, quadratic(draw.params, centre)))
        sampler.tell(told[-1:])
    return told


def best(told: list[Observation]) -> float:
    return min(one.value for one in told if one.value is not None)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_helps_on_a_shifted_quadratic(shift: float) -> None:
    cold, warm = [], []
    for seed in range(5):
        earlier = study(100 + seed, 60, centre=0.0)
        cold.append(best(study(seed, 20, centre=shift)))
        warm.append(best(study(seed, 20, centre=shift, earlier=earlier)))
    assert statistics.fmean(warm) < 0.75 * statistics.fmean(cold)


def test_a_misleading_study_is_outgrown() -> None:
    """Its optimum is where the new study is bad; the new one's own results win in the end."""
    ends = []
    for seed in range(3):
        earlier = study(100 + seed, 60, centre=-4.0)
        ends.append(best(study(seed, 120, centre=3.0, earlier=earlier)))
    assert statistics.fmean(ends) < 1.0


def observe(params: list[Params], *, values: list[float | None] | None = None) -> list[Observation]:
    scored = values or [float(index) for index in range(len(params))]
    return [
        Observation(number, each, {}, 0, value) for number, (each, value) in enumerate(zip(params, scored, strict=True))
    ]


def new(space: Space, seed: int = 0) -> TpeSampler:
    return TpeSampler(space, maximize=False, startup=10, seed=seed)


def test_the_best_different_points_are_tried_first() -> None:
    sampler = new(SearchSpace({"x": Float(0, 1)}))
    told = observe([{"x": value} for value in (0.5, 0.1, 0.1, 0.9, 0.3, 0.7, 0.2)], values=[5, 1, 1, 9, 3, 7, 2])
    assert warm_start(sampler, told, maximize=False).points == 6
    assert [draw.params["x"] for draw in sampler.ask(range(FIRST_TRIED))] == [0.1, 0.2, 0.3, 0.5, 0.7]


def test_the_earlier_studys_direction_counts() -> None:
    sampler = new(SearchSpace({"x": Float(0, 1)}))
    warm_start(sampler, observe([{"x": 0.2}, {"x": 0.8}]), maximize=True)
    assert sampler.ask(range(1))[0].params == {"x": 0.8}


def test_a_study_that_went_the_wrong_way_is_read_the_other_way_on_its_lowest_rung() -> None:
    """The trials that were worst climbed; one that failed up there is no good either way."""
    low = observe([{"x": value} for value in (0.1, 0.2, 0.3, 0.8, 0.9, 1.0)], values=[1, 2, 3, 8, 9, 0])
    climbed = [low[place]._replace(rung=1, value=value) for place, value in ((3, 0.5), (4, 0.4), (5, None))]
    sampler = new(SearchSpace({"x": Float(0, 1)}))
    assert warm_start(sampler, [*low, *climbed], maximize=False, turned=True).points == 5
    assert [draw.params["x"] for draw in sampler.ask(range(FIRST_TRIED))] == [0.1, 0.2, 0.3, 0.8, 0.9]


def test_points_drawn_before_a_resumption_are_not_tried_again() -> None:
    sampler = new(SearchSpace({"x": Float(0, 1)}))
    warm_start(sampler, observe([{"x": 0.25}, {"x": 0.5}, {"x": 0.75}]), maximize=False)
    sampler.restore([(0, {"x": 0.25}, {"x": Float(0, 1)})], [])
    assert sampler.ask(range(1, 3))[0].params == {"x": 0.5}


def test_trials_that_do_not_fit_are_left_out_and_values_take_the_new_type() -> None:
    space = SearchSpace(
        {
            "n": Int(1, 10),
            "kind": Categorical(["a", True]),
            "rate": Float(0.1, 1, when={"kind": ["a"]}),
            "units": Categorical([100, 200]),
            "share": Float(0, 1, step=0.1),
        }
    )
    rest: Params = {"units": 200.0, "share": 0.1 + 0.2}
    fitting: list[Params] = [{"n": 2.0, "kind": "a", "rate": 1, "gone": "x", **rest}, {"n": 3, "kind": True, **rest}]
    misfits: list[Params] = [{"n": 11, "kind": True}, {"n": 2, "kind": 1}, {"gone": 2}, {}]
    sampler = new(space)
    assert warm_start(sampler, observe([*misfits, *fitting]), maximize=False) == (2, [])
    draws = sampler.ask(range(2))
    taken = {"units": 200, "share": 0.3}
    assert [draw.params for draw in draws] == [
        {"n": 2, "kind": "a", "rate": 1.0, **taken},
        {"n": 3, "kind": True, **taken},
    ]
    assert [type(value) for value in draws[0].params.values()] == [int, str, float, int, float]
    assert draws[0].distributions == dict(space.parameters)


def test_a_space_function_decides_what_fits() -> None:
    def branching(trial: SpaceTrial) -> None:
        if trial.suggest_categorical("deep", [True, False]):
            trial.suggest_int("layers", 2, 4)

    sampler = new(FunctionSpace(branching, digest=""))
    told = observe([{"depth": 3}, {"deep": True, "layers": 9}, {"deep": False}, {"deep": True, "layers": 3}])
    assert warm_start(sampler, told, maximize=False) == (2, [])


def test_a_parameter_that_is_new_is_drawn_anew_and_the_others_are_learnt() -> None:
    """Where the earlier study was good; over the whole range of what it did not have."""
    earlier = [{name: value for name, value in one.params.items() if name != "x3"} for one in study(1, 60, centre=2.0)]
    values = [quadratic(params, 2.0) for params in earlier]
    best_first = [earlier[place] for place in sorted(range(60), key=values.__getitem__)]
    drawn: list[Params] = []
    for seed in range(5):
        sampler = new(SQUARE, seed)
        assert warm_start(sampler, observe(earlier, values=[*values]), maximize=False) == (60, ["x3"])
        draws = [draw.params for draw in sampler.ask(range(30))]
        first = draws[:FIRST_TRIED]
        assert [{**draw, **known} for draw, known in zip(first, best_first, strict=False)] == first
        assert len({draw["x3"] for draw in draws}) == len(draws)
        drawn += draws[FIRST_TRIED:]
    learnt, new_one = (statistics.fmean(abs(float(str(draw[name])) - 2.0) for draw in drawn) for name in ("x0", "x3"))
    assert learnt < 1.5
    assert new_one > 2.0
    assert min(float(str(draw["x3"])) for draw in drawn) < -4
    assert max(float(str(draw["x3"])) for draw in drawn) > 4


def test_trials_that_differ_in_nothing_but_what_is_drawn_anew_are_one_point() -> None:
    sampler = new(SearchSpace({"x": Float(0, 1), "added": Float(0, 1)}))
    told = observe([{"x": 0.25, "gone": 1}, {"x": 0.25, "gone": 2}, {"x": 0.5, "gone": 1}])
    assert warm_start(sampler, told, maximize=False) == (2, ["added"])


def test_what_an_earlier_study_had_of_a_branch_is_learnt_though_the_choice_is_new() -> None:
    space = SearchSpace(
        {
            "model": Categorical(["forest", "boosting"]),
            "trees": Int(10, 500, when={"model": ["forest"]}),
            "rate": Float(0, 1, when={"model": ["boosting"]}),
        }
    )
    told = observe([{"rate": 0.5 + (-1) ** index * index / 80} for index in range(40)])
    models: set[object] = set()
    distances = []
    for seed in range(8):
        sampler = new(space, seed)
        points, unknown = warm_start(sampler, told, maximize=False)
        assert 10 < points < 30
        assert unknown == ["model"]
        for draw in sampler.ask(range(30)):
            models.add(draw.params["model"])
            if "rate" in draw.params:
                distances.append(abs(float(str(draw.params["rate"])) - 0.5))
    assert models == {"forest", "boosting"}
    assert statistics.fmean(distances) < 0.2  # it is 0.25 where nothing is known


def test_nothing_that_fits_is_an_error_that_says_why() -> None:
    space = SearchSpace({"C": Float(0, 1), "kind": Categorical(["a"])})
    told = observe([{"C": 2.0, "kind": "a"}, {"C": 3.0, "kind": "a"}, {"c": 0.5}])
    with pytest.raises(
        ConfigurationError,
        match=r"none .* 3 trials .*'C' is outside 0\S* to 1\S* \(2 of them\); it has none of 'C', 'kind' \(1 of them\)",
    ):
        warm_start(new(space), told, maximize=False)
    with pytest.raises(ConfigurationError, match=r"none of the earlier study's 0 trials with a value"):
        warm_start(new(space), observe([{"C": 0.5, "kind": "a"}], values=[None]), maximize=False)
