"""trialfleet's TPE beside Optuna's and uniform draws, on cheap functions with known optima.

    python benchmarks/sampler_quality.py --seeds 5 --trials 200 --in-flight 1 --in-flight 8

Each run keeps so many trials in flight and completes them in random order, a quarter of them between two asks. A run's
score is its normalised regret: what is left of the distance from the median of uniform draws to the optimum. The table
gives its mean over seeds on each function; below it stand the mean ranks, wins against each other sampler, and the time
that ask and tell took per trial.
"""

import argparse
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optuna

from trialfleet_coordinator.adapters.optuna_samplers import OptunaSampler
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.ports import Sampler
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params, SearchSpace


class Problem(NamedTuple):
    """A function to minimise."""

    space: SearchSpace
    function: Callable[..., float]
    optimum: float
    #: Standard deviation of the noise on what the sampler is told; scores are without it.
    noise: float = 0.0


def _box(count: int, low: float, high: float, **options: float) -> SearchSpace:
    return SearchSpace({f"x{index}": Float(low, high, **options) for index in range(count)})  # type: ignore[arg-type]


def branin(x0: float, x1: float) -> float:
    return (
        (x1 - 5.1 / (4 * math.pi**2) * x0**2 + 5 / math.pi * x0 - 6) ** 2
        + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x0)
        + 10
    )


_HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(**x: float) -> float:
    inner = (_HARTMANN_A * (np.array(list(x.values())) - _HARTMANN_P) ** 2).sum(axis=1)
    return -float(np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-inner))


def ackley(**x: float) -> float:
    point = np.array(list(x.values())) - 3.0
    return float(-20 * np.exp(-0.2 * np.sqrt((point**2).mean())) - np.exp(np.cos(2 * np.pi * point).mean()) + 20 + np.e)


def rosenbrock(**x: float) -> float:
    point = np.array(list(x.values()))
    return math.log1p(float((100 * (point[1:] - point[:-1] ** 2) ** 2 + (1 - point[:-1]) ** 2).sum()))


def levy(**x: float) -> float:
    w = 1 + (np.array(list(x.values())) - 1) / 4
    middle = ((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)).sum()
    last = (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)
    return float(np.sin(np.pi * w[0]) ** 2 + middle + last)


def sphere(**x: float) -> float:
    return sum((value - 0.3) ** 2 for value in x.values())


def boosting(rate: float, leaves: int, rows: int, growth: str, penalty: float, unused: float) -> float:
    """Shaped like a tuning task: optima in logarithms, an interaction, a categorical, and a parameter without effect."""
    del unused
    fit = (math.log10(rate) + 1.3) ** 2 + 0.5 * (math.log2(leaves) - 5 - 0.6 * math.log10(rate)) ** 2
    return (
        fit
        + {"leaf": 0.0, "depth": 0.15, "oblivious": 0.4}[growth]
        + 0.05 * abs(rows - 20) / 10
        + 0.1 * (math.log10(penalty) + 2) ** 2
    )


def models(kind: str, **rest: float) -> float:
    """Conditional: the best model is best only where it is tuned well."""
    if kind == "linear":
        return 0.6 + 0.05 * (math.log10(rest["alpha"]) + 1) ** 2
    if kind == "forest":
        return 0.45 + 0.002 * (rest["depth"] - 11) ** 2 + 0.3 * (rest["features"] - 0.4) ** 2
    return 0.2 + 0.15 * (math.log10(rest["C"]) - 1.5) ** 2 + 0.3 * (math.log10(rest["gamma"]) + 2) ** 2


def coordinates(**x: float) -> float:
    """On a grid, with a narrow valley."""
    values = list(x.values())
    return sum((value - 7) ** 2 for value in values) + 5 * sum(
        (left - right) ** 2 for left, right in itertools.pairwise(values)
    )


PROBLEMS = {
    "branin": Problem(SearchSpace({"x0": Float(-5, 10), "x1": Float(0, 15)}), branin, 0.397887),
    "hartmann6": Problem(_box(6, 0, 1), hartmann6, -3.32237),
    "ackley5": Problem(_box(5, -15, 30), ackley, 0.0),
    "rosenbrock4": Problem(_box(4, -5, 10), rosenbrock, 0.0),
    "levy8": Problem(_box(8, -10, 10), levy, 0.0),
    "sphere20": Problem(_box(20, -1, 1), sphere, 0.0),
    "boosting": Problem(
        SearchSpace(
            {
                "rate": Float(1e-4, 1, log=True),
                "leaves": Int(2, 1024, log=True),
                "rows": Int(1, 100),
                "growth": Categorical(["depth", "leaf", "oblivious"]),
                "penalty": Float(1e-8, 10, log=True),
                "unused": Float(0, 1),
            }
        ),
        boosting,
        0.0,
    ),
    "models": Problem(
        SearchSpace(
            {
                "kind": Categorical(["linear", "forest", "svm"]),
                "alpha": Float(1e-6, 10, log=True, when={"kind": ["linear"]}),
                "depth": Int(1, 30, when={"kind": ["forest"]}),
                "features": Float(0.1, 1, when={"kind": ["forest"]}),
                "C": Float(1e-3, 1e3, log=True, when={"kind": ["svm"]}),
                "gamma": Float(1e-6, 1e2, log=True, when={"kind": ["svm"]}),
            }
        ),
        models,
        0.2,
    ),
    "grid": Problem(_box(4, 0, 10, step=0.5), coordinates, 0.0),
    "noisy6": Problem(_box(6, 0, 1), hartmann6, -3.32237, noise=0.3),
}


def _optuna(multivariate: bool) -> Callable[[SearchSpace, int], Sampler]:
    def make(space: SearchSpace, seed: int) -> Sampler:
        def tpe(optuna_seed: int) -> optuna.samplers.TPESampler:
            return optuna.samplers.TPESampler(
                seed=optuna_seed, multivariate=multivariate, group=multivariate, constant_liar=True
            )

        return OptunaSampler(tpe, space, maximize=False, seed=seed)

    return make


SAMPLERS: dict[str, Callable[[SearchSpace, int], Sampler]] = {
    "trialfleet": lambda space, seed: TpeSampler(space, maximize=False, startup=10, seed=seed),
    "optuna": _optuna(multivariate=False),
    "optuna-mv": _optuna(multivariate=True),
    "uniform": lambda space, seed: UniformSampler(space, seed=seed),
}


def run(problem: Problem, sampler: Sampler, *, trials: int, in_flight: int, seed: int) -> tuple[float, float]:
    """The best value found, and the sampler's seconds per trial."""
    order, noise = random.Random(seed), random.Random(seed + 1)
    pending: list[tuple[int, Params, dict[str, Distribution]]] = []
    best, asked, seconds = math.inf, 0, 0.0
    while asked < trials or pending:
        wanted = min(in_flight - len(pending), trials - asked)
        started = time.perf_counter()
        draws = sampler.ask(range(asked, asked + wanted)) if wanted else []
        seconds += time.perf_counter() - started
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
        started = time.perf_counter()
        sampler.tell(observations)
        seconds += time.perf_counter() - started
    return best, seconds / trials


def uniform_median(problem: Problem) -> float:
    """The median value of uniform draws."""
    draws = UniformSampler(problem.space, seed=12345).ask(range(500))
    return statistics.median(problem.function(**draw.params) for draw in draws)


def measure(names: Sequence[str], samplers: Sequence[str], *, trials: int, in_flight: int, seeds: int) -> None:
    """Run everything and print the table."""
    regrets: dict[str, list[list[float]]] = {sampler: [] for sampler in samplers}
    seconds: dict[str, list[float]] = {sampler: [] for sampler in samplers}
    print(f"\n{trials} trials, {in_flight} in flight, {seeds} seeds: normalised regret, mean (standard error)")
    print(f"{'':12}" + "".join(f"{sampler:>18}" for sampler in samplers))
    for name in names:
        problem = PROBLEMS[name]
        scale = uniform_median(problem) - problem.optimum
        line = f"{name:12}"
        for sampler in samplers:
            scores = []
            for seed in range(seeds):
                made = SAMPLERS[sampler](problem.space, seed)
                best, took = run(problem, made, trials=trials, in_flight=in_flight, seed=seed)
                scores.append((best - problem.optimum) / scale)
                seconds[sampler].append(took)
            regrets[sampler].append(scores)
            error = statistics.stdev(scores) / math.sqrt(seeds) if seeds > 1 else 0.0
            line += f"{statistics.fmean(scores):>10.4f} ({error:.4f})"
        print(line, flush=True)
    _summary(regrets, seconds)


def _summary(regrets: dict[str, list[list[float]]], seconds: dict[str, list[float]]) -> None:
    samplers = list(regrets)
    table = np.array([regrets[sampler] for sampler in samplers])  # sampler, problem, seed
    ranks = table.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") + 1
    print(f"{'mean rank':12}" + "".join(f"{ranks[index].mean():>18.2f}" for index in range(len(samplers))))
    logs = np.log10(np.maximum(table, 1e-6)).mean(axis=(1, 2))
    print(f"{'mean log10':12}" + "".join(f"{value:>18.3f}" for value in logs))
    print(f"{'ms per trial':12}" + "".join(f"{1e3 * statistics.fmean(seconds[one]):>18.2f}" for one in samplers))
    for other in range(1, len(samplers)):
        wins, losses = (table[0] < table[other]).sum(), (table[0] > table[other]).sum()
        print(f"{samplers[0]} against {samplers[other]}: {wins} wins, {losses} losses")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, action="append")
    parser.add_argument("--problem", choices=PROBLEMS, action="append")
    parser.add_argument("--sampler", choices=SAMPLERS, action="append", help="the first is compared with the others")
    options = parser.parse_args()
    for in_flight in options.in_flight or [1, 8, 32]:
        measure(
            options.problem or list(PROBLEMS),
            options.sampler or list(SAMPLERS),
            trials=options.trials,
            in_flight=in_flight,
            seeds=options.seeds,
        )


if __name__ == "__main__":
    main()
