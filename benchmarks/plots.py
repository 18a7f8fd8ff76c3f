"""Draw the figures of docs/benchmarks.md from the results that are kept.

python benchmarks/plots.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from measuring.results import RESULTS

IMAGES = Path(__file__).parents[1] / "docs" / "images"
OURS = "trialfleet"


def _results(topic: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{topic}.json").read_text())
    return document


def _save(name: str) -> None:
    plt.tight_layout()
    plt.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    plt.close()


def anytime_regret() -> None:
    """Regret on the published surrogates over the share of the budget, by workers."""
    document = _results("yahpo")
    grid = document["settings"]["curve"]
    _, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    names = sorted({name for tables in document["results"].values() for name in tables[0]["optimizers"]} - {OURS})
    colours = {OURS: "black"} | {name: f"C{place}" for place, name in enumerate(names)}
    axis: Axes
    for axis, (workers, tables) in zip(axes, document["results"].items(), strict=True):
        for name, figures in sorted(tables[0]["optimizers"].items()):
            axis.plot(grid, figures["curve"], label=name, linewidth=2.5 if name == OURS else 1, color=colours[name])
        axis.set(xscale="log", title=f"{workers} worker{'s' * (workers != '1')}", xlabel="share of the budget")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("mean normalised regret")
    _save("benchmark-yahpo")


def critical_differences() -> None:
    """Mean ranks at the end of the budget, by workers; bars join those that Nemenyi's test does not separate."""
    document = _results("yahpo")
    _, axes = plt.subplots(1, len(document["results"]), figsize=(12, 3.2))
    axis: Axes
    for axis, (workers, tables) in zip(axes, document["results"].items(), strict=True):
        difference = tables[0]["critical_difference"]
        ranked = sorted((figures["rank"][-1], name) for name, figures in tables[0]["optimizers"].items())
        ranks = [rank for rank, _ in ranked]
        for row, (rank, name) in enumerate(ranked):
            axis.plot(rank, row, "o", color="black" if name == OURS else "C0")
        for first, last in _alike(ranks, difference):
            axis.plot([ranks[first], ranks[last]], [first - 0.35, first - 0.35], color="grey", linewidth=3)
        axis.set_yticks(range(len(ranked)), [name for _, name in ranked], fontsize=8)
        axis.invert_yaxis()
        title = f"{workers} worker{'s' * (workers != '1')}, critical difference {difference:.2f}"
        axis.set(xlim=(1, len(ranked)), xlabel="mean rank")
        axis.set_title(title, fontsize=9)
    _save("benchmark-yahpo-ranks")


def _alike(ranks: list[float], difference: float) -> list[tuple[int, int]]:
    """The longest runs of these ranks, in order, whose first and last differ by less than `difference`."""
    runs: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = sum(other < rank + difference for other in ranks) - 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def sampler_quality() -> None:
    """How far ahead of Optuna's TPE the sampler is, by evaluations in flight."""
    runs = _results("sampler_quality")["results"]["in_flight"]
    counts = sorted(runs, key=int)
    _, axis = plt.subplots(figsize=(6, 4))
    for name, label in (("optuna", "against Optuna TPE, univariate"), ("optuna-mv", "against multivariate, group")):
        means = [runs[count]["against"][name]["mean"] for count in counts]
        bounds = [runs[count]["against"][name]["interval"] for count in counts]
        errors = [[mean - low for mean, (low, _) in zip(means, bounds, strict=True)],
                  [high - mean for mean, (_, high) in zip(means, bounds, strict=True)]]  # fmt: skip
        axis.errorbar(counts, means, yerr=errors, marker="o", capsize=4, label=label)
    axis.axhline(0, color="grey", linewidth=1)
    axis.set(xlabel="evaluations in flight", ylabel="difference of log10 regret (below 0: ahead)")
    axis.legend()
    _save("benchmark-sampler")


def breakdown() -> None:
    """CPU microseconds of a trial by part, embedded and over RabbitMQ."""
    ways = _results("breakdown")["results"]
    used = {way: {**figures["CPU"], **figures["elsewhere"]} for way, figures in ways.items()}
    parts = sorted({part for each in used.values() for part in each}, key=lambda part: -used["rabbitmq"].get(part, 0.0))
    _, axis = plt.subplots(figsize=(9, 4))
    left = dict.fromkeys(used, 0.0)
    for number, part in enumerate(parts):
        widths = [each.get(part, 0.0) for each in used.values()]
        axis.barh(list(used), widths, left=list(left.values()), label=part, color=plt.cm.tab20(number))
        left = {way: left[way] + width for way, width in zip(used, widths, strict=True)}
    axis.set(xlabel="CPU microseconds per trial, of all processes")
    axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.4))
    _save("benchmark-breakdown")


def main() -> None:
    """Draw all."""
    mpl.use("svg")
    plt.rcParams["svg.hashsalt"] = "trialfleet"
    anytime_regret()
    critical_differences()
    sampler_quality()
    breakdown()


if __name__ == "__main__":
    main()
