"""What the result cache keeps of a result, and how it answers."""

import pytest
from support.fleet_suite import make_evaluation

from trialfleet_shared.caching import CachedResult
from trialfleet_shared.messages import EvaluationResult, Outcome

RESULT = EvaluationResult(
    trial=3,
    rung=1,
    fold=2,
    attempt=0,
    outcome=Outcome.OK,
    value=0.5,
    metrics={"auc": 0.7},
    wall_seconds=2.0,
    cpu_seconds=1.0,
)


def test_a_value_answers_an_equal_evaluation() -> None:
    kept = CachedResult.of(RESULT)
    assert kept is not None
    asked = make_evaluation(9)
    answer = kept.answer(asked, worker="w")
    assert answer.key == asked.key
    assert (answer.value, answer.metrics, answer.cached, answer.worker) == (0.5, {"auc": 0.7}, True, "w")
    assert (answer.wall_seconds, answer.cpu_seconds) == (2.0, 1.0)
    assert kept.answer(asked).worker == ""


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.OK])
def test_nothing_but_values_is_kept(outcome: Outcome) -> None:
    told = EvaluationResult(trial=3, rung=1, fold=2, attempt=0, outcome=outcome, value=0.5)
    assert CachedResult.of(told) is None
