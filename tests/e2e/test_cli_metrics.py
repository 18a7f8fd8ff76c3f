"""A running study, as Prometheus sees it."""

import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.commands import PATIENCE, start_trialfleet, trialfleet
from support.waiting import wait_until

from trialfleet.rabbitmq_node import free_ports

STUDY = """\
[study]
name = "watched"
objective = "objective.py:slow"
trials = 1000
patience = 0
[space.x]
type = "float"
min = 0
max = 1
"""
OBJECTIVE = """\
import time

def slow(params):
    time.sleep(0.05)
    return params["x"]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    return tmp_path / "study.toml"


def scrape(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


def test_a_study_is_watched_while_it_runs(study: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    run = start_trialfleet(["run", study, "--metrics-port", str(port)], tmp_path / "home")
    try:
        wait_until(lambda: "trialfleet_study_best_value" in scrape(port), "a value is told")
        told = scrape(port)
        assert 'trialfleet_study_trials_target{study="watched"} 1000.0' in told
        assert 'trialfleet_study_best_value{study="watched"} 0.' in told
        if shutil.which("promtool"):
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=told, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
    finally:
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=PATIENCE)


def test_a_port_in_use_is_told(study: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = trialfleet(["run", study, "--metrics-port", port], tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: --metrics-port {port}: Address already in use"


@pytest.mark.rabbitmq
def test_a_worker_is_watched(rabbitmq: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    worker = start_trialfleet(
        ["worker", "--slots", "3", "--objective-path", tmp_path, "--metrics-port", str(port)],
        tmp_path / "home",
        TRIALFLEET_BROKER_URL=rabbitmq,
    )
    try:
        wait_until(lambda: "trialfleet_worker_slots 3.0" in scrape(port), "the worker tells its slots")
        assert "trialfleet_worker_available_slot_seconds_total" in scrape(port)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0
