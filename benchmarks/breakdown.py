"""Where each microsecond of a trial goes, embedded and over RabbitMQ.

    python benchmarks/breakdown.py [--quick]

The study, the objective and the processes are those of `throughput.py`. The time of the coordinator's loop is divided, without
overlap, among its parts: what each computes (CPU) and how long it waits, for the disk, for evaluations, or for its turn on a
core. Watching costs a few of the microseconds shown. Beside it stands what other threads and processes compute for a trial
meanwhile. What a study costs once, at its start and end, is left out: it is that of a study of few trials.
"""

import argparse
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring.results import save
from throughput_parts.ours import PROCESSES, embedded, over_rabbitmq
from throughput_parts.processes import descendants_cpu
from throughput_parts.stopwatch import Stopwatch, watching
from trialfleet_coordinator import driver
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.remote_fleet import RemoteFleet
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.study import StudyState
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_workers.local import LocalFleet

#: Trials that the study has before; of the study that shows what is paid once; over which the mean is taken.
BEFORE, FEW, TIMED = 1_000, 500, 10_000
QUICK_TIMED = 3_000
LOOP, ONCE = "the loop itself", "start and end"
#: What is told apart, as (part, class or module, method); what is left of the loop's time is its own.
PARTS: list[tuple[str, Any, str]] = [
    (LOOP, driver.Session, "run"),  # the frame of all others
    ("ask: the sampler draws", TpeSampler, "ask"),
    ("tell: the sampler learns", TpeSampler, "tell"),
    ("state machine", StudyState, "handle"),
    ("cache: keys", driver, "key_of"),
    ("cache: look-up", LmdbResultCache, "get_many"),
    ("cache: put", LmdbResultCache, "put_many"),
    ("store: encode, commit", LmdbStudyStore, "commit"),
    ("fleet: hand out work", LocalFleet, "submit"),
    ("fleet: take in results", LocalFleet, "poll"),
    ("fleet: hand out work", RemoteFleet, "submit"),
    ("fleet: take in results", RemoteFleet, "poll"),
    (ONCE, driver, "build_report"),
    (ONCE, LocalFleet, "start"),
    (ONCE, RemoteFleet, "start"),
]

#: Microseconds by part.
Figures = dict[str, float]


def _seconds(watch: Stopwatch) -> Counter[tuple[str, str]]:
    """What was used so far, in seconds, by kind and part."""
    used = Counter({("CPU", part): each / 1e9 for part, each in watch.cpu.items()})
    used.update({("waits", part): (watch.wall[part] - each) / 1e9 for part, each in watch.cpu.items()})
    used["elsewhere", "coordinator's other threads"] = time.process_time() - time.thread_time()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    used["elsewhere", "slots"] = ended.ru_utime + ended.ru_stime
    for group, seconds in descendants_cpu().items():
        used["elsewhere", group] += seconds
    return used


def divide(run: Callable[[int], float], timed: int) -> dict[str, Figures]:
    """Microseconds per trial: of the loop, computing and waiting, and elsewhere."""
    run(BEFORE)
    watch = Stopwatch()
    steps: list[Counter[tuple[str, str]]] = []
    trials = BEFORE
    with watching(watch, PARTS):
        for more in (FEW, timed):
            before = _seconds(watch)
            trials += more
            run(trials)
            after = _seconds(watch)
            steps.append(Counter({key: after[key] - before[key] for key in after}))
    few, many = steps
    figures: dict[str, Figures] = {"CPU": {}, "waits": {}, "elsewhere": {}}
    for kind, part in many:
        if part != ONCE:
            each = 1e6 * (many[kind, part] - few[kind, part]) / (timed - FEW)
            figures[kind][part] = round(max(each, 0.0), 1)
    return figures


def show(way: str, figures: dict[str, Figures]) -> None:
    """Print a table."""
    cpu, waits = figures["CPU"], figures["waits"]
    print(f"\ntrialfleet, {way}: microseconds per trial\n{'':32}{'CPU':>8}{'waits':>8}")
    for part in sorted(cpu, key=lambda part: -cpu[part] - waits[part]):
        print(f"{part:32}{cpu[part]:>8.0f}{waits[part]:>8.0f}")
    print(f"{'in all':32}{sum(cpu.values()):>8.0f}{sum(waits.values()):>8.0f}\nelsewhere, meanwhile:")
    for group, each in sorted(figures["elsewhere"].items()):
        print(f"{group:32}{each:>8.0f}", flush=True)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"over {QUICK_TIMED} trials; keeps no results")
    quick = parser.parse_args().quick
    timed = QUICK_TIMED if quick else TIMED
    results = {}
    with tempfile.TemporaryDirectory(prefix="breakdown-") as scratch:
        results["embedded"] = divide(embedded(Path(scratch)), timed)
        show("embedded", results["embedded"])
    with tempfile.TemporaryDirectory(prefix="breakdown-") as scratch, over_rabbitmq(Path(scratch)) as run:
        results["rabbitmq"] = divide(run, timed)
        show("over RabbitMQ", results["rabbitmq"])
    settings = {"before": BEFORE, "few": FEW, "timed": timed, "processes": PROCESSES}
    save("breakdown", settings=settings, results=results, quick=quick)


if __name__ == "__main__":
    main()
