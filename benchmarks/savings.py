"""Data and CPU saved on real tuning tasks, against sequential Optuna TPE: 100 trials, all rows, all folds.

    python benchmarks/savings.py --data ../shared/data      # all tasks and modes, 10 seeds, and what each mechanism saves
    python benchmarks/savings.py --quick                    # two tasks, one seed

Each run is a fresh process on one core of its own: the baseline (`savings_parts/baseline.py`, a script as one writes it
without trialfleet), and `trialfleet run` in each mode with nothing in its caches. CPU seconds are those of the process
and of everything it started, imports and the import of the data included. Both see the same rows in the same folds, and
the same objective; a fifth of the rows (of a time series, the last) is the test part that neither search sees.

A run's result is kept in `--out`; a run that is there is not repeated, so the command goes on where it was stopped.

Quality is the score on the test part relative to the baseline's. Regret is that of the mean over all folds, 0 for the
best known configuration, 1 for the median of ten random ones. The rival is the baseline cut to the same CPU seconds.
"""

import argparse
import functools
import math
import multiprocessing
import multiprocessing.queues
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from measuring.results import save
from savings_parts.figures import Measured, printed
from savings_parts.runs import ABLATIONS, MODES, PARALLEL, Run, carry_out
from savings_parts.tasks import TASKS

_QUICK_TASKS = ("breast_cancer", "digits_svc")
#: Tasks on which each mechanism is switched off alone.
_ABLATION_TASKS = ("breast_cancer", "diabetes", "digits_svc", "adult_tree")
_ABLATION_SEEDS = 3


def main() -> None:
    """Run what is missing, then print and save the figures."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="savings-") as scratch:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        if not options.summarise:
            _run_all(_plan(options), options, out)
        measured = Measured(out, options.data)
        table = measured.table(("baseline", *options.mode, *ABLATIONS, PARALLEL))
        print(printed(table))
        settings = {"trials": options.trials, "tasks": options.task}
        save("savings", settings=settings, results={"table": table, "runs": measured.raw()}, quick=options.no_save)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tasks, one seed, nothing saved")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--mode", nargs="*", choices=MODES, default=MODES)
    parser.add_argument("--seed", nargs="+", type=int, default=range(10))
    parser.add_argument("--ablations", action="store_true", help="what each mechanism saves, instead of the modes")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on a core of its own")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the CSV files")
    parser.add_argument("--out", type=Path, help="folder of the runs' results; default: a temporary one")
    parser.add_argument("--minutes", type=float, help="start no run after so long")
    parser.add_argument("--summarise", action="store_true", help="only print and save what is in --out")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    if options.quick:
        options.task, options.seed, options.no_save = _QUICK_TASKS, [0], True
    return options


def _plan(options: argparse.Namespace) -> list[Run]:
    """By seed, the cheapest tasks first; a task's runs one after another, so that they meet the same conditions."""
    if options.ablations:
        tasks = [task for task in _ABLATION_TASKS if task in options.task]
        variants: Sequence[str] = ("baseline", "balanced", *ABLATIONS, PARALLEL)
        return [Run(task, seed, v) for seed in list(options.seed)[:_ABLATION_SEEDS] for task in tasks for v in variants]
    return [Run(task, seed, v) for seed in options.seed for task in options.task for v in ("baseline", *options.mode)]


def _run_all(runs: Sequence[Run], options: argparse.Namespace, out: Path) -> None:
    every = sorted(os.sched_getaffinity(0))
    deadline = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for core in every[: options.jobs]:
        free.put(core)
    one = functools.partial(_one, options=options, out=out, deadline=deadline)
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=_settle, initargs=(free,)) as pool:
        for told in pool.map(one, [run for run in runs if run.variant != PARALLEL]):
            _tell(told)
    # In a process of its own as well: a run waits for whatever its process has started.
    with ProcessPoolExecutor(1, mp_context=context, initializer=os.sched_setaffinity, initargs=(0, every[:2])) as pool:
        for told in pool.map(one, [run for run in runs if run.variant == PARALLEL]):
            _tell(told)


def _settle(free: "multiprocessing.queues.SimpleQueue[int]") -> None:
    """Have a core for all that this process runs."""
    os.sched_setaffinity(0, [free.get()])


def _one(run: Run, *, options: argparse.Namespace, out: Path, deadline: float) -> str:
    """One run, unless it is there already or time is over; a line about it."""
    started = time.monotonic()
    if run.path(out).exists() or started >= deadline:
        return ""
    carry_out(run, out=out, data=options.data, trials=options.trials)
    return f"{run.task} {run.seed} {run.variant}: {time.monotonic() - started:.1f} s"


def _tell(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
