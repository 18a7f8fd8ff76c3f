"""What every fleet has to do. A subclass gives the fixture `fleet`: not started, 2 slots, objectives from `BASE`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.waiting import wait_until
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.fleet import Fleet
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers.digests import code_digest

#: Where the objectives of the suite are.
BASE = Path(__file__).parent
#: Seconds that an answer may take before a test fails: a fleet with a broker on a busy machine is slow at first.
_PATIENCE = 60.0


def make_spec(objective: str, **fields: Any) -> StudySpec:
    return StudySpec(study="suite", objective=objective, objective_digest=code_digest(objective, BASE), **fields)


def make_evaluation(trial: int, *, attempt: int = 0, fraction: float = 1.0, **params: Any) -> Evaluation:
    return Evaluation(trial=trial, rung=0, fold=0, fraction=fraction, params=params, attempt=attempt)


def collect(fleet: Fleet, count: int) -> list[EvaluationResult]:
    """Poll until `count` results are there; nothing may be lost meanwhile."""
    results: list[EvaluationResult] = []
    end = time.monotonic() + _PATIENCE
    while len(results) < count and time.monotonic() < end:
        arrived, lost = fleet.poll(1.0)
        assert lost == []
        results += arrived
    assert len(results) >= count, f"{len(results)} of {count} results after {_PATIENCE:g} s"
    return results


def answers(fleet: Fleet, evaluations: Sequence[Evaluation]) -> dict[int, EvaluationResult]:
    """Submit, collect, acknowledge; results by trial."""
    fleet.submit(evaluations)
    results = collect(fleet, len(evaluations))
    fleet.acknowledge()
    return {result.trial: result for result in results}


class FleetSuite:
    """The contract of `trialfleet_shared.fleet.Fleet`."""

    #: Whether a crash of the objective is survived.
    isolates = True

    def test_every_evaluation_is_answered_with_its_own_value(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        results = answers(fleet, [make_evaluation(trial, x=trial / 4) for trial in range(50)])
        assert sorted(results) == list(range(50))
        for trial, result in results.items():
            assert result.outcome is Outcome.OK
            assert result.value == trial / 2
            assert result.metrics == {"x": trial / 4}
            assert result.error is None
            assert result.worker in fleet.workers()

    def test_a_result_names_the_evaluation_it_answers(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        evaluation = Evaluation(trial=3, rung=2, fold=1, fraction=0.5, params={"x": 1.0}, attempt=4)
        result = answers(fleet, [evaluation])[3]
        assert result.key == evaluation.key
        assert result.attempt == 4

    def test_what_fails_costs_its_own_evaluation(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:misbehave"))
        cases = ["raise", "nan", "none", "prune", "unknown"]
        evaluations = [make_evaluation(trial, what=what) for trial, what in enumerate(cases)]
        results = answers(fleet, [*evaluations, make_evaluation(9, what="return", x=1.5)])
        assert [results[trial].outcome for trial in range(5)] == [
            Outcome.ERROR,
            Outcome.ERROR,
            Outcome.ERROR,
            Outcome.PRUNED,
            Outcome.ERROR,
        ]
        assert "ValueError: bad luck" in (results[0].error or "")
        assert results[1].error == "objective returned nan; a finite number is needed"
        assert results[3].error == "not promising"
        assert results[9].value == 1.5

    def test_the_budget_is_the_fraction(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:misbehave"))
        assert answers(fleet, [make_evaluation(0, what="budget", fraction=0.25)])[0].value == 0.25

    def test_coroutines_are_run(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double_later"))
        assert answers(fleet, [make_evaluation(0, x=4.0)])[0].value == 8.0

    def test_an_evaluation_ends_at_its_deadline(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:misbehave", deadline_seconds=0.5))
        began = time.monotonic()
        late = answers(fleet, [make_evaluation(0, what="sleep", seconds=6.0)])[0]
        assert late.outcome is Outcome.TIMEOUT
        assert late.value is None
        assert 0.5 <= late.wall_seconds < time.monotonic() - began + 0.1
        assert answers(fleet, [make_evaluation(1, what="return", x=1.0)])[1].value == 1.0

    def test_a_crash_costs_its_own_evaluation(self, fleet: Fleet) -> None:
        if not self.isolates:
            pytest.skip("evaluates in this process")
        fleet.start(make_spec("objectives.py:misbehave"))
        results = answers(
            fleet,
            [
                make_evaluation(0, what="exit"),
                make_evaluation(1, what="segfault"),
                make_evaluation(2, what="return", x=1.0),
            ],
        )
        assert results[0].outcome is Outcome.CRASH
        assert results[0].error == "exited with status 3"
        assert results[1].outcome is Outcome.CRASH
        assert results[1].error == "killed by SIGSEGV"
        assert results[2].value == 1.0

    def test_what_is_acknowledged_does_not_come_again(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        answers(fleet, [make_evaluation(trial, x=1.0) for trial in range(4)])
        assert fleet.poll(0.2) == ([], [])

    def test_an_evaluation_may_be_submitted_again(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        fleet.submit([make_evaluation(0, x=1.0), make_evaluation(0, x=1.0, attempt=1)])
        assert {result.value for result in collect(fleet, 2)} == {2.0}

    def test_polling_does_not_wait_longer_than_told(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:misbehave"))
        wait_until(lambda: fleet.poll(0.1) == ([], []) and fleet.slots() == 2, "its slots are known")
        fleet.submit([make_evaluation(0, what="sleep", seconds=3.0)])
        began = time.monotonic()
        assert fleet.poll(0.1) == ([], [])
        assert 0.05 < time.monotonic() - began < 2.0

    def test_slots_are_counted(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        assert answers(fleet, [make_evaluation(0, x=1.0)])[0].value == 2.0
        wait_until(lambda: fleet.poll(0.1) == ([], []) and fleet.slots() == 2, "its slots are known")

    def test_the_report_is_measured(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:misbehave"))
        answers(fleet, [make_evaluation(trial, what="sleep", seconds=0.2) for trial in range(4)])
        report = fleet.report()
        assert report.slots == 2
        assert report.workers == 1
        assert 0.7 < report.busy_slot_seconds <= report.available_slot_seconds

    def test_closing_twice_does_no_harm(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        fleet.submit([make_evaluation(trial, x=1.0) for trial in range(4)])
        fleet.close()
        fleet.close()
        with pytest.raises(TrialfleetError, match="closed"):
            fleet.submit([make_evaluation(9, x=1.0)])
