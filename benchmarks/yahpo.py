"""Anytime regret on YAHPO Gym's surrogates, trialfleet against its peers, in simulated time.

    python benchmarks/yahpo.py --out /tmp/yahpo             # 20 instances, 20 seeds, 1, 8 and 64 workers: hours
    python benchmarks/yahpo.py --quick                      # 4 instances, one seed, 8 workers, the fast peers

An evaluation takes the surrogate's predicted seconds of a simulated clock, on so many workers at a time; the optimisers'
own computing is not counted. trialfleet is the real coordinator (`run_study`) in mode `balanced`. All see the same space:
rbv2_xgboost (14 parameters, some conditional, fidelity: share of the rows) and lcbench (7 parameters, fidelity:
epochs). Peers have rungs at 1/27, 1/9, 1/3 and 1, trialfleet those of its mode, 0.1, 0.3 and 1.

- Rows can not be added to a model that is trained, so on rbv2_xgboost every evaluation pays in full. Epochs can, so on
  lcbench peers that keep a trial on its worker from rung to rung (Optuna's pruners, Syne Tune's ASHA and MOBSTER) pay the
  difference only. trialfleet, DEHB and SMAC restart always.
- The budget of an instance is its unit (`anchors.py`), about the mean cost of a full evaluation, times 100 / workers,
  but at least 3: what is short of three evaluations in a row is no search.
- Every run has a random stream of its own. Instances of a scenario share their space: by the run's number alone all of
  them would begin with the same few configurations, and their mean would be the luck of so many draws, not of so many runs.
- The incumbent is the best result of the highest fidelity seen so far. What counts is its true score at full
  fidelity, normalised between the best known and the median of random configurations (`regret.py`).

Optimisers that take minutes for a run may have seen fewer instances: they stand in a second table, with all others on
these instances alone.

Two peers ask for an old numpy and run without: `pip install --no-deps dehb syne-tune==0.14.2`.

A run's result is kept in `--out`; a run that is there is not repeated, so the command goes on where it was stopped.
"""

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from measuring.results import RESULTS, save
from yahpo_parts.anchors import Anchor, chosen, load_anchors
from yahpo_parts.dehb_peer import DehbSearch
from yahpo_parts.optuna_peers import RandomSearch, optuna_tpe
from yahpo_parts.ours import run_trialfleet
from yahpo_parts.regret import CURVE, POINTS, Key, Steps, printed, summaries
from yahpo_parts.smac_peer import SmacSearch
from yahpo_parts.surrogate import SCENARIOS, Problem, Surrogate
from yahpo_parts.syne_peers import SyneSearch
from yahpo_parts.world import Trace, simulate

#: Units of budget, over all workers, and the fewest that each worker has.
UNITS, FEWEST_UNITS = 100.0, 3.0

PACKAGES = ("trialfleet", "numpy", "onnxruntime", "optuna", "syne-tune", "dehb", "smac")

#: (problem, workers, simulated seconds, seed) -> what was observed.
Runner = Callable[[Problem, int, float, int], Trace]


def _closing(kind: type[DehbSearch | SmacSearch]) -> Runner:
    """A runner of an optimiser that has to be closed."""

    def run(problem: Problem, workers: int, seconds: float, seed: int) -> Trace:
        optimizer = kind(problem, seed)
        try:
            return simulate(optimizer, problem, workers=workers, seconds=seconds)
        finally:
            optimizer.close()

    return run


OPTIMIZERS: dict[str, Runner] = {
    "trialfleet": lambda problem, workers, seconds, seed: run_trialfleet(
        problem, workers=workers, seconds=seconds, seed=seed
    ),
    "random": lambda problem, workers, seconds, seed: simulate(
        RandomSearch(problem, seed), problem, workers=workers, seconds=seconds
    ),
    "optuna-tpe": lambda problem, workers, seconds, seed: simulate(
        optuna_tpe(problem, workers=workers, seed=seed), problem, workers=workers, seconds=seconds
    ),
    "optuna-halving": lambda problem, workers, seconds, seed: simulate(
        optuna_tpe(problem, workers=workers, seed=seed, pruner="halving"), problem, workers=workers, seconds=seconds
    ),
    "optuna-hyperband": lambda problem, workers, seconds, seed: simulate(
        optuna_tpe(problem, workers=workers, seed=seed, pruner="hyperband"), problem, workers=workers, seconds=seconds
    ),
    "syne-asha": lambda problem, workers, seconds, seed: simulate(
        SyneSearch(problem, "asha", seed), problem, workers=workers, seconds=seconds
    ),
    "syne-mobster": lambda problem, workers, seconds, seed: simulate(
        SyneSearch(problem, "mobster", seed), problem, workers=workers, seconds=seconds
    ),
    "dehb": _closing(DehbSearch),
    "smac": _closing(SmacSearch),
}


def main() -> None:
    """Run what is missing, then print and save the figures."""
    options = _options()
    anchors = load_anchors(options.anchors, options.data)
    with tempfile.TemporaryDirectory(prefix="yahpo-") as scratch:
        out = options.out or Path(scratch)
        keys = _plan(options, anchors)
        if not options.summarise:
            _run_all(keys, options, anchors, out)
        runs = {key: steps for key in keys if (steps := _load(out, key)) is not None}
    results = {}
    for workers in options.workers:
        results[workers] = summaries(runs, anchors, workers)
        for figures in results[workers]:
            print(printed(figures, workers))
    settings = {"points": POINTS, "curve": CURVE, "units": UNITS, "fewest_units": FEWEST_UNITS, "seeds": options.seeds}
    quick = options.quick or options.no_save
    save("yahpo", settings=settings, results=results, quick=quick, packages=PACKAGES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute, nothing saved")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--instances", type=int, default=10, help="of each scenario")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "yahpo")
    parser.add_argument("--anchors", type=Path, default=RESULTS / "yahpo_anchors.json")
    parser.add_argument("--out", type=Path, help="folder of the runs' results; default: a temporary one")
    parser.add_argument("--minutes", type=float, help="start no run after so long")
    parser.add_argument("--summarise", action="store_true", help="only print and save what is in --out")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    if options.quick:
        options.instances, options.seeds, options.workers = 2, 1, [8]
        options.optimizer = ["trialfleet", "random", "optuna-tpe", "syne-asha", "dehb"]
    return options


def _plan(options: argparse.Namespace, anchors: dict[str, dict[str, Anchor]]) -> list[Key]:
    """By seed, so that whatever is there when time is up compares all alike."""
    return [
        Key(scenario, instance, workers, optimizer, seed)
        for seed in range(options.seeds)
        for workers in options.workers
        for scenario in options.scenario
        for instance in chosen(anchors[scenario], options.instances)
        for optimizer in options.optimizer
    ]


def _run_all(keys: list[Key], options: argparse.Namespace, anchors: dict[str, dict[str, Anchor]], out: Path) -> None:
    surrogates = {name: Surrogate(options.data, name) for name in options.scenario}
    started = time.monotonic()
    for key in keys:
        if options.minutes and time.monotonic() - started > 60 * options.minutes:
            return
        path = _path(out, key)
        if path.exists():
            continue
        problem = Problem(surrogates[key.scenario], key.scenario, key.instance)
        seconds = anchors[key.scenario][key.instance].unit * max(UNITS / key.workers, FEWEST_UNITS)
        began = time.monotonic()
        trace = OPTIMIZERS[key.optimizer](problem, key.workers, seconds, _stream(key))
        took = time.monotonic() - began
        scores = problem.full_scores([params for _, params in trace.incumbents]) if trace.incumbents else []
        steps = [
            (round(now / seconds, 5), round(score, 7)) for (now, _), score in zip(trace.incumbents, scores, strict=True)
        ]
        document = {"steps": steps, "evaluations": trace.evaluations, "full": trace.full, "took": round(took, 2)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))


def _stream(key: Key) -> int:
    """The seed of a run, that of all optimisers alike; some of them take 31 bits."""
    return zlib.crc32(f"{key.scenario} {key.instance} {key.workers} {key.seed}".encode()) & 0x7FFFFFFF


def _path(out: Path, key: Key) -> Path:
    return out / key.scenario / key.instance / str(key.workers) / f"{key.optimizer}-{key.seed}.json"


def _load(out: Path, key: Key) -> Steps | None:
    path = _path(out, key)
    if not path.exists():
        return None
    steps: Steps = json.loads(path.read_text())["steps"]
    return steps


if __name__ == "__main__":
    main()
