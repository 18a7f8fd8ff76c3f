"""The Python API with a coordinator at the other end."""

import asyncio
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_processes import Fleet
from support.waiting import wait_until

import trialfleet
from trialfleet.client import Client
from trialfleet_coordinator.serving import ServiceState
from trialfleet_shared.errors import ConfigurationError, StudyFailedError

pytestmark = pytest.mark.rabbitmq

SPACE = {"x": trialfleet.Float(0.0, 1.0)}


class Remote:
    """A fleet, and what one needs to speak to it from Python."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.url = (fleet.home / "coordinator" / "url").read_text().strip()
        self.token = (fleet.home / "coordinator" / "token").read_text().strip()
        spec = importlib.util.spec_from_file_location("objective", fleet.folder / "objective.py")
        assert spec is not None
        assert spec.loader is not None
        self.objective = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.objective)

    def client(self) -> Client:
        return Client(self.url, token=self.token)

    def optimizer(self) -> trialfleet.EfficiencyOptimizer:
        config = trialfleet.EfficiencyConfig.fast()
        return trialfleet.create_efficiency_optimizer(config, url=self.url, token=self.token)


@pytest.fixture
def remote(rabbitmq: str, tmp_path: Path) -> Iterator[Remote]:
    with ExitStack() as stack:
        yield Remote(Fleet(rabbitmq, tmp_path, stack))


def test_a_study_is_run_by_the_coordinator_and_its_result_is_as_if_it_had_run_here(remote: Remote) -> None:
    async def tune(**options: Any) -> trialfleet.OptimizationResult:
        async with remote.optimizer() as optimizer:
            return await optimizer.optimize_trial_efficiency(remote.objective.quadratic, SPACE, 30, **options)

    found = asyncio.run(tune())
    assert found["best_params"] is not None
    assert abs(found["best_params"]["x"] - 0.3) < 0.2
    assert len(found["results"]) == 30
    assert found["report"].ended == "trials"
    assert found["efficiency_metrics"]["total_time_seconds"] > 0
    asyncio.run(tune(study_name="kept"))
    with remote.client() as client:
        assert [status.study for status in client.studies()] == ["kept"], "one without a name is forgotten"


def test_a_failing_study_raises_as_here(remote: Remote) -> None:
    async def tune() -> None:
        async with remote.optimizer() as optimizer:
            await optimizer.optimize_trial_efficiency(remote.objective.broken, SPACE, 30)

    with pytest.raises(StudyFailedError, match="out of luck"):
        asyncio.run(tune())


def test_cancelling_the_task_cancels_the_study(remote: Remote) -> None:
    async def tune() -> None:
        async with remote.optimizer() as optimizer:
            tuning = optimizer.optimize_trial_efficiency(remote.objective.quadratic, SPACE, 10**6, study_name="a")
            task = asyncio.create_task(tuning)
            with remote.client() as client:
                await asyncio.to_thread(wait_until, lambda: bool(client.studies()), "it is submitted")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(tune())
    with remote.client() as client:
        assert client.status("a").state is ServiceState.CANCELLED


def local_function() -> Callable[[dict[str, Any]], float]:
    return lambda params: float(params["x"])


@pytest.mark.parametrize(
    ("function", "space", "options", "told"),
    [
        (local_function(), SPACE, {}, "at the top of a .py file"),
        (len, SPACE, {}, "at the top of a .py file"),
        (local_function, lambda trial: trial.suggest_float("x", 0, 1), {}, "search_space is a function"),
        (local_function, SPACE, {"data": (np.zeros((9, 1)), np.zeros(9))}, "data is an object of this process"),
    ],
)
def test_what_can_not_be_told_in_words_is_refused(
    function: Callable[..., Any], space: Any, options: Any, told: str
) -> None:
    async def tune() -> None:
        optimizer = trialfleet.create_efficiency_optimizer(url="http://127.0.0.1:1")
        async with optimizer:
            await optimizer.optimize_trial_efficiency(function, space, 1, **options)

    with pytest.raises(ConfigurationError, match=told):
        asyncio.run(tune())
