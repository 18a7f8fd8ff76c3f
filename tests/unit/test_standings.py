"""The table of a study's trials, by itself: `test_study.py` has what a study makes of it."""

import pytest

from trialfleet_coordinator.promotion import Promotion
from trialfleet_coordinator.standings import Standings
from trialfleet_coordinator.trial import Phase, Trial
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import EvaluationKey, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig

LADDER = Ladder((Rung(0.5, 1), Rung(1.0, 1), Rung(1.0, 2)))


def standings() -> Standings:
    return Standings(LADDER, EfficiencyConfig(reduction_factor=3.0), maximize=True, defer_dear=False)


def result(trial: int, *, slot: int | None = 0, worker: str = "w", started_at: float | None = None) -> EvaluationResult:
    return EvaluationResult(
        trial, 0, 0, 0, Outcome.OK, value=float(trial), worker=worker, slot=slot, started_at=started_at
    )


def on_first_rung(number: int, answer: EvaluationResult | None = None) -> Trial:
    """It finished the first rung with its number as its value, and waits."""
    value = float(number)
    return Trial(
        number,
        {},
        {},
        phase=Phase.WAITING,
        values={(0.5, 0): value},
        results=[answer or result(number)],
        value=value,
    )


def test_what_a_slot_evaluated_first_is_told_by_the_time_where_a_study_is_resumed() -> None:
    table = standings()
    table.restore(
        [
            on_first_rung(0, result(0, started_at=30.0)),
            on_first_rung(1, result(1, started_at=10.0)),
            on_first_rung(2, result(2, started_at=20.0)),
            on_first_rung(3, result(3, started_at=50.0, slot=1)),
            on_first_rung(4, result(4, started_at=60.0, worker="v")),
            on_first_rung(5, result(5, slot=None)),
        ]
    )
    assert table.firsts == {EvaluationKey(trial, 0, 0) for trial in (1, 3, 4)}


def test_who_climbed_before_a_study_was_resumed_has_taken_a_place() -> None:
    climber = on_first_rung(2)
    climber.rung, climber.phase = 1, Phase.EVALUATING
    table = standings()
    table.restore([on_first_rung(0), on_first_rung(1), climber])
    table.validate()
    assert table.candidate(closing=False) is None, "one third of three has climbed"
    assert table.candidate(closing=True) == Promotion(1, 0)


@pytest.mark.parametrize(("folds", "raced"), [(1, False), (2, True)])
def test_two_folds_are_enough_for_a_race(folds: int, raced: bool) -> None:
    ladder = Ladder((Rung(0.5, 1), Rung(1.0, folds)))
    table = Standings(ladder, EfficiencyConfig(), maximize=True, defer_dear=False)
    assert (table.racing is not None) is raced


def failed(number: int) -> Trial:
    """It finished the first rung with its number as its value, climbed, and failed."""
    trial = on_first_rung(number)
    trial.rung, trial.phase = 1, Phase.FAIL
    return trial


def test_who_failed_is_not_the_best_of_a_resumed_study() -> None:
    table = standings()
    table.restore([on_first_rung(0), on_first_rung(1), failed(2)])
    table.validate()
    assert table.best == (1, 1.0, False)
    assert table.since_best == 1


def test_where_the_only_one_fails_nobody_is_the_best_and_nothing_is_counted_since() -> None:
    table = standings()
    trial = on_first_rung(0)
    trial.phase = Phase.EVALUATING
    table.add(trial)
    table.finish(trial, 0.0)
    later = Trial(1, {}, {}, value=None)
    table.add(later)
    table.decide(later, 0, failed=False)
    later.phase = Phase.PRUNED
    assert (table.best, table.since_best) == ((0, 0.0, False), 1)
    table.decide(trial, 0, failed=True)
    trial.phase = Phase.FAIL
    table.validate()
    assert (table.best, table.since_best) == (None, 0)
