"""The Python API: every kind of objective, space and data; named and unnamed studies; cancelling."""

import asyncio
import gc
import math
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.waiting import wait_until

import trialfleet
from trialfleet import EfficiencyConfig, Resampling, TrialfleetError
from trialfleet.engine import open_study
from trialfleet.home import Home
from trialfleet.recorded import studies
from trialfleet.study_file import StudyRequest
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.collecting import SELDOM
from trialfleet_shared.errors import ConfigurationError, StudyChangedError, StudyFailedError
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.space import Float, SearchSpace

X = {"x": {"type": "float", "min": 0.0, "max": 1.0}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class Model:
    """Something whose method is an objective."""

    def __init__(self, best: float) -> None:
        self.best = best

    def score(self, params: dict[str, Any]) -> float:
        return -abs(params["x"] - self.best)


async def wait_a_little(params: dict[str, Any]) -> float:
    await asyncio.sleep(0.001)
    return float(params["x"])


def with_trial(trial: Any) -> float:
    if trial.suggest_categorical("kind", ["constant", "linear"]) == "constant":
        return 0.5
    return float(trial.suggest_float("x", 0.0, 1.0))


def space_of_trial(trial: Any) -> None:
    if trial.suggest_categorical("kind", ["constant", "linear"]) == "linear":
        trial.suggest_float("x", 0.0, 1.0)


def local_function() -> Callable[[dict[str, Any]], float]:
    best = 0.3

    def score(params: dict[str, Any]) -> float:
        return -abs(params["x"] - best)

    return score


@pytest.mark.parametrize(
    ("objective", "space"),
    [
        (local_function(), X),
        (lambda params: params["x"], X),
        (Model(0.3).score, X),
        (wait_a_little, X),
        (with_trial, space_of_trial),
        (lambda params: {"value": params["x"], "more": 1.0}, {"x": trialfleet.Float(0.0, 1.0, step=0.01)}),
        (lambda params, budget: params["x"] * budget, X),
    ],
    ids=["local function", "lambda", "bound method", "coroutine", "trial", "mapping and distribution", "budget"],
)
@pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
def test_every_kind_of_objective(objective: Any, space: Any, processes: bool, home: Path) -> None:
    config = EfficiencyConfig(use_process_pool=processes)

    found = trialfleet.optimize(objective, space, 8, config=config, home=home)

    assert [trial["number"] for trial in found["results"]] == list(range(8))
    assert found["best_value"] is not None
    best = [trial for trial in found["results"] if trial["value"] == found["best_value"]]
    assert found["best_params"] in [trial["params"] for trial in best]
    assert all(math.isfinite(v) for v in found["efficiency_metrics"].values() if isinstance(v, float))
    assert found["cache_stats"]["misses"] + found["cache_stats"]["hits"] == found["report"].evaluations


def test_a_study_without_data_has_one_rung_though_its_objective_could_take_some(home: Path) -> None:
    def score(params: dict[str, Any], data: Any = None) -> float:
        return float(params["x"])

    found = trialfleet.optimize(score, X, 8, home=home)
    assert found["report"].ladder == Ladder((Rung(1.0, 1),))
    assert found["report"].complete == 8


def test_a_file_may_be_in_the_home_folder_and_have_an_ending_in_capitals(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd.DataFrame({"a": range(50), "b": range(50), "y": range(50)}).to_csv(tmp_path / "TABLE.CSV", index=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = trialfleet.optimize(score_data, X, 2, data="~/TABLE.CSV", target="y", home=home)
    assert found["results"][0]["metrics"]["columns"] == 2
    with pytest.raises(ConfigurationError, match=r"data: data\.source = ~nobody\.here/t\.csv: there is no home folder"):
        trialfleet.optimize(score_data, X, 2, data="~nobody.here/t.csv", target="y", home=home)


def score_data(params: dict[str, Any], data: Any) -> dict[str, float]:
    return {"value": params["x"], "rows": len(data.y) + len(data.y_valid), "columns": len(data.columns)}


def test_data_as_frame_arrays_mapping_and_file(home: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 2)), random.integers(0, 2, 200)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y})
    frame.to_csv(tmp_path / "table.csv", index=False)
    resampling = Resampling("stratified", folds=4, test_fraction=0.1)

    for data, target in (
        (frame, "y"),
        ((x, y), None),
        ({"X": x, "y": y}, None),
        (tmp_path / "table.csv", "y"),
        (str(tmp_path / "table.csv"), "y"),
    ):
        found = trialfleet.optimize(
            score_data,
            X,
            3,
            data=data,
            target=target,
            resampling=resampling,
            config=EfficiencyConfig.thorough(),
            home=home,
        )
        assert {trial["metrics"]["rows"] for trial in found["results"]} == {180}
        assert {trial["metrics"]["columns"] for trial in found["results"]} == {2}
        assert found["test_value"] == found["best_value"]
        assert [rung.folds for rung in found["report"].ladder.rungs] == [2, 4], "a fold validates on 45 rows"


def test_that_rows_have_no_target_is_told(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{number},{label}" for number in range(30) for label in ("low", "high", "None")]
    (tmp_path / "table.csv").write_text("\n".join(["x,anxiety", *lines]))
    trialfleet.optimize(score_data, X, 2, data=tmp_path / "table.csv", target="anxiety", home=home)
    assert "30 of the 90 rows of the data have no value in the target 'anxiety': they are left out" in caplog.text


def test_that_a_text_makes_categories_of_numbers_is_told(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{number},{number % 2}" for number in range(90)]
    (tmp_path / "table.csv").write_text("\n".join(["age,y", *lines, "l2,0"]))
    trialfleet.optimize(score_data, X, 2, data=tmp_path / "table.csv", target="y", home=home)
    assert "column 'age' has the text 'l2' among its numbers: all of them are read as categories" in caplog.text


def fold_number(params: dict[str, Any], data: Any) -> dict[str, float]:
    return {"value": float(params["x"]), "fold": float(data.fold)}


def test_metrics_are_means_over_all_folds_whichever_rung_they_were_run_on(home: Path) -> None:
    found = trialfleet.optimize(
        fold_number,
        X,
        4,
        data=(np.zeros((200, 1)), np.arange(200) % 2),
        resampling=Resampling("kfold", folds=4),
        config=EfficiencyConfig.thorough(),
        home=home,
    )
    complete = [trial for trial in found["results"] if trial["state"] == "complete"]
    assert complete
    assert all(trial["metrics"]["fold"] == 1.5 for trial in complete)


def test_direction_and_target(home: Path) -> None:
    found = trialfleet.optimize(
        lambda params: abs(params["x"] - 0.5), X, 2000, direction="minimize", target_value=0.2, home=home
    )

    # Trials still in flight when the target was reached are let go: they have no value.
    values = [trial["value"] for trial in found["results"] if trial["value"] is not None]
    assert found["best_value"] == min(values) <= 0.2
    assert found["report"].ended == "target"


def test_every_number_may_be_one_of_numpys(home: Path) -> None:
    found = trialfleet.optimize(
        score_data,
        {"x": trialfleet.Float(np.float64(0), np.float32(1)), "n": trialfleet.Categorical(list(np.array([1, 2])))},
        np.int64(3),  # type: ignore[arg-type]  # as the others here
        np.float64(60.0),
        data=(np.zeros((40, 1)), np.arange(40) % 2),
        resampling=Resampling("kfold", folds=np.int64(2), valid_fraction=np.float32(0.5)),  # type: ignore[arg-type]
        target_value=np.float64(2.0),
        seed=np.int64(4),
        patience=np.int64(0),
        config=EfficiencyConfig(cache_size=np.int64(9), subsample_fraction=np.float32(0.5)),  # type: ignore[arg-type]
        study_name="kept",
        home=home,
    )
    assert len(found["results"]) == 3
    assert {type(trial["params"]["n"]) for trial in found["results"]} == {int}
    assert [summary.complete for summary in studies(Home(home))] == [found["report"].complete]


def test_a_mode_gives_up_when_nothing_better_comes_unless_told_not_to(home: Path) -> None:
    config = EfficiencyConfig(early_stopping_patience=20, max_workers=1)

    def run(**options: Any) -> trialfleet.OptimizationResult:
        return trialfleet.optimize(lambda params: 1.0, X, 60, config=config, home=home, **options)

    ended = run()
    started = len(ended["results"])
    assert 21 <= started < 60
    assert ended["report"].ended == "patience"
    assert ended["report"].ended_because.startswith(f"it stopped early, after {started} of 60 trials: 20 in a row")
    assert ended["efficiency_metrics"]["saved_cpu_seconds"]["stopping"] > 0

    told = run(patience=0)
    assert told["report"].ended == "trials"
    assert len(told["results"]) == 60
    assert told["efficiency_metrics"]["saved_cpu_seconds"]["stopping"] == 0

    own = run(patience=30)
    assert 31 <= len(own["results"]) < 60


def test_a_time_budget_ends_a_study(home: Path) -> None:
    started = time.monotonic()

    found = trialfleet.optimize(lambda params: time.sleep(0.05) or params["x"], X, timeout_seconds=1.0, home=home)

    assert found["report"].ended == "seconds"
    assert 1.0 <= time.monotonic() - started < 10
    assert len(found["results"]) > 2


def test_a_named_study_is_kept_and_goes_on(home: Path) -> None:
    first = trialfleet.optimize(wait_a_little, X, 5, study_name="kept", home=home)
    more = trialfleet.optimize(wait_a_little, X, 8, study_name="kept", home=home)

    assert more["results"][:5] == first["results"]
    assert len(more["results"]) == 8
    assert [summary.study for summary in studies(Home(home))] == ["kept"]
    with pytest.raises(StudyChangedError, match="search space"):
        trialfleet.optimize(wait_a_little, {"x": {"type": "int", "min": 0, "max": 9}}, 5, study_name="kept", home=home)


def test_an_unnamed_study_is_forgotten_but_its_results_are_not(home: Path) -> None:
    trialfleet.optimize(wait_a_little, X, 5, home=home)
    again = trialfleet.optimize(wait_a_little, X, 5, home=home)

    assert again["cache_stats"]["hits"] == 5
    assert not Home(home).store.exists()


def test_a_study_learns_from_another(home: Path) -> None:
    """The first draw of a study that starts warm is already a good one."""
    trialfleet.optimize(Model(0.77).score, X, 60, study_name="earlier", home=home)

    cold = trialfleet.optimize(Model(0.77).score, X, 10, home=home, seed=5)
    warm = trialfleet.optimize(Model(0.77).score, X, 10, home=home, seed=5, warm_start="earlier")

    def distance(found: trialfleet.OptimizationResult) -> float:
        return float(np.mean([abs(trial["params"]["x"] - 0.77) for trial in found["results"]]))

    assert distance(warm) < distance(cold) / 2


def loss(params: dict[str, Any]) -> float:
    return float(abs(params["x"] - 0.77))


def gain(params: dict[str, Any]) -> float:
    return -float(abs(params["x"] - 0.77))


@pytest.mark.parametrize(
    ("earlier", "direction", "new", "new_direction"),
    [
        (loss, "maximize", loss, "minimize"),  # the direction was wrong, and is corrected
        (loss, "minimize", gain, "maximize"),  # another function, whose good trials are the same
    ],
    ids=["same objective", "another objective"],
)
def test_a_study_learns_what_is_good_from_one_of_the_other_direction(
    earlier: Any, direction: Any, new: Any, new_direction: Any, home: Path
) -> None:
    tried = trialfleet.optimize(earlier, X, 40, direction=direction, patience=0, study_name="earlier", home=home)[
        "results"
    ]

    found = trialfleet.optimize(new, X, 5, direction=new_direction, home=home, warm_start="earlier")

    best = sorted((trial["params"]["x"] for trial in tried), key=lambda x: abs(x - 0.77))[:5]
    assert [trial["params"]["x"] for trial in found["results"]] == best


def test_the_event_loop_stays_free_and_studies_run_beside_each_other(home: Path) -> None:
    async def run() -> tuple[list[trialfleet.OptimizationResult], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        clock = asyncio.create_task(tick())
        async with trialfleet.create_efficiency_optimizer(home=home) as optimizer:
            found = await asyncio.gather(
                optimizer.optimize_trial_efficiency(Model(0.2).score, X, 10),
                optimizer.optimize_trial_efficiency(Model(0.8).score, X, 10),
            )
        clock.cancel()
        return found, ticks

    found, ticks = asyncio.run(run())

    assert [len(one["results"]) for one in found] == [10, 10]
    assert ticks > 5


def test_the_guides_sequence(home: Path) -> None:
    async def run() -> trialfleet.OptimizationResult:
        optimizer = trialfleet.create_efficiency_optimizer(EfficiencyConfig.fast(), home=home)
        await optimizer.initialize()
        found = await optimizer.optimize_trial_efficiency(Model(0.2).score, X, 10, timeout_seconds=60)
        await optimizer.cleanup()
        await optimizer.cleanup()
        return found

    found = asyncio.run(run())

    assert set(found) >= {"results", "best_params", "best_value", "efficiency_metrics", "cache_stats"}


def test_optimize_works_inside_a_running_event_loop(home: Path) -> None:
    async def run() -> trialfleet.OptimizationResult:
        return trialfleet.optimize(wait_a_little, X, 3, home=home)

    assert len(asyncio.run(run())["results"]) == 3


def test_studies_take_none_of_the_loops_threads(home: Path) -> None:
    both = threading.Barrier(2)

    def meet(params: dict[str, Any]) -> float:
        both.wait(60.0)
        return 1.0

    async def run() -> list[trialfleet.OptimizationResult]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
        config = EfficiencyConfig(use_process_pool=False, max_workers=1)
        async with trialfleet.create_efficiency_optimizer(config, home=home) as optimizer:
            return await asyncio.gather(*(optimizer.optimize_trial_efficiency(meet, X, 1) for _ in range(2)))

    assert [found["best_value"] for found in asyncio.run(run())] == [1.0, 1.0]


def test_cancelling_ends_the_evaluations_at_once(home: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def slow(params: dict[str, Any]) -> float:
        with pids.open("a") as file:
            print(os.getpid(), file=file)
        time.sleep(600)
        return 1.0

    async def run() -> None:
        async with trialfleet.create_efficiency_optimizer(home=home) as optimizer:
            task = asyncio.create_task(optimizer.optimize_trial_efficiency(slow, X, 10, study_name="slow"))
            await asyncio.to_thread(wait_until, lambda: pids.exists() and pids.read_text(), "an evaluation began")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    started = time.monotonic()
    asyncio.run(run())

    assert time.monotonic() - started < 30
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()
    assert [summary.study for summary in studies(Home(home))] == ["slow"]


def fail(params: dict[str, Any]) -> float:
    raise ValueError("no such luck")


def test_a_study_whose_first_trials_all_fail_raises(home: Path) -> None:
    with pytest.raises(StudyFailedError, match="no such luck"):
        trialfleet.optimize(fail, X, 50, home=home)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_trials": None}, "n_trials, timeout_seconds and cpu_seconds are missing; give at least one of them"),
        ({"n_trials": 0}, "n_trials = 0: expected int >= 1"),
        ({"n_trials": "9"}, 'n_trials = "9": expected int, got str'),
        ({"timeout_seconds": -1.0}, "timeout_seconds = -1.0: expected float > 0.0"),
        ({"direction": "up"}, 'direction = "up": allowed are maximize, minimize'),
        ({"home": "~nobody-at-all/x"}, "home = ~nobody-at-all/x: there is no home folder to put in place of ~"),
        ({"study_name": ""}, 'study_name = "": expected str of length >= 1'),
        ({"study_name": "\x1bc"}, r'study_name = "\u001bc": expected str without control characters'),
        ({"study_name": "a\udcff"}, r"study_name = 'a\udcff' is not Unicode"),
        ({"search_space": {"a\udcff": Float(0, 1)}}, r"search_space: a parameter's name, 'a\udcff', is not Unicode"),
        ({"config": {"max_workers": 1}}, "config = {max_workers = 1}: expected an EfficiencyConfig"),
        ({"config": {}}, "config = {}: expected an EfficiencyConfig"),
        ({"config": "fast"}, 'config = "fast": expected an EfficiencyConfig'),
        ({"seed": -1}, "seed = -1: expected int >= 0"),
        ({"target_value": math.nan}, "target_value = nan: a finite number is needed"),
        ({"warm_start": 5}, "warm_start = 5: expected the name of a kept study"),
        ({"home": 3}, "home = 3: expected a path"),
        ({"objective_function": 3}, "objective_function = 3: expected a function"),
        ({"search_space": {1: Float(0, 1)}}, "search_space: 1 is no parameter's name: that is a text"),
        ({"search_space": 3}, "search_space = 3: expected a mapping, or a function of a trial"),
        (
            {"search_space": lambda trial: trial.suggest_uniform("x", 0, 1)},
            "search_space raised AttributeError: 'SpaceTrial'",
        ),
        ({"search_space": {}}, "search_space: the search space is empty; give at least one parameter"),
        (
            {"search_space": {"x": {"type": "float", "min": 2, "max": 1}}},
            "search_space: x: min = 2.0 is above max = 1.0",
        ),
        ({"target": "y"}, "target given without data"),
        ({"resampling": {"kind": "kfold", "folds": 3}}, "resampling given without data"),
        ({"data": "t.csv", "resampling": {"fold": 3}}, "resampling: fold: unknown key; did you mean 'folds'?"),
        (
            {"data": "t.csv", "resampling": "kfold"},
            'resampling = "kfold": expected a table, which in Python is a mapping',
        ),
        ({"data": "t.csv", "order": "sorted"}, 'data: order = "sorted": allowed are random, stratified'),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str, home: Path) -> None:
    given: dict[str, Any] = {"objective_function": wait_a_little, "search_space": X, "n_trials": 5, "home": home}

    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}") as caught:
        trialfleet.optimize(**given | arguments)

    assert isinstance(caught.value, TrialfleetError)
    assert isinstance(caught.value, ValueError)


def test_an_unknown_keyword_is_a_type_error(home: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword 'n_jobs'; known are direction"):
        trialfleet.optimize(wait_a_little, X, 5, home=home, n_jobs=3)  # type: ignore[call-arg]  # on purpose


def test_importing_the_package_shows_its_names() -> None:
    assert set(trialfleet.__all__) <= set(dir(trialfleet))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        trialfleet.optimise  # type: ignore[attr-defined]  # noqa: B018  # on purpose


@pytest.mark.parametrize("use_process_pool", [True, False])
def test_the_collector_looks_as_often_as_ever_where_objectives_run(use_process_pool: bool, home: Path) -> None:
    request = StudyRequest(
        name="score",
        direction="maximize",
        space=SearchSpace({"x": Float(0.0, 1.0)}),
        objective="memory:score",
        base=Path(),
        config=EfficiencyConfig(use_process_pool=use_process_pool, max_workers=1),
        budget=Budget(trials=3),
        functions={"score": local_function()},
    )
    usual, seen = gc.get_threshold()[0], set[int]()
    with open_study(request, Home(home)) as study:
        study.run(lambda _: seen.add(gc.get_threshold()[0]), lambda: None)
    assert seen == {max(SELDOM, usual) if use_process_pool else usual}
    assert gc.get_threshold()[0] == usual
