"""Each field of EfficiencyConfig changes what a study does, from `trialfleet.optimize` down to the evaluations."""

import gc
import itertools
import os
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trialfleet
from trialfleet import EfficiencyConfig, OptimizationResult
from trialfleet.home import Home
from trialfleet.recorded import recorded_report
from trialfleet_shared.ladder import Rung
from trialfleet_shared.messages import Evaluation
from trialfleet_workers.local import LocalFleet

X = {"x": {"type": "float", "min": 0.0, "max": 1.0}}
#: Seconds that an evaluation takes where it matters how many are under way: cheaper ones are handed out by the dozen.
PACE = 0.02
ROWS = 1000
#: Training rows of a holdout of a fifth.
TRAINING_ROWS = 800

Optimize = Callable[..., OptimizationResult]


@pytest.fixture
def optimize(tmp_path: Path) -> Optimize:
    """`trialfleet.optimize` with a home of its own, and settings as keywords: one slot unless they say otherwise."""

    def run(
        function: Callable[..., Any], *, settings: dict[str, Any], space: Any = X, trials: int = 12, **options: Any
    ) -> OptimizationResult:
        config = EfficiencyConfig(**{"max_workers": 1, **settings})
        return trialfleet.optimize(function, space, trials, config=config, home=tmp_path / "home", **options)

    return run


def table() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(ROWS, 3)), random.normal(size=ROWS)


def seen(params: dict[str, Any], data: Any) -> dict[str, float]:
    """What an evaluation is given, as metrics."""
    return {"value": params["x"], "rows": len(data.y), "in the map": lies_in_a_map(data.X)}


def lies_in_a_map(array: np.ndarray) -> bool:
    """Whether the array's memory is that of a mapped data set."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.partition(" ")[0].split("-"))
        if low <= address < high:
            return line.endswith(".mdb")
    return False


def metric(result: OptimizationResult, name: str) -> list[float]:
    """The metric of each trial's highest rung."""
    return [trial["metrics"][name] for trial in result["results"] if name in trial["metrics"]]


def reasons(result: OptimizationResult) -> set[str]:
    return {trial["reason"] for trial in result["results"]}


# Data


def test_subsampling_evaluates_on_a_share_of_the_rows(optimize: Optimize) -> None:
    on = optimize(seen, settings={"subsample_fraction": 0.5}, data=table())
    off = optimize(seen, settings={"subsample_fraction": 0.5, "enable_data_subsampling": False}, data=table())

    assert set(metric(on, "rows")) == {TRAINING_ROWS * 0.5, TRAINING_ROWS}
    assert set(metric(off, "rows")) == {TRAINING_ROWS}


def test_without_adaptive_subsampling_no_trial_climbs(optimize: Optimize) -> None:
    fixed = optimize(seen, settings={"subsample_fraction": 0.5, "adaptive_subsampling": False}, data=table())

    assert set(metric(fixed, "rows")) == {TRAINING_ROWS * 0.5}
    assert reasons(fixed) == {"complete"}


@pytest.mark.parametrize(
    ("settings", "fractions"),
    [
        ({"subsample_fraction": 0.25}, [0.25, 1.0]),
        ({"subsample_fraction": 0.5}, [0.5, 1.0]),
        ({"subsample_fraction": 0.25, "reduction_factor": 2.0}, [0.25, 0.5, 1.0]),
        ({"subsample_fraction": 0.5, "lowest_fraction": 0.2, "rung_rows": 100}, [0.2, 0.6, 1.0]),
        ({"subsample_fraction": 0.5, "lowest_fraction": 0.2, "rung_rows": 200}, [0.25, 1.0]),
        ({"subsample_fraction": 0.5, "lowest_fraction": 0.2, "rung_rows": 10_000}, [0.5, 1.0]),
        ({"ladder": (Rung(0.4, 1), Rung(1.0, 1))}, [0.4, 1.0]),
    ],
)
def test_the_ladder_is_as_the_settings_say(
    optimize: Optimize, settings: dict[str, Any], fractions: list[float]
) -> None:
    result = optimize(seen, settings=settings, trials=2, data=table())

    assert [rung.fraction for rung in result["report"].ladder.rungs] == fractions


def test_memory_optimization_gives_views_on_shared_memory(optimize: Optimize) -> None:
    on = optimize(seen, settings={"enable_data_subsampling": False}, trials=3, data=table())
    off = optimize(
        seen,
        settings={"enable_data_subsampling": False, "enable_memory_optimization": False, "enable_caching": False},
        trials=3,
        data=table(),
    )

    assert set(metric(on, "in the map")) == {True}
    assert set(metric(off, "in the map")) == {False}


class Knot:
    """Refers to itself: only a garbage collection frees it."""

    def __init__(self) -> None:
        self.itself = self


_KNOTS: list["weakref.ref[Knot]"] = []


def litter(params: dict[str, Any]) -> dict[str, float]:
    """Leave garbage; how much of it lies around."""
    gc.disable()
    _KNOTS.append(weakref.ref(Knot()))
    return {"value": params["x"], "garbage": sum(knot() is not None for knot in _KNOTS)}


def test_slots_collect_garbage_as_often_as_the_settings_say(optimize: Optimize) -> None:
    often = optimize(litter, settings={"enable_caching": False, "clear_cache_interval": 3})
    never = optimize(
        litter, settings={"enable_caching": False, "clear_cache_interval": 3, "enable_memory_optimization": False}
    )

    assert max(metric(often, "garbage")) == 3
    assert max(metric(never, "garbage")) == 12


# Cache


def value(params: dict[str, Any]) -> float:
    return float(params["x"])


def slow_value(params: dict[str, Any]) -> float:
    time.sleep(PACE)
    return float(params["x"])


def test_caching_answers_repeated_evaluations(optimize: Optimize) -> None:
    first = optimize(value, settings={})
    again = optimize(value, settings={})
    off = optimize(value, settings={"enable_caching": False})

    assert first["cache_stats"]["hits"] == 0
    assert again["cache_stats"]["hits"] == 12
    assert off["cache_stats"] == {
        "enabled": False,
        "hits": 0,
        "misses": 12,
        "hit_rate": 0.0,
        "entries": None,
        "cache_size": None,
    }


@pytest.mark.parametrize("enabled", [True, False])
def test_a_recorded_study_tells_whether_its_cache_was_on(optimize: Optimize, tmp_path: Path, enabled: bool) -> None:
    optimize(value, settings={"enable_caching": enabled, "use_process_pool": False}, trials=2, study_name="s")
    _, figures = recorded_report(Home(tmp_path / "home"), "s")
    assert (figures.enabled, figures.hits, figures.misses) == (enabled, 0, 2)


def kind_of_number(params: dict[str, Any]) -> float:
    return 1.0 if isinstance(params["x"], int) else 2.0


def test_a_real_number_is_not_answered_with_the_result_of_the_equal_whole_one(optimize: Optimize) -> None:
    whole = optimize(kind_of_number, settings={}, trials=1, space={"x": {"type": "int", "min": 1, "max": 1}})
    real = optimize(kind_of_number, settings={}, trials=1, space={"x": {"type": "float", "min": 1, "max": 1}})
    again = optimize(kind_of_number, settings={}, trials=1, space={"x": {"type": "float", "min": 1, "max": 1}})

    assert (whole["best_value"], real["best_value"], again["best_value"]) == (1.0, 2.0, 2.0)
    assert (real["cache_stats"]["hits"], again["cache_stats"]["hits"]) == (0, 1)


def test_the_cache_keeps_as_many_results_as_it_may(optimize: Optimize) -> None:
    assert optimize(value, settings={"cache_size": 5})["cache_stats"]["entries"] == 5


def test_results_expire(optimize: Optimize) -> None:
    optimize(value, settings={})
    time.sleep(0.02)

    assert optimize(value, settings={"cache_ttl_hours": 0.01 / 3600})["cache_stats"]["hits"] == 0


# Slots


def process(params: dict[str, Any]) -> dict[str, float]:
    time.sleep(0.05)
    return {"value": params["x"], "pid": os.getpid()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_parallel_processing_uses_several_slots(optimize: Optimize) -> None:
    two = optimize(process, settings={"max_workers": 2, "enable_caching": False})
    capped = optimize(process, settings={"max_workers": 1, "enable_caching": False})
    off = optimize(process, settings={"max_workers": 2, "enable_parallel_processing": False, "enable_caching": False})

    assert len(set(metric(two, "pid"))) == 2
    assert len(set(metric(capped, "pid"))) == 1
    assert len(set(metric(off, "pid"))) == 1


def test_the_process_pool_keeps_objectives_out_of_this_process(optimize: Optimize) -> None:
    on = optimize(process, settings={"enable_caching": False}, trials=3)
    off = optimize(process, settings={"enable_caching": False, "use_process_pool": False}, trials=3)

    assert os.getpid() not in metric(on, "pid")
    assert set(metric(off, "pid")) == {os.getpid()}


@pytest.mark.parametrize("size", [1, 40])
def test_messages_carry_as_many_evaluations_as_they_may(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    sizes = []
    submit = LocalFleet.submit

    def spy(fleet: LocalFleet, evaluations: Sequence[Evaluation]) -> None:
        sizes.append(len(evaluations))
        submit(fleet, evaluations)

    monkeypatch.setattr(LocalFleet, "submit", spy)
    optimize(value, settings={"batch_size": size, "enable_caching": False}, trials=300)

    assert max(sizes) <= size
    assert (max(sizes) > 1) == (size > 1)


# Pruning


def unlucky(params: dict[str, Any], budget: float) -> float:
    """Far below the best for a third of the space."""
    time.sleep(PACE)
    return 0.01 if params["x"] < 0.33 else 1.0


@pytest.mark.parametrize(
    ("settings", "prunes"),
    [
        ({}, True),
        ({"enable_aggressive_pruning": False}, False),
        ({"pruning_threshold": 0.005}, False),
        ({"min_trials_before_pruning": 1000}, False),
    ],
)
def test_the_threshold_rule_prunes_what_is_far_below_the_best(
    optimize: Optimize, settings: dict[str, Any], prunes: bool
) -> None:
    result = optimize(
        unlucky,
        settings={"min_trials_before_pruning": 3, **settings},
        trials=30,
    )

    assert ("threshold" in reasons(result)) == prunes


def fold_score(params: dict[str, Any], data: Any) -> float:
    time.sleep(PACE)
    return float(params["x"]) + 0.001 * data.fold


@pytest.mark.parametrize("racing", [True, False])
def test_racing_stops_trials_between_folds(optimize: Optimize, racing: bool) -> None:
    result = optimize(
        fold_score,
        settings={"fold_racing": racing, "enable_data_subsampling": False, "fold_halving": False},
        trials=15,
        data=table(),
        resampling={"kind": "kfold", "folds": 4},
    )

    assert ("racing" in reasons(result)) == racing
    assert (result["report"].evaluations < 15 * 4) == racing


@pytest.mark.parametrize("halving", [True, False])
def test_halving_over_folds_spares_poor_trials_the_other_folds(optimize: Optimize, halving: bool) -> None:
    result = optimize(
        fold_score,
        settings={"fold_halving": halving, "fold_racing": False, "enable_data_subsampling": False},
        trials=15,
        data=table(),
        resampling={"kind": "kfold", "folds": 4},
    )

    assert ("halving" in reasons(result)) == halving
    assert (result["report"].evaluations < 15 * 4) == halving


# Sampling


def negative(params: dict[str, Any]) -> float:
    return -slow_value(params)


def drawn(result: OptimizationResult) -> list[float]:
    return [trial["params"]["x"] for trial in result["results"]]


def same_draws(left: OptimizationResult, right: OptimizationResult) -> int:
    """How many trials at the start have the same params."""
    pairs = zip(drawn(left), drawn(right), strict=True)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_smart_sampling_learns_from_values(optimize: Optimize) -> None:
    """Draws that do not depend on values are the same for opposite objectives."""
    smart = {"warm_start_trials": 10}
    blind = {"warm_start_trials": 10, "enable_smart_sampling": False}

    up, down = (optimize(f, settings=smart, trials=60) for f in (slow_value, negative))
    blind_up, blind_down = (optimize(f, settings=blind, trials=60) for f in (slow_value, negative))

    assert same_draws(up, down) < 60
    assert np.mean(drawn(up)[-20:]) > np.mean(drawn(down)[-20:]) + 0.3
    assert same_draws(blind_up, blind_down) == 60


@pytest.mark.parametrize("warm_start", [5, 25])
def test_the_model_is_trusted_after_the_warm_start(optimize: Optimize, warm_start: int) -> None:
    up, down = (optimize(f, settings={"warm_start_trials": warm_start}, trials=40) for f in (slow_value, negative))

    # A few draws are under way while the last of the warm start is evaluated.
    assert warm_start <= same_draws(up, down) <= warm_start + 10


#: Budgets of the evaluations in the order of their start; the objective runs in a thread of this process.
_BUDGETS: list[float] = []


def noting_budget(params: dict[str, Any], budget: float) -> float:
    _BUDGETS.append(budget)
    time.sleep(PACE * budget)
    return float(params["x"])


@pytest.mark.parametrize("adaptive", [True, False])
def test_adaptive_allocation_lets_promotions_go_first(optimize: Optimize, adaptive: bool) -> None:
    _BUDGETS.clear()

    optimize(
        noting_budget,
        settings={"adaptive_trial_allocation": adaptive, "use_process_pool": False, "enable_caching": False},
        trials=30,  # before any starts on all rows
    )

    first_promotion = _BUDGETS.index(1.0)
    assert _BUDGETS.count(min(_BUDGETS)) == 30
    assert (min(_BUDGETS) in _BUDGETS[first_promotion:]) == adaptive
