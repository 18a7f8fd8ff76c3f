"""Points that are evaluated before a sampler draws its own."""

from typing import Any

import pytest

from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.given_points import GivenPoints
from trialfleet_coordinator.sampling.points import point_of
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.space import Categorical, Float, FunctionSpace, Int, SearchSpace, SpaceTrial

SPACE = SearchSpace(
    {
        "kind": Categorical(["forest", "linear", True]),
        "rate": Float(0.5, 2, log=True),
        "depth": Int(1, 9, step=2, when={"kind": ["forest"]}),
    }
)
FOREST: dict[str, Any] = {"kind": "forest", "rate": 1, "depth": 3}


def points(*values: dict[str, Any]) -> list[Draw]:
    return [point_of(SPACE, each, f"points[{place}]") for place, each in enumerate(values)]


def test_given_points_come_first_in_their_order_and_once() -> None:
    given = points({"kind": "linear", "rate": 0.7}, FOREST, {"kind": "linear", "rate": 0.7})
    sampler = GivenPoints(UniformSampler(SPACE, seed=0), given)
    assert sampler.ask(range(1)) == given[:1]
    first, *others = sampler.ask(range(1, 4))
    assert first == given[1]
    assert others == UniformSampler(SPACE, seed=0).ask(range(2, 4))


def test_a_later_session_evaluates_what_is_new() -> None:
    known, new = points(FOREST, {"kind": True, "rate": 2.0})
    sampler = GivenPoints(UniformSampler(SPACE, seed=0), [known, new])
    sampler.restore([(0, *known)], [])
    assert sampler.ask(range(1, 2)) == [new]


def test_a_point_is_as_a_sampler_would_have_drawn_it() -> None:
    values = point_of(SPACE, {"kind": "forest", "rate": 1, "depth": 3.0}, "point").params
    assert [(name, type(value)) for name, value in values.items()] == [("kind", str), ("rate", float), ("depth", int)]


def test_a_choice_and_a_point_of_a_grid_are_those_of_the_space() -> None:
    space = SearchSpace({"n": Categorical([1, True]), "share": Float(0, 1, step=0.1)})
    one, same = (point_of(space, {"n": 1.0, "share": share}, "point").params for share in (0.1 * 3, 0.3))
    assert one == same == {"n": 1, "share": 0.3}
    assert type(one["n"]) is int


def test_a_space_function_has_the_branch_of_the_point() -> None:
    def space(trial: SpaceTrial) -> None:
        for layer in range(trial.suggest_int("layers", 1, 3)):
            trial.suggest_int(f"width{layer}", 4, 128)

    draw = point_of(FunctionSpace(space, digest=""), {"layers": 2, "width0": 5, "width1": 6}, "point")
    assert draw.params == {"layers": 2, "width0": 5, "width1": 6}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FOREST | {"rate": 3.0}, r"point.rate = 3.0: allowed is 0.5 to 2.0$"),
        (FOREST | {"rate": float("nan")}, r"point.rate = nan: allowed is 0.5 to 2.0$"),
        (FOREST | {"rate": "1"}, r'point.rate = "1": allowed is 0.5 to 2.0$'),
        (FOREST | {"depth": 4}, r"point.depth = 4: allowed is 1 to 9 in steps of 2$"),
        (FOREST | {"depth": float("inf")}, r"point.depth = inf: allowed is 1 to 9 in steps of 2$"),
        (FOREST | {"kind": 1}, r'point.kind = 1: allowed is "forest" or "linear" or true$'),
        ({"kind": "forest", "rate": 1}, r"point.depth is missing"),
        (FOREST | {"kind": "linear"}, r"point.depth: the point has no such parameter"),
        (FOREST | {"rat": 1}, r"point.rat: the point has no such parameter; did you mean 'rate'\?"),
    ],
)
def test_a_point_that_the_space_does_not_have_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        point_of(SPACE, values, "point")
