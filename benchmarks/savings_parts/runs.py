"""One run: a fresh process on one core, its CPU and wall seconds, and what it found, kept as one small JSON file."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from savings_parts.tasks import Task
from trialfleet_workers import linux

MODES = ("fast", "balanced", "thorough")
#: `balanced` with one mechanism off: the settings that switch it off.
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "no subsampling": ("enable_data_subsampling=false",),
    "no halving": ("adaptive_subsampling=false",),
    "no racing": ("fold_racing=false",),
    "no threshold": ("enable_aggressive_pruning=false",),
    "no cache": ("enable_caching=false",),
    "no sampler": ("enable_smart_sampling=false",),
    "no batching": ("batch_size=1",),
    "no memory": ("enable_memory_optimization=false",),
}
#: `balanced` on two cores, the contribution of parallelism.
PARALLEL = "two cores"
#: Prints the CPU seconds of bringing the data into trialfleet's cache, libraries included.
_IMPORT = """
import sys, time
from pathlib import Path
from trialfleet.study_file import load_study
request = load_study(Path(sys.argv[1]), {})
started = time.process_time()
from trialfleet_workers.adapters.lmdb_data import DataCache
import msgspec
DataCache(Path(sys.argv[3])).import_data(msgspec.structs.replace(request.data, source=sys.argv[2]), base=Path())
print(time.process_time() - started)
"""
#: Numeric libraries that would start threads of their own.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: Would have every run compile what an installation has compiled once.
_NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"
_HERE = Path(__file__).parent
#: Seconds after which a run is given up.
_PATIENCE = 1800.0


class Run(NamedTuple):
    """What is to run."""

    task: str
    seed: int
    #: "baseline", a mode, or `balanced` with something off.
    variant: str

    def path(self, out: Path) -> Path:
        """Where its result is kept."""
        return out / f"{self.task}.{self.seed}.{self.variant.replace(' ', '-')}.json"


class Cost(NamedTuple):
    """What a process and all that it started used."""

    cpu_seconds: float
    wall_seconds: float


def carry_out(run: Run, *, out: Path, data: Path, trials: int) -> None:
    """Run it on the cores that this process may use, and keep its result.

    Args:
        run: what to run.
        out: folder of the results.
        data: folder of the CSV files.
        trials: trials of the study.
    """
    path = run.path(out)
    task = Task(run.task, data, out)
    if run.variant == "baseline":
        result = _baseline(task, run.seed, trials)
    else:
        result = _trialfleet(task, run, trials, slots=len(os.sched_getaffinity(0)))
    path.with_suffix(".part").write_text(json.dumps(result, indent=1))
    path.with_suffix(".part").rename(path)


def _baseline(task: Task, seed: int, trials: int) -> dict[str, Any]:
    folds = task.prepare(seed)
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [str(_HERE / "baseline.py"), str(task.study_file), str(task.source), str(folds), str(seed)]
        cost, _ = measured([sys.executable, *command, str(trials), answer.name])
        found: dict[str, Any] = json.loads(Path(answer.name).read_text())
    beside = found["beside_cpu_seconds"]
    return {**found, "cpu_seconds": cost.cpu_seconds - beside, "wall_seconds": cost.wall_seconds - beside}


def _trialfleet(task: Task, run: Run, trials: int, *, slots: int) -> dict[str, Any]:
    folds = task.prepare(run.seed)
    mode = run.variant if run.variant in MODES else "balanced"
    settings = [f"data.source={task.source}", *(f"efficiency.{entry}" for entry in ABLATIONS.get(run.variant, ()))]
    home = Path(tempfile.mkdtemp(prefix="savings-"))
    try:
        cost, report = measured(
            [
                *(sys.executable, "-m", "trialfleet", "run", str(task.study_file), "--json", "--home", str(home)),
                *("--mode", mode, "--seed", str(run.seed), "--trials", str(trials), "--slots", str(slots)),
                *(part for entry in settings for part in ("--set", entry)),
            ]
        )
        shutil.rmtree(home / "data")
        # Beside the measurement: the share of it that the import of the data had.
        _, imported = measured([sys.executable, "-c", _IMPORT, str(task.study_file), str(task.source), f"{home}/data"])
    finally:
        shutil.rmtree(home)
    found = json.loads(report)
    complete = [trial["value"] for trial in found["trials"] if trial["state"] == "complete"]
    if not found["best_is_complete"]:
        # Beside the measurement: what the configuration is worth on all rows and all folds.
        found |= _examined(task, folds, run.seed, found["best_params"])
    keys = ("best_params", "best_value", "test_value", "ladder", "rung_evaluations", "evaluations", "cached")
    return {
        "cpu_seconds": cost.cpu_seconds,
        "wall_seconds": cost.wall_seconds,
        "import_cpu_seconds": float(imported),
        "wall_per_cpu": _wall_per_cpu(found["trials"]),
        "trials": len(found["trials"]),
        "ended": found["ended"],
        "complete_values": complete,
        "states": {state: found[state] for state in ("complete", "pruned", "failed")},
        **{key: found[key] for key in keys},
        "efficiency_metrics": found["efficiency_metrics"],
    }


def _examined(task: Task, folds: Path, seed: int, params: Mapping[str, Any]) -> dict[str, Any]:
    command = [str(_HERE / "baseline.py"), str(task.study_file), str(task.source), str(folds), str(seed)]
    answer = subprocess.run(
        [sys.executable, *command, "--examine", json.dumps(params)],
        check=True,
        capture_output=True,
        text=True,
        env=_environment(),
    )
    examined: dict[str, Any] = json.loads(answer.stdout)
    return examined


def measured(command: Sequence[str]) -> tuple[Cost, str]:
    """Run a command to its end; what it and everything it started used, and its standard output.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote on standard error.
    """
    # Whatever outlives the command becomes a child of this process, so that its CPU seconds are counted too.
    linux.adopt_orphans()
    before, started = _children_cpu(), time.monotonic()
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=errors, timeout=_PATIENCE, env=_environment()
        )
        wall = time.monotonic() - started
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        if done.returncode != 0:
            errors.seek(0)
            told = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {told}")
    return Cost(_children_cpu() - before, wall), done.stdout.decode()


def _wall_per_cpu(trials: Sequence[Mapping[str, Any]]) -> float:
    """What other work on the machine made of a CPU second while the evaluations ran."""
    seconds = [sum(trial[key] for trial in trials) for key in ("wall_seconds", "cpu_seconds")]
    return float(seconds[0] / seconds[1])


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != _NO_BYTE_CODE} | _ONE_THREAD


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
