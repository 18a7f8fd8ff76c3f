"""Where a worker serves its metrics, and how whoever looks for it learns that."""

import socket
import urllib.request
from pathlib import Path

import pytest
from support.commands import PATIENCE, start_trialfleet, trialfleet
from support.waiting import wait_until

from trialfleet.metrics import metrics_address
from trialfleet.rabbitmq_node import free_ports
from trialfleet_coordinator.adapters.rabbit_workers import WorkerWatch
from trialfleet_shared.clock import SystemClock


@pytest.mark.parametrize(
    ("host", "broker", "address"),
    [
        ("127.0.0.1", "amqp://127.0.0.1/", "127.0.0.1:9401"),
        ("worker7.example", "amqp://127.0.0.1/", "worker7.example:9401"),
        ("0.0.0.0", "amqp://user:password@127.0.0.1:5672/vhost?heartbeat=5", "127.0.0.1:9401"),
        ("0.0.0.0", "amqp://127.0.0.1:1/", "127.0.0.1:9401"),
        ("::", "amqp://[::1]/", "[::1]:9401"),
        ("::1", "amqp://127.0.0.1/", "[::1]:9401"),
        ("0.0.0.0", "amqp://nobody.invalid/", ""),
        ("0.0.0.0", "amqp://[nonsense/", ""),
    ],
)
def test_prometheus_is_sent_where_the_worker_is(host: str, broker: str, address: str) -> None:
    if "::1" in broker and not socket.has_ipv6:
        pytest.skip("no IPv6")
    assert metrics_address(host, 9401, broker) == address


@pytest.mark.rabbitmq
def test_coordinators_hear_where_a_worker_serves_metrics(rabbitmq: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    watch = WorkerWatch(rabbitmq, clock=SystemClock())
    watch.start()
    worker = start_trialfleet(
        [
            "worker",
            "--slots",
            "1",
            "--objective-path",
            tmp_path,
            "--metrics-host",
            "0.0.0.0",
            "--metrics-port",
            str(port),
        ],
        tmp_path / "home",
        TRIALFLEET_BROKER_URL=rabbitmq,
    )
    try:
        address = f"127.0.0.1:{port}"
        wait_until(lambda: address in {one.metrics_address for one in watch.workers()}, "the worker is heard", PATIENCE)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            assert b"trialfleet_worker_slots 1.0" in answer.read()
    finally:
        watch.close()
        worker.terminate()
        worker.communicate(timeout=PATIENCE)


@pytest.mark.rabbitmq
def test_an_address_that_is_not_this_machines_is_an_error(rabbitmq: str, tmp_path: Path) -> None:
    done = trialfleet(
        ["worker", "--objective-path", tmp_path, "--metrics-host", "192.0.2.1", "--metrics-port", "9401"],
        tmp_path / "home",
        TRIALFLEET_BROKER_URL=rabbitmq,
    )

    assert done.returncode == 2
    assert "--metrics-port 9401 at 192.0.2.1: Cannot assign requested address" in done.stderr
