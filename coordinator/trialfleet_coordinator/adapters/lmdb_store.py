"""The study store in LMDB: the coordinator's view of the tables that Optuna reads through `lmdb_storage`.

A commit is one LMDB transaction, written and synchronised to the disk before `commit` returns: after a crash of the
process or the machine a study has each commit whole or not at all.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import msgspec

from trialfleet_coordinator.adapters.lmdb_layout import (
    SYSTEM,
    USER,
    EvaluationRow,
    ProgressRow,
    StudyTables,
    TrialRow,
    attr_of,
    decode_trial,
    from_attrs,
    our_space,
    to_attrs,
)
from trialfleet_coordinator.adapters.study_lock import StudyLock
from trialfleet_coordinator.collecting import nothing_collected
from trialfleet_coordinator.commands import (
    Effort,
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
from trialfleet_shared.adapters.lmdb_environment import Transaction
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import StoreError
from trialfleet_shared.messages import EvaluationResult
from trialfleet_shared.space import Categorical, Distribution

#: Attributes as Optuna's users see them: the study's definition and terms (system), its score on the test part (user) …
DEFINITION_ATTR = "trialfleet:definition"
TERMS_ATTR = "trialfleet:terms"
TEST_ATTR = "trialfleet:test"
#: … and a trial's reason (user); the fields of `Effort` stand beside it.
REASON_ATTR = "trialfleet:reason"

#: Optuna's numbers of states and directions, which its databases hold too: `TrialState` and `StudyDirection`. They stand here
#: because the import of Optuna takes a quarter of a second, which running a study does not need.
OPTUNA_STATES = {
    TrialState.RUNNING: 0,
    TrialState.COMPLETE: 1,
    TrialState.PRUNED: 2,
    TrialState.FAIL: 3,
    TrialState.WAITING: 4,
}
OPTUNA_DIRECTIONS = {"minimize": 1, "maximize": 2}
_FROM_OPTUNA = {number: state for state, number in OPTUNA_STATES.items()}
_PLACE = attrgetter("place")


def _random_identity() -> bytes:
    return secrets.token_bytes(8)


class LmdbStudyStore:
    """The studies in a folder (see `trialfleet_coordinator.ports.StudyStore`). For one thread.

    Args:
        path: folder of the store; made if missing, for this user alone.
        clock: tells when trials start and finish.
        make_identity: random bytes, for a new store.

    Raises:
        StoreError: the folder can not be used, or holds something else.
    """

    def __init__(self, path: Path, *, clock: Clock, make_identity: Callable[[], bytes] = _random_identity) -> None:
        self._path = path
        self._clock = clock
        self._make_identity = make_identity
        self._tables = StudyTables(path)
        self._lock: StudyLock | None = None
        #: Id of the study that is open.
        self._study = -1

    def load(self, name: str) -> StudyRecord | None:
        """The study called `name`, None when there is none. Reading needs no lock.

        Raises:
            StoreError: the study was made by Optuna alone, or it is damaged.
        """
        with self._tables.environment.read() as transaction:
            study = self._tables.study_id(transaction, name)
            return None if study is None else self._record(transaction, study, name)

    def definition(self, name: str) -> StudyDefinition | None:
        """What a study called `name` has to be; None when there is none of trialfleet's that has a trial that did not fail.

        Raises StoreError when it is damaged.
        """
        with self._tables.environment.read() as transaction:
            study = self._tables.study_id(transaction, name)
            try:
                if study is None or all(
                    decode_trial(stored).state == OPTUNA_STATES[TrialState.FAIL]
                    for stored in self._tables.stored_trials(transaction, study, 0)
                ):
                    return None
                return self._definition(transaction, study)
            except (KeyError, ValueError) as error:  # as those of msgspec are
                raise self._unreadable(name, error) from error

    def identity(self, name: str) -> str | None:
        """What no other study has, be it of another store, or of the same name and deleted; None when there is no such study.

        A store of an earlier version has it from the first time that a study is opened in it.
        """
        with self._tables.environment.read() as transaction:
            study, store = self._tables.study_id(transaction, name), self._tables.identity(transaction)
            return f"{store.hex()}-{study}" if store and study is not None else None

    def renew_identity(self) -> None:
        """Be another store from now on: a copy that has its original's studies, and is to hear none of the answers to them."""
        self._tables.environment.write(lambda transaction: self._tables.identify(transaction, self._make_identity()))

    def names(self) -> list[str]:
        """The names of all studies that trialfleet made, oldest first."""
        with self._tables.environment.read() as transaction:
            return [row.name for study, row in self._tables.studies(transaction) if self._is_ours(transaction, study)]

    def open(self, definition: StudyDefinition) -> StudyRecord:
        """Lock the study for this coordinator; create it if it is new; return what is recorded.

        One that has no trial yet, or none that did not fail, is made anew where its definition is another.

        Raises:
            StudyLockedError: another coordinator has it open.
            StudyChangedError: it exists with another definition; the message says what changed.
            StoreError: it was made by Optuna alone, or this store has a study open already.
        """
        if self._lock is not None:
            raise StoreError("this store has a study open; close it first")
        lock = StudyLock(self._path, definition.name)
        try:
            study, record = self._tables.environment.write(
                lambda transaction: self._find_or_create(transaction, definition)
            )
        except BaseException:
            lock.release()
            raise
        self._lock, self._study = lock, study
        return record

    def delete(self, name: str) -> None:
        """Remove the study called `name` with all that belongs to it; nothing when there is none.

        Raises:
            StudyLockedError: a coordinator has it open.
        """
        lock = StudyLock(self._path, name)
        try:
            self._tables.environment.write(lambda transaction: self._delete(transaction, name))
            lock.remove_file()
        finally:
            lock.release()

    def commit(self, records: Sequence[Record], *, elapsed: float) -> None:
        """Write all records, or none, in one durable transaction.

        Raises:
            StoreError: the disk is full or fails; a record does not follow from what is recorded (the message says
                why); no study is open in this process, or somebody deleted it.
        """
        if self._lock is None or not self._lock.held:
            raise StoreError("no study is open in this process")
        now = self._clock.time()

        def work(transaction: Transaction) -> None:
            self._tables.study(transaction, self._study)
            commit = _Commit(self._tables, transaction, self._study, now)
            for record in records:
                commit.write(record)
            commit.finish(elapsed)

        try:
            self._tables.environment.write(work)
        except KeyError as error:
            raise StoreError(f"the study is not in {self._path} any more: {error.args[0]}") from error

    def close(self) -> None:
        """Release the lock and the files. May be called twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._tables.environment.close()

    def _delete(self, transaction: Transaction, name: str) -> None:
        study = self._tables.study_id(transaction, name)
        if study is not None:
            self._tables.delete_study(transaction, study)

    def _find_or_create(self, transaction: Transaction, definition: StudyDefinition) -> tuple[int, StudyRecord]:
        if not self._tables.identity(transaction):
            self._tables.identify(transaction, self._make_identity())
        study = self._tables.study_id(transaction, definition.name)
        if study is None:
            study = self._create(transaction, definition)
        record = self._record(transaction, study, definition.name)
        if not record.has_outcome and record.definition.changes(as_stored(definition)):
            self._tables.delete_study(transaction, study)
            study = self._create(transaction, definition)
            record = self._record(transaction, study, definition.name)
        record.definition.require_same(as_stored(definition))
        return study, record

    def _create(self, transaction: Transaction, definition: StudyDefinition) -> int:
        direction = OPTUNA_DIRECTIONS[definition.direction]
        study = self._tables.create_study(transaction, definition.name, [direction])
        self._tables.set_attr(transaction, study, SYSTEM, DEFINITION_ATTR, msgspec.to_builtins(definition))
        return study

    def _definition(self, transaction: Transaction, study: int) -> StudyDefinition | None:
        value = self._tables.attr(transaction, study, SYSTEM, DEFINITION_ATTR)
        return None if value is None else msgspec.convert(value, StudyDefinition)

    def _is_ours(self, transaction: Transaction, study: int) -> bool:
        """Whether trialfleet made the study, be its definition readable or not."""
        try:
            return self._tables.attr(transaction, study, SYSTEM, DEFINITION_ATTR) is not None
        except (StoreError, ValueError):
            return True

    def _terms(self, transaction: Transaction, study: int) -> RecordTerms | None:
        value = self._tables.attr(transaction, study, SYSTEM, TERMS_ATTR)
        try:
            return None if value is None else msgspec.convert(value, RecordTerms)
        except msgspec.ValidationError:  # of a version with other settings; the study itself does not depend on them
            return None

    def _record(self, transaction: Transaction, study: int, name: str) -> StudyRecord:
        try:
            return self._read(transaction, study, name)
        except (KeyError, ValueError) as error:  # as those of msgspec are
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: Exception) -> StoreError:
        return self._tables.damaged(f"study {name!r} can not be read: {error.args[0]}")

    def _read(self, transaction: Transaction, study: int, name: str) -> StudyRecord:
        definition = self._definition(transaction, study)
        if definition is None:
            raise StoreError(
                f"study {name!r} in {self._path} was made by Optuna alone; take another name, or have "
                "optuna.delete_study remove it"
            )
        with nothing_collected():
            results = self._results(transaction, study)
            trials = [
                self._trial(transaction, study, number, decode_trial(stored), results.get(number, []))
                for number, stored in enumerate(self._tables.stored_trials(transaction, study, 0))
            ]
        test = self._tables.attr(transaction, study, USER, TEST_ATTR)
        progress = self._tables.progress(transaction, study)
        self._check(
            name, progress, trials=len(trials), results=sum(map(len, results.values())), tested=test is not None
        )
        return StudyRecord(
            definition=definition,
            trials=trials,
            elapsed=progress.elapsed,
            test=None if test is None else (test["trial"], test["value"]),
            terms=self._terms(transaction, study),
        )

    def _results(self, transaction: Transaction, study: int) -> dict[int, list[EvaluationResult]]:
        """The study's results by trial, each trial's in the order they were recorded."""
        rows: dict[int, list[EvaluationRow]] = {}
        for row in self._tables.evaluations(transaction, study):
            rows.setdefault(row.result.trial, []).append(row)
        return {
            number: [row.taken() for row in (each if len(each) == 1 else sorted(each, key=_PLACE))]
            for number, each in rows.items()
        }

    def _check(self, name: str, progress: ProgressRow, *, trials: int, results: int, tested: bool) -> None:
        """See that nothing is missing; Optuna may have added trials. Raises StoreError."""
        if results != progress.results:
            raise self._tables.damaged(f"study {name!r} has {results} results in place of {progress.results}")
        if trials < (progress.trials or 0) or (progress.tested and not tested):
            raise self._tables.damaged(f"trials or the test's score of study {name!r} are missing")

    def _trial(
        self, transaction: Transaction, study: int, number: int, row: TrialRow, results: list[EvaluationResult]
    ) -> TrialRecord:
        space = self._tables.space(transaction, study, row.space)
        return TrialRecord(
            number=number,
            params=space.params(row.internal),
            distributions=space.ours,
            state=_FROM_OPTUNA[row.state],
            value=row.values[0] if row.values else None,
            reason=attr_of(row.user, REASON_ATTR) or "",
            results=results,
        )


class _Commit:
    """The records of one commit on their way into the tables; a trial is written once, at the end."""

    def __init__(self, tables: StudyTables, transaction: Transaction, study: int, now: float) -> None:
        self._tables = tables
        self._transaction = transaction
        self._study = study
        self._now = now
        self._count = tables.count_trials(transaction, study)
        self._progress = tables.progress(transaction, study)
        self._rows: dict[int, TrialRow] = {}
        #: Digests of spaces, by the identity of the distributions: trials that were drawn together share theirs.
        self._spaces: dict[int, tuple[dict[str, Distribution], bytes]] = {}

    def write(self, record: Record) -> None:
        """Take one record in. Raises StoreError when it does not follow from what is recorded."""
        match record:
            case RecordTrial():
                self._add_trial(record)
            case RecordEvaluation(result):
                self._known(result.trial)
                row = EvaluationRow.of(self._progress.results, result)
                self._progress.results += self._tables.put_evaluation(self._transaction, self._study, row)
            case RecordRung(number, rung, value):
                self._unfinished(number).intermediate[rung] = value
            case RecordDecision():
                self._decide(record)
            case RecordTest(number, value):
                self._known(number)
                test = {"trial": number, "value": value}
                self._tables.set_attr(self._transaction, self._study, USER, TEST_ATTR, test)
                self._progress.tested = True
            case RecordTerms():
                value = msgspec.to_builtins(record)
                self._tables.set_attr(self._transaction, self._study, SYSTEM, TERMS_ATTR, value)

    def finish(self, elapsed: float) -> None:
        """Write what was taken in."""
        for number, row in self._rows.items():
            self._tables.put_trial(self._transaction, self._study, number, row)
        self._progress.elapsed = elapsed
        self._progress.trials = self._count
        self._tables.put_progress(self._transaction, self._study, self._progress)

    def _add_trial(self, record: RecordTrial) -> None:
        if record.number != self._count:
            raise StoreError(f"trial {record.number} can not be recorded; the next trial's number is {self._count}")
        if record.params.keys() != record.distributions.keys():
            raise StoreError(
                f"trial {record.number}: the params {sorted(record.params)} do not go with the distributions "
                f"{sorted(record.distributions)}"
            )
        self._rows[record.number] = TrialRow(
            state=OPTUNA_STATES[TrialState.RUNNING],
            started=self._now,
            space=self._space(record.distributions),
            internal=_internal(record),
        )
        self._count += 1

    def _space(self, distributions: dict[str, Distribution]) -> bytes:
        known = self._spaces.get(id(distributions))
        if known is None:
            digest = self._tables.put_space(self._transaction, self._study, our_space(distributions))
            known = self._spaces[id(distributions)] = distributions, digest
        return known[1]

    def _decide(self, record: RecordDecision) -> None:
        row = self._unfinished(record.trial)
        if not record.state.decided:
            raise StoreError(f"trial {record.trial} can not be decided as {record.state.value!r}")
        if record.state is TrialState.COMPLETE and record.value is None:
            raise StoreError(f"trial {record.trial} can not be complete without a value")
        row.state = OPTUNA_STATES[record.state]
        row.finished = self._now
        # As in Optuna, a failed trial has no value; a pruned one has the last it is known by, if any.
        row.values = None if record.value is None or record.state is TrialState.FAIL else [record.value]
        row.user = _with_decision(row.user, record.reason, record.effort)

    def _known(self, number: int) -> None:
        if number >= self._count:
            raise StoreError(f"trial {number} is not recorded; the study has {self._count} trials")

    def _unfinished(self, number: int) -> TrialRow:
        self._known(number)
        row = self._rows.get(number)
        if row is None:
            row = decode_trial(self._tables.stored_trial(self._transaction, self._study, number))
            self._rows[number] = row
        if _FROM_OPTUNA[row.state].decided:
            raise StoreError(f"trial {number} is decided already: {_FROM_OPTUNA[row.state].value}")
        return row


@lru_cache(maxsize=1024)
def _with_decision(user: str, reason: str, effort: Effort) -> str:
    """A trial's attributes once it is decided. Most trials of a study have one of a few texts."""
    return from_attrs({**to_attrs(user), REASON_ATTR: reason, **effort._asdict()})


def _internal(record: RecordTrial) -> list[float]:
    """Optuna's internal representation of the trial's params, in the order of their distributions."""
    internal: list[float] = []
    for name, distribution in record.distributions.items():
        value = record.params[name]
        try:
            internal.append(distribution.index(value) if isinstance(distribution, Categorical) else float(value))  # type: ignore[arg-type]  # None is refused below
        except (TypeError, ValueError) as error:
            raise StoreError(f"trial {record.number}: {name} = {value!r} does not go with {distribution}") from error
    return internal


def as_stored(definition: StudyDefinition) -> StudyDefinition:
    """The definition as it comes back from the store: what JSON does not tell apart is the same."""
    return msgspec.json.decode(msgspec.json.encode(definition), type=StudyDefinition)
