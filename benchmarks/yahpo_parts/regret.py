"""Regret over simulated time, and the statistics of many runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from measuring.results import interval
from yahpo_parts.anchors import Anchor

#: Shares of the budget at which optimisers are compared.
POINTS = (0.1, 0.3, 1.0)
#: Shares of the budget of a curve's points.
CURVE = tuple(float(share) for share in np.geomspace(0.01, 1.0, 50).round(4))

#: What the others are compared with.
OURS = "trialfleet"


class Key(NamedTuple):
    """What identifies a run."""

    scenario: str
    instance: str
    workers: int
    optimizer: str
    seed: int


#: A run's (share of the budget, true score at full fidelity) whenever its incumbent changed.
Steps = Sequence[tuple[float, float]]


def regrets(steps: Steps, anchor: Anchor, best: float, shares: Sequence[float]) -> np.ndarray:
    """Normalised regret of the incumbent at shares of the budget.

    0 is the best known score, 1 the median of random configurations, what is worse than that, and having no incumbent.
    """
    times = [time for time, _ in steps]
    scores = [anchor.median, *(score for _, score in steps)]
    places = np.searchsorted(times, shares, side="right")
    values = (best - np.array([scores[place] for place in places])) / (best - anchor.median)
    return np.clip(values, 0.0, 1.0)


def best_scores(runs: Mapping[Key, Steps], anchors: Mapping[str, Mapping[str, Anchor]]) -> dict[tuple[str, str], float]:
    """The best known score of each (scenario, instance), the runs' own included."""
    best: dict[tuple[str, str], float] = {}
    for key, steps in runs.items():
        place = key.scenario, key.instance
        known = best.get(place, anchors[key.scenario][key.instance].best)
        best[place] = max([known, *(score for _, score in steps)])
    return best


#: Regrets at `POINTS` and on `CURVE` by optimiser and (scenario, instance), one array per seed.
_Regrets = dict[str, dict[tuple[str, str], list[np.ndarray]]]


def summaries(
    runs: Mapping[Key, Steps], anchors: Mapping[str, Mapping[str, Anchor]], workers: int
) -> list[dict[str, Any]]:
    """The figures of the runs with so many workers.

    First of the optimisers that have seen all instances; if there are others, also of all optimisers, on the instances
    that every one has seen.
    """
    best = best_scores(runs, anchors)
    curves: _Regrets = {}
    for key, steps in sorted(runs.items()):
        if key.workers == workers:
            anchor = anchors[key.scenario][key.instance]
            place = key.scenario, key.instance
            values = regrets(steps, anchor, best[place], [*POINTS, *CURVE])
            curves.setdefault(key.optimizer, {}).setdefault(place, []).append(values)
    most = max((len(one) for one in curves.values()), default=0)
    thorough = {name: one for name, one in curves.items() if len(one) == most}
    few = set.intersection(*(set(one) for one in curves.values())) if curves else set()
    return [
        _summary(group) for group in ([thorough] if thorough == curves else [thorough, curves] if few else [thorough])
    ]


def _summary(curves: _Regrets) -> dict[str, Any]:
    """Figures of these optimisers, on the instances that all have seen."""
    places = sorted(set.intersection(*(set(one) for one in curves.values())))
    # optimizer, instance, share of the budget
    table = np.array([[np.mean(one[place], axis=0) for place in places] for one in curves.values()])
    ranks = scipy.stats.rankdata(table[:, :, : len(POINTS)], axis=0)
    return {
        "instances": [list(place) for place in places],
        "optimizers": {
            name: {
                "seeds": [len(one[place]) for place in places],
                "regret": [_rounded(interval(table[index, :, point])) for point in range(len(POINTS))],
                "regret_by_scenario": _by_scenario(table[index], places),
                "behind_ours": _behind(table, list(curves), index),
                "rank": ranks[index].mean(axis=0).round(3).tolist(),
                "regret_by_instance": table[index, :, : len(POINTS)].round(4).tolist(),
                "curve": table[index, :, len(POINTS) :].mean(axis=0).round(5).tolist(),
            }
            for index, (name, one) in enumerate(curves.items())
        },
        "critical_difference": _critical_difference(len(curves), len(places)),
        "friedman_p": [_friedman(table[:, :, point]) for point in range(len(POINTS))],
    }


def _behind(table: np.ndarray, names: Sequence[str], index: int) -> list[tuple[float, float, float]] | None:
    """How much more regret than trialfleet's at `POINTS`, on the same instances; None of trialfleet itself, and without it."""
    if OURS not in names or names[index] == OURS:
        return None
    difference = table[index] - table[names.index(OURS)]
    return [_rounded(interval(difference[:, point])) for point in range(len(POINTS))]


def printed(figures: Mapping[str, Any], workers: int) -> str:
    """The table of one number of workers, lowest regret at the end first."""
    lines = [
        f"\n{workers} workers, {len(figures['instances'])} instances: mean normalised regret x 100, mean rank;",
        "in the line below, how much the optimiser is behind trialfleet (95% interval)",
        f"{'':16}" + "".join(f"{f'{share:.0%} of the budget':>28}" for share in POINTS) + f"{'seeds':>7}",
    ]
    for name, one in sorted(figures["optimizers"].items(), key=lambda item: float(item[1]["regret"][-1][0])):
        cells = [
            f"{100 * mean:>22.2f}{rank:>6.2f}" for (mean, *_), rank in zip(one["regret"], one["rank"], strict=True)
        ]
        lines.append(f"{name:16}" + "".join(cells) + f"{min(one['seeds']):>7}")
        if one["behind_ours"]:
            behind = [
                f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" for mean, low, high in one["behind_ours"]
            ]
            lines.append(f"{'':16}" + "".join(f"{cell:>28}" for cell in behind))
    p = ", ".join(f"{value:.1g}" for value in figures["friedman_p"])
    lines.append(f"critical difference of ranks (Nemenyi, 5%): {figures['critical_difference']:.2f}; Friedman p: {p}")
    return "\n".join(lines)


def _by_scenario(table: np.ndarray, places: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    names = np.array([scenario for scenario, _ in places])
    return {
        name: table[names == name, : len(POINTS)].mean(axis=0).round(5).tolist() for name in sorted(set(names.tolist()))
    }


def _critical_difference(optimizers: int, instances: int) -> float:
    """Of mean ranks, after Nemenyi, at 5% (Demsar 2006, "Statistical Comparisons of Classifiers")."""
    quantile = scipy.stats.studentized_range.ppf(0.95, optimizers, math.inf) / math.sqrt(2)
    return round(float(quantile * math.sqrt(optimizers * (optimizers + 1) / (6 * instances))), 3)


def _friedman(table: np.ndarray) -> float:
    """Chance of ranks as different as these if all optimisers were alike."""
    if len(table) < 3:  # the test is defined from three on
        return 1.0
    return float(scipy.stats.friedmanchisquare(*table).pvalue)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
