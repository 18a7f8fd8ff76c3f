"""An objective whose learning curves cross: with little data those lead that end up poor."""

import math
import statistics

import pytest

from tests.support.simulated_study import simulated_study
from trialfleet_coordinator import rung_choice
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.sampling import tpe
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Evaluation
from trialfleet_shared.space import Float, SearchSpace

LADDER = Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1)))
SPACE = SearchSpace({"rate": Float(1e-3, 1.0, log=True), "decay": Float(1e-6, 0.1, log=True)})


def curve(evaluation: Evaluation) -> float:
    """Approaches its end the faster the higher the rate, and ends the higher the lower it is; at most 0.9411 on all rows."""
    rate, decay = (float(evaluation.params[name]) for name in ("rate", "decay"))  # type: ignore[arg-type]
    speed, distance = (math.log10(rate) + 3) / 3, (math.log10(decay) + 6) / 5 - 0.6
    end = 0.95 - 0.35 * speed**1.5 - 0.15 * distance**2
    return end - (end - 0.1) * math.exp(-evaluation.fraction * (3 + 40 * speed))


def regret(seed: int, *, trials: int) -> float:
    """What the best trial of a study is short of the best rate and decay."""
    report = simulated_study(
        LADDER,
        SPACE,
        curve,
        seconds=lambda evaluation: 10 * evaluation.fraction,
        budget=Budget(trials=trials),
        seed=seed,
    )
    assert report.best_value is not None
    return 0.9411 - report.best_value


def test_trials_that_start_on_all_rows_find_what_lower_rungs_misjudge(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a study too large for the surrogate, which makes up for some of it."""
    monkeypatch.setattr(tpe, "MOST_MODELLED", -1)

    def mean_regret() -> float:
        return statistics.fmean(regret(seed, trials=300) for seed in range(4))

    with_them = mean_regret()
    monkeypatch.setattr(rung_choice, "FULL_START_AFTER", math.inf)
    assert with_them < 0.5 * mean_regret()
