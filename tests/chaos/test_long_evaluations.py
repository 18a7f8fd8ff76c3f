"""Evaluations that outlive what RabbitMQ grants a delivery, and workers that fall silent with one in hand."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fleet_suite import BASE, make_evaluation, make_spec
from support.workers import WorkerProcesses, poll_until

from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationResult, Outcome

pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]

#: Milliseconds that RabbitMQ grants a delivery in these tests, and between two looks whether one took longer.
TIMEOUT, LOOK = 2000, 250
#: Seconds of an evaluation that is taken back several times over.
LONG = 7.0


class ImpatientNode(RabbitNode):
    """Takes deliveries back soon."""

    def _configure(self) -> None:
        super()._configure()
        terms = f"[{{rabbit, [{{consumer_timeout, {TIMEOUT}}}, {{channel_tick_interval, {LOOK}}}]}}].\n"
        (self._folder / "advanced.config").write_text(terms)

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._folder / "advanced.config")}

    def log(self) -> str:
        return "".join(file.read_text(errors="replace") for file in (self._folder / "log").glob("*.log"))


@pytest.fixture(scope="module")
def impatient(rabbitmq_node: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImpatientNode]:
    """The node of all tests is asked for to skip, or fail, where there is no server."""
    with ImpatientNode(tmp_path_factory.mktemp("impatient")) as node:
        yield node


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


@pytest.mark.parametrize("hold_seconds", [0.5, None], ids=["leased in time", "taken back"])
def test_an_evaluation_outlives_its_delivery_and_is_run_once(
    impatient: ImpatientNode, tmp_path: Path, hold_seconds: float | None
) -> None:
    """The first worker acknowledges it before the broker runs out of patience; the second one does not, and gets it again."""
    study = Study(impatient.url)
    with WorkerProcesses(impatient.url, tmp_path, BASE, hold_seconds=hold_seconds) as workers:
        before = impatient.log().count("Timeout value used")
        workers.start(slots=1)
        study.fleet.start(make_spec("objectives.py:misbehave"))
        poll_until(study.poll, lambda: study.fleet.slots() == 1, "the worker is there")
        study.fleet.submit([make_evaluation(0, what="sleep", seconds=LONG), make_evaluation(1, what="return", x=1.0)])
        poll_until(study.poll, lambda: len(study.results) >= 2, "both are answered", 60.0)
        assert sorted((one.trial, one.value) for one in study.results) == [(0, LONG), (1, 1.0)]
        assert study.lost == []
        assert (impatient.log().count("Timeout value used") > before) is (hold_seconds is None), "RabbitMQ's log tells"
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
