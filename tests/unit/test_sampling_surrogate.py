"""The surrogate: what it makes of values on several rungs, and what it chooses."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import threadpoolctl

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling import surrogate as surrogate_module
from trialfleet_coordinator.sampling.candidates import Layout
from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.drawing import Drawing
from trialfleet_coordinator.sampling.gaussian_process import GaussianProcess, Posterior
from trialfleet_coordinator.sampling.normal import Array
from trialfleet_coordinator.sampling.surrogate import (
    LATE_REFIT,
    MOST_FITTED,
    REFIT,
    Surrogate,
    _on_one_rung,
    _ranked,
    _telling,
)
from trialfleet_coordinator.sampling.tpe import (
    MORE_CANDIDATES,
    MOST_MODELLED,
    SURROGATE_BATCH,
    SURROGATE_CANDIDATES,
    SURROGATE_TURNS,
    EarlierTrial,
    TpeSampler,
)
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Float, Int, Params, SearchSpace

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
    assert (len(surrogate), surrogate.scored, surrogate._scores) == (1, 0, {0: {}})


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
    assert 5 <= len(bowls) < 20, "a trial's branch is drawn, not chosen"
    assert np.median(np.abs(np.array(bowls) - 0.7)) < 0.1


#: Candidates.
OFFERED = np.random.default_rng(0).random((50, 3))


def offered_to(
    surrogate: Surrogate, pick: Callable[[int, Array], int | None], picks: int, *, under_way: Sequence[float] = ()
) -> None:
    """Have it choose while nothing is known but thirty trials, and, if it is given, that one is under way."""
    columns = Columns()
    rows = {}
    for number, draw in enumerate(UniformSampler(CUBE, seed=1).ask(range(30))):
        rows[number] = columns.append(draw.params, draw.distributions)
        surrogate.observe([Observation(number, *draw, 0, bowl(draw))])
    waiting = [columns.append(dict(zip("abc", under_way, strict=True)), dict(CUBE.parameters))] if under_way else []
    pending = np.array(waiting, dtype=np.intp)
    offered = [(OFFERED, np.ones_like(OFFERED, dtype=np.bool_))]
    surrogate.choose(offered, pick, picks=picks, columns=columns, rows=rows, pending=pending)


def test_what_was_picked_is_worth_less_to_the_next_trial() -> None:
    seen: list[Array] = []

    def pick(turn: int, scores: Array) -> int | None:
        seen.append(scores)
        return None if turn == 1 else int(scores.argmax())

    offered_to(Surrogate(Layout(CUBE.parameters), maximize=False), pick, 3)
    first = int(seen[0].argmax())
    assert seen[1][first] < seen[0][first] - 0.5
    assert seen[2] == pytest.approx(seen[1]), "nothing was picked"


def test_it_computes_on_one_thread_and_no_other_study_meanwhile() -> None:
    def threads() -> list[int]:
        return [one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]

    inside: list[list[int]] = []

    def pick(_: int, scores: Array) -> int:
        inside.append(threads())
        assert surrogate_module._ONE_AT_A_TIME.locked()
        return int(scores.argmax())

    before = threads()
    offered_to(Surrogate(Layout(CUBE.parameters), maximize=False), pick, 1)
    assert inside == [[1] * len(before)]
    assert threads() == before


def test_where_a_trial_is_under_way_another_is_worth_less() -> None:
    def scores(*, under_way: list[float]) -> Array:
        seen: list[Array] = []
        surrogate = Surrogate(Layout(CUBE.parameters), maximize=False)
        offered_to(surrogate, lambda _, scores: seen.append(scores), 1, under_way=under_way)
        return seen[0]

    before = scores(under_way=[])
    first = int(before.argmax())
    assert scores(under_way=OFFERED[first].tolist())[first] < before[first] - 0.5


def test_it_is_fitted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    original = GaussianProcess.fit

    def noting(self: GaussianProcess, points: Array, values: Array) -> None:
        fits.append(len(points))
        original(self, points, values)

    monkeypatch.setattr(GaussianProcess, "fit", noting)
    sampler = TpeSampler(CUBE, maximize=False, startup=10, seed=0)
    for number in range(60):
        (draw,) = sampler.ask(range(number, number + 1))
        sampler.tell([Observation(number, *draw, 0, bowl(draw))])
    assert 5 <= len(fits) <= 9
    assert all(later >= REFIT * before for before, later in pairwise(fits))


def test_it_is_fitted_less_often_once_a_fit_is_by_a_part_of_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, fitted = told(CUBE, bowl, trials=MOST_FITTED + 1), []
    monkeypatch.setattr(GaussianProcess, "fit", lambda *_: fitted.append(len(sampler._surrogate or "")))
    for number, draw in enumerate(UniformSampler(CUBE, seed=2).ask(range(80)), 500):
        sampler.ask(range(4 * number, 4 * number + 1))
        sampler.tell([Observation(number, *draw, 0, bowl(draw))])
    assert fitted == [MOST_FITTED + 1, math.ceil(LATE_REFIT * (MOST_FITTED + 1))]


def test_a_fit_is_of_so_many_trials_at_most_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Array] = []
    original = GaussianProcess.fit

    def noting(self: GaussianProcess, points: Array, values: Array) -> None:
        fits.append(values)
        original(self, points, values)

    monkeypatch.setattr(GaussianProcess, "fit", noting)
    chosen(told(CUBE, bowl, trials=250), 3)
    assert [len(values) for values in fits] == [MOST_FITTED]
    best = _ranked(np.arange(250.0))[-MOST_FITTED // 2 :]
    assert fits[0][: len(best)] == pytest.approx(best[::-1])


def test_a_fit_is_by_the_best_trials_and_some_of_all_ranks() -> None:
    scores = np.random.default_rng(0).permutation(300).astype(float)
    found = scores[_telling(scores, 100)].tolist()
    assert found == [*range(299, 249, -1), *range(249, 0, -5)]
    assert sorted(_telling(scores[:100], 100).tolist()) == list(range(100))
    assert sorted(_telling(scores[:7], 100).tolist()) == list(range(7))


def test_no_candidate_is_picked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    new: list[bool] = []
    original = Drawing.add

    def noting(self: Drawing, params: Params) -> bool:
        new.append(original(self, params))
        return new[-1]

    expected: list[int] = []
    sampler = told(CUBE, lambda _: 1.0)
    monkeypatch.setattr(Drawing, "add", noting)
    monkeypatch.setattr(Posterior, "expect", lambda _, place: expected.append(place))
    assert len(sampler.ask(range(1000, 1064))) == 64
    assert new == [True] * 64
    assert len(expected) == len(set(expected)) == SURROGATE_BATCH


def test_every_trial_of_a_batch_has_a_branch_of_its_own() -> None:
    space = SearchSpace(
        {"kind": Categorical(["one", "two"]), "x": Float(0, 1, when={"kind": ["two"]}), "y": Float(0, 1)}
    )
    sampler = told(space, lambda draw: float("x" in draw.params))
    draws = [draw for number, draw in enumerate(sampler.ask(range(1000, 1064)), 1000) if number % 4 in SURROGATE_TURNS]
    assert len(draws) == SURROGATE_BATCH
    for draw in draws:
        assert ("x" in draw.params) == (draw.params["kind"] == "two")
        assert draw.params.keys() == draw.distributions.keys()
    assert {draw.params["kind"] for draw in draws} == {"one", "two"}


def test_where_a_branch_has_nothing_new_a_candidate_of_another_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace({"kind": Categorical(["one", "two"]), "x": Float(0, 1, when={"kind": ["two"]})})
    sampler = told(space, lambda draw: float("x" in draw.params))
    monkeypatch.delattr(Drawing, "uniform")
    draws = sampler.ask(range(1000, 1001)) + sampler.ask(range(1003, 1004)) + sampler.ask(range(1004, 1064))
    assert len(draws) == 62
    assert all("x" in draw.params for draw in draws), "the only point of the other branch was drawn at the start"


def test_of_a_batch_it_chooses_the_better_ones() -> None:
    draws = enumerate(told(CUBE, bowl).ask(range(1000, 1032)), 1000)
    found: dict[bool, list[float]] = {True: [], False: []}
    for number, draw in draws:
        found[number % 4 in SURROGATE_TURNS].append(bowl(draw))
    assert np.median(found[True]) < 0.5 * np.median(found[False])


def test_what_is_to_be_improved_is_what_is_expected_where_the_best_trial_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bests: list[float] = []
    original = surrogate_module.log_expected_improvement

    def noting(mean: Array, variance: Array, best: float) -> Array:
        bests.append(best)
        return original(mean, variance, best)

    monkeypatch.setattr(surrogate_module, "log_expected_improvement", noting)
    chance = np.random.default_rng(0).normal(size=200).tolist()
    chosen(told(CUBE, lambda _: chance.pop(), trials=200), 1)
    assert bests[0] < _ranked(np.arange(200.0)).max() - 0.4, "the best value is chance"


def test_of_a_small_space_every_point_is_drawn_once() -> None:
    space = SearchSpace({"x": Int(0, 49)})
    sampler = told(space, lambda draw: float(str(draw.params["x"])) ** 2, trials=12)
    assert len(chosen(sampler, 50)) == 50 - 12


def test_of_a_large_batch_it_chooses_some(monkeypatch: pytest.MonkeyPatch) -> None:
    picks: list[tuple[int, int]] = []
    original = Surrogate.choose

    def noting(self: Surrogate, *arguments: Any, **fields: Any) -> None:
        picks.append((len(arguments[0][0][0]), fields["picks"]))
        original(self, *arguments, **fields)

    monkeypatch.setattr(Surrogate, "choose", noting)
    assert len(told(CUBE, bowl, trials=12).ask(range(1000, 1200))) == 200
    assert picks == [(SURROGATE_CANDIDATES + MORE_CANDIDATES * (SURROGATE_BATCH - 1), SURROGATE_BATCH)]


def test_it_is_given_up_in_a_large_study(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = Surrogate.choose

    def noting(self: Surrogate, *arguments: object, **fields: object) -> object:
        asked.append(len(self))
        return original(self, *arguments, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(Surrogate, "choose", noting)
    assert len(chosen(told(CUBE, bowl, trials=MOST_MODELLED), 2)) == 2
    assert asked == [MOST_MODELLED] * 2
    assert len(chosen(told(CUBE, bowl, trials=MOST_MODELLED + 1), 2)) == 2
    assert len(asked) == 2


def test_an_earlier_studys_trials_and_failures_are_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Surrogate, "choose")
    sampler = TpeSampler(CUBE, maximize=False, startup=10, seed=0)
    sampler.learn_from([EarlierTrial(draw, draw) for draw in UniformSampler(CUBE, seed=1).ask(range(30))])
    sampler.tell([Observation(number, *draw, 0, None) for number, draw in enumerate(sampler.ask(range(40)))])
    assert len(sampler.ask(range(40, 80))) == 40


def test_a_lower_rungs_values_are_put_where_the_next_ones_are() -> None:
    trials = [{0: float(low), 1: 10 + float(low)} for low in range(5)] + [{0: 7.0}, {}]
    assert _on_one_rung(trials) == pytest.approx([10, 11, 12, 13, 14, 17, -math.inf])


def test_a_rung_that_says_nothing_of_the_next_makes_no_difference() -> None:
    generator = np.random.default_rng(0)
    trials = [{0: float(low), 1: float(high)} for low, high in generator.normal(size=(500, 2))]
    low, high = _on_one_rung([*trials, {0: -3.0}, {0: 3.0}])[-2:]
    assert low == pytest.approx(high, abs=1.0)


def test_the_slope_is_what_enough_trials_show() -> None:
    lows = np.random.default_rng(0).normal(size=200).tolist()

    def of(pairs: int) -> float:
        low, high = _on_one_rung([{0: one, 1: 2 * one} for one in lows[:pairs]] + [{0: -3.0}, {0: 3.0}])[-2:]
        return float(high - low) / 6

    assert of(1) == 1.0
    assert 1.1 < of(3) < 1.9
    assert of(200) == pytest.approx(2.0, abs=0.1)


def test_what_diverged_below_does_not_count() -> None:
    generator = np.random.default_rng(0)
    trials = [{0: float(low), 1: float(high)} for low, high in generator.normal(size=(500, 2))]
    low, high = _on_one_rung([*trials, {0: -1e6}, {0: -3.0}, {0: 3.0}])[-2:]
    assert low == pytest.approx(high, abs=1.0)


def test_a_lower_rung_that_hardly_differs_breaks_nothing() -> None:
    trials = [{0: 1e-170 * one, 1: float(one)} for one in range(5)] + [{0: 0.0}]
    assert _on_one_rung(trials)[-1] == pytest.approx(2.0)


def test_the_worst_below_stays_the_worst() -> None:
    assert _on_one_rung([{0: float(one), 1: -float(one)} for one in range(20)] + [{0: -math.inf}])[-1] == -math.inf


def test_three_rungs_are_put_in_place_one_after_the_other() -> None:
    trials = [{0: 1.0, 1: 11.0, 2: 111.0}, {0: 2.0, 1: 12.0}, {0: 3.0}, {2: 100.0}]
    assert _on_one_rung(trials) == pytest.approx([111, 112, 113, 100])


def test_no_value_is_too_large() -> None:
    trials = [{0: -1.7e308, 1: 1.7e308}, {0: 1.7e308, 1: -1.7e308}, {0: 0.0}, {}, {0: 1.7e308}]
    assert not np.isnan(_on_one_rung(trials)).any()
    large = [{0: 1e200 * one, 1: 1e200 * one} for one in range(5)] + [{0: 9e200}]
    assert _on_one_rung(large)[-1] == pytest.approx(9e200), "their squares say nothing of the slope"
    sampler = told(CUBE, lambda draw: 1.7e308 if bowl(draw) > 0.3 else -1.7e308)
    assert len(chosen(sampler, 3)) == 3


def test_choices_are_one_apart_and_what_a_trial_lacks_is_in_the_middle() -> None:
    space = SearchSpace({"kind": Categorical(["one", "two", "three"]), "x": Float(0, 1, when={"kind": ["two"]})})
    columns = Columns()
    kinds = [{"kind": "one"}, {"kind": "three"}, {"kind": "two", "x": 0.5}, {"kind": "two", "x": 1.0}]
    rows = [columns.append(params, {name: space.parameters[name] for name in params}) for params in kinds]
    points = Surrogate(Layout(space.parameters), maximize=False)._points(columns, np.array(rows, dtype=np.intp))
    squared = ((points[:, None] - points) ** 2).sum(axis=2)
    assert [squared[0, 1], squared[0, 2], squared[2, 3]] == pytest.approx([1.0, 1.0, 0.25])


def test_equal_scores_rank_alike() -> None:
    ranked = _ranked(np.array([3.0, -math.inf, 3.0, 5.0, -math.inf]))
    assert ranked[0] == ranked[2]
    assert ranked[1] == ranked[4]
    assert ranked[1] < ranked[0] < ranked[3]
