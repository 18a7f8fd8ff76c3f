"""Optuna's view of the study store: `optuna.load_study`, `optuna.visualization` and optuna-dashboard read it live.

It is a full storage: studies can be made and optimized through it with Optuna alone, by any number of processes on one
host. Reading is incremental: a finished trial never changes again, so a process decodes it once; only unfinished and
new trials are read when something was written since the last time.
"""

import copy
import uuid
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from optuna._typing import JSONSerializable
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from trialfleet_coordinator.adapters.lmdb_layout import (
    SYSTEM,
    USER,
    StudyTables,
    TrialRow,
    TrialSpace,
    decode_trial,
    from_attrs,
    optuna_space,
    to_attrs,
)
from trialfleet_shared.adapters.lmdb_environment import Transaction
from trialfleet_shared.clock import Clock, SystemClock

#: Bits of a trial's Optuna id that are its number; the others are its study's id.
_NUMBER_BITS = 32

_Result = TypeVar("_Result")


class LmdbStorage(BaseStorage):
    """An Optuna storage in a folder, safe to share among threads; a forked or unpickling process opens it anew.

    Args:
        path: folder of the study store; made if missing, for this user alone.
        clock: tells when trials start and finish.

    Raises:
        StoreError: the folder can not be used, or holds something else; any method: the disk is full or fails.
    """

    def __init__(self, path: str | Path, *, clock: Clock | None = None) -> None:
        self._path = Path(path)
        self._clock = clock or SystemClock()
        self._tables = StudyTables(self._path)
        #: By study id. Values are replaced, never changed: threads need no lock, and at worst read the same twice.
        self._known: dict[int, _KnownStudy] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "clock": self._clock}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], clock=state["clock"])  # type: ignore[misc]  # unpickling is opening

    def close(self) -> None:
        """Release the files. May be called twice."""
        self._tables.environment.close()

    # Studies; the docstrings say what differs from `BaseStorage`.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study; without a name it gets one that nobody has."""
        name = study_name if study_name is not None else f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}"

        def create(transaction: Transaction) -> int:
            if self._tables.study_id(transaction, name) is not None:
                raise DuplicatedStudyError(f"a study called {name!r} exists already")
            return self._tables.create_study(transaction, name, [direction.value for direction in directions])

        return self._tables.environment.write(create)

    def delete_study(self, study_id: int) -> None:
        """Delete a study with all its trials."""
        self._tables.environment.write(lambda transaction: self._tables.delete_study(transaction, study_id))
        self._known.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        self._set_study_attr(study_id, USER, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: JSONSerializable) -> None:
        """Set a system attribute of a study."""
        self._set_study_attr(study_id, SYSTEM, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of the study."""
        with self._tables.environment.read() as transaction:
            study = self._tables.study_id(transaction, study_name)
        if study is None:
            raise KeyError(f"no study is called {study_name!r}")
        return study

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name of the study."""
        with self._tables.environment.read() as transaction:
            return self._tables.study(transaction, study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The directions of the study."""
        with self._tables.environment.read() as transaction:
            row = self._tables.study(transaction, study_id)
        return [StudyDirection(direction) for direction in row.directions]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """The user attributes of the study."""
        return self._study_attrs(study_id, USER)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """The system attributes of the study."""
        return self._study_attrs(study_id, SYSTEM)

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies by id."""
        with self._tables.environment.read() as transaction:
            return [
                FrozenStudy(
                    study_name=row.name,
                    direction=None,
                    directions=[StudyDirection(direction) for direction in row.directions],
                    user_attrs=self._tables.attrs(transaction, study, USER),
                    system_attrs=self._tables.attrs(transaction, study, SYSTEM),
                    study_id=study,
                )
                for study, row in self._tables.studies(transaction)
            ]

    # Writing trials.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial to a study."""
        now = self._clock.time()

        def create(transaction: Transaction) -> int:
            self._tables.study(transaction, study_id)
            number = self._tables.count_trials(transaction, study_id)
            if template_trial is None:
                row = TrialRow(state=TrialState.RUNNING.value, started=now)
            else:
                row = _row_of(template_trial)
                if template_trial.params:
                    space = optuna_space(template_trial.distributions)
                    row.space = self._tables.put_space(transaction, study_id, space)
            self._tables.put_trial(transaction, study_id, number, row)
            return study_id << _NUMBER_BITS | number

        return self._tables.environment.write(create)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of an unfinished trial."""

        def change(transaction: Transaction, study: int, row: TrialRow) -> None:
            known = self._tables.parameter(transaction, study, param_name)
            if known is not None:
                check_distribution_compatibility(known, distribution)
            if known != distribution:
                self._tables.set_parameter(transaction, study, param_name, distribution)
            space = self._tables.space(transaction, study, row.space)
            distributions = {**space.optuna, param_name: distribution}
            internal = dict(zip(space.optuna, row.internal, strict=True))
            internal[param_name] = float(param_value_internal)
            row.space = self._tables.put_space(transaction, study, optuna_space(distributions))
            row.internal = list(internal.values())

        self._change_trial(trial_id, change)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Move an unfinished trial on; of several processes that take a WAITING trial, one is told True."""
        now = self._clock.time()

        def change(_transaction: Transaction, _study: int, row: TrialRow) -> bool:
            if state == TrialState.RUNNING and row.state != TrialState.WAITING.value:
                return False
            row.state = state.value
            if values is not None:
                row.values = [float(value) for value in values]
            if state == TrialState.RUNNING:
                row.started = now
            if state.is_finished():
                row.finished = now
            return True

        return self._change_trial(trial_id, change)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value that an unfinished trial reported at a step."""

        def change(_transaction: Transaction, _study: int, row: TrialRow) -> None:
            row.intermediate = {**row.intermediate, int(step): float(intermediate_value)}

        self._change_trial(trial_id, change)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of an unfinished trial."""

        def change(_transaction: Transaction, _study: int, row: TrialRow) -> None:
            row.user = from_attrs({**to_attrs(row.user), key: value})

        self._change_trial(trial_id, change)

    def set_trial_system_attr(self, trial_id: int, key: str, value: JSONSerializable) -> None:
        """Set a system attribute of an unfinished trial."""

        def change(_transaction: Transaction, _study: int, row: TrialRow) -> None:
            row.system = from_attrs({**to_attrs(row.system), key: value})

        self._change_trial(trial_id, change)

    # Reading trials.

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """The id of the study's trial with this number."""
        with self._tables.environment.read() as transaction:
            self._tables.stored_trial(transaction, study_id, trial_number)
        return study_id << _NUMBER_BITS | trial_number

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial as it is now."""
        study, number = _split(trial_id)
        with self._tables.environment.read() as transaction:
            row = decode_trial(self._tables.stored_trial(transaction, study, number))
            space = self._tables.space(transaction, study, row.space)
        return _frozen(study, number, row, space)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials of a study by number; `deepcopy` copies all but the distributions, which never change."""
        known = self._read_new(study_id)
        if states is None:
            trials = list(known.trials)
        elif not any(state in states for state in TrialState if state.is_finished()):
            trials = [known.trials[number] for number in known.unfinished if known.trials[number].state in states]
        else:
            trials = [trial for trial in known.trials if trial.state in states]
        return [_copied(trial) for trial in trials] if deepcopy else trials

    def _read_new(self, study_id: int) -> "_KnownStudy":
        """The study's trials, those read again that may have changed since the last time."""
        known = self._known.get(study_id) or _KnownStudy(-1, [], {})
        with self._tables.environment.read() as transaction:
            moment = transaction.id()
            if moment == known.moment:
                return known
            self._tables.study(transaction, study_id)
            trials = known.trials.copy()
            unfinished: dict[int, bytes] = {}

            def look(number: int, stored: bytes) -> None:
                if known.unfinished.get(number) != stored:
                    row = decode_trial(stored)
                    trial = _frozen(study_id, number, row, self._tables.space(transaction, study_id, row.space))
                    trials[number : number + 1] = [trial]  # in its place, or at the end
                if not trials[number].state.is_finished():
                    unfinished[number] = stored

            for number in known.unfinished:
                look(number, self._tables.stored_trial(transaction, study_id, number))
            first = len(trials)
            for number, stored in enumerate(self._tables.stored_trials(transaction, study_id, first), first):
                look(number, stored)
        known = self._known[study_id] = _KnownStudy(moment, trials, unfinished)
        return known

    def _change_trial(self, trial_id: int, change: Callable[[Transaction, int, TrialRow], _Result]) -> _Result:
        study, number = _split(trial_id)

        def work(transaction: Transaction) -> _Result:
            row = decode_trial(self._tables.stored_trial(transaction, study, number))
            if row.state not in _UNFINISHED:
                raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
            result = change(transaction, study, row)
            self._tables.put_trial(transaction, study, number, row)
            return result

        return self._tables.environment.write(work)

    def _set_study_attr(self, study_id: int, kind: bytes, key: str, value: Any) -> None:
        def work(transaction: Transaction) -> None:
            self._tables.study(transaction, study_id)
            self._tables.set_attr(transaction, study_id, kind, key, value)

        self._tables.environment.write(work)

    def _study_attrs(self, study_id: int, kind: bytes) -> dict[str, Any]:
        with self._tables.environment.read() as transaction:
            self._tables.study(transaction, study_id)
            return self._tables.attrs(transaction, study_id, kind)


class _KnownStudy(NamedTuple):
    """What a process has read of a study."""

    #: The write that the environment was at.
    moment: int
    #: By number.
    trials: list[FrozenTrial]
    #: The unfinished ones by number, as they are stored.
    unfinished: dict[int, bytes]


_STATES = {state.value: state for state in TrialState}
_UNFINISHED = frozenset(state.value for state in TrialState if not state.is_finished())


def _split(trial_id: int) -> tuple[int, int]:
    """Study id and number of a trial's id."""
    return trial_id >> _NUMBER_BITS, trial_id & (1 << _NUMBER_BITS) - 1


def _row_of(trial: FrozenTrial) -> TrialRow:
    """The trial as it is stored, its space left out."""
    return TrialRow(
        state=trial.state.value,
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        finished=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
        values=None if trial.values is None else [float(value) for value in trial.values],
        intermediate={int(step): float(value) for step, value in trial.intermediate_values.items()},
        internal=[
            float(distribution.to_internal_repr(trial.params[name]))
            for name, distribution in trial.distributions.items()
        ],
        user=from_attrs(trial.user_attrs),
        system=from_attrs(trial.system_attrs),
    )


def _frozen(study: int, number: int, row: TrialRow, space: TrialSpace) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        state=_STATES[row.state],
        value=None,
        values=row.values,
        datetime_start=_local_time(row.started),
        datetime_complete=_local_time(row.finished),
        params=space.params(row.internal),
        distributions=space.optuna.copy(),
        user_attrs=to_attrs(row.user),
        system_attrs=to_attrs(row.system),
        intermediate_values=row.intermediate,
        trial_id=study << _NUMBER_BITS | number,
    )


def _copied(trial: FrozenTrial) -> FrozenTrial:
    """A copy that shares nothing that could be changed in place but distributions, which nobody changes."""
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params.copy(),
        distributions=trial.distributions.copy(),
        user_attrs=copy.deepcopy(trial.user_attrs),
        system_attrs=copy.deepcopy(trial.system_attrs) if trial.system_attrs else {},
        intermediate_values=trial.intermediate_values.copy(),
        trial_id=trial._trial_id,  # noqa: SLF001 -- Optuna gives storages no other way
    )


def _local_time(seconds: float | None) -> datetime | None:
    """The time as Optuna has it: local, without a zone."""
    return None if seconds is None else datetime.fromtimestamp(seconds)  # noqa: DTZ006 -- Optuna's times have no zone
