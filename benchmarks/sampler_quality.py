"""trialfleet's TPE beside Optuna's and uniform draws, on cheap functions with known optima.

    python benchmarks/sampler_quality.py --peers /tmp/peers.jsonl

Eighteen problems, twenty seeds (ten with 128 in flight), and 1, 2, 8, 32 and 128 trials in flight, which end in random
order. A study has 100 trials, or twice as many as are in flight. A run's score is its normalised regret: what is left of
the distance from the median of uniform draws to the optimum. Samplers are compared by the decimal logarithm of the regret
(at least 1e-4, which counts as solved), paired by problem and seed: the mean difference with its bootstrap interval over
the seeds, and the Wilcoxon signed-rank test over the problems.

Then, warm starts: 20 trials of each problem, with and without 30 trials of one whose optimum is elsewhere.

Optuna's Gaussian process is slow, and takes `pip install torch`: `--sampler trialfleet --sampler optuna-gp --seeds 3`.

Optuna's runs are always the same; `--peers` keeps them in a file, so that a change of trialfleet's takes minutes to
measure.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from measuring.results import interval, save
from sampler_parts.problems import PROBLEMS
from sampler_parts.runs import ON_REQUEST, SAMPLERS, Regrets, Run
from sampler_parts.warm import EARLIER, SHIFT, cold_and_warm

#: Trials of a study, unless twice as many as are in flight are more.
TRIALS = 100
#: Seeds by trials in flight. With 128 Optuna's take by far the longest: each draw models all pending trials.
SEEDS = {1: 20, 2: 20, 8: 20, 32: 20, 128: 10}
#: Regrets below are equally good: the problem is solved.
SOLVED = 1e-4
#: Trials after which a warm start is compared with a cold one.
WARM_TRIALS = 20

#: Regrets by problem and sampler, in the order of the seeds.
Table = dict[str, dict[str, list[float]]]


def compare(regrets: Table, sampler: str, other: str) -> dict[str, Any]:
    """How far a sampler is ahead of another: decimal logarithm of the ratio of regrets, negative where it is ahead."""
    first, second = (np.array([regrets[problem][name] for problem in regrets]) for name in (sampler, other))
    difference = np.log10(np.maximum(first, SOLVED)) - np.log10(np.maximum(second, SOLVED))  # by problem, seed
    mean, lower, upper = interval(difference.mean(axis=0).tolist())
    by_problem = difference.mean(axis=1)
    return {
        "mean": round(mean, 4),
        "interval": [round(lower, 4), round(upper, 4)],
        "wilcoxon_p": float(f"{wilcoxon(by_problem).pvalue:.2g}") if np.any(by_problem) else 1.0,
        "problems_ahead": int((by_problem < 0).sum()),
        "problems_behind": int((by_problem > 0).sum()),
        "by_problem": dict(zip(regrets, by_problem.round(3).tolist(), strict=True)),
    }


def measure(
    known: Regrets, *, problems: Sequence[str], samplers: Sequence[str], in_flight: int, seeds: int
) -> dict[str, Any]:
    """All samplers with so many trials in flight; prints a table."""
    trials = max(TRIALS, 2 * in_flight)
    regrets: Table = {
        problem: {
            sampler: [float(f"{known.of(Run(problem, sampler, in_flight, trials, seed)):.4g}") for seed in range(seeds)]
            for sampler in samplers
        }
        for problem in problems
    }
    print(f"\n{in_flight} in flight, {seeds} seeds: mean decimal logarithm of the normalised regret")
    print(f"{'':14}" + "".join(f"{sampler:>12}" for sampler in samplers))
    means = []
    for problem in problems:
        logs = [float(np.log10(np.maximum(regrets[problem][sampler], SOLVED)).mean()) for sampler in samplers]
        means.append(logs)
        print(f"{problem:14}" + "".join(f"{log:>12.2f}" for log in logs))
    print(f"{'mean':14}" + "".join(f"{log:>12.3f}" for log in np.mean(means, axis=0)))
    against = {other: compare(regrets, samplers[0], other) for other in samplers[1:]}
    for other, figures in against.items():
        lower, upper = figures["interval"]
        print(
            f"{samplers[0]} - {other}: {figures['mean']:+.3f} ({lower:+.3f} to {upper:+.3f}), p = {figures['wilcoxon_p']}, "
            f"ahead on {figures['problems_ahead']} problems, behind on {figures['problems_behind']}",
            flush=True,
        )
    return {
        "regrets": regrets,
        "mean_log10": dict(zip(samplers, np.mean(means, axis=0).round(4).tolist(), strict=True)),
        "against": against,
    }


def measure_warm_starts(*, problems: Sequence[str], in_flight: int, seeds: int) -> dict[str, Any]:
    """Cold and warm starts with so many trials in flight; prints a table."""
    regrets: Table = {}
    for problem in problems:
        pairs = [cold_and_warm(problem, trials=WARM_TRIALS, in_flight=in_flight, seed=seed) for seed in range(seeds)]
        regrets[problem] = {
            kind: [float(f"{pair[place]:.4g}") for pair in pairs] for place, kind in enumerate(("cold", "warm"))
        }
    figures = compare(regrets, "warm", "cold")
    lower, upper = figures["interval"]
    print(
        f"\nwarm - cold start, {in_flight} in flight, {WARM_TRIALS} trials: {figures['mean']:+.3f} ({lower:+.3f} to "
        f"{upper:+.3f}), better on {figures['problems_ahead']} problems, worse on {figures['problems_behind']}",
        flush=True,
    )
    return {"regrets": regrets, "against": {"cold": figures}}


def main() -> None:
    """Read the command line, measure, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 seeds, 8 in flight, 6 problems; keeps no results")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--in-flight", type=int, action="append", help="default 1, 2, 8, 32, 128")
    parser.add_argument("--problem", choices=PROBLEMS, action="append")
    parser.add_argument("--sampler", choices=SAMPLERS, action="append", help="the first is compared with the others")
    parser.add_argument("--peers", type=Path, help="file that keeps the outcomes of all samplers but trialfleet's")
    options = parser.parse_args()
    some = ["branin", "hartmann6", "boosting", "models", "steps6", "network"]
    problems = options.problem or (some if options.quick else list(PROBLEMS))
    samplers = options.sampler or [name for name in SAMPLERS if name != ON_REQUEST]
    flights = options.in_flight or ([8] if options.quick else list(SEEDS))
    seeds = {count: options.seeds or (5 if options.quick else SEEDS.get(count, 20)) for count in flights}
    known = Regrets(options.peers)
    results: dict[str, Any] = {
        "in_flight": {
            str(count): measure(known, problems=problems, samplers=samplers, in_flight=count, seeds=seeds[count])
            for count in flights
        }
    }
    if samplers[0] == "trialfleet":
        results["warm_start"] = {
            str(count): measure_warm_starts(problems=problems, in_flight=count, seeds=seeds[count])
            for count in flights
            if count <= WARM_TRIALS // 2
        }
    part = options.problem or options.sampler or options.seeds
    save(
        "sampler_quality",
        settings={
            "seeds": {str(count): seeds[count] for count in flights},
            "trials": {str(count): max(TRIALS, 2 * count) for count in flights},
            "solved": SOLVED,
            "warm_start": {"trials": WARM_TRIALS, "earlier_trials": EARLIER, "shift": SHIFT},
        },
        results=results,
        quick=options.quick or bool(part),
        packages=("trialfleet", "optuna", "numpy", "scipy"),
    )


if __name__ == "__main__":
    main()
