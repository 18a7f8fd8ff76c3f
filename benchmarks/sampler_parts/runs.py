"""Runs of samplers on the problems, and a file of those that need not be run again."""

import functools
import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna

from sampler_parts.problems import PROBLEMS, Problem
from trialfleet_coordinator.adapters.optuna_samplers import OptunaSampler
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.ports import Sampler
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Distribution, Params, SearchSpace

#: Trials with a value before a sampler uses its model: Optuna's default, for all.
STARTUP = 10


def _optuna(*, multivariate: bool) -> Callable[[SearchSpace, int], Sampler]:
    def make(space: SearchSpace, seed: int) -> Sampler:
        def tpe(optuna_seed: int) -> optuna.samplers.TPESampler:
            return optuna.samplers.TPESampler(
                seed=optuna_seed,
                n_startup_trials=STARTUP,
                multivariate=multivariate,
                group=multivariate,
                constant_liar=True,
            )

        return OptunaSampler(tpe, space, maximize=False, seed=seed)

    return make


def trialfleet(space: SearchSpace, seed: int) -> TpeSampler:
    """The sampler that is measured."""
    return TpeSampler(space, maximize=False, startup=STARTUP, seed=seed)


def _optuna_gp(space: SearchSpace, seed: int) -> Sampler:
    def process(optuna_seed: int) -> optuna.samplers.GPSampler:
        return optuna.samplers.GPSampler(seed=optuna_seed, n_startup_trials=STARTUP, warn_independent_sampling=False)

    return OptunaSampler(process, space, maximize=False, seed=seed)


#: Of them the Gaussian process needs PyTorch, which is large: it runs where it is asked for.
ON_REQUEST = "optuna-gp"
SAMPLERS: dict[str, Callable[[SearchSpace, int], Sampler]] = {
    "trialfleet": trialfleet,
    "optuna": _optuna(multivariate=False),
    "optuna-mv": _optuna(multivariate=True),
    ON_REQUEST: _optuna_gp,
    "uniform": lambda space, seed: UniformSampler(space, seed=seed),
}


class Run(NamedTuple):
    """One run's settings."""

    problem: str
    sampler: str
    in_flight: int
    trials: int
    seed: int


class Regrets:
    """Normalised regrets of runs, in memory and, for all samplers but ours, in a file.

    Args:
        file: one JSON list per line; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self._known: dict[Run, float] = {Run(*run): regret for run, regret in map(json.loads, lines)}

    def of(self, run: Run) -> float:
        """The regret of a run, which takes place now unless it did before."""
        if run not in self._known:
            problem = PROBLEMS[run.problem]
            sampler = SAMPLERS[run.sampler](problem.space, run.seed)
            best = lowest(problem, sampler, trials=run.trials, in_flight=run.in_flight, seed=run.seed)
            self._known[run] = normalised(run.problem, best)
            if self._file is not None and run.sampler != "trialfleet":
                with self._file.open("a") as file:
                    file.write(json.dumps([run, self._known[run]]) + "\n")
        return self._known[run]


def lowest(problem: Problem, sampler: Sampler, *, trials: int, in_flight: int, seed: int) -> float:
    """The lowest value found.

    So many trials are kept in flight; they end in random order, a quarter of them between two asks.
    """
    order, noise = random.Random(seed), random.Random(seed + 1)
    pending: list[tuple[int, Params, dict[str, Distribution]]] = []
    best, asked = math.inf, 0
    while asked < trials or pending:
        wanted = min(in_flight - len(pending), trials - asked)
        draws = sampler.ask(range(asked, asked + wanted)) if wanted else []
        pending += [(asked + place, *draw) for place, draw in enumerate(draws)]
        asked = asked + len(draws) if len(draws) == wanted else trials
        observations = []
        for _ in range(max(in_flight // 4, 1)):
            if pending:
                number, params, distributions = pending.pop(order.randrange(len(pending)))
                value = problem.function(**params)
                best = min(best, value)
                told = value + noise.gauss(0, problem.noise) if problem.noise else value
                observations.append(Observation(number, params, distributions, 0, told))
        sampler.tell(observations)
    return best


def normalised(name: str, value: float) -> float:
    """What is left of the distance from the median of uniform draws to the optimum."""
    problem = PROBLEMS[name]
    return max(0.0, (value - problem.optimum) / (_uniform_median(name) - problem.optimum))


@functools.cache
def _uniform_median(name: str) -> float:
    problem = PROBLEMS[name]
    draws = UniformSampler(problem.space, seed=12345).ask(range(500))
    return statistics.median(problem.function(**draw.params) for draw in draws)
