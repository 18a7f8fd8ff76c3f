"""Who evaluates: trialfleet, embedded and over RabbitMQ, and what one would use instead.

A contestant is a context manager that gives a function: it evaluates so many trials, and takes all cores. The peers draw
at random, which costs nothing; trialfleet samples with TPE and commits every trial to disk.
"""

import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import trialfleet
from trialfleet.engine import open_study
from trialfleet.environment import BROKER_URL
from trialfleet.home import Home
from trialfleet.rabbitmq_node import RabbitNode
from trialfleet.study_file import StudyRequest
from trialfleet_coordinator.budget import Budget
from trialfleet_shared.space import SearchSpace
from utilisation_parts.spin import evaluate

SLOTS = len(os.sched_getaffinity(0))
#: Shortest and longest evaluation, over the mean: real ones differ too.
LENGTHS = (0.5, 1.5)
#: Evaluates so many trials, of so many seconds in the mean.
Run = Callable[[int, float], object]
Contestant = Callable[[Path], AbstractContextManager[Run]]


def space(seconds: float) -> dict[str, trialfleet.Float]:
    """Evaluations of so many seconds in the mean; a nanosecond where they are to do nothing."""
    return {"seconds": trialfleet.Float(*_between(seconds)), "share": trialfleet.Float(0.0, 1.0)}


def _between(seconds: float) -> tuple[float, float]:
    shortest, longest = LENGTHS
    return shortest * (seconds or 1e-9), longest * (seconds or 1e-9)


@contextmanager
def embedded(folder: Path) -> Iterator[Run]:
    """trialfleet in this process, with slots of its own; a study of a seed of its own each time, named so as to be kept."""
    number = 0

    def run(trials: int, seconds: float) -> object:
        nonlocal number
        number += 1
        return trialfleet.optimize(
            evaluate,
            space(seconds),
            trials,
            config=trialfleet.EfficiencyConfig(),
            home=folder,
            study_name=f"study{number}",
            seed=number,
        )

    yield run


@contextmanager
def over_rabbitmq(folder: Path) -> Iterator[Run]:
    """trialfleet on one worker with a slot for each core, which is there before; a study of a seed of its own each time."""
    with ExitStack() as stack:
        node = stack.enter_context(RabbitNode(folder / "rabbitmq"))
        stack.callback(_end, _start_worker(node.url, folder / "worker"))
        number = 0

        def run(trials: int, seconds: float) -> object:
            nonlocal number
            number += 1
            request = StudyRequest(
                name=f"study{number}",
                direction="maximize",
                space=SearchSpace(space(seconds)),
                objective="spin.py:evaluate",
                base=Path(__file__).parent,
                seed=number,
                config=trialfleet.EfficiencyConfig(),
                budget=Budget(trials=trials),
            )
            with open_study(request, Home(folder / "home"), broker_url=node.url) as study:
                return study.run(lambda _: None, lambda: None)

        yield run


def _start_worker(url: str, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trialfleet", "worker", "--home", str(home), "--slots", str(SLOTS)]
    command += ["--objective-path", str(Path(__file__).parent)]
    return subprocess.Popen(command, env={**os.environ, BROKER_URL: url}, stderr=subprocess.DEVNULL)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait()


@contextmanager
def executor(_: Path) -> Iterator[Run]:
    """concurrent.futures: a process for each core, two evaluations for each in flight."""

    def run(trials: int, seconds: float) -> object:
        draws = iter(_draws(trials, seconds))
        with ProcessPoolExecutor(SLOTS) as pool:
            running: set[Future[float]] = set()
            while True:
                for params in draws:
                    running.add(pool.submit(evaluate, params))
                    if len(running) == 2 * SLOTS:
                        break
                if not running:
                    return None
                _, running = wait(running, return_when=FIRST_COMPLETED)

    yield run


@contextmanager
def joblib_batches(_: Path) -> Iterator[Run]:
    """joblib: a batch of an evaluation for each core, and the next one when all have ended."""

    def run(trials: int, seconds: float) -> object:
        draws = _draws(trials, seconds)
        with joblib.Parallel(n_jobs=SLOTS) as parallel:
            for start in range(0, trials, SLOTS):
                parallel(joblib.delayed(evaluate)(params) for params in draws[start : start + SLOTS])

    yield run


@contextmanager
def optuna_processes(folder: Path) -> Iterator[Run]:
    """Optuna: a process for each core, which share a study in a journal file; TPE."""

    def run(trials: int, seconds: float) -> object:
        journal = str(folder / f"journal{len(list(folder.iterdir()))}")
        optuna.create_study(study_name="spin", storage=_storage(journal))
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_optimize, args=(journal, trials, seconds)) for _ in range(SLOTS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    yield run


def _optimize(journal: str, trials: int, seconds: float) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(
        study_name="spin", storage=_storage(journal), sampler=optuna.samplers.TPESampler(constant_liar=True)
    )
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING)
    study.optimize(partial(_suggest, seconds), callbacks=[optuna.study.MaxTrialsCallback(trials, states=states)])


def _suggest(seconds: float, trial: optuna.Trial) -> float:
    shortest, longest = _between(seconds)
    return evaluate(
        {"seconds": trial.suggest_float("seconds", shortest, longest), "share": trial.suggest_float("share", 0.0, 1.0)}
    )


def _storage(journal: str) -> JournalStorage:
    return JournalStorage(JournalFileBackend(journal))


def _draws(trials: int, seconds: float) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [{"seconds": draw.uniform(*_between(seconds)), "share": draw.random()} for _ in range(trials)]


#: Ours first.
CONTESTANTS: dict[str, Contestant] = {
    "trialfleet, embedded": embedded,
    "trialfleet, RabbitMQ": over_rabbitmq,
    "concurrent.futures": executor,
    "joblib, batches": joblib_batches,
    "Optuna, processes": optuna_processes,
}
