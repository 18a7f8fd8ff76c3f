"""Processes are killed while a fleet evaluates: every evaluation is answered all the same."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from support.fleet_suite import BASE, make_evaluation, make_spec
from support.rabbit_node import ControlledNode
from support.waiting import wait_until
from support.workers import WorkerProcesses, poll_until

from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.adapters.rabbit import connect, results_queue
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import BrokerError
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationKey, EvaluationResult, Outcome

pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]


class Record:
    """What a coordinator would record: the first result of each evaluation."""

    def __init__(self, fleet: RabbitFleet) -> None:
        self._fleet = fleet
        self.first: dict[EvaluationKey, EvaluationResult] = {}
        self.copies = 0
        self.lost: list[LostEvaluation] = []

    def poll(self) -> None:
        results, lost = self._fleet.poll(0.1)
        for result in results:
            self.copies += result.key in self.first
            self.first.setdefault(result.key, result)
        self.lost += lost
        self._fleet.acknowledge()

    def await_results(self, count: int) -> None:
        poll_until(self.poll, lambda: len(self.first) >= count, f"{count} evaluations are answered", 120.0)


@pytest.fixture
def workers(rabbitmq: str, tmp_path: Path) -> Iterator[WorkerProcesses]:
    with WorkerProcesses(rabbitmq, tmp_path, BASE) as workers:
        yield workers


@pytest.fixture
def address() -> str:
    """Where the fleet hears results."""
    return uuid.uuid4().hex


@pytest.fixture
def fleet(rabbitmq: str, address: str) -> Iterator[RabbitFleet]:
    fleet = RabbitFleet(rabbitmq, address=address, clock=SystemClock())
    yield fleet
    fleet.close()


def await_written_down(node: RabbitNode, address: str) -> None:
    """A queue that is younger comes back as one that nobody can use, which takes minutes to mend."""
    (names,) = node.folder.glob("mnesia/*/quorum/*/names.dets")
    wait_until(lambda: address.encode() in names.read_bytes(), "RabbitMQ has written the queue down")


def test_what_a_killed_worker_held_is_evaluated_by_another(workers: WorkerProcesses, fleet: RabbitFleet) -> None:
    killed = workers.start()
    workers.start()
    fleet.start(make_spec("objectives.py:misbehave"))
    record = Record(fleet)
    poll_until(record.poll, lambda: fleet.slots() == 4, "both workers are there")
    for trial in range(12):
        fleet.submit([make_evaluation(trial, what="sleep", seconds=0.5)])
    record.await_results(2)
    killed.kill()
    record.await_results(12)
    assert sorted(key.trial for key in record.first) == list(range(12))
    assert {result.outcome for result in record.first.values()} == {Outcome.OK}
    assert record.lost == []
    poll_until(record.poll, lambda: fleet.slots() == 2, "the killed worker's slots are gone")


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    rabbitmq_node: RabbitNode, workers: WorkerProcesses, fleet: RabbitFleet, address: str
) -> None:
    worker = workers.start()
    fleet.start(make_spec("objectives.py:misbehave"))
    record = Record(fleet)
    poll_until(record.poll, lambda: fleet.slots() == 2, "the worker is there")
    await_written_down(rabbitmq_node, address)
    for trial in range(8):
        fleet.submit([make_evaluation(trial, what="sleep", seconds=0.4)])
    record.await_results(2)
    rabbitmq_node.kill()
    record.poll()
    for trial in range(8, 10):
        fleet.submit([make_evaluation(trial, what="sleep", seconds=0.1)])
    rabbitmq_node.start()
    record.await_results(10)
    assert sorted(key.trial for key in record.first) == list(range(10))
    assert {result.outcome for result in record.first.values()} == {Outcome.OK}
    assert record.lost == []
    assert worker.poll() is None
    poll_until(record.poll, lambda: fleet.slots() == 2, "the worker is heard again")


def test_a_broker_that_stays_away_is_told(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path / "node")
    with node:
        fleet = RabbitFleet(node.url, address="a", clock=SystemClock(), outage=1.0)
        fleet.start(make_spec("objectives.py:double"))
        fleet.submit([make_evaluation(0, x=1.0)])
        node.kill()
        with pytest.raises(BrokerError, match=r"amqp://trialfleet:\*\*\*@127.0.0.1:\d+/%2F was out of reach for 1 s"):
            poll_until(lambda: fleet.poll(0.1), lambda: False, "the fleet gives up")
        fleet.close()


def test_a_port_that_is_open_and_silent_is_a_broker_that_is_away(rabbitmq_node: RabbitNode, tmp_path: Path) -> None:
    url = f"{rabbitmq_node.url}?stack_timeout=0.5"
    with WorkerProcesses(url, tmp_path, BASE) as workers:
        fleet = RabbitFleet(url, address="silent", clock=SystemClock())
        fleet.start(make_spec("objectives.py:misbehave"))
        worker = workers.start()
        record = Record(fleet)
        poll_until(record.poll, lambda: fleet.slots() == 2, "the worker is there")
        await_written_down(rabbitmq_node, "silent")
        rabbitmq_node.kill()
        host, port = rabbitmq_node.address.split(":")
        with socket.create_server((host, int(port)), backlog=64):
            # As a load balancer whose back end is gone: whoever connects is kept waiting.
            with pytest.raises(BrokerError, match="is not reachable after 0 seconds: no answer in time"):
                connect(url, patience=0.0)
            wait_until(lambda: "the broker is away" in workers.log(0).read_text(), "the worker notices")
            fleet.submit([make_evaluation(0, what="return", x=1.0)])
            record.poll()
        rabbitmq_node.start()
        record.await_results(1)
        assert worker.poll() is None
        fleet.close()


def test_a_broker_short_of_memory_is_waited_for(
    rabbitmq_node: ControlledNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{rabbitmq_node.url}?blocked_connection_timeout=1"
    with WorkerProcesses(url, tmp_path, BASE) as workers:
        fleet = RabbitFleet(url, address="blocked", clock=SystemClock(), outage=3.0)
        fleet.start(make_spec("objectives.py:misbehave"))
        worker = workers.start()
        record = Record(fleet)
        for trial in range(8):
            fleet.submit([make_evaluation(trial, what="sleep", seconds=0.5)])
        record.await_results(1)
        rabbitmq_node.control("set_vm_memory_high_watermark", "0")
        try:
            poll_until(record.poll, lambda: "takes no messages" in workers.log(0).read_text(), "the worker notices")
            fleet.submit([make_evaluation(8, what="return", x=1.0)])
            poll_until(record.poll, lambda: "takes no messages" in caplog.text, "the coordinator notices")
            # What the worker has can not be sent, nor handed back: RabbitMQ has it still.
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGTERM)
            # Sent at the same time, either may be taken by a thread first, and the other one is the second.
            assert worker.wait(60) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
        finally:
            rabbitmq_node.control("set_vm_memory_high_watermark", "0.4")
        workers.start()
        record.await_results(9)
        assert {result.outcome for result in record.first.values()} == {Outcome.OK}
        assert caplog.text.count("takes no messages") == 1
        assert "takes messages again" in caplog.text
        fleet.close()


def test_a_broker_short_of_memory_is_noticed_by_who_publishes_nothing(
    rabbitmq_node: ControlledNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers' heartbeats are held up meanwhile: who did not know would take what they evaluate for lost."""
    fleet = RabbitFleet(f"{rabbitmq_node.url}?blocked_connection_timeout=1", address="quiet", clock=SystemClock())
    fleet.start(make_spec("objectives.py:misbehave"))
    rabbitmq_node.control("set_vm_memory_high_watermark", "0")
    try:
        poll_until(lambda: fleet.poll(0.1), lambda: "takes no messages" in caplog.text, "the coordinator notices")
    finally:
        rabbitmq_node.control("set_vm_memory_high_watermark", "0.4")
    poll_until(lambda: fleet.poll(0.1), lambda: "takes messages again" in caplog.text, "it goes on")
    fleet.close()


def test_a_results_queue_that_is_full_holds_up_no_other_study(rabbitmq_node: ControlledNode, tmp_path: Path) -> None:
    """By an operator's policy, say; nobody runs the study that would read it."""
    node, address = rabbitmq_node, uuid.uuid4().hex
    queue = results_queue(address)
    with (
        WorkerProcesses(node.url, tmp_path, BASE) as workers,
        pika.BlockingConnection(pika.URLParameters(node.url)) as connection,
    ):
        full, other = (RabbitFleet(node.url, address=each, clock=SystemClock()) for each in (address, uuid.uuid4().hex))
        for fleet in (full, other):
            fleet.start(make_spec("objectives.py:misbehave"))
        full.submit([make_evaluation(0, what="return", x=1.0)])
        full.close()
        channel = connection.channel()
        channel.confirm_delivery()

        def takes_no_more() -> bool:
            try:
                channel.basic_publish("", queue, b"?")
            except pika.exceptions.NackError:
                return True
            return False

        node.control("set_policy", "full", queue, '{"max-length": 1, "overflow": "reject-publish"}')
        try:
            wait_until(takes_no_more, "the queue is full")
            workers.start()
            record = Record(other)
            poll_until(record.poll, lambda: "refuses the results" in workers.log(0).read_text(), "they are refused")
            other.submit([make_evaluation(trial, what="return", x=1.0) for trial in range(4)])
            record.await_results(4)
            assert "is away" not in workers.log(0).read_text()
            other.close()
        finally:
            node.control("clear_policy", "full")
            channel.queue_delete(queue)


def test_a_node_ends_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from trialfleet.rabbitmq_node import RabbitNode; "
        "node = RabbitNode(Path(sys.argv[1])); node.start(); print(flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "node")], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        starter.stdout.readline()
    family = processes_of(tmp_path)
    assert any("beam" in name for name in family.values())
    assert "epmd" in family.values()
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    wait_until(lambda: not processes_of(tmp_path), "all of the node's processes have ended")


def test_a_node_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    with RabbitNode(tmp_path / "node") as node:
        assert processes_of(tmp_path)
        assert node.address in node.url
    wait_until(lambda: not processes_of(tmp_path), "its helpers, which end by themselves, have ended")


def processes_of(home: Path) -> dict[int, str]:
    """Names of the processes whose HOME is in `home`, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"HOME={home / 'node'}".encode() in environment:
                found[int(folder.name)] = (folder / "comm").read_text().strip()
    return found
