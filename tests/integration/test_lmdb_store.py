"""The coordinator's store on a real disk: crashes, locks, and what Optuna sees of it."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.support.simulated import SimulatedClock
from trialfleet_coordinator.adapters.lmdb_layout import DATABASES, SYSTEM, StudyTables
from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage
from trialfleet_coordinator.adapters.lmdb_store import OPTUNA_DIRECTIONS, OPTUNA_STATES, TERMS_ATTR, LmdbStudyStore
from trialfleet_coordinator.adapters.study_lock import StudyLock
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import (
    Effort,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTerms,
    RecordTest,
    RecordTrial,
)
from trialfleet_coordinator.commands import TrialState as State
from trialfleet_coordinator.ports import StudyDefinition
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import StoreError, StudyLockedError
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Categorical, Float, Int

DEFINITION = StudyDefinition(
    name="digits",
    direction="maximize",
    space={},
    objective="train.py:evaluate",
    objective_digest="ab",
    data_digest="",
    ladder=Ladder((Rung(0.1, 1), Rung(1.0, 1))),
    seed=0,
)
#: Opens the study and commits two trials and two results at a time, for ever; says so once per commit.
ENDLESS_WRITER = """
import sys
from pathlib import Path
from tests.integration.test_lmdb_store import DEFINITION, trial, result
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.commands import RecordEvaluation
from trialfleet_shared.clock import SystemClock
store = LmdbStudyStore(Path(sys.argv[1]), clock=SystemClock())
first = len(store.open(DEFINITION).trials)
for number in range(first, 10**6, 2):
    results = [RecordEvaluation(result(n, 0, 0.5)) for n in (number, number + 1)]
    store.commit([trial(number), trial(number + 1), *results], elapsed=float(number + 2))
    print(number + 2, flush=True)
"""


def test_numbers_of_states_and_directions_are_optunas() -> None:
    assert {optuna.trial.TrialState[state.name].value: state for state in State} == {
        number: state for state, number in OPTUNA_STATES.items()
    }
    assert {name: optuna.study.StudyDirection[name.upper()].value for name in OPTUNA_DIRECTIONS} == OPTUNA_DIRECTIONS


def trial(number: int) -> RecordTrial:
    return RecordTrial(
        number,
        {"rate": 0.25, "depth": 3, "kind": "b"},
        {"rate": Float(0.0, 1.0), "depth": Int(1, 9), "kind": Categorical(["a", "b"])},
    )


def result(number: int, rung: int, value: float, *, cached: bool = False) -> EvaluationResult:
    return EvaluationResult(trial=number, rung=rung, fold=0, attempt=0, outcome=Outcome.OK, value=value, cached=cached)


@pytest.fixture
def clock() -> SimulatedClock:
    clock = SimulatedClock()
    clock.now = datetime(2026, 3, 4, 5, 6, 7).timestamp()  # noqa: DTZ001 -- Optuna's times have no zone
    return clock


@pytest.fixture
def store(tmp_path: Path, clock: SimulatedClock) -> Iterator[LmdbStudyStore]:
    store = LmdbStudyStore(tmp_path, clock=clock)
    yield store
    store.close()


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)]
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def committed(process: "subprocess.Popen[str]") -> int:
    """How many trials the writer has committed by now, at least; waits for its next commit."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the writer ended"
    return int(line)


def test_a_killed_coordinator_leaves_whole_commits_and_no_lock(
    tmp_path: Path, start_writer: Callable[[], "subprocess.Popen[str]"]
) -> None:
    """Killed at any instruction, three times over: what it said it committed is there, and nothing by half."""
    said = 0
    for commits in (1, 7, 30):
        process = start_writer()
        for _ in range(commits):
            said = committed(process)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        said = int(rest.split()[-1]) if rest.split() else said
        store = LmdbStudyStore(tmp_path, clock=SimulatedClock())
        record = store.open(DEFINITION)
        store.close()
        assert len(record.trials) >= said
        assert len(record.trials) % 2 == 0
        assert record.elapsed == len(record.trials)
        assert all(len(each.results) == 1 for each in record.trials)


def test_the_lock_names_who_holds_it(
    tmp_path: Path, store: LmdbStudyStore, start_writer: Callable[[], "subprocess.Popen[str]"]
) -> None:
    process = start_writer()
    committed(process)
    with pytest.raises(StudyLockedError, match=rf"study 'digits' is being run by process {process.pid} on \S+"):
        store.open(DEFINITION)
    assert store.load("digits") is not None
    process.kill()
    process.wait(60)
    store.open(DEFINITION)


def test_the_lock_names_this_process_as_that(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    other = LmdbStudyStore(tmp_path, clock=SimulatedClock())
    with pytest.raises(StudyLockedError, match="study 'digits' is being run by this process; stop that first"):
        other.open(DEFINITION)
    other.close()


def test_a_forked_child_neither_holds_the_lock_nor_writes(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.commit([trial(0)], elapsed=1.0)
        except StoreError:
            os.write(ready[1], b"1")
        os.read(go_on[0], 1)
        os._exit(0)
    try:
        os.set_blocking(ready[0], True)
        assert os.read(ready[0], 1) == b"1"
        store.commit([trial(0)], elapsed=1.0)
        store.close()  # the child lives on
        other = LmdbStudyStore(tmp_path, clock=SimulatedClock())
        assert len(other.open(DEFINITION).trials) == 1
        other.close()
    finally:
        os.write(go_on[1], b"1")
        os.waitpid(child, 0)
        for end in (*ready, *go_on):
            os.close(end)


def test_lock_files_are_for_the_user_alone(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    (file,) = (tmp_path / "locks").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_deleted_study_leaves_nothing_behind(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    first = result(0, 0, 0.5)
    store.commit([trial(0), RecordEvaluation(first), RecordDecision(0, State.COMPLETE, 0.5, "")], elapsed=1.0)
    store.commit([RecordTest(0, 0.5)], elapsed=2.0)
    store.close()
    other = LmdbStudyStore(tmp_path, clock=SimulatedClock())
    other.delete("digits")
    other.delete("never made")
    other.close()
    tables = StudyTables(tmp_path)
    with tables.environment.read() as transaction:
        rows = {name: transaction.stat(tables.environment.database(name))["entries"] for name in DATABASES}
    tables.environment.close()
    assert rows == dict.fromkeys(DATABASES, 0)
    assert not list((tmp_path / "locks").iterdir())


def test_no_two_studies_have_the_same_identity(tmp_path: Path) -> None:
    seen = []
    for folder in ("one", "one", "other"):  # deleted, made anew under its name, in another store
        store = LmdbStudyStore(tmp_path / folder, clock=SystemClock())
        assert store.identity("digits") is None
        store.open(DEFINITION)
        store.close()
        store = LmdbStudyStore(tmp_path / folder, clock=SystemClock())
        seen += [store.identity("digits")] * 2
        assert store.identity("digits") == seen[-1], "whoever opens it"
        store.renew_identity()
        seen.append(store.identity("digits"))
        store.delete("digits")
        store.close()
    assert len(set(seen)) == 6
    assert None not in seen


def test_a_lock_on_the_file_of_a_deleted_study_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens the file just before it goes with its study locks the next one's instead."""
    lock_file = fcntl.flock
    deleter = StudyLock(tmp_path, "digits")

    def flock(file: int, operation: int) -> None:
        if deleter.held:
            deleter.remove_file()
            deleter.release()
        lock_file(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = StudyLock(tmp_path, "digits")
    with pytest.raises(StudyLockedError):
        StudyLock(tmp_path, "digits")
    second.release()


@pytest.mark.parametrize("terms", [{"config": {"unheard_of": 1}, "budget": {}}, {"config": {}}, []])
def test_terms_of_another_version_do_not_keep_a_study_from_being_read(
    tmp_path: Path, store: LmdbStudyStore, terms: Any
) -> None:
    store.open(DEFINITION)
    store.commit([trial(0), RecordTerms(EfficiencyConfig(), Budget(trials=1))], elapsed=1.0)
    tables = StudyTables(tmp_path)
    tables.environment.write(lambda transaction: tables.set_attr(transaction, 0, SYSTEM, TERMS_ATTR, terms))
    tables.environment.close()
    record = store.load("digits")
    assert record is not None
    assert (len(record.trials), record.terms) == (1, None)


def test_optuna_sees_the_study(tmp_path: Path, store: LmdbStudyStore, clock: SimulatedClock) -> None:
    store.open(DEFINITION)
    started = datetime.fromtimestamp(clock.now)  # noqa: DTZ006 -- as above
    store.commit([trial(number) for number in range(4)], elapsed=0.0)
    clock.now += 90
    store.commit(
        [
            RecordEvaluation(result(0, 0, 0.5, cached=True)),
            RecordRung(0, 0, 0.5),
            RecordEvaluation(result(0, 1, 0.75)),
            RecordRung(0, 1, 0.75),
            RecordDecision(0, State.COMPLETE, 0.75, "complete", Effort(rung=1, evaluations=2, cached=1)),
            RecordRung(1, 0, 0.25),
            RecordDecision(1, State.PRUNED, 0.25, "halving"),
            RecordDecision(2, State.FAIL, None, "timeout: 3 s"),
            RecordTest(0, 0.7),
        ],
        elapsed=90.0,
    )
    storage = LmdbStorage(tmp_path)
    study = optuna.load_study(study_name="digits", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert (study.best_trial.number, study.best_value) == (0, 0.75)
    assert study.best_params == {"rate": 0.25, "depth": 3, "kind": "b"}
    assert [each.state.name for each in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert [each.value for each in study.trials] == [0.75, 0.25, None, None]
    assert study.trials[0].intermediate_values == {0: 0.5, 1: 0.75}
    assert study.trials[0].datetime_start == started
    assert study.trials[0].duration is not None
    assert study.trials[0].duration.total_seconds() == 90
    assert study.trials[0].user_attrs == {
        "trialfleet:reason": "complete",
        "rung": 1,
        "evaluations": 2,
        "cached": 1,
    }
    assert study.trials[3].distributions["rate"] == optuna.distributions.FloatDistribution(0.0, 1.0)
    assert study.user_attrs == {"trialfleet:test": {"trial": 0, "value": 0.7}}
    (frozen,) = storage.get_all_studies()
    assert frozen.system_attrs["trialfleet:definition"]["objective"] == "train.py:evaluate"
    storage.close()


def test_params_that_do_not_go_with_their_distributions_are_refused(store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    with pytest.raises(StoreError, match="trial 0: kind = 'c' does not go with Categorical"):
        store.commit([RecordTrial(0, {"kind": "c"}, {"kind": Categorical(["a", "b"])})], elapsed=1.0)


def test_a_study_that_optuna_made_is_not_ours(tmp_path: Path, store: LmdbStudyStore) -> None:
    storage = LmdbStorage(tmp_path)
    optuna.create_study(study_name="digits", storage=storage)
    storage.close()
    assert store.names() == []
    with pytest.raises(StoreError, match="was made by Optuna alone"):
        store.load("digits")
    with pytest.raises(StoreError, match="was made by Optuna alone"):
        store.open(DEFINITION)


def test_trials_that_optuna_adds_can_be_read(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    store.commit([trial(0)], elapsed=1.0)
    storage = LmdbStorage(tmp_path)
    study = optuna.load_study(study_name="digits", storage=storage)
    study.add_trial(
        optuna.create_trial(
            params={"x": 2}, distributions={"x": optuna.distributions.IntDistribution(0, 4, step=2)}, value=0.5
        )
    )
    storage.close()
    record = store.load("digits")
    assert record is not None
    assert (record.trials[1].params, record.trials[1].distributions) == ({"x": 2}, {"x": Int(0, 4, 2)})
    with pytest.raises(StoreError, match="the next trial's number is 2"):
        store.commit([trial(1)], elapsed=2.0)


def test_a_study_binds_those_of_its_name_once_a_trial_did_not_fail(store: LmdbStudyStore) -> None:
    """Who asks before a study is submitted is told the same as who opens it."""
    store.open(DEFINITION)
    assert store.definition("digits") is None
    store.commit([trial(0), RecordDecision(0, State.FAIL, None, "error: no module")], elapsed=1.0)
    assert store.definition("digits") is None
    store.commit([trial(1)], elapsed=2.0)
    assert store.definition("digits") is not None


def test_a_study_that_nobody_has_open_can_be_deleted_and_made_anew(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    store.commit([trial(0), RecordEvaluation(result(0, 0, 0.5))], elapsed=1.0)
    other = LmdbStudyStore(tmp_path, clock=SimulatedClock())
    with pytest.raises(StudyLockedError):
        other.delete("digits")
    store.close()
    other.delete("digits")
    other.delete("digits")
    assert other.names() == []
    assert other.open(DEFINITION).trials == []
    other.close()


def test_a_study_deleted_under_its_coordinator_is_a_store_error(tmp_path: Path, store: LmdbStudyStore) -> None:
    store.open(DEFINITION)
    storage = LmdbStorage(tmp_path)
    optuna.delete_study(study_name="digits", storage=storage)
    storage.close()
    with pytest.raises(StoreError, match=r"is not in .* any more"):
        store.commit([trial(0)], elapsed=1.0)
    assert store.names() == []


def test_the_dashboard_serves_a_study_that_is_being_written(
    tmp_path: Path, start_writer: Callable[[], "subprocess.Popen[str]"]
) -> None:
    from optuna_dashboard import wsgi

    process = start_writer()
    committed(process)
    storage = LmdbStorage(tmp_path)

    def fetch(path: str) -> object:
        app = wsgi(storage)  # anew each time: it keeps what it read for seconds
        said: list[str] = []
        request = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.url_scheme": "http",
        }
        body = b"".join(app(request, lambda status, _headers, _info=None: said.append(status)))
        assert said == ["200 OK"]
        return json.loads(body)

    summaries = fetch("/api/studies")
    assert isinstance(summaries, dict)
    (summary,) = summaries["study_summaries"]
    assert summary["study_name"] == "digits"
    seen = 0
    deadline = time.monotonic() + 60
    for _ in range(3):
        said = committed(process)
        while said <= seen:  # the writer's lines wait in the pipe
            said = committed(process)
        assert time.monotonic() < deadline
        detail = fetch(f"/api/studies/{summary['study_id']}")
        assert isinstance(detail, dict)
        seen = len(detail["trials"])
        assert seen >= said
    storage.close()
