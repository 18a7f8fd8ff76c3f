"""Which evaluations are worth a second run."""

import pytest

from trialfleet_coordinator.attempts import Attempts
from trialfleet_shared.messages import TEST_FOLD, EvaluationKey, EvaluationResult, Outcome


def answered(attempts: Attempts, seconds: list[float], *, rung: int = 0, **fields: object) -> None:
    """Evaluations that took so many seconds."""
    for number, took in enumerate(seconds):
        key = EvaluationKey(number, rung, 0)
        attempts.begin(key, 0, 0.0)
        attempts.answer(EvaluationResult(*key, 0, **{"outcome": Outcome.OK, "value": 1.0, **fields}), took)  # type: ignore[arg-type]  # a test's shorthand


def in_flight(attempts: Attempts, *begun: float, rung: int = 0, fold: int = 0) -> list[EvaluationKey]:
    keys = [EvaluationKey(100 + number, rung, fold) for number in range(len(begun))]
    for key, at in zip(keys, begun, strict=True):
        attempts.begin(key, 0, at)
    return keys


def test_what_takes_much_longer_than_the_slow_end_of_its_like_straggles() -> None:
    attempts = Attempts()
    answered(attempts, [1.0] * 18 + [4.0] * 2)
    keys = in_flight(attempts, 0.0)
    assert attempts.stragglers(8.0, idle=1) == []
    assert attempts.stragglers(8.1, idle=1) == keys


def test_the_longest_in_flight_goes_first_as_far_as_there_are_slots() -> None:
    attempts = Attempts()
    answered(attempts, [1.0] * 5)
    young, old, middle = in_flight(attempts, 30.0, 10.0, 20.0)
    assert attempts.stragglers(100.0, idle=2) == [old, middle]
    assert attempts.stragglers(100.0, idle=2) == [], "the copies have these slots"
    attempts.forget(old)
    assert attempts.stragglers(100.0, idle=3) == [young]


@pytest.mark.parametrize("fields", [{"cached": True}, {"outcome": Outcome.ERROR, "value": None}])
def test_what_says_nothing_of_the_time_it_takes_is_not_counted(fields: dict[str, object]) -> None:
    attempts = Attempts()
    answered(attempts, [1.0] * 20, **fields)
    in_flight(attempts, 0.0)
    assert attempts.stragglers(1000.0, idle=1) == []


def test_a_rung_is_measured_by_itself() -> None:
    attempts = Attempts()
    answered(attempts, [1.0] * 20, rung=0)
    in_flight(attempts, 0.0, rung=1)
    assert attempts.stragglers(1000.0, idle=1) == []


def test_the_test_part_has_nothing_like_it() -> None:
    attempts = Attempts()
    answered(attempts, [1.0] * 20)
    in_flight(attempts, 0.0, fold=TEST_FOLD)
    assert attempts.stragglers(1000.0, idle=1) == []


def test_a_moment_is_not_worth_a_second_run() -> None:
    attempts = Attempts()
    answered(attempts, [0.01] * 20)
    keys = in_flight(attempts, 0.0)
    assert attempts.stragglers(0.9, idle=1) == []
    assert attempts.stragglers(1.1, idle=1) == keys
