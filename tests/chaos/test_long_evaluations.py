"""Evaluations that outlive what RabbitMQ grants a delivery, and workers that fall silent with one in hand."""

import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet
from support.fleet_suite import BASE, make_evaluation, make_spec
from support.workers import WorkerProcesses, poll_until

from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.ports import StudyRecord
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationResult, Outcome

pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]

#: Milliseconds between RabbitMQ's looks whether a delivery took too long; a minute by default.
LOOK = 250
#: Milliseconds that a delivery is granted where it is to be taken back soon.
SOON = 2000
#: Seconds of an evaluation that is.
LONG = 7.0
#: The least that RabbitMQ supports, in milliseconds.
MINUTE = 60_000
#: Seconds of an evaluation that outlives it.
LONGER = 78.0
#: Seconds that workers hold a delivery of a minute: a third of it, as they hold one of RabbitMQ's usual half an hour.
HOLD = MINUTE / 1000 / 3
#: RabbitMQ's log says so when it takes a delivery back.
TAKEN_BACK = "Timeout value used"
#: Too few for the study to run the slow one a second time, on a slot that has nothing else to do.
TRIALS = 3
STUDY = f"""
[study]
name = "patient"
objective = "objective.py:work"
sampler = "random"
trials = {TRIALS}
patience = {TRIALS}
[space.x]
type = "float"
min = 0.0
max = 1.0
"""
#: The first call of all takes long.
OBJECTIVE = f"""
import json, pathlib, time

HERE = pathlib.Path(__file__).parent

def work(params):
    with (HERE / "calls").open("a") as calls:
        calls.write(json.dumps(params) + "\\n")
    try:
        (HERE / "first").touch(exist_ok=False)
    except FileExistsError:
        return params["x"]
    time.sleep({LONGER})
    return params["x"]
"""


class ImpatientNode(RabbitNode):
    """Takes deliveries back after so many milliseconds."""

    def __init__(self, folder: Path, timeout: int) -> None:
        self._timeout = timeout
        super().__init__(folder)

    def _configure(self) -> None:
        super()._configure()
        terms = f"[{{rabbit, [{{consumer_timeout, {self._timeout}}}, {{channel_tick_interval, {LOOK}}}]}}].\n"
        (self._folder / "advanced.config").write_text(terms)

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._folder / "advanced.config")}

    def log(self) -> str:
        return "".join(file.read_text(errors="replace") for file in (self._folder / "log").glob("*.log"))


@pytest.fixture(scope="module")
def impatient(rabbitmq_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImpatientNode]:
    """The node of all tests is asked for to skip, or fail, where there is no server."""
    with ImpatientNode(tmp_path_factory.mktemp("impatient"), SOON) as node:
        yield node


class LongStudy:
    """`trialfleet run` on two workers, one evaluation of which takes longer than a delivery may."""

    def __init__(self, node: ImpatientNode, folder: Path) -> None:
        self.node = node
        self._folder = folder
        (folder / "study.toml").write_text(STUDY)
        (folder / "objective.py").write_text(OBJECTIVE)
        command = ["run", folder / "study.toml", "--json"]
        self.process = start_trialfleet(command, folder / "home", TRIALFLEET_BROKER_URL=node.url)

    def end(self) -> tuple[str, str]:
        """Wait for it; what it wrote to stdout and stderr."""
        return self.process.communicate(timeout=LONGER + PATIENCE)

    def calls(self) -> Counter[float]:
        """How often the objective was called with which x."""
        return Counter(json.loads(line)["x"] for line in (self._folder / "calls").read_text().splitlines())

    def record(self) -> StudyRecord:
        store = LmdbStudyStore(self._folder / "home" / "store", clock=SystemClock())
        try:
            record = store.load("patient")
        finally:
            store.close()
        assert record is not None
        return record


@pytest.fixture(scope="module", autouse=True)
def long_study(rabbitmq_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongStudy]:
    """It runs while the other tests of this file do, as nobody has more than a minute to wait."""
    folder = tmp_path_factory.mktemp("long")
    with (
        ImpatientNode(folder / "node", MINUTE) as node,
        WorkerProcesses(node.url, folder, folder, hold_seconds=HOLD) as workers,
    ):
        for _ in range(2):
            workers.start(slots=1)
        study = LongStudy(node, folder)
        yield study
        study.process.kill()
        study.process.communicate()


class Study:
    """A study on a fleet: what was answered, and what was lost and published again."""

    def __init__(self, url: str, *, grace: float = 15.0) -> None:
        self.fleet = RabbitFleet(url, address=uuid.uuid4().hex, clock=SystemClock(), grace=grace)
        self.results: list[EvaluationResult] = []
        self.lost: list[LostEvaluation] = []

    def poll(self) -> None:
        results, lost = self.fleet.poll(0.1)
        self.results += results
        self.lost += lost
        self.fleet.acknowledge()


def test_an_evaluation_that_is_taken_back_is_run_once(impatient: ImpatientNode, tmp_path: Path) -> None:
    """Its worker does not acknowledge it in time, and is given it again while it is at it."""
    study = Study(impatient.url)
    with WorkerProcesses(impatient.url, tmp_path, BASE) as workers:
        before = impatient.log().count(TAKEN_BACK)
        workers.start(slots=1)
        study.fleet.start(make_spec("objectives.py:misbehave"))
        poll_until(study.poll, lambda: study.fleet.slots() == 1, "the worker is there")
        study.fleet.submit([make_evaluation(0, what="sleep", seconds=LONG), make_evaluation(1, what="return", x=1.0)])
        poll_until(study.poll, lambda: len(study.results) >= 2, "both are answered", 60.0)
        assert sorted((one.trial, one.value) for one in study.results) == [(0, LONG), (1, 1.0)]
        assert study.lost == []
        assert impatient.log().count(TAKEN_BACK) > before
    study.fleet.close()


def test_one_that_hangs_is_ended_at_its_deadline_though_it_is_leased(impatient: ImpatientNode, tmp_path: Path) -> None:
    study = Study(impatient.url)
    with WorkerProcesses(impatient.url, tmp_path, BASE, hold_seconds=0.5) as workers:
        workers.start(slots=1)
        study.fleet.start(make_spec("objectives.py:misbehave", deadline_seconds=3.0))
        study.fleet.submit([make_evaluation(0, what="sleep", seconds=600.0)])
        poll_until(study.poll, lambda: study.results, "it is answered", 60.0)
        assert [(one.outcome, one.error) for one in study.results] == [
            (Outcome.TIMEOUT, "ended at its deadline of 3 s")
        ]
    study.fleet.close()


def test_a_worker_that_dies_silently_is_missed_and_its_evaluation_run_elsewhere(rabbitmq: str, tmp_path: Path) -> None:
    """Stopped, its connections stay open: the broker misses nothing for minutes, the coordinator does."""
    study = Study(rabbitmq, grace=3.0)
    with WorkerProcesses(rabbitmq, tmp_path, BASE) as workers:
        silent = workers.start(slots=1)
        study.fleet.start(make_spec("objectives.py:misbehave"))
        poll_until(study.poll, lambda: study.fleet.slots() == 1, "the worker is there")
        study.fleet.submit([make_evaluation(0, what="sleep", seconds=1.0)])
        held = lambda: study.fleet._leases._leases[make_evaluation(0).key].holder is not None  # noqa: E731
        poll_until(study.poll, held, "the worker has it")
        os.kill(silent.pid, signal.SIGSTOP)
        poll_until(study.poll, lambda: study.fleet.slots() == 0, "three heartbeats are missed")
        workers.start(slots=1)
        poll_until(study.poll, lambda: study.fleet.slots() == 1, "another worker is there")
        poll_until(study.poll, lambda: study.lost, "what it holds is lost")
        study.fleet.submit([make_evaluation(0, what="sleep", seconds=1.0, attempt=study.lost[0].attempt + 1)])
        poll_until(study.poll, lambda: study.results, "the other one answers")
        os.kill(silent.pid, signal.SIGCONT)
        poll_until(study.poll, lambda: len(study.results) == 2, "it answers all the same")
        assert [(one.attempt, one.value) for one in study.results] == [(1, 1.0), (0, 1.0)]
        poll_until(study.poll, lambda: study.fleet.slots() == 2, "it is heard again")
    study.fleet.close()


@pytest.mark.last
def test_an_evaluation_that_outlives_the_consumer_timeout_completes_exactly_once(long_study: LongStudy) -> None:
    """A second worker idles: whatever RabbitMQ took back would be called there at once."""
    output, errors = long_study.end()
    assert long_study.process.returncode == 0, errors
    trials = long_study.record().trials
    assert long_study.calls() == Counter(trial.params["x"] for trial in trials), "each was called once"
    assert TAKEN_BACK not in long_study.node.log()
    assert [(trial.number, trial.state, len(trial.results)) for trial in trials] == [
        (number, TrialState.COMPLETE, 1) for number in range(TRIALS)
    ]
    assert [trial.results[0].attempt for trial in trials] == [0] * TRIALS
    assert all(trial.results[0].value == trial.value == trial.params["x"] for trial in trials)
    assert max(trial.results[0].wall_seconds for trial in trials) > MINUTE / 1000
    report = document(output)
    assert (report["evaluations"], report["undecided"]) == (TRIALS, 0)
