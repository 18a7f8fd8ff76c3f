"""The surrogate: what it makes of values on several rungs, and what it chooses."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.candidates import Layout
from trialfleet_coordinator.sampling.surrogate import Surrogate, _on_one_rung, _ranked
from trialfleet_coordinator.sampling.tpe import MOST_MODELLED, SURROGATE_TURNS, TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Float, SearchSpace

CUBE = SearchSpace({name: Float(0, 1) for name in "abc"})
#: Numbers of trials that it chooses.
TURNS = [number for number in range(1000, 1100) if number % 4 in SURROGATE_TURNS]


def bowl(draw: Draw) -> float:
    return sum((float(str(value)) - 0.7) ** 2 for value in draw.params.values())


def told(space: SearchSpace, value: Callable[[Draw], float | None], trials: int = 30, **fields: bool) -> TpeSampler:
    sampler = TpeSampler(space, maximize=fields.get("maximize", False), startup=10, seed=0)
    draws = UniformSampler(space, seed=1).ask(range(trials))
    sampler.tell([Observation(number, *draw, 0, value(draw)) for number, draw in enumerate(draws)])
    return sampler


def chosen(sampler: TpeSampler, count: int) -> list[Draw]:
    return [draw for number in TURNS[:count] for draw in sampler.ask(range(number, number + 1))]


@pytest.mark.parametrize("maximize", [False, True])
def test_a_smooth_function_is_known_after_a_few_trials(maximize: bool) -> None:
    sampler = told(CUBE, lambda draw: -bowl(draw) if maximize else bowl(draw), maximize=maximize)
    best = min(bowl(draw) for draw in UniformSampler(CUBE, seed=1).ask(range(30)))
    assert min(map(bowl, chosen(sampler, 8))) < 0.25 * best


def test_what_fails_is_avoided() -> None:
    def fails_on_the_left(draw: Draw) -> float | None:
        return None if float(str(draw.params["a"])) < 0.5 else bowl(draw)

    assert sum(float(str(draw.params["a"])) > 0.45 for draw in chosen(told(CUBE, fails_on_the_left), 10)) >= 9


def test_a_trial_that_failed_after_a_rung_is_a_failed_one() -> None:
    surrogate = Surrogate(Layout(CUBE.parameters), maximize=False)
    (draw,) = UniformSampler(CUBE, seed=0).ask(range(1))
    for rung, value in ((0, 1.0), (1, None), (2, 0.5)):
        surrogate.observe([Observation(0, *draw, rung, value)])
    assert (len(surrogate), surrogate.scored) == (1, 0)


def test_a_choice_and_what_it_brings_are_learnt_together() -> None:
    space = SearchSpace(
        {
            "kind": Categorical(["flat", "bowl", "other"]),
            "x": Float(0, 1, when={"kind": ["bowl"]}),
            "y": Float(0, 1, when={"kind": ["flat", "other"]}),
        }
    )

    def value(draw: Draw) -> float:
        return (float(str(draw.params["x"])) - 0.7) ** 2 if draw.params["kind"] == "bowl" else 0.2

    draws = chosen(told(space, value), 20)
    bowls = [float(str(draw.params["x"])) for draw in draws if draw.params["kind"] == "bowl"]
    assert len(bowls) >= 5
    assert np.median(np.abs(np.array(bowls) - 0.7)) < 0.1


def test_trials_of_one_batch_are_spread() -> None:
    """Where the next one would be drawn is drawn from once."""
    sampler = told(CUBE, bowl, trials=12)
    points = np.array([list(draw.params.values()) for draw in sampler.ask(range(1000, 1032))], dtype=np.float64)
    distances = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))
    assert np.median(distances[np.triu_indices(len(points), 1)]) > 0.2


def test_it_is_given_up_in_a_large_study(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = Surrogate.scores

    def noting(self: Surrogate, *arguments: object, **fields: object) -> object:
        asked.append(len(self))
        return original(self, *arguments, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(Surrogate, "scores", noting)
    assert len(chosen(told(CUBE, bowl, trials=MOST_MODELLED), 2)) == 2
    assert asked == [MOST_MODELLED] * 2
    assert len(chosen(told(CUBE, bowl, trials=MOST_MODELLED + 1), 2)) == 2
    assert len(asked) == 2


def test_an_earlier_studys_trials_are_no_results_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Surrogate, "scores")
    sampler = TpeSampler(CUBE, maximize=False, startup=10, seed=0)
    sampler.learn_from(UniformSampler(CUBE, seed=1).ask(range(30)))
    assert len(sampler.ask(range(40))) == 40


def test_a_lower_rungs_values_are_put_where_the_next_ones_are() -> None:
    trials = [{0: float(low), 1: 10 + float(low)} for low in range(5)] + [{0: 7.0}, {}]
    assert _on_one_rung(trials) == pytest.approx([10, 11, 12, 13, 14, 17, -math.inf])


def test_a_rung_that_says_nothing_of_the_next_makes_no_difference() -> None:
    generator = np.random.default_rng(0)
    trials = [{0: float(low), 1: float(high)} for low, high in generator.normal(size=(500, 2))]
    low, high = _on_one_rung([*trials, {0: -3.0}, {0: 3.0}])[-2:]
    assert low == pytest.approx(high, abs=1.0)


def test_three_rungs_are_put_in_place_one_after_the_other() -> None:
    trials = [{0: 1.0, 1: 11.0, 2: 111.0}, {0: 2.0, 1: 12.0}, {0: 3.0}, {2: 100.0}]
    assert _on_one_rung(trials) == pytest.approx([111, 112, 113, 100])


def test_no_value_is_too_large() -> None:
    trials = [{0: -1.7e308, 1: 1.7e308}, {0: 1.7e308, 1: -1.7e308}, {0: 0.0}, {}, {0: 1.7e308}]
    assert not np.isnan(_on_one_rung(trials)).any()
    sampler = told(CUBE, lambda draw: 1.7e308 if bowl(draw) > 0.3 else -1.7e308)
    assert len(chosen(sampler, 3)) == 3


def test_equal_scores_rank_alike() -> None:
    ranked = _ranked(np.array([3.0, -math.inf, 3.0, 5.0, -math.inf]))
    assert ranked[0] == ranked[2]
    assert ranked[1] == ranked[4]
    assert ranked[1] < ranked[0] < ranked[3]
