"""The TPE: bounded cost, pending trials, rungs, branches, determinism."""

import numpy as np
import pytest

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.candidates import Candidates, Layout, Split
from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.estimator import GOOD_SHARE, MAX_BAD, MAX_GOOD, MAX_PENDING, Estimator, good_share
from trialfleet_coordinator.sampling.parzen import Mask, NumberAxes, log_ratio, make_kernels
from trialfleet_coordinator.sampling.tpe import (
    CANDIDATES,
    JOINT_EVERY,
    SURROGATE_CANDIDATES,
    SURROGATE_TURNS,
    TpeSampler,
)
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Float, Int, SearchSpace

LINE = SearchSpace({"x": Float(0, 1)})


def x_of(draw: Draw) -> float:
    return float(str(draw.params["x"]))


def sampler_of(told: list[tuple[float, float | None]], *, maximize: bool = False, rung: int = 0) -> TpeSampler:
    sampler = TpeSampler(LINE, maximize=maximize, startup=10, seed=0)
    sampler.tell(
        [Observation(number, {"x": x}, {"x": Float(0, 1)}, rung, value) for number, (x, value) in enumerate(told)]
    )
    return sampler


GRID = [index / 50 for index in range(50)]


def by_ratio(numbers: range) -> list[range]:
    """Those of these trials that the surrogate does not choose, one by one."""
    return [range(number, number + 1) for number in numbers if number % 4 not in SURROGATE_TURNS]


@pytest.mark.parametrize("maximize", [True, False])
def test_draws_near_the_best(maximize: bool) -> None:
    sampler = sampler_of([(x, (x - 0.2) ** 2 * (-1 if maximize else 1)) for x in GRID], maximize=maximize)
    draws = sampler.ask(range(50, 62))
    assert np.median([abs(x_of(draw) - 0.2) for draw in draws]) < 0.1


def test_failed_trials_are_bad() -> None:
    sampler = sampler_of([(x, None if x < 0.5 else 1 - x) for x in GRID])
    assert sum(x_of(draw) > 0.5 for draw in sampler.ask(range(50, 70))) >= 16


@pytest.mark.parametrize("joint", [True, False])
def test_pending_trials_keep_others_away(joint: bool) -> None:
    numbers = [one for one in by_ratio(range(300, 500)) if (one.start % JOINT_EVERY == 0) == joint]

    def near(*, pending: int) -> float:
        sampler = sampler_of([(x, (x - 0.5) ** 2) for x in GRID])
        around = [(50 + index, 0.5 + (index - pending / 2) / 1000) for index in range(pending)]
        sampler.restore([(number, {"x": x}, {"x": Float(0, 1)}) for number, x in around], [])
        draws = [draw for one in numbers[:15] for draw in sampler.ask(one)]
        return float(np.mean([abs(x_of(draw) - 0.5) < 0.05 for draw in draws]))

    assert near(pending=60) < 0.5 * near(pending=0)


def test_trials_that_climbed_rank_before_those_that_did_not() -> None:
    """On the lower rung low x has the lowest values, yet it was high x that climbed and is good there."""
    sampler = sampler_of([(x, x) for x in GRID])
    climbed = [number for number, x in enumerate(GRID) if x > 0.7]
    sampler.tell([Observation(n, {"x": GRID[n]}, {"x": Float(0, 1)}, 1, 5 + GRID[n]) for n in climbed])
    draws = [draw for one in by_ratio(range(50, 90)) for draw in sampler.ask(one)]
    assert sum(x_of(draw) > 0.6 for draw in draws) >= 16


def test_draws_at_the_start_do_not_depend_on_values() -> None:
    first, second = sampler_of([(0.1, 0.0)] * 9), sampler_of([(0.1, 7.0)] * 9)
    assert first.ask(range(9, 12)) == second.ask(range(9, 12)) == UniformSampler(LINE, seed=0).ask(range(9, 12))


def test_a_branch_is_modelled_while_another_one_leads() -> None:
    """Trials of the trailing branch are all bad ones, but its own best still attract."""
    space = SearchSpace(
        {
            "kind": Categorical(["leads", "trails"]),
            "a": Float(0, 1, when={"kind": ["leads"]}),
            "b": Float(0, 1, when={"kind": ["trails"]}),
        }
    )
    estimator = Estimator(maximize=False)
    for number, draw in enumerate(UniformSampler(space, seed=0).ask(range(200))):
        value = 0.0 if draw.params["kind"] == "leads" else 1 + abs(float(str(draw.params["b"])) - 0.8)
        estimator.observe([Observation(number, *draw, 0, value)])
    candidates = estimator.candidates(np.zeros(500, dtype=np.bool_), np.random.default_rng(0))
    drawn = [float(str(candidates.suggest(index, "b", space.parameters["b"]))) for index in range(500)]
    assert np.mean([abs(value - 0.8) < 0.2 for value in drawn]) > 0.7


def test_in_a_branch_candidates_are_judged_by_its_own_good_and_bad_trials() -> None:
    """Two good trials lack the parameter; of the four that have it, best first, half are good, and one is pending."""
    kind = Categorical(["leads", "trails"])
    b = Float(0, 1, when={"kind": ["trails"]})
    columns = Columns()
    for _ in range(2):
        columns.append({"kind": "leads"}, {"kind": kind})
    for x in (0.1, 0.2, 0.6, 0.7, 0.9):
        columns.append({"kind": "trails", "b": x}, {"kind": kind, "b": b})
    split = Split(np.arange(2), np.arange(2, 6), np.arange(6, 7), 0.5)
    candidates = Candidates(columns, split, joint=np.zeros(200, dtype=np.bool_), generator=np.random.default_rng(0))
    drawn = np.array([[float(str(candidates.suggest(index, "b", b)))] for index in range(200)])

    nothing = [[np.nan]] * 2
    good = make_kernels(NumberAxes((b,)), np.array([*nothing, [0.1], [0.2], *nothing]))
    bad = make_kernels(NumberAxes((b,)), np.array([*nothing, *nothing, [0.6], [0.7], [0.9]]))
    np.testing.assert_allclose(candidates.scores(200), log_ratio(good, bad, drawn)[:, 0])


def test_a_trials_branch_is_drawn_not_chosen() -> None:
    """Both branches are as good, but the good trials of one lie close together, so that its ratios are higher."""
    space = SearchSpace(
        {
            "kind": Categorical(["close", "wide"]),
            "a": Float(0, 1, when={"kind": ["close"]}),
            "b": Float(0, 1, when={"kind": ["close"]}),
            "c": Float(0, 1, when={"kind": ["wide"]}),
        }
    )
    sampler = TpeSampler(space, maximize=False, startup=10, seed=0)
    observations = []
    for number, draw in enumerate(UniformSampler(space, seed=0).ask(range(200))):
        away = max((abs(float(str(draw.params[name])) - 0.8) for name in "ab" if name in draw.params), default=0.0)
        observations.append(Observation(number, *draw, 0, away or 0.6 * (number % 7) / 7))
    sampler.tell(observations)
    kinds = [draw.params["kind"] for draw in sampler.ask(range(200, 400))]
    assert kinds.count("wide") > 60


@pytest.fixture
def joints(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """Of each set of candidates that is drawn, which have their parameters drawn together."""
    noted: list[list[bool]] = []
    original = Estimator.candidates

    def noting(self: Estimator, joint: Mask, generator: np.random.Generator) -> Candidates:
        noted.append(joint.tolist())
        return original(self, joint, generator)

    monkeypatch.setattr(Estimator, "candidates", noting)
    return noted


def test_parameters_are_drawn_together_only_where_a_trial_is_drawn_singly(joints: list[list[bool]]) -> None:
    sampler = sampler_of([(x, x) for x in GRID])
    sampler._surrogate = None
    for numbers in (range(600, 601), range(601, 602), range(602, 614)):
        sampler.ask(numbers)
    assert joints == [[True] * CANDIDATES, [False] * CANDIDATES, [False] * 12 * CANDIDATES]


def test_half_of_the_surrogates_candidates_have_parameters_drawn_together(joints: list[list[bool]]) -> None:
    sampler_of([(x, x) for x in GRID]).ask(range(600, 601))
    assert [(len(joint), sum(joint)) for joint in joints] == [(SURROGATE_CANDIDATES, SURROGATE_CANDIDATES // 2)]


def test_candidates_are_alike_that_have_the_same_parameters() -> None:
    space = SearchSpace({"kind": Categorical(["one", "two"]), "x": Float(0, 1, when={"kind": ["two"]})})
    estimator = Estimator(maximize=False)
    for number, draw in enumerate(UniformSampler(space, seed=0).ask(range(10))):
        estimator.observe([Observation(number, *draw, 0, float(number))])
    candidates = estimator.candidates(np.zeros(40, dtype=np.bool_), np.random.default_rng(0))
    candidates.activate(Layout(space.parameters))
    kinds = [
        [draw.params.keys() for draw in candidates.draws(range(first, first + 10), space.parameters)]
        for first in range(0, 40, 10)
    ]
    branches = candidates.branches().reshape(-1, 10)
    assert (branches == branches[:, :1]).tolist() == [[keys == group[0] for keys in group] for group in kinds]


def test_the_model_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = Candidates.__init__

    def noting(self: Candidates, columns: object, split: Split, **rest: object) -> None:
        sizes.append((len(split.good), len(split.bad), len(split.pending)))
        original(self, columns, split, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Candidates, "__init__", noting)
    sampler = sampler_of([(number / 5000, float(number)) for number in range(5000)])
    sampler.ask(range(5000, 5300))
    sampler.ask(range(5300, 5301))
    assert sizes[0] == (MAX_GOOD, MAX_BAD, 0)
    assert sizes[-1] == (MAX_GOOD, MAX_BAD, MAX_PENDING)


def in_flight(*, lost: int, rounds: int, at_a_time: int) -> int:
    """What is taken to be in flight where some trials were lost, and others since ended in random order."""
    estimator, generator = Estimator(maximize=False), np.random.default_rng(0)
    draws = iter(UniformSampler(SearchSpace({"x": Float(0, 1)}), seed=0).ask(range(lost + rounds + at_a_time)))
    pending: list[int] = []
    for number, draw in enumerate(draws):
        estimator.add(number, *draw)
        if number >= lost:
            pending.append(number)
        if len(pending) > at_a_time:
            ended = pending.pop(int(generator.integers(len(pending))))
            estimator.observe([Observation(ended, draw.params, draw.distributions, 0, float(ended))])
    return estimator._in_flight()


@pytest.mark.parametrize("at_a_time", [1, 8, 32, 128, 500])
def test_nearly_all_in_flight_are_counted_in_whatever_order_they_end(at_a_time: int) -> None:
    assert in_flight(lost=0, rounds=2000, at_a_time=at_a_time) == pytest.approx(at_a_time, rel=0.1, abs=1)


@pytest.mark.parametrize("at_a_time", [1, 8, 32])
def test_trials_that_were_lost_are_not_taken_to_be_in_flight_for_long(at_a_time: int) -> None:
    assert in_flight(lost=400, rounds=0, at_a_time=at_a_time) == 400 + at_a_time
    now = in_flight(lost=400, rounds=10 + 4 * at_a_time, at_a_time=at_a_time)
    assert now == pytest.approx(at_a_time, rel=0.1, abs=1)


def test_fewer_are_good_where_many_are_in_flight() -> None:
    assert good_share(0) == good_share(32) == GOOD_SHARE
    assert good_share(128) == pytest.approx(GOOD_SHARE / 2)
    estimator = Estimator(maximize=False)
    for number, draw in enumerate(UniformSampler(SearchSpace({"x": Float(0, 1)}), seed=0).ask(range(228))):
        estimator.add(number, *draw)
        if number < 100:
            estimator.observe([Observation(number, *draw, 0, float(number))])
    assert len(estimator._split().good) == 8


def test_trials_of_one_batch_differ() -> None:
    sampler = sampler_of([(x, (x - 0.5) ** 2) for x in GRID])
    draws = sampler.ask(range(50, 82))
    assert len({x_of(draw) for draw in draws}) == 32
    assert np.std([x_of(draw) for draw in draws]) > 0.005


def test_parameters_that_belong_together_can_be_drawn_together() -> None:
    """Good trials lie on x = y; joint candidates do too, others need not."""
    space = {"x": Int(0, 9), "y": Int(0, 9)}
    estimator = Estimator(maximize=False)
    for number in range(100):
        x, y = number % 10, number // 10
        estimator.observe([Observation(number, {"x": x, "y": y}, dict(space), 0, float(abs(x - y)))])

    def on_diagonal(*, joint: bool) -> float:
        candidates = estimator.candidates(np.full(500, joint), np.random.default_rng(0))
        pairs = [tuple(candidates.suggest(index, name, one) for name, one in space.items()) for index in range(500)]
        return float(np.mean([x == y for x, y in pairs]))

    assert on_diagonal(joint=True) > 2 * on_diagonal(joint=False)
