"""Cheap functions with known optima: smooth and rugged, few and many parameters, all kinds of them, conditional spaces.

The analytic ones are from the collection of S. Surjanovic and D. Bingham, "Virtual Library of Simulation Experiments".
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trialfleet_shared.space import Categorical, Distribution, Float, Int, Scalar, SearchSpace


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


def griewank(**x: float) -> float:
    point = np.array(list(x.values())) - 70.0
    return float((point**2).sum() / 4000 - np.prod(np.cos(point / np.sqrt(np.arange(1, len(point) + 1)))) + 1)


def michalewicz(**x: float) -> float:
    point = np.array(list(x.values()))
    return -float((np.sin(point) * np.sin(np.arange(1, len(point) + 1) * point**2 / np.pi) ** 20).sum())


def styblinski(**x: float) -> float:
    point = np.array(list(x.values()))
    return float((point**4 - 16 * point**2 + 5 * point).sum() / 2)


def steps(**x: float) -> float:
    """Plateaus: nothing tells one point of a step from another."""
    return sum(math.floor(abs(value - 2.3)) for value in x.values())


def choices(**x: str) -> float:
    """Categoricals only, of which neighbours interact: the same letter twice costs half of what it is worth."""
    letters = list(x.values())
    worth = sum((ord(letter) - ord("a")) / (1 + place) for place, letter in enumerate(letters))
    return worth + 0.5 * sum(left == right for left, right in itertools.pairwise(letters))


def widths(**x: int) -> float:
    """Whole numbers in their logarithm; the product of the first two should be 4096."""
    batch, hidden, layers, epochs = (math.log2(value) for value in x.values())
    return (batch + hidden - 12) ** 2 + 0.3 * (batch - 5) ** 2 + 0.5 * (layers - 2) ** 2 + 0.1 * (epochs - 7) ** 2


def mixed(**x: Scalar) -> float:
    """Twenty parameters of five kinds; each fourth as important as the one before."""
    total = 0.0
    for place, value in enumerate(x.values()):
        kind, weight = place % 5, 0.25 ** (place // 5)
        if isinstance(value, str):
            total += weight * {"a": 0.5, "b": 0.0, "c": 0.25, "d": 1.0}[value]
        elif isinstance(value, int | float):
            number = (value, (math.log10(max(value, 1e-9)) + 5) / 5, value / 50, 0.0, math.log10(max(value, 1)) / 3)[
                kind
            ]
            total += weight * 4 * (number - 0.2 - 0.1 * kind) ** 2
    return total


def network(layers: int, rate: float, **rest: float) -> float:
    """Conditional on a whole number: each further layer has a width of its own, and pays only where that is right."""
    fit = 0.5 * (math.log10(rate) + 3) ** 2 + 0.25 * (3 - layers)
    for place in range(layers):
        fit += 0.04 * (math.log2(rest[f"width{place}"]) - 8 + place) ** 2
    return fit + (0.3 * (rest["dropout"] - 0.25) ** 2 if layers > 1 else 0.0)


#: The best eight letters: `a` first, then `b` and `a` in turn.
CHOICES_OPTIMUM = min(
    choices(**{str(place): letter for place, letter in enumerate(letters)})
    for letters in itertools.product("ab", repeat=8)
)

KINDS: list[Distribution] = [
    Float(0, 1),
    Float(1e-5, 1, log=True),
    Int(1, 50),
    Categorical(["a", "b", "c", "d"]),
    Int(1, 1000, log=True),
]

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
    "griewank6": Problem(_box(6, -600, 600), griewank, 0.0),
    "michalewicz5": Problem(_box(5, 0, math.pi), michalewicz, -4.687658),
    "styblinski4": Problem(_box(4, -5, 5), styblinski, -39.16616571 * 4),
    "steps6": Problem(_box(6, -10, 10), steps, 0.0),
    "choices8": Problem(
        SearchSpace({f"c{index}": Categorical(list("abcdef")) for index in range(8)}), choices, CHOICES_OPTIMUM
    ),
    "widths4": Problem(
        SearchSpace(
            {
                "batch": Int(1, 4096, log=True),
                "hidden": Int(1, 4096, log=True),
                "layers": Int(1, 64, log=True),
                "epochs": Int(1, 1000, log=True),
            }
        ),
        widths,
        0.0,
    ),
    "mixed20": Problem(SearchSpace({f"p{index}": KINDS[index % 5] for index in range(20)}), mixed, 0.0),
    "network": Problem(
        SearchSpace(
            {
                "layers": Int(1, 3),
                "rate": Float(1e-6, 1, log=True),
                "width0": Int(4, 4096, log=True),
                "width1": Int(4, 4096, log=True, when={"layers": [2, 3]}),
                "width2": Int(4, 4096, log=True, when={"layers": [3]}),
                "dropout": Float(0, 0.9, when={"layers": [2, 3]}),
            }
        ),
        network,
        0.0,
    ),
}
