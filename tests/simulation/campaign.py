"""Many schedules, one after the other or on several processes; what they found, and how to see it again."""

import argparse
import gc
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from simulation.plan import draw_plan
from simulation.schedule import Ending, Schedule, lmdb_stores

#: Schedules between two looks at the clock, and two collections of garbage.
CHUNK = 50
#: Seconds between two lines of progress.
_PROGRESS = 10.0


class Failure(NamedTuple):
    """A schedule that broke a promise."""

    seed: int
    #: What was raised.
    error: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.error}\n    see it again: make simulate SEED={self.seed}"


class Tally:
    """What came of schedules so far."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.ended: Counter[str] = Counter()
        self.schedules = self.sessions = self.trials = self.evaluations = self.faults = 0
        self.seconds = 0.0

    def add(self, outcomes: Iterable[Ending | Failure]) -> list[Failure]:
        """Take some in; those of them that failed."""
        failed = []
        for outcome in outcomes:
            self.schedules += 1
            if isinstance(outcome, Failure):
                failed.append(outcome)
                continue
            self.ended[outcome.ended.value if outcome.ended else "open"] += 1
            self.sessions += outcome.sessions
            self.trials += outcome.trials
            self.evaluations += outcome.evaluations
            self.faults += outcome.faults
            self.seconds += outcome.seconds
        self.failures += failed
        return failed

    def __str__(self) -> str:
        ended = ", ".join(f"{cause} {count:,}" for cause, count in self.ended.most_common())
        return (
            f"{self.schedules:,} schedules, {len(self.failures)} failed; {self.faults:,} faults, {self.sessions:,} "
            f"sessions of a coordinator, {self.trials:,} trials, {self.evaluations:,} evaluations counted, "
            f"{self.seconds / 3600:,.1f} simulated hours; ended by: {ended or 'nothing yet'}"
        )


def run_seed(seed: int, *, on_disk: bool = False) -> Ending | Failure:
    """One schedule; any exception that it ends with is a failure."""
    try:
        if not on_disk:
            return Schedule(seed).run()
        with tempfile.TemporaryDirectory(prefix="simulation-") as folder:
            return Schedule(seed, lmdb_stores(Path(folder))).run()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is found
        return Failure(seed, f"{type(error).__name__}: {error}")


def run_chunk(chunk: tuple[range, bool]) -> list[Ending | Failure]:
    """Some schedules; garbage is collected once, at the end."""
    seeds, on_disk = chunk
    gc.disable()
    try:
        return [run_seed(seed, on_disk=on_disk) for seed in seeds]
    finally:
        gc.enable()
        gc.collect()


def run_seeds(seeds: range, *, jobs: int = 1, on_disk: bool = False) -> Iterator[list[Ending | Failure]]:
    """All of them, in chunks, in any order."""
    starts = range(seeds.start, seeds.stop, CHUNK)
    chunks = [(range(start, min(start + CHUNK, seeds.stop)), on_disk) for start in starts]
    if jobs == 1:
        yield from map(run_chunk, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_leave_signals_to_the_parent) as pool:
        yield from pool.imap_unordered(run_chunk, chunks)


def campaign(seeds: range, *, jobs: int, seconds: float, on_disk: bool, out: TextIO) -> Tally:
    """Run the seeds, for so many seconds at most, and tell what comes of them; SIGINT ends it early."""
    tally, began, shown = Tally(), time.monotonic(), -_PROGRESS
    try:
        for outcomes in run_seeds(seeds, jobs=jobs, on_disk=on_disk):
            for failure in tally.add(outcomes):
                print(failure, file=out, flush=True)
            now = time.monotonic()
            if now - shown >= _PROGRESS:
                shown = now
                rate = tally.schedules / (now - began)
                print(f"{now - began:6.0f} s  {rate:5.0f} schedules/s  {tally}", file=out, flush=True)
            if now - began >= seconds:
                print(f"stopped after {seconds:g} s", file=out)
                break
    except KeyboardInterrupt:
        print("interrupted", file=out)
    elapsed = time.monotonic() - began
    rate = tally.schedules / elapsed if elapsed else 0.0
    print(f"{tally}\n{elapsed:.1f} s, {rate:.0f} schedules/s", file=out, flush=True)
    return tally


def show(seed: int, *, on_disk: bool, out: TextIO) -> bool:
    """Run one schedule and tell all about it; whether every promise was kept."""
    print(draw_plan(seed), file=out)
    with tempfile.TemporaryDirectory(prefix="simulation-") as folder:
        schedule = Schedule(
            seed, lmdb_stores(Path(folder)) if on_disk else None, log=lambda line: print(line, file=out)
        )
        try:
            print(schedule.run(), file=out)
        except Exception:  # noqa: BLE001  # whatever it is, it is shown
            traceback.print_exc(file=out)
            return False
    return True


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="simulation", description="Simulate studies while everything fails.")
    parser.add_argument("--schedules", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--on-disk", action="store_true", help="keep the study in LMDB, not in memory: slower")
    parser.add_argument("--seed", type=int, help="run this one alone, and show what happens")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        return 0 if show(chosen.seed, on_disk=chosen.on_disk, out=sys.stdout) else 1
    seeds = range(chosen.first, chosen.first + chosen.schedules)
    # What a shell starts in the background ignores SIGINT, unless it says otherwise itself.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tally = campaign(seeds, jobs=chosen.jobs, seconds=chosen.seconds, on_disk=chosen.on_disk, out=sys.stdout)
    return 1 if tally.failures else 0
