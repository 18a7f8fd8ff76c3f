"""ops/prometheus/prometheus.yml: by promtool, and by a real Prometheus that scrapes what is there to be scraped."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.deployed import OPS
from support.programs import need
from support.rabbit_node import VHOST, OpsNode
from support.waiting import wait_until

from trialfleet.rabbitmq_node import _free_ports
from trialfleet_shared.adapters.rabbit import DEAD, EVALUATIONS

CONFIGURATION = OPS / "prometheus" / "prometheus.yml"


def check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [need("promtool"), "check", "config", file]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_promtool_has_nothing_to_say() -> None:
    done = check(CONFIGURATION)

    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_notices_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION.read_text().replace("metrics_path", "metric_path"))

    assert check(tmp_path / "prometheus.yml").returncode != 0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, rabbitmq: str) -> Iterator[OpsNode]:  # as that: fails or skips alike
    with OpsNode(tmp_path_factory.mktemp("scraped-node")) as running:
        yield running


@pytest.mark.rabbitmq
def test_prometheus_sees_the_broker_and_each_of_its_queues(node: OpsNode, tmp_path: Path) -> None:
    shutil.copytree(OPS / "prometheus", tmp_path / "prometheus")
    file = tmp_path / "prometheus" / "prometheus.yml"
    described = yaml.safe_load(file.read_text().replace("rabbitmq:15692", node.prometheus).replace(" 15s", " 1s"))
    described["global"]["scrape_timeout"] = "1s"
    described["scrape_configs"] = [job for job in described["scrape_configs"] if job["job_name"].startswith("rabbitmq")]
    file.write_text(yaml.safe_dump(described))
    (port,) = _free_ports(1)
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:

        def query(expression: str) -> list[Any]:
            """The series that an expression gives now; none while Prometheus starts."""
            url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return list(json.load(answer)["data"]["result"])
            except OSError:
                return []

        wait_until(lambda: len(query("up == 1")) == 2, f"both jobs are up; see {tmp_path / 'log'}", 60.0)
        assert {one["metric"]["job"] for one in query("up")} == {"rabbitmq", "rabbitmq-queues"}
        for metric in ("messages_ready", "messages_unacked", "consumers"):
            series = query(f'rabbitmq_detailed_queue_{metric}{{job="rabbitmq-queues",vhost="{VHOST}"}}')
            assert {one["metric"]["queue"] for one in series} == {EVALUATIONS, DEAD}
        assert query('rabbitmq_process_resident_memory_bytes{job="rabbitmq"}')
        # What an alert on the node's alarms needs.
        assert query('rabbitmq_alarms_memory_used_watermark{job="rabbitmq"} == 0')
    finally:
        prometheus.terminate()
        prometheus.wait(30)
