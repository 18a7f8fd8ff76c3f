"""Which evaluations are worth another run."""

import pytest

from trialfleet_coordinator.attempts import LOSSES, REFUSALS, Attempts, Retry
from trialfleet_shared.messages import TEST_FOLD, EvaluationKey, EvaluationResult, Outcome


def answered(attempts: Attempts, seconds: list[float], *, rung: int = 0, **fields: object) -> None:
    """Evaluations that took so many seconds."""
    for number, took in enumerate(seconds):
        key = EvaluationKey(number, rung, 0)
        attempts.begin(key, 0, -50.0)
        attempts.answer(EvaluationResult(*key, 0, **{"outcome": Outcome.OK, "value": 1.0, **fields}), took - 50.0)  # type: ignore[arg-type]  # a test's shorthand


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


KEY = EvaluationKey(0, 0, 0)


def refused(attempts: Attempts, worker: str, *, key: EvaluationKey = KEY, attempt: int = 0) -> Retry:
    """What follows a refusal; where that is another attempt, it is published."""
    attempts.begin(key, attempt, 0.0)
    return attempts.refuse(EvaluationResult(*key, attempt, Outcome.REFUSED, error="other code", worker=worker))


def there(*workers: str) -> Attempts:
    attempts = Attempts()
    attempts.workers = frozenset(workers)
    return attempts


def test_who_refuses_may_do_so_for_as_long_as_another_worker_might_not() -> None:
    attempts = there("good", "bad")
    assert {refused(attempts, "bad", attempt=attempt) for attempt in range(10 * REFUSALS)} == {Retry.AGAIN}


def test_where_all_workers_refuse_the_refusals_are_counted() -> None:
    attempts = there("one", "other")
    refused(attempts, "one", key=EvaluationKey(1, 0, 0))
    verdicts = [refused(attempts, "other", attempt=attempt) for attempt in range(REFUSALS)]
    assert verdicts == [Retry.AGAIN] * (REFUSALS - 1) + [Retry.NEVER]


def test_refusals_count_in_a_row_without_hope() -> None:
    attempts = there("bad")
    for attempt in range(REFUSALS - 1):
        assert refused(attempts, "bad", attempt=attempt) is Retry.AGAIN
    attempts.workers = frozenset({"bad", "good"})
    assert refused(attempts, "bad", attempt=10) is Retry.AGAIN
    attempts.workers = frozenset({"bad"})
    assert refused(attempts, "bad", attempt=11) is Retry.AGAIN


def test_who_evaluates_again_does_not_refuse_the_study_any_more() -> None:
    attempts = there("mended", "bad")
    refused(attempts, "mended")
    answered(attempts, [1.0], worker="mended")
    assert {refused(attempts, "bad", attempt=attempt) for attempt in range(REFUSALS)} == {Retry.AGAIN}


def test_an_answer_from_a_cache_says_nothing_of_the_code() -> None:
    attempts = there("bad")
    for attempt in range(REFUSALS - 1):
        refused(attempts, "bad", attempt=attempt)
        answered(attempts, [1.0], worker="bad", cached=True)
        attempts.begin(KEY, attempt, 0.0)
    other = EvaluationKey(7, 0, 0)
    verdicts = [refused(attempts, "bad", key=other, attempt=attempt) for attempt in range(REFUSALS)]
    assert verdicts[-1] is Retry.NEVER


def test_a_late_refusal_tells_of_its_worker_all_the_same() -> None:
    attempts = there("bad")
    attempts.begin(KEY, 1, 0.0)
    late = EvaluationResult(*KEY, 0, Outcome.REFUSED, error="other code", worker="bad")
    assert attempts.refuse(late) is Retry.LATE
    verdicts = [refused(attempts, "bad", attempt=1 + attempt) for attempt in range(REFUSALS)]
    assert verdicts[-1] is Retry.NEVER


def test_refusals_are_no_losses() -> None:
    attempts = there("good", "bad")
    for attempt in range(LOSSES):
        refused(attempts, "bad", attempt=attempt)
    attempts.begin(KEY, LOSSES, 0.0)
    assert attempts.lose(KEY, LOSSES, "its worker is gone", 0.0) is Retry.AGAIN
