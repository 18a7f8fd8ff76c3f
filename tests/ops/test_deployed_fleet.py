"""A fleet deployed as ops/ says, but for containers and ports: broker, coordinator, worker and Prometheus together."""

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import yaml
from support.commands import PATIENCE, start_trialfleet, trialfleet
from support.deployed import OPS
from support.programs import need
from support.prometheus_server import PrometheusServer
from support.rabbit_node import VHOST, OpsNode
from support.waiting import wait_until

from trialfleet.rabbitmq_node import free_ports
from trialfleet_shared import instruments
from trialfleet_shared.adapters.rabbit import DEAD, EVALUATIONS

pytestmark = pytest.mark.rabbitmq

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
def parabola(params):
    return params["x"] ** 2
"""


class Manager:
    """Hears what services tell their manager, while it is entered."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._thread = threading.Thread(target=self._listen)
        self.heard: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while said := self._socket.recv(100):
            self.heard.append(said.decode())


class Fleet:
    """What runs, and where."""

    def __init__(self, folder: Path, node: OpsNode, stack: ExitStack) -> None:
        self.folder = folder
        self.node = node
        self._stack = stack
        (self.port,) = free_ports(1)
        self.studies = folder / "studies"
        self.studies.mkdir()
        (self.studies / "objective.py").write_text(OBJECTIVE)
        (self.studies / "study.toml").write_text(STUDY)
        self.manager = stack.enter_context(Manager(folder / "notify"))

    def start_coordinator(self) -> "subprocess.Popen[str]":
        """By the container's file, with the unit's secrets and watchdog."""
        file = self.folder / "fleet.toml"
        shipped = (OPS / "docker" / "fleet.toml").read_text()
        file.write_text(shipped.replace("8765", str(self.port)).replace("/studies", str(self.studies)))
        return self._start(
            ["coordinator", "--config", file],
            "coordinator",
            TRIALFLEET_TOKEN_FILE=str(self.node.secrets / "coordinator-token"),
            NOTIFY_SOCKET=str(self.folder / "notify"),
            WATCHDOG_USEC="4000000",
        )

    def start_worker(self) -> "subprocess.Popen[str]":
        (metrics_port,) = free_ports(1)
        served = ["--metrics-host", "0.0.0.0", "--metrics-port", str(metrics_port)]
        return self._start(["worker", "--slots", "2", "--objective-path", self.studies, *served], "worker")

    def ask(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """What a user of the coordinator does, from another home."""
        return trialfleet(
            arguments,
            self.folder / "user",
            TRIALFLEET_URL=f"http://127.0.0.1:{self.port}",
            TRIALFLEET_TOKEN_FILE=str(self.node.secrets / "coordinator-token"),
        )

    def _start(self, arguments: list[str | Path], role: str, **variables: str) -> "subprocess.Popen[str]":
        process = start_trialfleet(
            arguments,
            self.folder / role,
            TRIALFLEET_BROKER_URL_FILE=str(self.node.secrets / f"{role}-broker-url"),
            **variables,
        )
        self._stack.callback(process.communicate, timeout=PATIENCE)
        self._stack.callback(process.kill)
        return process


class ShippedPrometheus(PrometheusServer):
    """Works by ops/prometheus/prometheus.yml, a bit faster, with the names of its targets resolved."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        super().__init__(folder, {})
        self._fleet = fleet

    def _configuration(self) -> str:
        shutil.copytree(OPS / "prometheus", self._folder, dirs_exist_ok=True)
        text = (OPS / "prometheus" / "prometheus.yml").read_text().replace(" 15s", " 1s").replace(" 10s", " 1s")
        for name, address in (
            ("coordinator:8765", f"127.0.0.1:{self._fleet.port}"),
            ("rabbitmq:15692", self._fleet.node.prometheus),
        ):
            assert name in text
            text = text.replace(name, address)
        return text


@pytest.fixture
def fleet(tmp_path: Path, rabbitmq: str) -> Iterator[Fleet]:  # as that: fails or skips alike
    with ExitStack() as stack:
        node = stack.enter_context(OpsNode(tmp_path / "node"))
        yield Fleet(tmp_path, node, stack)


def test_a_deployed_fleet_runs_a_study_and_is_watched(fleet: Fleet, tmp_path: Path) -> None:
    need("prometheus")
    coordinator = fleet.start_coordinator()
    wait_until(lambda: fleet.ask("health").returncode == 0, "the coordinator is ready", PATIENCE)
    worker = fleet.start_worker()
    with ShippedPrometheus(tmp_path / "prometheus", fleet) as prometheus:
        assert fleet.ask("submit", fleet.studies / "study.toml").returncode == 0
        watched = fleet.ask("watch", "parabola")
        assert watched.returncode == 0, watched.stderr

        jobs = {job["job_name"] for job in yaml.safe_load(prometheus._configuration())["scrape_configs"]}
        wait_until(
            lambda: {dict(labels)["job"] for labels in prometheus.query("up == 1")} == jobs, f"{jobs} are up", PATIENCE
        )
        assert prometheus.value("count(up)") == 4  # one each: all of one coordinator, worker and node
        finished = f'{instruments.TRIALS.series}{{job="trialfleet-coordinator",study="parabola"}}'
        wait_until(lambda: prometheus.number(f"sum({finished})") == 30, "all trials are counted", PATIENCE)
        # What KEDA asks.
        manifest = list(yaml.safe_load_all((OPS / "kubernetes" / "scaling.yaml").read_text()))[1]
        wait_until(
            lambda: prometheus.number(manifest["spec"]["triggers"][1]["metadata"]["query"]) == 0, "idle slots", PATIENCE
        )
        for metric in ("messages_ready", "messages_unacked", "consumers"):
            depths = prometheus.query(f'rabbitmq_detailed_queue_{metric}{{job="rabbitmq-queues",vhost="{VHOST}"}}')
            assert {EVALUATIONS, DEAD} <= {dict(labels)["queue"] for labels in depths}
        # The node's own alarms.
        assert prometheus.value('rabbitmq_alarms_memory_used_watermark{job="rabbitmq"}') == 0

        # A worker that leaves is no longer looked for, and nobody takes it for one that is down.
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
        wait_until(lambda: not prometheus.query('up{job="trialfleet-worker"}'), "the worker is forgotten", PATIENCE)

    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait(PATIENCE) == 0
    states = ("READY=1", "STOPPING=1")
    assert [said for said in fleet.manager.heard if said in states] == list(states)
    assert fleet.manager.heard.count("WATCHDOG=1") > 5
    assert fleet.ask("health").returncode == 1


def test_a_coordinator_without_its_broker_lives_and_is_not_ready(fleet: Fleet) -> None:
    fleet.start_coordinator()
    wait_until(lambda: fleet.ask("health").returncode == 0, "the coordinator is ready", PATIENCE)
    fleet.node.kill()

    wait_until(lambda: fleet.ask("health").returncode == 1, "it notices", PATIENCE)
    said = fleet.ask("health").stdout
    assert "answered 503" in said
    before = len(fleet.manager.heard)
    wait_until(lambda: len(fleet.manager.heard) > before + 2, "its loop goes round", PATIENCE)
    fleet.node.start()
    wait_until(lambda: fleet.ask("health").returncode == 0, "it is ready again", PATIENCE)
