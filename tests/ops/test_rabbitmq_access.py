"""The broker as ops/rabbitmq sets it up: who may do what on it, tried on a real node."""

import base64
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.deployed import OPS
from support.fleet_suite import make_spec
from support.queues import messages, put
from support.rabbit_node import VHOST, OpsNode
from support.waiting import wait_until
from support.workers import poll_until

from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.adapters.rabbit import (
    DEAD,
    EVALUATIONS,
    HEARTBEATS,
    MAX_MESSAGE_BYTES,
    FleetBroker,
    connect,
    results_queue,
)
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import BrokerError

DEFINITIONS = json.loads((OPS / "rabbitmq" / "definitions.json").read_text())
RESULTS = results_queue("somebody's")
STUDY = """
[study]
name = "parabola"
objective = "objective.py:parabola"
direction = "minimize"
trials = 30
[space.x]
type = "float"
min = -1.0
max = 1.0
"""
OBJECTIVE = """
import os

def parabola(params):
    assert not any("BROKER" in name for name in os.environ), "an objective has no business with the broker"
    return params["x"] ** 2
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, rabbitmq: str) -> Iterator[OpsNode]:  # as that: fails or skips alike
    with OpsNode(tmp_path_factory.mktemp("ops-node")) as running:
        yield running


@pytest.fixture(scope="module")
def results(node: OpsNode) -> str:
    """A queue of results, with one in it, as a coordinator has it."""
    broker = connect(node.url_of("coordinator"), patience=5.0)
    broker.declare_queue(RESULTS, ensure=True)
    broker.publish(RESULTS, b"{}")
    broker.close()
    return RESULTS


@contextmanager
def channel_of(node: OpsNode, user: str) -> Iterator[BlockingChannel]:
    """A channel of one of the definitions' users."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url_of(user)))
    try:
        yield connection.channel()
    finally:
        connection.close()


def ask(node: OpsNode, path: str, user: str, password: str) -> Any:
    """The management API's answer. Raises HTTPError."""
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(f"{node.management}{path}", headers={"Authorization": f"Basic {credentials}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_definitions_hold_no_secret() -> None:
    assert {user["name"]: user["password_hash"] for user in DEFINITIONS["users"]} == {
        "coordinator": "",
        "worker": "",
        "monitor": "",
    }


def test_the_definitions_queues_are_those_of_the_code() -> None:
    queues = {queue["name"]: queue["arguments"] for queue in DEFINITIONS["queues"]}

    assert queues[EVALUATIONS] == FleetBroker("amqp://localhost")._build_queue_arguments(EVALUATIONS)
    assert queues.keys() == {EVALUATIONS, DEAD}
    assert [(one["name"], one["type"], one["durable"]) for one in DEFINITIONS["exchanges"]] == [
        (HEARTBEATS, "fanout", True)
    ]


def test_secrets_stay_when_they_are_made_again(tmp_path: Path) -> None:
    def make() -> dict[str, str]:
        subprocess.run([sys.executable, OPS / "make-secrets", tmp_path / "secrets"], check=True, capture_output=True)
        return {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}

    first = make()
    (tmp_path / "secrets" / "worker-password").unlink()
    second = make()

    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"worker-password", "worker-broker-url", "rabbitmq-definitions"}  # salts are new each time


def test_urls_stay_as_an_option_made_them(tmp_path: Path) -> None:
    def make(*options: str) -> str:
        subprocess.run([sys.executable, OPS / "make-secrets", tmp_path, *options], check=True, capture_output=True)
        return (tmp_path / "worker-broker-url").read_text()

    first = make("--broker", "broker.example", "--tls")
    assert "amqps://" in first
    assert make() == first
    before = (tmp_path / "worker-password").read_text()
    (tmp_path / "worker-password").unlink()
    changed = make()
    after = (tmp_path / "worker-password").read_text()
    assert before != after
    assert changed == first.replace(before, after)
    assert (tmp_path / "monitor-management-url").read_text().endswith("@broker.example:15671/trialfleet")
    assert "@rabbitmq:5671" in make("--tls"), "an option says how all of a URL shall be"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_secrets_can_be_read_by_users_of_containers_and_the_folder_by_nobody_else(umask: int, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, OPS / "make-secrets", tmp_path / "secrets"], check=True, capture_output=True, umask=umask
    )

    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "secrets").iterdir()}
    assert modes
    assert modes == dict.fromkeys(modes, "0o644")


def test_no_url_ends_with_a_newline(tmp_path: Path) -> None:
    """Kubernetes hands on a file as it is, and KEDA takes a newline for a part of the URL."""
    subprocess.run([sys.executable, OPS / "make-secrets", tmp_path], check=True, capture_output=True)
    urls = {file.name: file.read_text() for file in tmp_path.glob("*-url")}

    assert set(urls) == {"coordinator-broker-url", "worker-broker-url", "monitor-management-url"}
    assert all(url == url.strip() for url in urls.values())


@pytest.mark.rabbitmq
def test_a_study_finishes_with_a_user_for_each_role(node: OpsNode, tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    (tmp_path / "study.toml").write_text(STUDY)
    with channel_of(node, "worker") as channel:
        channel.queue_purge(EVALUATIONS)  # what other tests published is no work
    worker = start_trialfleet(
        ["worker", "--slots", "1", "--objective-path", tmp_path],
        tmp_path / "worker",
        TRIALFLEET_BROKER_URL_FILE=str(node.secrets / "worker-broker-url"),
    )
    try:
        done = trialfleet(
            ["run", tmp_path / "study.toml", "--json"],
            tmp_path / "coordinator",
            TRIALFLEET_BROKER_URL_FILE=str(node.secrets / "coordinator-broker-url"),
        )
        assert done.returncode == 0, done.stderr
        report = document(done.stdout)
        assert (report["complete"] + report["pruned"], report["failed"], report["undecided"]) == (30, 0, 0)
        # Work that is none goes to the dead letters, and the worker lives on.
        with channel_of(node, "coordinator") as channel:
            channel.confirm_delivery()

            before = messages(channel, DEAD)
            put(channel, EVALUATIONS, b"poison")
            wait_until(lambda: messages(channel, DEAD) == before + 1, "a dead letter", PATIENCE)
        assert worker.poll() is None
    finally:
        worker.terminate()
        _, errors = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, errors
    for user in ("coordinator", "worker"):
        assert node.password_of(user) not in done.stderr + errors


@pytest.mark.rabbitmq
def test_a_message_that_nobody_would_read_is_not_kept(node: OpsNode) -> None:
    longest = b" " * MAX_MESSAGE_BYTES
    with channel_of(node, "coordinator") as channel:
        channel.confirm_delivery()
        put(channel, EVALUATIONS, longest)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="larger than configured max size"):
            channel.basic_publish("", EVALUATIONS, longest + b" ", mandatory=True)
    with channel_of(node, "worker") as channel:
        channel.queue_purge(EVALUATIONS)


#: What a role may do that others may not: who, a word for it, the operation.
_ALLOWED: list[tuple[str, str, Callable[[BlockingChannel], Any]]] = [
    ("coordinator", "give work", lambda channel: put(channel, EVALUATIONS, b"?")),
    ("coordinator", "read results", lambda channel: channel.basic_get(RESULTS)),
    ("coordinator", "read dead letters", lambda channel: channel.basic_get(DEAD)),
    ("worker", "take work", lambda channel: channel.basic_get(EVALUATIONS)),
    ("worker", "send results", lambda channel: put(channel, RESULTS, b"?")),
    ("worker", "beat", lambda channel: channel.basic_publish(HEARTBEATS, "", b"?")),
]
_REFUSED: list[tuple[str, str, Callable[[BlockingChannel], Any]]] = [
    ("worker", "read results", lambda channel: channel.basic_get(RESULTS)),
    ("worker", "consume results", lambda channel: channel.basic_consume(RESULTS, lambda *_: None)),
    ("worker", "drop results", lambda channel: channel.queue_purge(RESULTS)),
    ("worker", "remove results", lambda channel: channel.queue_delete(RESULTS)),
    ("worker", "have results redirected", lambda channel: channel.queue_declare(results_queue("mine"), durable=True)),
    ("worker", "read dead letters", lambda channel: channel.basic_get(DEAD)),
    ("worker", "have a queue of its own", lambda channel: channel.queue_declare("", exclusive=True)),
    ("worker", "hear heartbeats", lambda channel: channel.queue_bind(EVALUATIONS, HEARTBEATS)),
    ("worker", "use another exchange", lambda channel: publish(channel, "amq.topic", "any")),
    ("coordinator", "take work", lambda channel: channel.basic_get(EVALUATIONS)),
    ("coordinator", "drop work", lambda channel: channel.queue_purge(EVALUATIONS)),
    ("coordinator", "beat", lambda channel: publish(channel, HEARTBEATS, "")),
    ("coordinator", "have any queue", lambda channel: channel.queue_declare("other", durable=True)),
]


def publish(channel: BlockingChannel, exchange: str, key: str) -> None:
    """Publish, and learn whether it was refused."""
    channel.confirm_delivery()
    channel.basic_publish(exchange, key, b"?")


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("user", "what", "do"), _ALLOWED, ids=[f"{user}-{what}" for user, what, _ in _ALLOWED])
def test_a_role_may_do_its_work(
    user: str, what: str, do: Callable[[BlockingChannel], Any], node: OpsNode, results: str
) -> None:
    with channel_of(node, user) as channel:
        channel.confirm_delivery()
        do(channel)


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("user", "what", "do"), _REFUSED, ids=[f"{user}-{what}" for user, what, _ in _REFUSED])
def test_a_role_may_do_nothing_else(
    user: str, what: str, do: Callable[[BlockingChannel], Any], node: OpsNode, results: str
) -> None:
    with channel_of(node, user) as channel:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            do(channel)
        assert refused.value.reply_code == 403


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("user", "password"), [("guest", "guest"), ("worker", "wrong"), ("worker", ""), ("nobody", "anything")]
)
def test_a_stranger_does_not_get_in(user: str, password: str, node: OpsNode) -> None:
    with pytest.raises(BrokerError, match="user or password is wrong"):
        connect(f"amqp://{user}:{password}@{node.address}/{VHOST}", patience=5.0)


@pytest.mark.rabbitmq
def test_a_coordinator_with_a_workers_secret_is_told_what_it_may_not(node: OpsNode) -> None:
    fleet = RabbitFleet(node.url_of("worker"), address="mine", clock=SystemClock())
    fleet.start(make_spec("objectives.py:double"))
    with pytest.raises(BrokerError, match=r"refused: ACCESS_REFUSED - .*trialfleet\.v1\.results\.mine") as refused:
        poll_until(lambda: fleet.poll(0.1), lambda: False, "it is refused")
    assert node.password_of("worker") not in str(refused.value)
    fleet.close()


@pytest.mark.rabbitmq
def test_who_watches_may_publish_and_read_nothing(node: OpsNode, results: str) -> None:
    url = f"amqp://monitor:{node.password_of('monitor')}@{node.address}/{VHOST}"
    for do in (
        lambda channel: publish(channel, "", EVALUATIONS),
        lambda channel: channel.basic_get(RESULTS),
        lambda channel: channel.queue_declare("", exclusive=True),
    ):
        connection = pika.BlockingConnection(pika.URLParameters(url))
        try:
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="403"):
                do(connection.channel())
        finally:
            connection.close()


@pytest.mark.rabbitmq
def test_who_scales_sees_what_workers_hold_as_well(node: OpsNode) -> None:
    """As KEDA asks, with the URL that it is given."""
    given = urlsplit((node.secrets / "monitor-management-url").read_text())
    assert given.password == node.password_of("monitor")

    def seen() -> int:
        depth = ask(node, f"/queues{given.path}/{EVALUATIONS}", str(given.username), str(given.password))
        return int(depth.get("messages", 0))  # gathered every five seconds

    with channel_of(node, "worker") as channel:
        channel.confirm_delivery()
        channel.queue_purge(EVALUATIONS)
        for _ in range(3):
            put(channel, EVALUATIONS, b"?")
        wait_until(lambda: channel.basic_get(EVALUATIONS)[0], "a message")
        wait_until(lambda: seen() == 3, "2 that wait and 1 that is held", 30.0)
        channel.queue_purge(EVALUATIONS)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("user", ["monitor", "worker", "coordinator"])
def test_nobody_sees_users(user: str, node: OpsNode) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(node, "/users", user, node.password_of(user))


@pytest.mark.rabbitmq
def test_policies_hold_for_the_queues_they_are_meant_for(node: OpsNode, results: str) -> None:
    def policies() -> dict[str, str]:
        queues = ask(node, f"/queues/{VHOST}", "monitor", node.password_of("monitor"))
        return {queue["name"]: queue.get("policy") for queue in queues}

    expected = {EVALUATIONS: "trialfleet-work", RESULTS: "trialfleet-work", DEAD: "trialfleet-dead"}
    wait_until(lambda: expected.items() <= policies().items(), f"{expected}", 30.0)
    detail = ask(node, f"/queues/{VHOST}/{EVALUATIONS}", "monitor", node.password_of("monitor"))
    assert detail["effective_policy_definition"]["dead-letter-strategy"] == "at-least-once"


@pytest.mark.rabbitmq
def test_a_worker_bears_a_broker_that_takes_nothing(node: OpsNode, tmp_path: Path) -> None:
    """A broker short of memory is as one that is away: the loop goes round, and what was done is sent later."""
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    (tmp_path / "study.toml").write_text(STUDY.replace("parabola", "patience", 1))
    (tmp_path / "url").write_text(node.url_of("worker").replace("timeout=30", "timeout=1"))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(PATIENCE)
    with listening:
        worker = start_trialfleet(
            ["worker", "--slots", "1", "--objective-path", tmp_path],
            tmp_path / "worker",
            TRIALFLEET_BROKER_URL_FILE=str(tmp_path / "url"),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="4000000",
        )
        try:
            assert listening.recv(100) == b"READY=1"
            node.control("set_vm_memory_high_watermark", "absolute", "1")
            for _ in range(8):  # of one each second at most, while each heartbeat waits for two
                assert listening.recv(100) == b"WATCHDOG=1"
            node.control("set_vm_memory_high_watermark", "0.6")
            done = trialfleet(
                ["run", tmp_path / "study.toml", "--json"],
                tmp_path / "coordinator",
                TRIALFLEET_BROKER_URL_FILE=str(node.secrets / "coordinator-broker-url"),
            )
            assert done.returncode == 0, done.stderr
        finally:
            node.control("set_vm_memory_high_watermark", "0.6")
            worker.terminate()
            _, errors = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, errors
    assert "the broker takes no messages, for want of memory or disk; trying again" in errors
    assert "the broker is back" in errors
