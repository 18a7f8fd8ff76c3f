"""The Python API: `optimize`, and the guide's `EfficiencyOptimizer` for programs that run an event loop.

Both run the same engine as the command line, embedded: on the cores of this machine, without a server. A study with a
name is kept in the user's store, and running it again goes on where it was; one without a name is forgotten when it is
over. The result cache is the user's in both cases, so what was evaluated once is not evaluated again.
"""

import asyncio
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack, cast

import msgspec
from rich.console import Console

from trialfleet.engine import OpenStudy, open_study
from trialfleet.environment import default_home
from trialfleet.home import Home
from trialfleet.paths import named_path
from trialfleet.progress import progress_view
from trialfleet.recorded import cache_figures_of
from trialfleet.rendering import CacheFigures, finite
from trialfleet.study_file import Direction, StudyRequest, StudySection, at_home, check_finite, read_points, read_space
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.report import StudyReport
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError, StudyFailedError
from trialfleet_shared.messages import DataSpec, Resampling
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Distribution, FunctionSpace, Space, SpaceTrial
from trialfleet_shared.tables import field_types, read_table, read_value, show
from trialfleet_workers.function_digests import function_digest
from trialfleet_workers.objective import MEMORY_PREFIX

#: A search space: the guide's mapping, the same with `Distribution` values, or `space(trial)` with `trial.suggest_*`.
SearchSpaceLike = Mapping[str, Mapping[str, Any] | Distribution] | Callable[[SpaceTrial], object]
#: Source of a data set that is handed over in memory.
_IN_MEMORY = f"{MEMORY_PREFIX}data"


class StudyOptions(TypedDict, total=False):
    """Keywords of `optimize` and of `EfficiencyOptimizer.optimize_trial_efficiency`, all optional."""

    #: "maximize" (default) or "minimize".
    direction: Direction
    #: A path or URI of a parquet, CSV, feather or npz file; a data frame; an (X, y) pair; a mapping of arrays.
    data: object
    #: Target column of `data`; not with an (X, y) pair.
    target: str | None
    #: Order in which rows enter a subsample; default: temporal with a time column or forward chaining, else
    #: grouped with a group column or grouped folds, else stratified for a target of classes, else random.
    order: Literal["random", "stratified", "temporal", "grouped"] | None
    #: Column that orders the rows in time.
    time_column: str | None
    #: Column of the group, for grouped order and resampling.
    group_column: str | None
    #: `Resampling`, or its fields as a mapping; default: one random holdout of a fifth.
    resampling: Resampling | Mapping[str, Any] | None
    #: Name in the store; None (default): the study is forgotten when it is over.
    study_name: str | None
    #: CPU seconds that evaluations may take, over all sessions.
    cpu_seconds: float | None
    #: Trials in a row without a better one after which no new ones are started; 0: start all. Default: as the mode says.
    patience: int | None
    #: Value at which a complete trial ends the study.
    target_value: float | None
    #: Seed of the sampler, of the rows' order, of the folds, and of `data.seed`; default 0.
    seed: int | None
    #: "tpe" (default), "random", or the name of one of Optuna's samplers.
    sampler: str
    #: Params that are evaluated before the sampler draws its own: those in use today, say.
    points_to_evaluate: Sequence[Mapping[str, Any]] | None
    #: Wall seconds after which an evaluation is ended.
    evaluation_seconds: float | None
    #: Private memory that an evaluation may use, in MB of 2^20 bytes.
    memory_mb: float | None
    #: Name of a study in the store whose trials seed the sampler.
    warm_start: str | None
    #: Whether to show progress on standard error; default False.
    show_progress: bool


class OptimizationResult(TypedDict):
    """What came of a study."""

    #: One mapping per trial, by number: see `TrialSummary`.
    results: list[dict[str, Any]]
    #: Params of the best trial; None when no trial has a value.
    best_params: dict[str, Any] | None
    #: Its value: the mean over all folds on all rows where `report.best_is_complete`.
    best_value: float | None
    #: Its value on the test part; None without one.
    test_value: float | None
    #: See `EfficiencyMetrics`.
    efficiency_metrics: dict[str, Any]
    #: See `CacheFigures`.
    cache_stats: dict[str, Any]
    #: All of it.
    report: StudyReport


class _CancelledError(Exception):
    """Leaves the study's loop: the task that awaits the study was cancelled."""


def optimize(
    objective_function: Callable[..., Any],
    search_space: SearchSpaceLike,
    n_trials: int | None = None,
    timeout_seconds: float | None = None,
    *,
    config: EfficiencyConfig | None = None,
    home: str | Path | None = None,
    **options: Unpack[StudyOptions],
) -> OptimizationResult:
    """Find the params at which the objective is best. Waits for the end; works inside a running event loop too.

    Args:
        objective_function: `f(params)`, `f(params, data)`, `f(params, budget)` or `f(trial)`, plain or a coroutine
            function; returns a float, or a mapping with `value` and further metrics. Local functions and bound methods
            serve as well.
        search_space: `{"x": {"type": "float", "min": 0, "max": 1}}`, say; or a function `space(trial)`.
        n_trials: trials to start.
        timeout_seconds: seconds to run; at least one of the two, or the option `cpu_seconds`, is needed.
        config: how to save work; default: `EfficiencyConfig()`.
        home: folder for studies, results and data; default: as for the command line.
        **options: see `StudyOptions`.

    Raises:
        ConfigurationError: an argument is not usable; the message names it, its value and what is allowed.
        StudyFailedError: the first trials all failed; the message says why.
        TypeError: an option is none; the message names it.
        TrialfleetError: the store, the data or the evaluator processes failed.
    """
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as scratch:
        run = _Run(objective_function, search_space, n_trials, timeout_seconds, config, home, Path(scratch), options)
        return run(lambda: None)


def create_efficiency_optimizer(
    config: EfficiencyConfig | None = None,
    *,
    home: str | Path | None = None,
    url: str | None = None,
    token: str | None = None,
) -> "EfficiencyOptimizer":
    """An optimizer with these settings; see `EfficiencyOptimizer`."""
    return EfficiencyOptimizer(config, home=home, url=url, token=token)


class EfficiencyOptimizer:
    """Runs studies from an event loop.

        async with create_efficiency_optimizer(EfficiencyConfig.fast()) as optimizer:
            found = await optimizer.optimize_trial_efficiency(objective, space, n_trials=100)

    Args:
        config: how to save work; default: `EfficiencyConfig()`.
        home: folder for studies, results and data; default: as for the command line.
        url: of a coordinator that runs the studies on its fleet; default: they are run here. Coordinator and workers then
            have the file with the objective too.
        token: what the coordinator wants to be shown.
    """

    def __init__(
        self,
        config: EfficiencyConfig | None = None,
        *,
        home: str | Path | None = None,
        url: str | None = None,
        token: str | None = None,
    ) -> None:
        self.config = EfficiencyConfig() if config is None else config
        self._home = home
        self._url = url
        self._token = token
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._running: set[asyncio.Task[OptimizationResult]] = set()

    async def initialize(self) -> None:
        """Make the folder for studies without a name. May be called twice, and again after `cleanup`."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="trialfleet-")

    async def optimize_trial_efficiency(
        self,
        objective_function: Callable[..., Any],
        search_space: SearchSpaceLike,
        n_trials: int | None = None,
        timeout_seconds: float | None = None,
        **options: Unpack[StudyOptions],
    ) -> OptimizationResult:
        """Find the params at which the objective is best; see `optimize`.

        The study runs in a thread, its evaluations in processes: the event loop stays free. Cancelling the task that
        awaits ends the study at once; what was recorded of a study with a name stays, and running it again goes on.
        """
        await self.initialize()
        assert self._scratch is not None
        folder = Path(tempfile.mkdtemp(dir=self._scratch.name))
        run = _Run(
            objective_function,
            search_space,
            n_trials,
            timeout_seconds,
            self.config,
            self._home,
            folder,
            options,
        )
        task = asyncio.create_task(_in_thread(run) if self._url is None else run.by(self._url, self._token))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await task

    async def cleanup(self) -> None:
        """End what still runs, and forget the studies without a name. May be called twice."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cleanup()


async def _in_thread(run: "_Run") -> OptimizationResult:
    """The run in a thread; cancelling waits until its processes are gone."""
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise _CancelledError

    # Of its own: those of the loop are few, and the application's name lookups and the like wait for one.
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trialfleet-study")
    thread = asyncio.get_running_loop().run_in_executor(executor, copy_context().run, run, check)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait({thread})
        if not thread.cancelled():
            thread.exception()  # it was told to end: however it did is no news
        raise
    finally:
        executor.shutdown(wait=False)


class _Run:
    """One study, from arguments to its result.

    Args:
        scratch: folder that a study without a name lives in.
    """

    def __init__(
        self,
        objective_function: Callable[..., Any],
        search_space: SearchSpaceLike,
        n_trials: int | None,
        timeout_seconds: float | None,
        config: EfficiencyConfig | None,
        home: str | Path | None,
        scratch: Path,
        options: StudyOptions,
    ) -> None:
        unknown = options.keys() - StudyOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unexpected keyword {min(unknown)!r}; known are {', '.join(StudyOptions.__annotations__)}")
        self._function = objective_function
        self._home = Home(default_home(os.environ) if home is None else named_path("home", home))
        self._store = None if options.get("study_name") is not None else scratch
        self._warm_start = options.get("warm_start")
        if self._warm_start is not None and not isinstance(self._warm_start, str):
            raise ConfigurationError(f"warm_start = {show(self._warm_start)}: expected the name of a kept study")
        self._show_progress = options.get("show_progress", False)
        self._request = _request(
            objective_function,
            search_space,
            n_trials,
            timeout_seconds,
            EfficiencyConfig() if config is None else config,
            options,
        )

    def __call__(self, check: Callable[[], None]) -> OptimizationResult:
        """Run it; `check` is called once a tick and may raise to end it."""
        with open_study(self._request, self._home, store_path=self._store, warm_start=self._warm_start) as study:
            report = study.finished() or self._run(study, check)
            figures = study.cache_figures(report)
        if report.ended == "failed":
            raise StudyFailedError(f"{report.study}: {report.ended_because}")
        return _result(report, figures)

    async def by(self, url: str, token: str | None) -> OptimizationResult:
        """Have the coordinator at `url` run it."""
        from trialfleet.client import AsyncClient  # noqa: PLC0415  # HTTP only with a fleet
        from trialfleet.remote import run_by, submission_of  # noqa: PLC0415
        from trialfleet.tls import client_tls  # noqa: PLC0415

        submission = submission_of(self._request, self._function, self._warm_start)
        keep = self._store is None
        if not keep:
            name = f"{self._request.name}-{uuid.uuid4().hex[:8]}"
            submission = msgspec.structs.replace(submission, name=name)
        async with AsyncClient(url, token=token, tls=client_tls(os.environ)) as client:
            report = await run_by(client, submission, keep=keep)
        return _result(report, cache_figures_of(report))

    def _run(self, study: OpenStudy, check: Callable[[], None]) -> StudyReport:
        if not self._show_progress:
            return study.run(lambda _: None, check)
        with progress_view(Console(stderr=True), SystemClock()) as view:
            return study.run(view, check)


def _result(report: StudyReport, figures: CacheFigures) -> OptimizationResult:
    trials = cast("list[dict[str, Any]]", finite(report.trials))
    return OptimizationResult(
        results=trials,
        best_params=None if report.best_params is None else dict(report.best_params),
        best_value=report.best_value,
        test_value=report.test_value,
        efficiency_metrics=finite(report.efficiency_metrics),
        cache_stats=msgspec.to_builtins(figures),
        report=report,
    )


def _request(
    function: Callable[..., Any],
    search_space: SearchSpaceLike,
    n_trials: int | None,
    timeout_seconds: float | None,
    config: EfficiencyConfig,
    options: StudyOptions,
) -> StudyRequest:
    if not callable(function):
        raise ConfigurationError(f"objective_function = {function!r}: expected a function")
    if not isinstance(config, EfficiencyConfig):
        raise ConfigurationError(
            f"config = {show(config)}: expected an EfficiencyConfig; "
            "EfficiencyConfig(max_workers=1) or EfficiencyConfig.fast(), say"
        )
    if n_trials is None and timeout_seconds is None and options.get("cpu_seconds") is None:
        raise ConfigurationError("n_trials, timeout_seconds and cpu_seconds are missing; give at least one of them")
    name = getattr(function, "__name__", type(function).__name__)
    seed = options.get("seed")
    given = {
        "name": name if options.get("study_name") is None else options.get("study_name"),
        "direction": options.get("direction", "maximize"),
        "trials": n_trials,
        "seconds": timeout_seconds,
        "cpu_seconds": options.get("cpu_seconds"),
        "patience": options.get("patience"),
        "target": options.get("target_value"),
        "seed": 0 if seed is None else seed,
        "sampler": options.get("sampler", "tpe"),
        "points_to_evaluate": options.get("points_to_evaluate"),
        "evaluation_seconds": options.get("evaluation_seconds"),
        "memory_mb": options.get("memory_mb"),
    }
    words = {
        "name": "study_name",
        "trials": "n_trials",
        "seconds": "timeout_seconds",
        "target": "target_value",
    }
    types = field_types(StudySection)
    read = {key: read_value(types[key], value, words.get(key, key)) for key, value in given.items()}
    check_finite(read["target"], words["target"])
    space = _space(search_space)
    return StudyRequest(
        name=read["name"],
        direction=read["direction"],
        space=space,
        objective=f"{MEMORY_PREFIX}{name}",
        base=Path.cwd(),
        config=config,
        budget=Budget(**{key: read[key] for key in ("trials", "seconds", "cpu_seconds", "patience", "target")}),
        data=_data(read["seed"], options),
        seed=read["seed"],
        sampler=read["sampler"],
        points_to_evaluate=read_points(read["points_to_evaluate"], space, "points_to_evaluate"),
        evaluation_seconds=read["evaluation_seconds"],
        memory_mb=read["memory_mb"],
        functions={name: function},
        data_object=None if isinstance(options.get("data"), str | Path) else options.get("data"),
    )


def _space(search_space: SearchSpaceLike) -> Space:
    if isinstance(search_space, Mapping):
        return read_space(search_space, "search_space", prefix="")
    if callable(search_space):
        space = FunctionSpace(search_space, digest=function_digest(search_space), name="search_space")
        space.check()
        return space
    raise ConfigurationError(f"search_space = {search_space!r}: expected a mapping, or a function of a trial")


def _data(seed: int, options: StudyOptions) -> DataSpec | None:
    data = options.get("data")
    columns = {
        "target": options.get("target"),
        "order": options.get("order"),
        "time_column": options.get("time_column"),
        "group_column": options.get("group_column"),
    }
    given = {key: value for key, value in columns.items() if value is not None}
    resampling = options.get("resampling")
    if data is None:
        if given or resampling is not None:
            beside = [*given, *(["resampling"] if resampling is not None else [])]
            raise ConfigurationError(f"{', '.join(beside)} given without data")
        return None
    if not isinstance(resampling, Resampling):
        resampling = read_table(Resampling, resampling or {}, "resampling")
    source = str(data) if isinstance(data, str | Path) else _IN_MEMORY
    return at_home(
        read_table(DataSpec, {**given, "source": source, "resampling": resampling, "seed": seed}, "data"), "data"
    )
