"""Memory of four slots on one table, time to the first trial, subsamples, and an import beyond the memory it may use.

    python benchmarks/memory.py [--quick]

A table of 100 columns of random float64, 1.04 GB (quick: 104 MB), in a parquet file and, for those who would prepare it so,
in an npy file. Each contestant (`memory_parts/contestants.py`) starts four processes that read all of it and hold it at the
same moment. Measured is the proportional set size (PSS: what several map counts once) of the contestant and all its
descendants, coordinator and interpreters included, every 50 ms: its peak, and the median while all four hold the table.
The ratio is to the table's bytes.

The first trial begins when a study's objective is called for the first time. Its goal is for a study that imports its table,
from the moment at which the import has ended (`after_import`, of several imports, each in a process and a home of its own).
Told besides, from the call of `optimize`, is that of a study whose table was imported before: the first of a process, the
import of trialfleet included (`first_study`), and further ones in it (`next_study`). The objective imports nothing, and its
process is a new one each time; what a user's objective imports comes on top.

The import is that of a file four times the memory the process may use: a limit on private memory (`RLIMIT_DATA`); pandas
reads it under the same limit for comparison. The page cache is not limited: the system takes it back when it is needed.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from measuring.processes import family, rollup
from measuring.results import save
from memory_parts.contestants import PROCESSES
from memory_parts.table import ROW_BYTES, write_table
from trialfleet_shared.messages import DataSpec, Resampling
from trialfleet_workers.adapters.lmdb_data import DataCache

#: Goals: of the table's bytes; seconds; microseconds.
PSS_GOAL, FIRST_TRIAL_GOAL, VIEW_GOAL = 1.15, 0.1, 100
#: Memory an import may use: a quarter of its file. The libraries alone take about 100 MB.
IMPORT_LIMIT = 400 * 10**6
QUICK_IMPORT_LIMIT = 300 * 10**6
#: Time between two looks at the memory, and looks that lie within the time that the table is held.
SAMPLE_SECONDS, HELD_SAMPLES = 0.05, 8
#: Imports that end with a first trial.
IMPORTS = 3
RIVALS = (
    "trialfleet_study",
    "pandas_per_process",
    "numpy_per_process",
    "joblib_automatic",
    "joblib_mapped",
    "joblib_mapped_and_split",
)


def command(name: str, file: Path, folder: Path) -> list[str]:
    """How to start a contestant."""
    imports = f"import sys; from pathlib import Path; from memory_parts.contestants import {name}"
    code = f"{imports}; {name}(*map(Path, sys.argv[1:]))"
    return [sys.executable, "-c", code, str(file), str(folder)]


def environment() -> dict[str, str]:
    """One thread per process for everybody."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    return {**os.environ, **threads, "PYTHONPATH": str(Path(__file__).parent)}


def hold(name: str, file: Path) -> dict[str, float]:
    """Peak of PSS, and PSS while all four processes hold the table, over the table's bytes."""
    size = pyarrow.parquet.read_metadata(file).num_rows * ROW_BYTES
    samples, held = [], []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command(name, file, Path(folder)), env=environment(), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            samples.append(sum(rollup(member, "Pss") for member in family(process.pid)))
            if len(list(Path(folder).iterdir())) >= PROCESSES and len(held) < HELD_SAMPLES:
                held.append(samples[-1])
            time.sleep(SAMPLE_SECONDS)
    if process.returncode or not held:
        raise RuntimeError(f"{name} ended with {process.returncode}; all four held the table: {bool(held)}")
    return {"peak": max(samples) / size, "held": statistics.median(held) / size}


def first_trial(file: Path) -> dict[str, Any]:
    """Seconds to the first call of the objective; see the top."""
    first, *others = _seconds("trialfleet_first_trial", file)
    imports = [seconds for _ in range(IMPORTS) for seconds in _seconds("trialfleet_after_import", file)]
    return {"after_import": imports, "next_study": others, "first_study": first}


def _seconds(name: str, file: Path) -> list[float]:
    """What a contestant prints."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        answer = subprocess.run(command(name, file, Path(folder)), env=environment(), capture_output=True, check=True)
    return [float(line) for line in answer.stdout.split()]


def views(file: Path) -> dict[str, float]:
    """A subsample of a holdout: time, and what it adds to this process's private memory. Of another fold: rows copied."""
    cache = DataCache(file.parent / "home" / "data")
    spec = DataSpec(source=str(file), target="y")
    data_set = cache.open(cache.import_data(spec, base=Path()).digest)
    whole = data_set.split(fold=0, fraction=1.0, rung=0, seed=0).X
    before = rollup(os.getpid(), "Anonymous")
    times = []
    for number in range(1000):
        started = time.perf_counter()
        part = data_set.split(fold=0, fraction=(number + 1) / 1000, rung=0, seed=0)
        rows, _, valid, _ = part.X, part.y, part.X_valid, part.y_valid
        times.append(1e6 * (time.perf_counter() - started))
        if not np.shares_memory(rows, whole) or np.shares_memory(valid, whole):
            raise RuntimeError(f"the subsample of {len(rows)} rows is not a view")
    private = rollup(os.getpid(), "Anonymous") - before
    folds = DataSpec(source=str(file), target="y", resampling=Resampling(kind="kfold", folds=5))
    data_set = cache.open(cache.import_data(folds, base=Path()).digest)
    copied = {}
    for fold in range(2):
        before = rollup(os.getpid(), "Anonymous")
        part = data_set.split(fold=fold, fraction=0.1, rung=0, seed=0)
        size = part.X.nbytes
        copied[f"kfold_fold_{fold}_copied_share"] = (rollup(os.getpid(), "Anonymous") - before) / size
    return {"microseconds": statistics.median(times), "private_bytes": private, **copied}


def limited_import(name: str, file: Path, limit: int) -> dict[str, Any]:
    """Whether it succeeds under a limit on private memory; seconds, and its peak in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command(name, file, file.parent),
        # Arrow's own allocator reserves addresses far ahead of its use, which this limit would count as memory.
        env={**environment(), "ARROW_DEFAULT_MEMORY_POOL": "system"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))  # long before it reads anything
    peak = 0
    while process.poll() is None:
        peak = max(peak, rollup(process.pid, "Anonymous"))
        time.sleep(SAMPLE_SECONDS)
    assert process.stderr is not None
    error = process.stderr.read().decode().strip().rpartition("\n")[2]
    return {
        "succeeded": process.returncode == 0,
        "seconds": time.perf_counter() - started,
        "peak_private_bytes": peak,
        "error": error if process.returncode else "",
    }


def main() -> None:
    """Read the command line, print the table, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="104 MB instead of 1.04 GB; an import of 1.2 GB")
    quick = parser.parse_args().quick
    rows = 130_000 if quick else 1_300_000
    limit = QUICK_IMPORT_LIMIT if quick else IMPORT_LIMIT
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "table.parquet"
        write_table(file, rows)
        np.save(file.with_suffix(".npy"), pyarrow.parquet.read_table(file).to_pandas().to_numpy())
        results["view"] = view = views(file)
        results["memory"] = {}
        print(f"PSS of four processes over the table's {rows * ROW_BYTES / 1e9:.2f} GB")
        print(f"{'':28}{'peak':>8}{'held':>8}")
        for rival in RIVALS:
            found = results["memory"][rival] = hold(rival, file)
            print(f"{rival:28}{found['peak']:8.2f}{found['held']:8.2f}", flush=True)
        results["first_trial"] = first = first_trial(file)
    folds = [view[f"kfold_fold_{fold}_copied_share"] for fold in range(2)]
    copied = f"k-fold copies {folds[0]:.2f} of fold 0's rows, {folds[1]:.2f} of the others'"
    print(
        f"subsample of a holdout: {view['microseconds']:.0f} us, {view['private_bytes'] / 1e3:.0f} kB private; {copied}"
    )
    for what, key in (("an import", "after_import"), ("the call, in a further study", "next_study")):
        print(f"first trial after {what}: {statistics.median(first[key]):.3f} s, at best {min(first[key]):.3f} s")
    print(f"first trial after the call, in the first study of a process: {first['first_study']:.3f} s")
    results["import"] = {}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "large.parquet"
        write_table(file, 4 * limit // ROW_BYTES)
        for rival in ("trialfleet_import", "pandas_import"):
            found = results["import"][rival] = limited_import(rival, file, limit)
            outcome = "done" if found["succeeded"] else f"failed ({found['error']})"
            print(
                f"{rival} of {4 * limit / 1e9:.1f} GB in {limit / 1e6:.0f} MB: {outcome} after {found['seconds']:.1f} s, ",
                end="",
            )
            print(f"private memory at most {found['peak_private_bytes'] / 1e6:.0f} MB", flush=True)
    print(f"goals: PSS {PSS_GOAL}, first trial {FIRST_TRIAL_GOAL} s, subsample {VIEW_GOAL} us, import done")
    settings = {"rows": rows, "row_bytes": ROW_BYTES, "processes": PROCESSES, "import_limit": limit}
    save("memory", settings=settings, results=results, quick=quick, packages=("trialfleet", "pandas", "joblib"))


if __name__ == "__main__":
    main()
