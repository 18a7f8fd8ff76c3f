"""Studies whose trials' costs spread over orders of magnitude: dear ones wait where time runs out."""

import math
import statistics
from collections.abc import Callable

import pytest

from tests.support.simulated_study import simulated_study
from trialfleet_coordinator import promotion
from trialfleet_coordinator.budget import Budget
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Evaluation
from trialfleet_shared.space import Float, SearchSpace

LADDER = Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1)))
#: An evaluation takes as many seconds as it has rounds: 32 in the median, 145 in the mean.
SPACE = SearchSpace({"rate": Float(0, 1), "depth": Float(0, 1), "rounds": Float(1, 1000, log=True)})


def value(evaluation: Evaluation, *, rounds_matter: float) -> float:
    """At most 1: at rate 0.3 and depth 0.6, and where rounds matter with 1,000 of them; a little higher with less data."""
    rate, depth, rounds = (float(evaluation.params[name]) for name in ("rate", "depth", "rounds"))  # type: ignore[arg-type]
    distance = (rate - 0.3) ** 2 + (depth - 0.6) ** 2
    return 1 - distance - rounds_matter * (1 - math.log(rounds, 1000)) + 0.05 * (1 - evaluation.fraction) * depth


def regret(budget: Budget, *, seed: int, rounds_matter: float) -> float:
    """What the best trial of a study with one slot is short of."""
    report = simulated_study(
        LADDER,
        SPACE,
        lambda evaluation: value(evaluation, rounds_matter=rounds_matter),
        seconds=lambda evaluation: float(evaluation.params["rounds"]) * evaluation.fraction,  # type: ignore[arg-type]
        budget=budget,
        seed=seed,
    )
    return 1 - report.best_value if report.best_value is not None else 1.0


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and no trial is dear any more."""
    return lambda: monkeypatch.setattr(promotion, "DEAR", math.inf)


def test_more_is_found_in_the_same_time_where_dear_trials_are_no_better(without: Callable[[], None]) -> None:
    def mean_regret() -> float:
        seeds = range(20, 24)  # others than those that the rule's share was chosen on
        return statistics.fmean(regret(Budget(seconds=1000.0), seed=seed, rounds_matter=0.0) for seed in seeds)

    deferring = mean_regret()
    without()
    assert deferring < 0.7 * mean_regret()


def test_a_study_that_ends_with_its_trials_defers_none(without: Callable[[], None]) -> None:
    deferring = regret(Budget(trials=40), seed=0, rounds_matter=0.1)
    without()
    assert regret(Budget(trials=40), seed=0, rounds_matter=0.1) == deferring
