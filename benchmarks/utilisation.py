"""How busy the slots are: while there is work, at a study's start and end, per evaluation, and with ten thousand slots.

    python benchmarks/utilisation.py [--quick] [--part contest] [--part scaling]

Evaluations keep a core busy for 0.1, 0.3 or 1 s in the mean (half to one and a half of it) or do nothing, one slot for
each core. Every evaluation writes down when it began and ended, so all are measured alike, from outside: trialfleet
embedded through `optimize` and over RabbitMQ on a private node, with all it does (TPE, result cache, every trial durable),
and what one would use instead. Each run is followed by the same of the other contestants, so other load on the machine
hits all of them.

The scaling is simulated: the real coordinator, whose CPU time is charged to the simulated clock of 1 to 10,000 slots.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna

from measuring.results import save
from utilisation_parts.contestants import CONTESTANTS, SLOTS, Run
from utilisation_parts.figures import Figures, figures
from utilisation_parts.scaling import simulate
from utilisation_parts.spin import RECORD, read_spans

#: Mean seconds of an evaluation, and how many: 8 to 12 s of a two-core machine.
TRIALS = {0.1: 160, 0.3: 60, 1.0: 24}
QUICK_TRIALS = {0.1: 40}
#: Evaluations that do nothing, of ours; the slower peers get fewer.
NOTHING, PEERS_NOTHING, QUICK_NOTHING = 5_000, 500, 500
REPEATS, QUICK_REPEATS = 3, 1
#: Simulated slots, mean seconds of their evaluations, and how many of these: a slot's share outweighs start and end.
SCALING = [
    (1, 1.0, 60),
    (10, 1.0, 600),
    (100, 1.0, 6_000),
    (1_000, 1.0, 60_000),
    (10_000, 1.0, 600_000),
    (10_000, 3.0, 400_000),
    (10_000, 10.0, 200_000),
]
QUICK_SCALING = [(1, 1.0, 20), (100, 1.0, 1_000)]
#: Goals: busy / available slot-seconds while there is work; milliseconds per evaluation; the same with 1,000 slots.
BUSY_GOAL, OVERHEAD_GOALS, SCALING_GOAL = 0.97, {"trialfleet, embedded": 1.0, "trialfleet, RabbitMQ": 2.0}, 0.95


def measure(run: Run, record: Path, seconds: float, trials: int) -> Figures:
    """One call of a contestant."""
    record.unlink(missing_ok=True)
    called = time.monotonic()
    run(trials, seconds)
    returned = time.monotonic()
    return figures(read_spans(record), slots=SLOTS, called=called, returned=returned)


def contest(trials: dict[float, int], nothing: int, repeats: int) -> dict[str, dict[float, list[Figures]]]:
    """Figures by contestant and mean seconds; in rounds, a run of each contestant in every round."""
    measured: dict[str, dict[float, list[Figures]]] = {name: {} for name in CONTESTANTS}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="utilisation-")))
        record = scratch / "record"
        os.environ[RECORD] = str(record)
        runs: dict[str, Run] = {}
        for number, (name, contestant) in enumerate(CONTESTANTS.items()):
            folder = scratch / str(number)
            folder.mkdir()
            runs[name] = stack.enter_context(contestant(folder))
        for seconds in (*trials, 0.0):
            for _ in range(repeats):
                for name, run in runs.items():
                    count = trials.get(seconds) or (nothing if name in OVERHEAD_GOALS else min(nothing, PEERS_NOTHING))
                    measured[name].setdefault(seconds, []).append(measure(run, record, seconds, count))
            for name in runs:
                _print(name, seconds, measured[name][seconds])
    return measured


def _print(name: str, seconds: float, runs: list[Figures]) -> None:
    def spread(figure: Callable[[Figures], float], form: str) -> str:
        values = sorted(map(figure, runs))
        return f"{statistics.median(values):{form}} ({values[0]:{form}} to {values[-1]:{form}})"

    if seconds:
        text = (
            f"busy {spread(lambda one: one.working, '.1%')}, start and end too {spread(lambda one: one.whole, '.1%')}"
        )
        text += (
            f", waits {spread(lambda one: one.gap, '.1f')} ms, idle at the end {spread(lambda one: one.tail, '.2f')} s"
        )
    else:
        text = f"overhead {spread(lambda one: one.overhead, '.2f')} ms"
    print(f"{name:<22} {seconds:>4g} s  {text}", flush=True)


def scale(sizes: list[tuple[int, float, int]]) -> list[dict[str, float]]:
    """Simulated studies."""
    measured = []
    for slots, seconds, trials in sizes:
        with tempfile.TemporaryDirectory(prefix="utilisation-") as folder:
            scaling = simulate(Path(folder), slots=slots, trials=trials, seconds=seconds)
        run = {**scaling.figures._asdict(), "milliseconds": scaling.milliseconds, "core": scaling.core}
        measured.append({"slots": slots, "seconds": seconds, "trials": trials, **run})
        print(
            f"{slots:>6} simulated slots {seconds:>4g} s  busy {scaling.figures.working:.1%}, start and end too "
            f"{scaling.figures.whole:.1%}, coordinator's CPU {scaling.milliseconds:.2f} ms per evaluation, "
            f"{scaling.core:.1%} of a core",
            flush=True,
        )
    return measured


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few evaluations, nothing kept")
    parser.add_argument("--part", action="append", choices=("contest", "scaling"), help="default: both")
    arguments = parser.parse_args()
    quick, parts = arguments.quick, arguments.part or ["contest", "scaling"]
    if "scaling" in parts:
        save(
            "utilisation_scaling",
            settings={"goal": SCALING_GOAL},
            results=scale(QUICK_SCALING if quick else SCALING),
            quick=quick,
        )
    if "contest" in parts:
        compare(quick=quick)


def compare(*, quick: bool) -> None:
    """Measure the contestants, print, keep."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    amount = (QUICK_TRIALS, QUICK_NOTHING, QUICK_REPEATS) if quick else (TRIALS, NOTHING, REPEATS)
    measured = contest(*amount)
    contestants: dict[str, Any] = {
        name: {seconds: [run._asdict() for run in runs] for seconds, runs in by_seconds.items()}
        for name, by_seconds in measured.items()
    }
    save(
        "utilisation",
        settings={
            "slots": SLOTS,
            "trials": TRIALS,
            "nothing": NOTHING,
            "peers_nothing": PEERS_NOTHING,
            "repeats": REPEATS,
            "goals": {"busy": BUSY_GOAL, "overhead": OVERHEAD_GOALS},
        },
        results={"contestants": contestants},
        quick=quick,
        packages=("trialfleet", "optuna", "joblib", "numpy"),
    )


if __name__ == "__main__":
    main()
