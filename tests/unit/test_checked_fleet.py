"""Evaluating while the data are compared with their checksums: nothing is answered before they are known to be whole."""

import threading
from collections.abc import Iterator, Sequence

import pytest
from support.waiting import wait_until

from trialfleet_shared.errors import DataError, FleetError
from trialfleet_shared.fleet import FleetReport, LostEvaluation, Poison
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers.checked_fleet import CheckedFleet

SPEC = StudySpec(study="s", objective="f.py:f", objective_digest="", data_digest="d" * 32)


def evaluation(trial: int) -> Evaluation:
    return Evaluation(trial=trial, rung=0, fold=0, fraction=1.0, params={})


class Evaluator:
    """Answers everything at once with one value."""

    def __init__(self, value: float, failure: FleetError | None = None) -> None:
        self._value = value
        self._failure = failure
        self._answers: list[EvaluationResult] = []
        self.woken = threading.Event()
        self.spec: StudySpec | None = None
        self.submitted: list[int] = []
        self.closed = False

    def start(self, spec: StudySpec) -> None:
        if self._failure is not None:
            raise self._failure
        self.spec = spec

    def slots(self) -> int:
        return 1

    def workers(self) -> frozenset[str]:
        return frozenset()

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        for one in evaluations:
            self.submitted.append(one.trial)
            self._answers.append(
                EvaluationResult(trial=one.trial, rung=0, fold=0, attempt=0, outcome=Outcome.OK, value=self._value)
            )

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:  # it is at once
        answers, self._answers = self._answers, []
        return answers, []

    def wake(self) -> None:
        self.woken.set()

    def acknowledge(self) -> None:
        pass

    def bury(self, poison: Poison) -> None:
        raise NotImplementedError

    def report(self) -> FleetReport:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class Reading:
    """Data that are being read until the test says what is wrong with them."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._trouble: str | Exception = ""

    def tell(self, trouble: str | Exception) -> None:
        self._trouble = trouble
        self._told.set()

    def __call__(self) -> str:
        self._told.wait()
        if isinstance(self._trouble, Exception):
            raise self._trouble
        return self._trouble


@pytest.fixture
def reading() -> Iterator[Reading]:
    made = Reading()
    yield made
    made.tell("")


def unwanted() -> Evaluator:
    raise AssertionError("the data are imported again")


def polled(fleet: CheckedFleet) -> dict[int, float | None]:
    results, lost = fleet.poll(0.0)
    assert not lost
    return {result.trial: result.value for result in results}


def first_answers(fleet: CheckedFleet) -> dict[int, float | None]:
    answers: dict[int, float | None] = {}

    def some() -> bool:
        answers.update(polled(fleet))
        return bool(answers)

    wait_until(some, "there are answers")
    return answers


def test_answers_are_kept_back_until_the_data_are_known_to_be_whole(reading: Reading) -> None:
    inner = Evaluator(1.0)
    fleet = CheckedFleet(inner, reading, unwanted)
    fleet.start(SPEC)
    fleet.submit([evaluation(0), evaluation(1)])
    assert inner.submitted == [0, 1]
    assert polled(fleet) == {}
    fleet.submit([evaluation(2)])
    assert polled(fleet) == {}
    assert not inner.woken.is_set()

    reading.tell("")
    assert inner.woken.wait(10)
    assert polled(fleet) == {0: 1.0, 1: 1.0, 2: 1.0}
    fleet.submit([evaluation(3)])
    assert polled(fleet) == {3: 1.0}


def test_what_was_evaluated_on_damaged_data_is_evaluated_again(reading: Reading) -> None:
    inner, other = Evaluator(1.0), Evaluator(2.0)
    fleet = CheckedFleet(inner, reading, lambda: other)
    fleet.start(SPEC)
    fleet.submit([evaluation(0), evaluation(1)])
    assert polled(fleet) == {}
    fleet.submit([evaluation(2)])
    reading.tell("a block changed")
    assert first_answers(fleet) == {0: 2.0, 1: 2.0, 2: 2.0}
    assert inner.closed
    assert other.spec == SPEC
    fleet.submit([evaluation(3)])
    assert (inner.submitted, other.submitted) == ([0, 1, 2], [0, 1, 2, 3])
    assert polled(fleet) == {3: 2.0}
    fleet.close()
    assert other.closed


def test_evaluators_that_do_not_start_on_damaged_data_start_on_whole_ones(reading: Reading) -> None:
    other = Evaluator(2.0)
    fleet = CheckedFleet(Evaluator(1.0, FleetError("they do not start")), reading, lambda: other)
    reading.tell("a block changed")
    fleet.start(SPEC)
    fleet.submit([evaluation(0)])
    assert polled(fleet) == {0: 2.0}


def test_evaluators_that_do_not_start_on_whole_data_are_told(reading: Reading) -> None:
    fleet = CheckedFleet(Evaluator(1.0, FleetError("they do not start")), reading, unwanted)
    reading.tell("")
    with pytest.raises(FleetError, match="they do not start"):
        fleet.start(SPEC)


def test_data_that_can_not_be_compared_are_told(reading: Reading) -> None:
    inner = Evaluator(1.0)
    fleet = CheckedFleet(inner, reading, unwanted)
    fleet.start(SPEC)
    fleet.submit([evaluation(0)])
    reading.tell(DataError("no"))
    assert inner.woken.wait(10)
    with pytest.raises(DataError, match="no"):
        fleet.poll(0.0)
