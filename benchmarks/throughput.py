"""Trials per second of the whole loop: sample with TPE, evaluate nothing, commit durably; by the trials already there.

    python benchmarks/throughput.py [--quick]

Five parameters of mixed kinds, two evaluating processes on this machine. trialfleet runs embedded, through `optimize`; its
store is synced to disk at each commit. Over RabbitMQ it runs on a private node, with confirmed messages, two workers of one
slot each, and the same store. The peers are those of `throughput_parts/peers.py`. A study grows to each size, then so many
further trials are timed; opening the study is not.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import optuna

from measuring.results import save
from throughput_parts.ours import PROCESSES, embedded, over_rabbitmq
from throughput_parts.peers import PEERS
from throughput_parts.peers import TIMED as PEER_TIMED

SIZES = (1_000, 10_000, 100_000)
QUICK_SIZES = (1_000, 10_000)
PEER_SIZES = (1_000, 5_000)
#: Further trials that are timed, three times.
TIMED, REPEATS = 3_000, 3


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
    peers: dict[str, dict[int, float]] = {name: {} for name in PEERS}
    for name, rate in PEERS.items():
        for size in PEER_SIZES[: 1 if quick else None]:
            with tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
                peers[name][size] = rate(Path(scratch), size)
            print(f"{name:<22}  {size:>7} trials  {peers[name][size]:8.1f}/s", flush=True)
    save(
        "throughput",
        settings={"sizes": sizes, "timed": TIMED, "repeats": REPEATS, "peer_timed": PEER_TIMED, "processes": PROCESSES},
        results={"trialfleet": ours, "peers": peers},
        packages=("trialfleet", "numpy", "optuna", "distributed", "ray"),
        quick=quick,
    )


if __name__ == "__main__":
    main()
