"""Optuna's own contract suite on our storage, and what Optuna's users do with it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from trialfleet_coordinator.adapters import lmdb_layout, lmdb_storage
from trialfleet_coordinator.adapters.lmdb_layout import TrialRow
from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LmdbStorage]:
    storage = LmdbStorage(tmp_path / "store")
    yield storage
    storage.close()


class TestOptunaContract(StorageTestCase):
    """Optuna's suite, as it is."""


def test_optuna_optimizes_on_it(storage: LmdbStorage) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        kind = trial.suggest_categorical("kind", ["plus", "minus"])
        trial.report(x, 0)
        if trial.number == 3:
            raise optuna.TrialPruned
        return x if kind == "plus" else -x

    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({"x": 0.5, "kind": "minus"})
    study.optimize(objective, n_trials=15)
    again = optuna.load_study(storage=storage, study_name="s")
    assert again.trials[0].params == {"x": 0.5, "kind": "minus"}
    assert [trial.number for trial in again.trials] == list(range(15))
    assert again.trials[3].state == TrialState.PRUNED
    assert again.best_value == min(trial.value for trial in again.trials if trial.state == TrialState.COMPLETE)
    assert optuna.importance.get_param_importances(again, evaluator=optuna.importance.PedAnovaImportanceEvaluator())


def test_finished_trials_are_decoded_once(storage: LmdbStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    study = storage.create_new_study([StudyDirection.MINIMIZE])
    trials = [storage.create_new_trial(study) for _ in range(10)]
    for trial in trials[:8]:
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    before = storage.get_all_trials(study, deepcopy=False)
    decoded: list[bytes] = []

    def decode(stored: bytes) -> TrialRow:
        decoded.append(stored)
        return lmdb_layout.decode_trial(stored)

    monkeypatch.setattr(lmdb_storage, "decode_trial", decode)
    known = storage._known[study]
    assert storage.get_all_trials(study, deepcopy=False) == before
    assert decoded == []
    assert storage._known[study] is known, "nothing was written, so nothing is looked at"
    other = LmdbStorage(storage._path)
    other.set_trial_intermediate_value(trials[9], 0, 0.5)
    other.create_new_trial(study)
    other.close()
    decoded.clear()
    after = storage.get_all_trials(study, deepcopy=False)
    assert len(decoded) == 2, "the changed and the new one, not the other unfinished one"
    assert [trial.intermediate_values for trial in after[8:]] == [{}, {0: 0.5}, {}]
    assert all(old is new for old, new in zip(before[:9], after[:9], strict=True))
    # What was handed out stays as it was.
    assert before[9].intermediate_values == {}
    assert len(before) == 10
    assert known.trials == before, "another thread may be reading it"


@pytest.mark.parametrize(
    "states",
    [None, (), (TrialState.WAITING,), (TrialState.WAITING, TrialState.RUNNING), tuple(TrialState), (TrialState.FAIL,)],
)
def test_states_select(storage: LmdbStorage, states: tuple[TrialState, ...] | None) -> None:
    study = storage.create_new_study([StudyDirection.MINIMIZE])
    template = optuna.create_trial(state=TrialState.WAITING)
    numbered = list(enumerate([TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL, TrialState.RUNNING]))
    for _, state in numbered:
        trial = storage.create_new_trial(study, template_trial=template)
        if state != TrialState.WAITING:
            storage.set_trial_state_values(trial, state)
    expected = [number for number, state in numbered if states is None or state in states]
    for deepcopy in (True, False):
        assert [trial.number for trial in storage.get_all_trials(study, deepcopy, states)] == expected


def test_what_one_is_given_of_a_trial_is_nobody_elses(storage: LmdbStorage) -> None:
    study = optuna.create_study(storage=storage)
    first, second = study.ask(), study.ask()
    for trial in (first, second):
        trial.set_user_attr("tags", ["x"])
        trial.set_user_attr("more", {"a": [1]})
    given = storage.get_trial(first._trial_id)
    given.user_attrs["tags"].append("mine")
    given.user_attrs["more"]["a"].append(2)
    second.set_user_attr("other", 1)
    assert storage.get_trial(second._trial_id).user_attrs == {"tags": ["x"], "more": {"a": [1]}, "other": 1}


def test_values_that_json_writes_oddly_come_back(storage: LmdbStorage) -> None:
    study = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    odd = {"big": 2**100, "text": "é😀", "nested": [{"a": None}], "": True}
    trial = storage.create_new_trial(study)
    for key, value in odd.items():
        storage.set_study_user_attr(study, key, value)
        storage.set_trial_user_attr(trial, key, value)
    assert storage.get_study_user_attrs(study) == odd
    assert storage.get_trial_user_attrs(trial) == odd
    with pytest.raises(TypeError):
        storage.set_trial_user_attr(trial, "object", object())
    long = "name" * 1000
    storage.set_study_user_attr(study, long, 1)
    assert storage.get_study_user_attrs(study)[long] == 1
    assert storage.get_study_name_from_id(storage.create_new_study([StudyDirection.MINIMIZE], long)) == long


@pytest.mark.parametrize("nonsense", [-1, 2**40, 2**70])
def test_ids_that_can_not_be_are_key_errors(storage: LmdbStorage, nonsense: int) -> None:
    with pytest.raises(KeyError):
        storage.get_trial(nonsense)
    with pytest.raises(KeyError):
        storage.get_all_trials(nonsense)
    with pytest.raises(KeyError):
        storage.set_trial_user_attr(nonsense, "key", 1)


def test_deleting_a_study_leaves_the_others(storage: LmdbStorage) -> None:
    studies = [storage.create_new_study([StudyDirection.MINIMIZE], name) for name in "abc"]
    for study in studies:
        storage.set_study_user_attr(study, "mine", study)
        trial = storage.create_new_trial(study)
        storage.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1))
    storage.delete_study(studies[1])
    assert [(study.study_name, study.user_attrs) for study in storage.get_all_studies()] == [
        ("a", {"mine": studies[0]}),
        ("c", {"mine": studies[2]}),
    ]
    assert [trial.params for study in (studies[0], studies[2]) for trial in storage.get_all_trials(study)] == [
        {"x": 0.5},
        {"x": 0.5},
    ]
    with pytest.raises(KeyError):
        storage.get_all_trials(studies[1])
    # Nothing is left to be found in a study of the same name.
    again = storage.create_new_study([StudyDirection.MINIMIZE], "b")
    assert again not in studies
    assert storage.get_all_trials(again) == []
    assert storage.get_study_user_attrs(again) == {}


def test_threads_and_processes_take_different_trials(storage: LmdbStorage) -> None:
    """Each WAITING trial is claimed by exactly one of several threads and processes."""
    study = storage.create_new_study([StudyDirection.MINIMIZE])
    trials = [storage.create_new_trial(study, optuna.create_trial(state=TrialState.WAITING)) for _ in range(40)]
    script = """
import sys
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage
storage = LmdbStorage(sys.argv[1])
print(sum(storage.set_trial_state_values(int(trial), TrialState.RUNNING) for trial in sys.argv[2:]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(storage._path), *map(str, trials)], stdout=subprocess.PIPE, text=True
    )

    def claim() -> int:
        return sum(storage.set_trial_state_values(trial, TrialState.RUNNING) for trial in trials)

    with ThreadPoolExecutor(4) as pool:
        claims = [pool.submit(claim) for _ in range(4)]
        claimed = sum(each.result() for each in claims)
    said, _ = process.communicate(timeout=60)
    assert claimed + int(said) == len(trials)


def test_a_forked_child_reads_and_writes(storage: LmdbStorage) -> None:
    study = storage.create_new_study([StudyDirection.MINIMIZE])
    storage.create_new_trial(study)
    child = os.fork()
    if child == 0:
        passed = False
        try:
            storage.create_new_trial(study)
            passed = len(storage.get_all_trials(study)) == 2
        finally:
            os._exit(0 if passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(storage.get_all_trials(study)) == 2
