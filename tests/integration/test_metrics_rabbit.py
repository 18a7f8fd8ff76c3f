"""What is told of messages that come twice, or that nobody can read."""

import signal
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import dramatiq
import pika
import pytest
from support.commands import PATIENCE, start_trialfleet
from support.exposition import a_definition, a_result, told
from support.fleet_suite import make_evaluation, make_spec
from support.queues import put
from support.waiting import wait_until
from support.workers import poll_until, purge

from trialfleet.rabbitmq_node import free_ports
from trialfleet_coordinator.adapters.prometheus import FleetMetrics
from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.adapters.rabbit import EVALUATE, EVALUATIONS, connect, results_queue
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.codec import encode
from trialfleet_shared.messages import EvaluationResult, ResultBatch

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def channel(rabbitmq: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    purge(rabbitmq)


def test_a_coordinator_tells_of_them(rabbitmq: str, channel: pika.adapters.blocking_connection.BlockingChannel) -> None:
    metrics = FleetMetrics(SystemClock(), memory=lambda: 0)
    study = metrics.study(a_definition("s"), "fast")
    address = uuid.uuid4().hex
    results: list[EvaluationResult] = []
    for session in range(2):
        fleet = RabbitFleet(rabbitmq, address=address, clock=SystemClock(), telemetry=study)
        try:
            fleet.start(make_spec("objectives.py:double"))
            if session == 0:
                broker = connect(rabbitmq, patience=60.0)
                broker.ensure_again(results_queue(address))  # as the fleet does, at its own pace
                broker.drop_connection()
                fleet.submit([make_evaluation(0)])  # so that its queue is kept for the next session
                put(channel, results_queue(address), b"what is this?")
                put(channel, results_queue(address), encode(ResultBatch("suite", (a_result(7),))))
            poll_until(lambda: results.extend(fleet.poll(0.1)[0]), lambda: len(results) > session, "a result came")  # noqa: B023  # called at once
        finally:
            fleet.close()  # nothing was acknowledged
    figures = told(metrics)
    assert figures["trialfleet_dead_letters_total", "s"] == 1
    assert figures["trialfleet_messages_redelivered_total", "s"] == 1


def test_a_worker_tells_of_them(
    rabbitmq: str, channel: pika.adapters.blocking_connection.BlockingChannel, tmp_path: Path
) -> None:
    (port,) = free_ports(1)

    def says(line: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return line in answer.read().decode().splitlines()
        except (urllib.error.URLError, ConnectionError):
            return False

    worker = start_trialfleet(
        ["worker", "--slots", "1", "--objective-path", tmp_path, "--metrics-port", str(port)],
        tmp_path / "home",
        TRIALFLEET_BROKER_URL=rabbitmq,
    )
    try:
        wait_until(lambda: says("trialfleet_worker_slots 1.0"), "the worker listens", PATIENCE)
        junk: dramatiq.Message[object] = dramatiq.Message(
            queue_name=EVALUATIONS, actor_name=EVALUATE, args=("what is this?",), kwargs={}, options={}
        )
        put(channel, EVALUATIONS, junk.encode())
        wait_until(lambda: says("trialfleet_worker_dead_letters_total 1.0"), "the dead letter is told")
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=PATIENCE)
