"""The simulation can fail: each of these bugs, planted, is found within some hundred schedules.

Those that were in trialfleet until the simulation found them have a test each beside what was mended (docs/simulation.md).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from simulation.campaign import Failure, run_seed
from trialfleet_coordinator.adapters.memory_store import MemoryStudyStore
from trialfleet_coordinator.commands import Record, RecordEvaluation
from trialfleet_coordinator.driver import Session
from trialfleet_coordinator.leases import LeaseTable
from trialfleet_coordinator.remote_fleet import Mailbox
from trialfleet_coordinator.study import StudyState
from trialfleet_shared.messages import EvaluationResult

#: Schedules in which a bug must show.
ENOUGH = 600


def acknowledging_before_committing(patch: pytest.MonkeyPatch) -> None:
    carry_out = Session._carry_out

    def early(self: Session) -> None:
        self._outside.fleet.acknowledge()
        carry_out(self)

    patch.setattr(Session, "_carry_out", early)


def counting_a_duplicate(patch: pytest.MonkeyPatch) -> None:
    on_result = StudyState._on_result

    def twice(self: StudyState, result: EvaluationResult) -> None:
        if result.key not in self.pending and any(
            result.key == known.key for trial in self.trials for known in trial.results
        ):
            self._commands.append(RecordEvaluation(result))
            self._count(result)
            return
        on_result(self, result)

    patch.setattr(StudyState, "_on_result", twice)


def forgetting_a_lost_evaluation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StudyState, "_on_lost", lambda self, key, attempt, reason: None)


def never_noticing_a_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseTable, "lost", lambda self, ready, now: [])


def forgetting_what_was_in_flight_when_it_was_killed(patch: pytest.MonkeyPatch) -> None:
    restore = StudyState._restore

    def forget(self: StudyState, record: Any) -> None:
        restore(self, record)
        self._backlog.clear()

    patch.setattr(StudyState, "_restore", forget)


def a_commit_that_is_torn(patch: pytest.MonkeyPatch) -> None:
    commit = MemoryStudyStore.commit

    def half(self: MemoryStudyStore, records: Sequence[Record], *, elapsed: float) -> None:
        commit(self, records[:-1] if len(records) > 3 else records, elapsed=elapsed)

    patch.setattr(MemoryStudyStore, "commit", half)


def a_trial_beyond_the_budget(patch: pytest.MonkeyPatch) -> None:
    draw = StudyState._draw

    def one_more(self: StudyState, target: int) -> bool:
        drawn = draw(self, target)
        if self._drawing and self._commands:
            self._drawing += 1
            self._commands[-1] = self._commands[-1]._replace(numbers=range(self._drawing))  # type: ignore[call-arg]
        return drawn

    patch.setattr(StudyState, "_draw", one_more)


def dropping_a_result(patch: pytest.MonkeyPatch) -> None:
    on_result = StudyState._on_result

    def drop(self: StudyState, result: EvaluationResult) -> None:
        if result.fold != 1:
            on_result(self, result)

    patch.setattr(StudyState, "_on_result", drop)


def not_publishing_again_what_was_not_confirmed(patch: pytest.MonkeyPatch) -> None:
    """And taking what is lost for answered: with leases alone the loss would only cost time."""

    def flush(self: Mailbox, connection: int, publish: Callable[[bytes], None], acknowledge: Any) -> None:
        while self._unpublished:
            publish(self._unpublished.popleft())
        for delivery in self._unacknowledged:
            if delivery.connection == connection:
                acknowledge(delivery.tag)
        self._unacknowledged = []

    patch.setattr(Mailbox, "flush", flush)
    never_noticing_a_loss(patch)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (acknowledging_before_committing, "is acknowledged before it is committed"),
        (counting_a_duplicate, "is counted twice"),
        (forgetting_a_lost_evaluation, "does not end within"),
        (never_noticing_a_loss, "does not end within"),
        (forgetting_what_was_in_flight_when_it_was_killed, "is forgotten"),
        (a_commit_that_is_torn, "restored from the record|on the disk|the store refuses"),
        (a_trial_beyond_the_budget, "trials of"),
        (dropping_a_result, "neither counted nor discarded"),
        (not_publishing_again_what_was_not_confirmed, "does not end within"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    failure = next((outcome for outcome in map(run_seed, range(ENOUGH)) if isinstance(outcome, Failure)), None)
    assert failure is not None, f"not found in {ENOUGH} schedules"
    assert re.search(found, failure.error)
