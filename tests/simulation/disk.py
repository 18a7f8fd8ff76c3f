"""The coordinator's disk: a study store whose commits happen or do not, and may find no space; and what was written.

The `Ledger` is the simulation's own account of all that was ever committed. It checks each record against what every
study has to keep to, whatever the store itself checks.
"""

from collections.abc import Callable, Sequence

from simulation.world import Violation, World
from trialfleet_coordinator.commands import (
    Record,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTest,
    RecordTrial,
    TrialState,
)
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord, StudyStore
from trialfleet_shared.errors import StoreError
from trialfleet_shared.messages import TEST_FOLD, EvaluationKey


class DiskFullError(StoreError):
    """There is no space left."""


class Ledger:
    """What was committed."""

    def __init__(self) -> None:
        self.trials = 0
        #: Keys of the results of each trial, in the order in which they were committed.
        self.results: dict[int, list[EvaluationKey]] = {}
        self.counted: set[EvaluationKey] = set()
        self.decided: dict[int, TrialState] = {}
        self._rungs: dict[int, int] = {}
        self.test: tuple[int, float] | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Take a commit in. Raises Violation when a record breaks a promise."""
        for record in records:
            match record:
                case RecordTrial(number):
                    _require(number == self.trials, f"trial {number} is recorded as number {self.trials}")
                    self.trials += 1
                case RecordEvaluation(result):
                    self._evaluated(result.key)
                case RecordRung(trial, rung):
                    _require(self._rungs.get(trial, -1) < rung, f"trial {trial} goes down to rung {rung}")
                    _require(trial not in self.decided, f"trial {trial} climbs though it is decided")
                    self._rungs[trial] = rung
                case RecordDecision(trial, state):
                    _require(trial < self.trials, f"trial {trial} is decided before it is there")
                    _require(trial not in self.decided, f"trial {trial} is decided twice")
                    self.decided[trial] = state
                case RecordTest(trial, value):
                    self.test = (trial, value)

    def _evaluated(self, key: EvaluationKey) -> None:
        _require(key.trial < self.trials, f"{key} is of no trial")
        _require(key not in self.counted, f"{key} is counted twice")
        results = self.results.setdefault(key.trial, [])
        if key.fold != TEST_FOLD:
            _require(key.trial not in self.decided, f"{key} is counted though the trial is decided")
            _require(not results or results[-1].rung <= key.rung, f"{key} is below the rung that the trial is on")
        results.append(key)
        self.counted.add(key)

    def compare(self, record: StudyRecord) -> None:
        """Raise Violation unless the store gives back what was committed."""
        _require(len(record.trials) == self.trials, f"{len(record.trials)} of {self.trials} trials are on the disk")
        for trial in record.trials:
            keys = [result.key for result in trial.results]
            _require(keys == self.results.get(trial.number, []), f"trial {trial.number} has other results on the disk")
            _require(
                trial.state is self.decided.get(trial.number, TrialState.RUNNING),
                f"trial {trial.number} is {trial.state} on the disk, and was recorded as {self.decided.get(trial.number)}",
            )
        _require(record.test == self.test, f"the test is {record.test} on the disk, and was recorded as {self.test}")


class Disk:
    """What outlives the coordinator's process.

    Args:
        make_store: a store over it, for a new process.
    """

    def __init__(self, make_store: Callable[[], StudyStore]) -> None:
        self.make_store = make_store
        self.ledger = Ledger()
        self.full = False


class SimulatedStore:
    """Implements `StudyStore`: a real one, on a disk that may be full, in a process that may be killed.

    Args:
        step: called before and after each write: the coordinator may be killed there.
    """

    def __init__(self, world: World, disk: Disk, step: Callable[[], None]) -> None:
        self._world = world
        self._disk = disk
        self._step = step
        self._store = disk.make_store()

    def load(self, name: str) -> StudyRecord | None:
        return self._store.load(name)

    def names(self) -> list[str]:
        return self._store.names()

    def open(self, definition: StudyDefinition) -> StudyRecord:
        record = self._store.open(definition)
        self._disk.ledger.compare(record)
        return record

    def commit(self, records: Sequence[Record], *, elapsed: float) -> None:
        self._step()
        if self._disk.full:
            raise DiskFullError
        try:
            self._store.commit(records, elapsed=elapsed)
        except StoreError as error:
            raise Violation(f"the store refuses what the study records: {error}") from error
        self._disk.ledger.write(records)
        self._step()

    def close(self) -> None:
        """Also what the kernel does when the process ends: the lock is gone."""
        self._store.close()


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
