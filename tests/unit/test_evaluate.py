"""One call of the objective, on clocks that the test moves."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from trialfleet.rendering import one_line
from trialfleet_shared.codec import decode, encode
from trialfleet_shared.errors import TrialPruned
from trialfleet_shared.messages import ERROR_CHARACTERS, Evaluation, EvaluationResult, Outcome, ResultBatch
from trialfleet_workers.evaluate import evaluate, failed
from trialfleet_workers.objective import Objective

EVALUATION = Evaluation(trial=3, rung=1, fold=2, fraction=0.3, params={"x": 1.5}, attempt=2)


class MovedClock:
    def __init__(self) -> None:
        self.now = 100.0
        self.used = 7.0

    def wall(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.used

    def time(self) -> float:
        return self.now + 1.7e9


def evaluated(function: Callable[[dict[str, Any]], Any]) -> EvaluationResult:
    result = evaluate(EVALUATION, None, Objective(function, "f"), MovedClock(), worker="me")
    assert (result.key, result.attempt, result.worker) == (EVALUATION.key, 2, "me")
    batch = ResultBatch("s", (result,))
    assert decode(encode(batch)) == batch
    return result


def raising(error: BaseException) -> Callable[[dict[str, Any]], Any]:
    def function(params: dict[str, Any]) -> Any:
        raise error

    return function


def test_a_value_is_measured() -> None:
    clock = MovedClock()

    def function(params: dict[str, Any]) -> dict[str, float]:
        clock.now += 5.0
        clock.used += 3.0
        return {"value": params["x"], "loss": 2.0}

    result = evaluate(EVALUATION, None, Objective(function, "f"), clock)
    assert result == EvaluationResult(
        trial=3,
        rung=1,
        fold=2,
        attempt=2,
        outcome=Outcome.OK,
        value=1.5,
        metrics={"loss": 2.0},
        wall_seconds=5.0,
        cpu_seconds=3.0,
        started_at=1.7e9 + 100,
    )


def test_an_error_names_itself_first_and_the_users_lines_after() -> None:
    def inner(params: dict[str, Any]) -> Any:
        return params["missing"]

    result = evaluated(inner)
    assert result.outcome is Outcome.ERROR
    lines = (result.error or "").splitlines()
    assert lines[0] == "KeyError: 'missing'"
    assert lines[-2].endswith(", in inner")
    assert lines[-1].strip() == 'return params["missing"]'
    assert "trialfleet_workers" not in (result.error or "")


def test_the_users_own_line_is_told_however_deep_in_a_library_it_broke() -> None:
    deep = compile(
        "def call(depth):\n    if depth == 0:\n        raise ValueError('no numbers')\n    call(depth - 1)\n",
        "/usr/lib/python3.11/site-packages/sklearn/deep.py",
        "exec",
    )
    library: dict[str, Any] = {}
    exec(deep, library)  # as code of a library

    def fit(params: dict[str, Any]) -> Any:
        return library["call"](20)

    result = evaluated(fit)
    lines = (result.error or "").splitlines()
    assert lines[0] == "ValueError: no numbers"
    assert lines[1].endswith(", in fit")
    assert lines[-1].endswith('deep.py", line 3, in call')
    assert "(test_evaluate.py, line " in one_line(result.error or "")
    assert one_line(result.error or "").endswith(", in fit)")


@pytest.mark.parametrize("error", [optuna.TrialPruned("no use"), TrialPruned("no use")])
def test_pruned_is_an_outcome_of_its_own(error: Exception) -> None:
    result = evaluated(raising(error))
    assert (result.outcome, result.error, result.value) == (Outcome.PRUNED, "no use", None)


def test_a_pruned_trial_needs_no_message() -> None:
    assert evaluated(raising(optuna.TrialPruned())).error == "pruned by the objective"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)])
def test_nothing_that_is_raised_gets_through(error: BaseException) -> None:
    result = evaluated(raising(error))
    assert result.outcome is Outcome.ERROR
    assert (result.error or "").startswith(type(error).__name__)


def test_memory_that_is_gone_is_an_outcome_of_its_own() -> None:
    result = evaluated(raising(MemoryError("no room")))
    assert (result.outcome, result.error) == (Outcome.MEMORY, "MemoryError: no room")


def test_what_is_no_number_is_an_error_without_frames() -> None:
    assert evaluated(lambda _: float("nan")).error == "objective returned nan; a finite number is needed"


@pytest.mark.parametrize("message", ["x" * 10**6, "\udcff", "\ud800" * 5000, "\0"])
def test_messages_are_bounded_and_can_travel(message: str) -> None:
    result = evaluated(raising(ValueError(message)))
    assert 0 < len(result.error or "") <= ERROR_CHARACTERS
    assert (result.error or "").startswith("ValueError: ")


def test_an_error_that_can_not_be_shown_is_an_error() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert (evaluated(raising(BrokenError())).error or "").startswith("BrokenError: (its message can not be shown)")


def test_a_prune_that_can_not_be_shown_is_a_prune() -> None:
    class BrokenPrune(TrialPruned):
        def __str__(self) -> str:
            raise RuntimeError

    result = evaluated(raising(BrokenPrune()))
    assert (result.outcome, result.error) == (Outcome.PRUNED, "(its message can not be shown)")


def test_a_failure_is_told_within_bounds() -> None:
    result = failed(EVALUATION, Outcome.CRASH, "x" * 10**5, wall_seconds=-1.0, worker="me")
    assert len(result.error or "") == ERROR_CHARACTERS
    assert (result.wall_seconds, result.key, result.worker) == (0.0, EVALUATION.key, "me")
