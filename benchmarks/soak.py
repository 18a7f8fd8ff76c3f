"""An hour at full load: is anything of a fleet growing that should not?

    python benchmarks/soak.py [--minutes 60] [--quick]

A private broker, `trialfleet coordinator` and two workers of two slots evaluate study after study of 400 trials, two at a
time, each evaluation 10 ms of CPU; one in 500 kills its slot. One worker stays, the other is told to leave and
replaced every three minutes. The result cache is full, a million entries, from the start. Studies that ended are
deleted but for the last ten.

Every ten seconds: memory of the coordinator and of the worker that stays with all its slots (anonymous PSS: shared memory is
counted once, and the page cache of LMDB's maps, which the system takes back when it likes, not at all), their
file handles, what store and caches take on the disk, LMDB's reader slots, the broker's queues. The slopes
are of what came after the first fifth, when everything has warmed up. Ctrl-C ends it early and reports what was seen.
"""

import argparse
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring.processes import family, rollup
from measuring.results import save
from soak_parts.load import CACHE_ENTRIES, Load
from soak_parts.watch import disk_bytes, handles, reader_slots, slope

SAMPLE_SECONDS, RECYCLE_SECONDS = 10.0, 180.0
#: Share of the time in which everything warms up.
WARM = 0.2


def sample(load: Load) -> dict[str, float]:
    """One look."""
    figures: dict[str, float] = {}
    for name in ("coordinator", "worker that stays"):
        root = load.processes[name].pid
        members = family(root)
        memory = {member: rollup(member, "Pss_Anon") for member in members}
        figures[f"memory of the {name}, MiB"] = sum(memory.values()) / 2**20
        figures[f"memory of the {name} without its slots, MiB"] = memory[root] / 2**20
        figures[f"file handles of the {name}"] = handles(root)
        figures[f"processes of the {name}"] = len(members)
    for name in ("store", "results"):
        figures[f"{name} on the disk, MiB"] = disk_bytes(load.home / name) / 2**20
        figures[f"reader slots of {name}"] = reader_slots(load.home / name)
    return figures


def run(minutes: float) -> dict[str, Any]:
    """Load and look; what was seen."""
    times: list[float] = []
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="trialfleet-soak-") as folder, Load(Path(folder)) as load:
        begun = time.monotonic()
        recycle_at = begun + RECYCLE_SECONDS
        try:
            while (now := time.monotonic()) - begun < 60 * minutes:
                load.turn()
                times.append(now - begun)
                samples.append(sample(load) | load.node.figures())
                if now >= recycle_at:
                    recycle_at = now + RECYCLE_SECONDS
                    load.recycle()
                    brief = ", ".join(f"{name} {value:.1f}" for name, value in samples[-1].items())
                    print(f"{times[-1] / 60:5.1f} min, {load.trials} trials: {brief}", flush=True)
                time.sleep(SAMPLE_SECONDS)
        except KeyboardInterrupt:
            print("ended early", flush=True)
        return {
            "minutes": times[-1] / 60,
            "studies": load.ended,
            "trials": load.trials,
            "recycled": load.recycled,
            "figures": figures(times, samples),
            "samples": {"minutes": [round(at / 60, 2) for at in times], **_columns(samples)},
        }


def figures(times: list[float], samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, highest, and slope of everything that was looked at."""
    result = {}
    for name in sorted({name for one in samples for name in one}):
        seen = [
            (at, one[name]) for at, one in zip(times, samples, strict=True) if name in one and at >= WARM * times[-1]
        ]
        values = [value for _, value in seen]
        figure = {"first": values[0], "median": statistics.median(values), "highest": max(values), "last": values[-1]}
        if len(seen) > 24:
            growth, lower, upper = slope([at for at, _ in seen], values)
            figure |= {"per_hour": growth, "per_hour_lower": lower, "per_hour_upper": upper}
        result[name] = figure
    return result


def _columns(samples: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """The memory at each look, by process."""
    names = sorted(name for name in samples[0] if name.startswith("memory"))
    return {name: [None if name not in one else round(one[name], 2) for one in samples] for name in names}


def show(results: dict[str, Any]) -> None:
    """The table of docs/soak.md."""
    print(f"{results['minutes']:.1f} minutes, {results['trials']} trials, studies {results['studies']}, ", end="")
    print(f"a worker recycled {results['recycled']} times")
    print("| what | median | highest | growth per hour (95% interval) |\n| --- | --- | --- | --- |")
    for name, figure in results["figures"].items():
        growth = ""
        if "per_hour" in figure:
            growth = f"{figure['per_hour']:+.2f} ({figure['per_hour_lower']:+.2f} to {figure['per_hour_upper']:+.2f})"
        print(f"| {name} | {figure['median']:.1f} | {figure['highest']:.1f} | {growth} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="two minutes, nothing kept")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # before anything is started that has to be ended
        signal.signal(number, signal.default_int_handler)
    minutes = 2.0 if arguments.quick else arguments.minutes
    results = run(minutes)
    show(results)
    save("soak", settings={"minutes": minutes, "cache_entries": CACHE_ENTRIES}, results=results, quick=arguments.quick)


if __name__ == "__main__":
    main()
