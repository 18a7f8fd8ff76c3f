"""What one would run instead, two processes at a time, on the same no-op: trials per second beyond a study's size.

Optuna's TPE: on its SQLite and journal storages, with two processes on one study; in memory, with two workers of Dask
that evaluate; and as the search of Ray Tune, with two trials at a time, whose state is written to files now and then. Each
begins with trials of random parameters; starting it is not timed.
"""

import logging
import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import ray
from distributed import Client, LocalCluster, as_completed
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from throughput_parts.ours import PROCESSES

#: Trials that are timed.
TIMED = 60
NAME = "loop"


def optuna_on_sqlite(folder: Path, size: int) -> float:
    """Optuna on a database file."""
    return _optuna(_sqlite, folder, size)


def optuna_on_journal(folder: Path, size: int) -> float:
    """Optuna on an append-only file."""
    return _optuna(_journal, folder, size)


def optuna_on_dask(_folder: Path, size: int) -> float:
    """Optuna asked and told here, what it draws evaluated by Dask's workers."""
    study = optuna.create_study(sampler=_tpe())
    study.add_trials(_random_trials(size))
    with (
        LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):
        began = time.perf_counter()
        running = as_completed()
        trials = {}
        for started in range(TIMED + PROCESSES):
            if started >= PROCESSES:
                future = next(running)
                study.tell(trials.pop(future.key), future.result())
            if started < TIMED:
                trial = study.ask(_SPACE)
                future = client.submit(_evaluate, trial.params, pure=False)
                trials[future.key] = trial
                running.add(future)
        return TIMED / (time.perf_counter() - began)


def ray_tune(folder: Path, size: int) -> float:
    """Optuna as the search of Ray Tune; from the first trial's end to the last one's."""
    earlier = _random_trials(size)
    search = OptunaSearch(
        _SPACE,
        metric="value",
        mode="min",
        sampler=_tpe(),
        points_to_evaluate=[trial.params for trial in earlier],
        evaluated_rewards=[trial.value for trial in earlier],
    )
    ray.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tuner = tune.Tuner(
            _report,
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(search, PROCESSES),
                num_samples=TIMED,
                metric="value",
                mode="min",
                reuse_actors=True,  # else each trial starts a process, which takes seconds
            ),
            run_config=tune.RunConfig(name=NAME, storage_path=str(folder), verbose=0),
        )
        ends = sorted(result.metrics["at"] for result in tuner.fit())
    finally:
        ray.shutdown()
    return (len(ends) - 1) / (ends[-1] - ends[0])


#: By name, trials per second with its files in a folder, on a study of so many trials.
PEERS: Mapping[str, Callable[[Path, int], float]] = {
    "Optuna, SQLite": optuna_on_sqlite,
    "Optuna, journal": optuna_on_journal,
    "Optuna, Dask": optuna_on_dask,
    "Ray Tune": ray_tune,
}

_SPACE: Mapping[str, optuna.distributions.BaseDistribution] = {
    "rate": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
    "share": optuna.distributions.FloatDistribution(0.0, 1.0),
    "leaves": optuna.distributions.IntDistribution(2, 1024, log=True),
    "rows": optuna.distributions.IntDistribution(1, 10_000),
    "kind": optuna.distributions.CategoricalDistribution(["a", "b", "c"]),
}


def _tpe() -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(constant_liar=True)


def _evaluate(params: dict[str, Any]) -> float:
    return float(params["share"])


def _suggest(trial: optuna.Trial) -> float:
    trial.suggest_float("rate", 1e-5, 1.0, log=True)
    trial.suggest_int("leaves", 2, 1024, log=True)
    trial.suggest_int("rows", 1, 10_000)
    trial.suggest_categorical("kind", ["a", "b", "c"])
    return trial.suggest_float("share", 0.0, 1.0)


def _report(params: dict[str, Any]) -> dict[str, float]:
    return {"value": _evaluate(params), "at": time.time()}


def _random_trials(count: int) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(_suggest, n_trials=count)
    return study.trials


def _sqlite(folder: Path) -> optuna.storages.BaseStorage:
    return RDBStorage(f"sqlite:///{folder}/study.db", engine_kwargs={"connect_args": {"timeout": 60}})


def _journal(folder: Path) -> optuna.storages.BaseStorage:
    return JournalStorage(JournalFileBackend(f"{folder}/study.log"))


def _optuna(storage: Callable[[Path], optuna.storages.BaseStorage], folder: Path, size: int) -> float:
    study = optuna.create_study(study_name=NAME, storage=storage(folder))
    study.add_trials(_random_trials(size))
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES + 1)
    workers = [context.Process(target=_work, args=(storage, folder, start)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return TIMED / (time.perf_counter() - began)


def _work(storage: Callable[[Path], optuna.storages.BaseStorage], folder: Path, start: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=NAME, storage=storage(folder), sampler=_tpe())
    start.wait()
    study.optimize(_suggest, n_trials=TIMED // PROCESSES)
