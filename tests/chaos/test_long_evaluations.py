"""Evaluations that outlive what RabbitMQ grants a delivery, and workers that fall silent with one in hand."""

import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pika
import pytest
from support.commands import PATIENCE, document, start_trialfleet
from support.fleet_suite import BASE, make_evaluation, make_spec
from support.relay import Relay
from support.simulated import SimulatedClock
from support.waiting import wait_until
from support.workers import WorkerProcesses, poll_until, purge

from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.memory_store import MemoryStudyStore
from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_coordinator.adapters.rabbit_workers import WorkerWatch
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.leases import MISSED_HEARTBEATS
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord
from trialfleet_coordinator.remote_fleet import GRACE_SECONDS
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.adapters.rabbit import EVALUATIONS
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Evaluation, EvaluationResult, Heartbeat, Outcome, StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Categorical, Float, SearchSpace
from trialfleet_workers.digests import code_digest
from trialfleet_workers.service import HEARTBEAT_SECONDS

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
#: Notes each of its calls.
NOTED = """
import pathlib, time

def work(params):
    with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
        print(params["seconds"], file=calls)
    time.sleep(params["seconds"])
    return params["seconds"]
"""


class ImpatientNode(RabbitNode):
    """Takes deliveries back after so many milliseconds."""

    def __init__(self, folder: Path, timeout: int) -> None:
        self._timeout = timeout
        super().__init__(folder)

    def _configure(self) -> None:
        super()._configure()
        terms = f"[{{rabbit, [{{consumer_timeout, {self._timeout}}}, {{channel_tick_interval, {LOOK}}}]}}].\n"
        (self.folder / "advanced.config").write_text(terms)

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config")}

    def log(self) -> str:
        return "".join(file.read_text(errors="replace") for file in (self.folder / "log").glob("*.log"))


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
    """Its worker does not acknowledge it in time, and is given it again while it is at it, with a slot to spare."""
    (tmp_path / "noted.py").write_text(NOTED)
    spec = StudySpec(study="noted", objective="noted.py:work", objective_digest=code_digest("noted.py:work", tmp_path))
    study = Study(impatient.url)
    with WorkerProcesses(impatient.url, tmp_path, tmp_path) as workers:
        before = impatient.log().count(TAKEN_BACK)
        workers.start(slots=2)
        study.fleet.start(spec)
        poll_until(study.poll, lambda: study.fleet.slots() == 2, "the worker is there")
        study.fleet.submit([make_evaluation(0, seconds=LONG), make_evaluation(1, seconds=0.0)])

        def answered() -> bool:
            # More than once, maybe: what is given again just after it was answered is answered by the worker's cache.
            return {(one.trial, one.value) for one in study.results} == {(0, LONG), (1, 0.0)}

        poll_until(study.poll, answered, "both are answered", 60.0)
        assert sorted((tmp_path / "calls").read_text().split()) == ["0.0", str(LONG)]
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


def test_what_a_stopped_worker_holds_is_run_elsewhere_and_it_may_answer_when_it_goes_on(
    rabbitmq: str, tmp_path: Path
) -> None:
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
        tried = 0

        def answered() -> bool:
            nonlocal tried
            # Once more where the stopped one was given it, because the other did not consume yet.
            while tried < len(study.lost):
                attempt = study.lost[tried].attempt + 1
                study.fleet.submit([make_evaluation(0, what="sleep", seconds=1.0, attempt=attempt)])
                tried += 1
            return bool(study.results)

        poll_until(study.poll, answered, "what it holds is lost, and the other one answers", 60.0)
        assert study.results[0].attempt > 0
        os.kill(silent.pid, signal.SIGCONT)
        poll_until(study.poll, lambda: any(one.attempt == 0 for one in study.results), "it answers all the same")
        assert {one.value for one in study.results} == {1.0}
        poll_until(study.poll, lambda: study.fleet.slots() == 2, "it is heard again")
    study.fleet.close()


class Watched(RabbitFleet):
    """A fleet of two workers of a slot each, one of which is killed once it says that it holds two of four evaluations.

    The other one's heartbeats are the coordinator's clock, so that no machine is too slow for this.

    Args:
        url: the broker.
        victim: the name of the worker that is killed.
        witness: that of the other one.
        kill: kills the first.
    """

    def __init__(self, url: str, *, victim: str, witness: str, kill: Callable[[], None]) -> None:
        self.beats = SimulatedClock()
        super().__init__(url, address=uuid.uuid4().hex, clock=self.beats)
        self._victim, self._witness, self._kill = victim, witness, kill
        #: When the victim was heard last, when it was not counted on any more, and when work was published last.
        self.heard_at = 0.0
        self.missed_at: float | None = None
        self.published_at = 0.0
        #: What was given up on, and when.
        self.lost: list[tuple[LostEvaluation, float]] = []

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        if not self.lost:
            self.published_at = self.beats.now
        super().submit(evaluations)

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        results, lost = super().poll(timeout)
        self.lost += [(one, self.beats.now) for one in lost]
        return results, lost

    def _on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        if heartbeat.worker == self._witness:
            self.beats.now += heartbeat.interval_seconds
        elif len(heartbeat.held) == 2:
            self._kill()
        super()._on_heartbeat(heartbeat, self.beats.now)
        if heartbeat.worker == self._victim:
            self.heard_at = self.beats.now
        if self.heard_at and self._victim not in self._leases.workers(self.beats.now):
            self.missed_at = self.missed_at or self.beats.now


def test_a_worker_that_dies_silently_is_missed_within_three_heartbeats_and_its_work_done_by_another(
    rabbitmq: str, tmp_path: Path
) -> None:
    """It is killed, and its connections stay open: for RabbitMQ it is there, and has what was delivered to it."""
    patient = f"{rabbitmq}?heartbeat=600"  # longer than any test
    for home in ("victim", "witness"):
        (tmp_path / home).mkdir()
    with (
        Relay(patient) as relay,
        WorkerProcesses(relay.url, tmp_path / "victim", BASE) as victims,
        WorkerProcesses(rabbitmq, tmp_path / "witness", BASE) as witnesses,
        closing(WorkerWatch(rabbitmq, clock=SystemClock())) as watch,
    ):
        watch.start()
        process = victims.start(slots=1)
        wait_until(lambda: len(watch.workers()) == 1, "the victim is there", 60.0)
        victim = watch.workers()[0].worker
        witnesses.start(slots=1)
        wait_until(lambda: len(watch.workers()) == 2, "the witness is there", 60.0)
        (witness,) = {status.worker for status in watch.workers()} - {victim}
        fleet = Watched(rabbitmq, victim=victim, witness=witness, kill=process.kill)
        record = run_on(fleet)
        assert process.wait(PATIENCE) == -signal.SIGKILL
        assert consumers(rabbitmq) == 4, "to RabbitMQ, both workers are there until the end"

    assert fleet.missed_at == fleet.heard_at + HEARTBEAT_SECONDS * (MISSED_HEARTBEATS + 1), "the first beat after three"
    assert {lost.reason for lost, _ in fleet.lost} == {f"worker {victim} is gone"}
    silent_since = max(fleet.heard_at, fleet.published_at)
    looks = 3.0  # the queue is looked at once a second, and has to be empty at the first and the last one
    assert all(at <= silent_since + GRACE_SECONDS + looks for _, at in fleet.lost)
    assert [(trial.number, trial.state, len(trial.results)) for trial in record.trials] == [
        (number, TrialState.COMPLETE, 1) for number in range(4)
    ]
    assert all(trial.value == trial.params["seconds"] for trial in record.trials)
    again = [(trial.number, trial.results[0].worker) for trial in record.trials if trial.results[0].attempt == 1]
    assert again == [(lost.key.trial, witness) for lost, _ in sorted(fleet.lost)]

    wait_until(lambda: consumers(rabbitmq) == 0, "RabbitMQ knows it too")
    purge(rabbitmq)  # of what it then had back: the next test's workers have nothing to do with it


def run_on(fleet: RabbitFleet) -> StudyRecord:
    """A study of four trials, all of which are under way at once; what is recorded of it."""
    spec = make_spec("objectives.py:misbehave")
    definition = StudyDefinition(
        spec.study, "maximize", {}, spec.objective, spec.objective_digest, "", Ladder((Rung(1.0, 1),)), 0
    )
    plan = StudyPlan(
        definition=definition, config=EfficiencyConfig(), spec=spec, budget=Budget(trials=4), has_test=False
    )
    space = SearchSpace({"what": Categorical(["sleep"]), "seconds": Float(3.0, 4.0)})
    store = MemoryStudyStore()
    outside = Outside(fleet, store, None, UniformSampler(space, seed=0), SystemClock(), lambda: 0)
    try:
        run_study(plan, store.open(definition), outside, on_progress=lambda _: None, stop=lambda: None)
    finally:
        fleet.close()
    record = store.load(spec.study)
    assert record is not None
    return record


def consumers(url: str) -> int:
    """How many there are of the queue of evaluations: two of each worker."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return int(connection.channel().queue_declare(EVALUATIONS, passive=True).method.consumer_count)


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
