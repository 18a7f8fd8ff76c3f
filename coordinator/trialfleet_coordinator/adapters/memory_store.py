"""The study store in memory: for tests, simulations and benchmarks."""

from collections.abc import Sequence

import msgspec

from trialfleet_coordinator.commands import (
    Record,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTerms,
    RecordTest,
    RecordTrial,
    TrialState,
)
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord, TrialRecord
from trialfleet_shared.errors import StoreError, StudyLockedError


class MemoryStudies:
    """What stands in for the disk: studies by name, and which of them are locked. Stores may share it."""

    def __init__(self) -> None:
        self.studies: dict[str, StudyRecord] = {}
        self.locked: set[str] = set()


class MemoryStudyStore:
    """The studies in a `MemoryStudies` (see `trialfleet_coordinator.ports.StudyStore`)."""

    def __init__(self, studies: MemoryStudies | None = None) -> None:
        self._disk = studies or MemoryStudies()
        self._open: str | None = None

    def load(self, name: str) -> StudyRecord | None:
        """The study called `name`, None when there is none."""
        record = self._disk.studies.get(name)
        return None if record is None else _copy(record)

    def names(self) -> list[str]:
        """The names of all studies, oldest first."""
        return list(self._disk.studies)

    def open(self, definition: StudyDefinition) -> StudyRecord:
        """Lock the study; create it if it is new; return what is recorded. See `StudyStore.open`.

        Raises:
            StudyLockedError: another store has it open.
            StudyChangedError: it exists with another definition.
            StoreError: this store has a study open already.
        """
        if self._open is not None:
            raise StoreError("this store has a study open; close it first")
        if definition.name in self._disk.locked:
            raise StudyLockedError(f"study {definition.name!r} is being run")
        record = self._disk.studies.get(definition.name)
        if record is None or (not record.has_outcome and record.definition != definition):
            record = self._disk.studies[definition.name] = StudyRecord(definition, [], 0.0, None)
        record.definition.require_same(definition)
        self._open = definition.name
        self._disk.locked.add(definition.name)
        return _copy(record)

    def commit(self, records: Sequence[Record], *, elapsed: float) -> None:
        """Write all records, or none. Raises StoreError when one does not follow from what is recorded."""
        if self._open is None:
            raise StoreError("no study is open in this process")
        study = self._disk.studies[self._open]
        changed = msgspec.structs.replace(study, trials=list(study.trials), elapsed=elapsed)
        for record in records:
            _write(changed, record)
        self._disk.studies[self._open] = changed

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._open is not None:
            self._disk.locked.discard(self._open)
            self._open = None


def _copy(study: StudyRecord) -> StudyRecord:
    """The study for somebody who may change it; results, distributions and the definition are never changed."""
    trials = [
        msgspec.structs.replace(
            trial, params=dict(trial.params), distributions=dict(trial.distributions), results=list(trial.results)
        )
        for trial in study.trials
    ]
    return msgspec.structs.replace(study, trials=trials)


def _write(study: StudyRecord, record: Record) -> None:
    """Take one record into a draft of the study, which shares its trials with the study until they change."""
    match record:
        case RecordTrial(number, params, distributions):
            if number != len(study.trials):
                raise StoreError(f"trial {number} can not be recorded; the next number is {len(study.trials)}")
            if params.keys() != distributions.keys():
                raise StoreError(f"trial {number}: the params do not go with the distributions")
            study.trials.append(
                TrialRecord(number, dict(params), dict(distributions), TrialState.RUNNING, None, "", [])
            )
        case RecordEvaluation(result):
            trial = _trial(study, result.trial)
            if all(result.key != other.key for other in trial.results):
                study.trials[result.trial] = msgspec.structs.replace(trial, results=[*trial.results, result])
        case RecordRung(number):
            _undecided(study, number)
        case RecordDecision():
            _decide(study, record)
        case RecordTest(number, value):
            _trial(study, number)
            study.test = (number, value)
        case RecordTerms():
            study.terms = record


def _decide(study: StudyRecord, record: RecordDecision) -> None:
    number, state, value, reason, _ = record
    trial = _undecided(study, number)
    if not state.decided or (state is TrialState.COMPLETE and value is None):
        raise StoreError(f"trial {number} can not be decided as {state.value!r} with value {value}")
    kept = None if state is TrialState.FAIL else value
    study.trials[number] = msgspec.structs.replace(trial, state=state, value=kept, reason=reason)


def _trial(study: StudyRecord, number: int) -> TrialRecord:
    if number >= len(study.trials):
        raise StoreError(f"trial {number} is not recorded; the study has {len(study.trials)} trials")
    return study.trials[number]


def _undecided(study: StudyRecord, number: int) -> TrialRecord:
    trial = _trial(study, number)
    if trial.state.decided:
        raise StoreError(f"trial {number} is decided already: {trial.state.value}")
    return trial
