"""A small simulation of trades that are made when three models are sure enough."""

from functools import cache

import numpy as np

#: Opportunities to trade.
OPPORTUNITIES = 50_000
#: Cost of a trade, as a share of what is traded.
COST = 0.0006


@cache
def market() -> dict[str, np.ndarray]:
    """Each opportunity's return, and how sure each model was of it. Made once per process."""
    random = np.random.default_rng(3)
    quality = random.beta(2, 2, OPPORTUNITIES)

    def confidence(noise: float, bias: float) -> np.ndarray:
        return np.clip(0.5 + 0.5 * quality + bias + random.normal(0, noise, OPPORTUNITIES), 0, 1)

    return {
        "analyst": confidence(0.10, 0.00),
        "tactician": confidence(0.16, 0.05),
        "ensemble": confidence(0.06, -0.04),
        "returns": 0.004 * (quality - 0.55) + random.normal(0, 0.004, OPPORTUNITIES),
    }


def simulate(params: dict[str, float]) -> float:
    """Mean return of a trade over its spread, times the root of the number of trades: a Sharpe ratio of the whole."""
    known = market()
    taken = (
        (known["analyst"] >= params["analyst_confidence_threshold"])
        & (known["tactician"] >= params["tactician_confidence_threshold"])
        & (known["ensemble"] >= params["ensemble_confidence_threshold"])
    )
    profits = known["returns"][taken] - COST
    if profits.size < 30:
        return 0.0  # too few trades to say anything
    return float(profits.mean() / profits.std() * np.sqrt(profits.size))
