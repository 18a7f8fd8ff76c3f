"""Time per trial of ask and tell, by trials of the study, parameters and batch: trialfleet's TPE does not slow down.

    python benchmarks/sampler_cost.py

Parameters are of all kinds in turn: float, logarithmic float, int, categorical, logarithmic int. In the conditional space
all after the first five are active with one choice of the categorical only, every other one with the same. Optuna's TPE
stands beside it with studies of 1,000 trials. Before these, whole studies as long as a Gaussian process has a say in them.
"""

import argparse
import itertools
import random
import statistics
import time
from typing import Any

import msgspec

from measuring.results import interval, save
from trialfleet_coordinator.adapters.optuna_samplers import OptunaSampler
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.tpe import MOST_MODELLED, TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Distribution, Float, Int, SearchSpace

KINDS: list[Distribution] = [
    Float(0, 1),
    Float(1e-5, 1, log=True),
    Int(1, 50),
    Categorical(["a", "b", "c"]),
    Int(1, 1000, log=True),
]
#: Batches that are timed; single trials are timed twenty times as often.
ROUNDS = 10
#: Trials up to which Optuna is measured: beyond, restoring it takes minutes.
OPTUNA_TRIALS = 1_000
#: Goal for batches of 32, microseconds per trial.
GOAL = 300


class Study:
    """A study with so many trials, whose sampler goes on."""

    def __init__(self, sampler: TpeSampler | OptunaSampler, space: SearchSpace, trials: int) -> None:
        self._values = random.Random(0)
        earlier = UniformSampler(space, seed=1).ask(range(trials))
        self._sampler = sampler
        self._sampler.restore(
            [(number, *draw) for number, draw in enumerate(earlier)],
            [Observation(number, *draw, 0, self._values.random()) for number, draw in enumerate(earlier)],
        )
        self._trials = trials

    def microseconds(self, batch: int, rounds: int) -> list[float]:
        """Of ask and tell, per trial, of each timed batch; one before them is not timed."""
        times = []
        for _ in range(1 + rounds):
            start = self._trials
            self._trials += batch
            values = [self._values.random() for _ in range(batch)]
            started = time.perf_counter()
            draws = self._sampler.ask(range(start, start + batch))
            self._sampler.tell(
                [
                    Observation(number, *draw, 0, value)
                    for number, draw, value in zip(itertools.count(start), draws, values, strict=False)
                ]
            )
            times.append(1e6 * (time.perf_counter() - started) / batch)
        return times[1:]


def make_space(parameters: int, *, conditional: bool) -> SearchSpace:
    """So many parameters of all kinds."""
    space = {f"p{index}": KINDS[index % len(KINDS)] for index in range(parameters)}
    if conditional:
        for index in range(len(KINDS), parameters):
            when = {"p3": ["a" if index % 2 else "b"]}
            space[f"p{index}"] = msgspec.structs.replace(space[f"p{index}"], when=when)
    return SearchSpace(space)


def _small_row(batches: list[int], parameters: int, conditional: bool) -> list[dict[str, Any]]:
    """Measure whole small studies; print a line of means over the trials of five of them."""
    space = make_space(parameters, conditional=conditional)
    results = []
    line = f"{'trialfleet':11}{parameters:>3}{' conditional' if conditional else '':13}{f'0-{MOST_MODELLED}':>9}"
    for batch in batches:
        means = [
            statistics.fmean(Study(sampler, space, 0).microseconds(batch, MOST_MODELLED // batch))
            for sampler in (TpeSampler(space, maximize=False, startup=10, seed=seed) for seed in range(5))
        ]
        mean, lower, upper = interval(means)
        results.append(
            {
                "parameters": parameters,
                "conditional": conditional,
                "batch": batch,
                "mean": round(mean, 1),
                "mean_interval": [round(lower, 1), round(upper, 1)],
            }
        )
        line += f"{mean:>12.0f}"
    print(line, flush=True)
    return results


def _row(
    sampler: str, study: Study, batches: list[int], trials: int, parameters: int, conditional: bool
) -> list[dict[str, Any]]:
    """Measure a sampler; print a line."""
    results = []
    line = f"{sampler:11}{parameters:>3}{' conditional' if conditional else '':13}{trials:>9,}"
    for batch in batches:
        rounds = 20 * ROUNDS if batch == 1 and sampler == "trialfleet" else ROUNDS
        times = study.microseconds(batch, rounds)
        _, lower, upper = interval(times)
        results.append(
            {
                "sampler": sampler,
                "parameters": parameters,
                "conditional": conditional,
                "trials": trials,
                "batch": batch,
                "median": round(statistics.median(times), 1),
                "mean_interval": [round(lower, 1), round(upper, 1)],
            }
        )
        line += f"{statistics.median(times):>12.0f}"
    print(line, flush=True)
    return results


def main() -> None:
    """Read the command line, print the table, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="studies of 1,000 and 10,000 trials; keeps no results")
    parser.add_argument("--trials", type=int, action="append", help="trials of the study; default 1000, 10000, 100000")
    parser.add_argument("--batch", type=int, action="append", help="default 1, 32, 250")
    options = parser.parse_args()
    sizes = options.trials or ([1_000, 10_000] if options.quick else [1_000, 10_000, 100_000])
    batches = options.batch or [1, 32, 250]
    results: list[dict[str, Any]] = []
    small: list[dict[str, Any]] = []
    print(f"microseconds per trial (goal: {GOAL} in batches of 32)")
    print(f"{'':27}{'trials':>9}" + "".join(f"{f'batch {batch}':>12}" for batch in batches))
    for parameters, conditional in ((5, False), (20, False), (20, True)):
        space = make_space(parameters, conditional=conditional)
        small += _small_row([batch for batch in batches if batch < MOST_MODELLED / 2], parameters, conditional)
        for trials in sizes:
            tpe = TpeSampler(space, maximize=False, startup=10, seed=0)
            results += _row("trialfleet", Study(tpe, space, trials), batches, trials, parameters, conditional)
            if trials <= OPTUNA_TRIALS:
                optuna = OptunaSampler("TPESampler", space, maximize=False, seed=0)
                results += _row("optuna", Study(optuna, space, trials), [1], trials, parameters, conditional)
    save(
        "sampler_cost",
        settings={"rounds": ROUNDS, "goal": GOAL, "small": MOST_MODELLED},
        results={"small": small, "large": results},
        quick=options.quick or bool(options.trials or options.batch),
        packages=("trialfleet", "optuna", "numpy"),
    )


if __name__ == "__main__":
    main()
