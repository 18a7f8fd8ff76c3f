"""Studies of the API that a coordinator runs: what is submitted for them, and how their end is awaited."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from trialfleet.client import AsyncClient, NoCoordinatorError
from trialfleet.study_file import StudyRequest
from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission
from trialfleet_shared.errors import ConfigurationError, StudyFailedError, TrialfleetError
from trialfleet_shared.settings import MODES, PRESETS, EfficiencyConfig
from trialfleet_shared.space import SearchSpace


def submission_of(request: StudyRequest, function: Callable[..., Any], warm_start: str | None) -> Submission:
    """What a coordinator is given for a study of the API.

    Args:
        request: the study.
        function: its objective; coordinator and workers have the file that it stands in, and find it there.
        warm_start: a study of the coordinator's that seeds the sampler.

    Raises:
        ConfigurationError: the study can not be told in words: its objective is no plain function of a file, its space
            is a function, or its data are an object of this process.
    """
    file, name = _place(function)
    if not isinstance(request.space, SearchSpace):
        raise ConfigurationError("search_space is a function: a coordinator needs a mapping of parameters")
    if request.data_object is not None:
        raise ConfigurationError("data is an object of this process: a coordinator needs a path or a URI")
    budget = request.budget
    study = {
        "name": request.name,
        "objective": f"{file.name}:{name}",
        # For lists and metrics, which tell by it how a study is run; every setting is given below.
        "mode": next((mode for mode in MODES if EfficiencyConfig(**PRESETS[mode]) == request.config), None),
        "direction": request.direction,
        "trials": budget.trials,
        "seconds": budget.seconds,
        "cpu_seconds": budget.cpu_seconds,
        # Always said, because a coordinator would take what is left out from a mode.
        "patience": request.config.patience_for(budget.trials) or 0 if budget.patience is None else budget.patience,
        "target": budget.target,
        "seed": request.seed,
        "sampler": request.sampler,
        "points_to_evaluate": [point.params for point in request.points_to_evaluate] or None,
        "evaluation_seconds": request.evaluation_seconds,
        "memory_mb": request.memory_mb,
    }
    tables: dict[str, Any] = {
        "study": _given(study),
        "efficiency": msgspec.to_builtins(request.config),  # all of it, for the same reason: None is a value here
        "space": request.space.describe(),
    }
    if request.data is not None:
        data = msgspec.to_builtins(request.data)
        del data["seed"]  # the study's
        tables["resampling"] = data.pop("resampling")
        tables["data"] = _given(data)
        if "://" not in request.data.source:
            tables["data"]["source"] = str(request.base / request.data.source)
    return Submission(tables=tables, base=str(file.parent), warm_start=warm_start)


async def run_by(client: AsyncClient, submission: Submission, *, keep: bool) -> StudyReport:
    """Have the coordinator run the study, and wait for its end; cancelling cancels the study, losing the coordinator does not.

    Args:
        client: the coordinator.
        submission: the study.
        keep: whether the coordinator keeps its record afterwards.

    Raises:
        StudyFailedError: its first trials all failed; or it is another study than the one of the name that there is.
        TrialfleetError: somebody else cancelled it; the coordinator paused it because its store failed; or as the
            coordinator answers.
    """
    submitting = asyncio.ensure_future(client.submit(submission))
    try:
        study = (await asyncio.shield(submitting)).study
        async for status in client.watch(study):
            if status.state is ServiceState.PAUSED and status.because != "by request":
                break  # somebody has to mend something first
    except NoCoordinatorError:
        raise  # it goes on with the study, or will
    except BaseException:
        # Also when the task is cancelled: the request that says so is made to its end.
        await asyncio.shield(_withdraw(client, submitting))
        raise
    if status.refused:  # the report would be that of another submission
        raise StudyFailedError(f"study {study!r} can not be run as submitted: {status.refused}")
    if status.state is not ServiceState.DONE:
        failure = StudyFailedError if status.state is ServiceState.FAILED else TrialfleetError
        raise failure(f"study {study!r} is {status.state}: {status.because}")
    report = await client.report(study)
    if not keep:
        await client.delete(study)
    return report


async def _withdraw(client: AsyncClient, submitting: asyncio.Future[StudyStatus]) -> None:
    """Cancel the study; one whose submission is still on its way may be with the coordinator already."""
    try:
        study = (await submitting).study
    except TrialfleetError:
        return  # it is not: whoever waits for it is told why
    await client.cancel(study)


def _place(function: Callable[..., Any]) -> tuple[Path, str]:
    """The file that the function stands in, and its name there."""
    name = getattr(function, "__qualname__", "")
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or not name.isidentifier() or not Path(file).is_file():
        raise ConfigurationError(
            f"objective_function = {function!r}: a coordinator needs a function at the top of a .py file, "
            "which its workers have too"
        )
    return Path(file).resolve(), name


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
