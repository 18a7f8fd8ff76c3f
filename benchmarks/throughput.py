"""Trials per second of the whole loop: sample with TPE, evaluate nothing, commit durably; by the trials already there.

    python benchmarks/throughput.py [--quick]

Five parameters of mixed kinds, two evaluating processes on this machine. trialfleet runs embedded, through `optimize`; its
store is synced to disk at each commit. Over RabbitMQ it runs on a private node, with confirmed messages, two workers of one
slot each, and the same store. The peers are Optuna's TPE on its SQLite and journal storages, two processes on one
study, as one would run it on a machine. A study grows to each size, then so many further trials are timed; opening the
study is not.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

import trialfleet
from measuring.results import save
from trialfleet.engine import open_study
from trialfleet.environment import BROKER_URL
from trialfleet.home import Home
from trialfleet.rabbitmq_node import RabbitNode
from trialfleet.study_file import StudyRequest
from trialfleet_coordinator.budget import Budget
from trialfleet_shared.space import SearchSpace

SPACE = {
    "rate": trialfleet.Float(1e-5, 1.0, log=True),
    "share": trialfleet.Float(0.0, 1.0),
    "leaves": trialfleet.Int(2, 1024, log=True),
    "rows": trialfleet.Int(1, 10_000),
    "kind": trialfleet.Categorical(["a", "b", "c"]),
}
SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (1_000, 10_000)
PEER_SIZES = (1_000, 5_000)
#: Further trials that are timed: ours, three times; a peer's, once.
TIMED, REPEATS = 3_000, 3
PEER_TIMED = 60
PROCESSES = 2
#: What workers elsewhere import; it does what `evaluate` does.
OBJECTIVE = 'def evaluate(params):\n    return float(params["share"])\n'


def evaluate(params: dict[str, Any]) -> float:
    """What the objective costs is next to nothing."""
    return float(params["share"])


def embedded(folder: Path) -> Callable[[int], float]:
    """Takes the study to so many trials; the seconds that it ran so far."""

    def run(trials: int) -> float:
        result = trialfleet.optimize(
            evaluate, SPACE, trials, config=trialfleet.EfficiencyConfig(), home=folder, study_name="loop"
        )
        return result["efficiency_metrics"]["total_time_seconds"]

    return run


@contextmanager
def over_rabbitmq(folder: Path) -> Iterator[Callable[[int], float]]:
    """As `embedded`, on workers that are started here."""
    base = folder / "objectives"
    base.mkdir()
    (base / "nothing.py").write_text(OBJECTIVE)
    with ExitStack() as stack:
        node = stack.enter_context(RabbitNode(folder / "rabbitmq"))
        for number in range(PROCESSES):
            stack.callback(_end, _start_worker(node.url, base, folder / f"worker{number}"))

        def run(trials: int) -> float:
            request = StudyRequest(
                name="loop",
                direction="maximize",
                space=SearchSpace(SPACE),
                objective="nothing.py:evaluate",
                base=base,
                config=trialfleet.EfficiencyConfig(),
                budget=Budget(trials=trials),
            )
            with open_study(request, Home(folder / "home"), broker_url=node.url) as study:
                report = study.run(lambda _: None, lambda: None)
            return report.efficiency_metrics.total_time_seconds

        yield run


def _start_worker(url: str, base: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "trialfleet",
        "worker",
        "--home",
        str(home),
        "--slots",
        "1",
        "--objective-path",
        str(base),
    ]
    return subprocess.Popen(command, env={**os.environ, BROKER_URL: url}, stderr=subprocess.DEVNULL)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait()


def trialfleet_rates(run: Callable[[int], float], sizes: tuple[int, ...]) -> dict[int, list[float]]:
    """Trials per second beyond each size."""
    rates: dict[int, list[float]] = {}
    trials, seconds = 0, 0.0
    for size in sizes:
        if trials < size:
            trials, seconds = size, run(size)
        rates[size] = []
        for _ in range(REPEATS):
            trials += TIMED
            now = run(trials)
            rates[size].append(TIMED / (now - seconds))
            seconds = now
    return rates


def _suggest(trial: optuna.Trial) -> float:
    trial.suggest_float("rate", 1e-5, 1.0, log=True)
    trial.suggest_int("leaves", 2, 1024, log=True)
    trial.suggest_int("rows", 1, 10_000)
    trial.suggest_categorical("kind", ["a", "b", "c"])
    return trial.suggest_float("share", 0.0, 1.0)


def sqlite(folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage in a database file."""
    return RDBStorage(f"sqlite:///{folder}/study.db", engine_kwargs={"connect_args": {"timeout": 60}})


def journal(folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage in an append-only file."""
    return JournalStorage(JournalFileBackend(f"{folder}/study.log"))


def _work(storage: Callable[[Path], optuna.storages.BaseStorage], folder: Path, start: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(constant_liar=True)
    study = optuna.load_study(study_name="loop", storage=storage(folder), sampler=sampler)
    start.wait()
    study.optimize(_suggest, n_trials=PEER_TIMED // PROCESSES)


def peer_rate(storage: Callable[[Path], optuna.storages.BaseStorage], folder: Path, size: int) -> float:
    """Trials per second of two processes on a study of `size` trials."""
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    source.optimize(_suggest, n_trials=size)
    study = optuna.create_study(study_name="loop", storage=storage(folder))
    study.add_trials(source.trials)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES + 1)
    workers = [context.Process(target=_work, args=(storage, folder, start)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return PEER_TIMED / (time.perf_counter() - began)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 10,000 trials, nothing kept")
    quick = parser.parse_args().quick
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sizes = QUICK_SIZES if quick else SIZES
    ours: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
        ours["embedded"] = trialfleet_rates(embedded(Path(scratch)), sizes)
    with tempfile.TemporaryDirectory(prefix="throughput-") as scratch, over_rabbitmq(Path(scratch)) as run:
        ours["rabbitmq"] = trialfleet_rates(run, sizes)
    for way, measured in ours.items():
        for size, rates in measured.items():
            print(
                f"trialfleet, {way:<10}  {size:>7} trials  {statistics.median(rates):8.0f}/s  "
                f"({min(rates):.0f} to {max(rates):.0f})",
                flush=True,
            )
    peers: dict[str, dict[int, float]] = {}
    for storage in (sqlite, journal):
        peers[storage.__name__] = {}
        for size in PEER_SIZES[: 1 if quick else None]:
            with tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
                rate = peer_rate(storage, Path(scratch), size)
            peers[storage.__name__][size] = rate
            print(f"Optuna TPE, {storage.__name__:<10}  {size:>7} trials  {rate:8.1f}/s", flush=True)
    save(
        "throughput",
        settings={"sizes": sizes, "timed": TIMED, "repeats": REPEATS, "peer_timed": PEER_TIMED, "processes": PROCESSES},
        results={"trialfleet": ours, "optuna": peers},
        quick=quick,
    )


if __name__ == "__main__":
    main()
