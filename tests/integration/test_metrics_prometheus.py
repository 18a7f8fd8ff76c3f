"""A real Prometheus scrapes a study on this machine, and a study with a worker of its own."""

import json
import signal
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet
from support.programs import need
from support.prometheus_server import PrometheusServer
from support.waiting import wait_until

from trialfleet.rabbitmq_node import free_ports
from trialfleet_shared import instruments
from trialfleet_shared.instruments import Instrument

STUDY = """\
[study]
name = "watched"
objective = "objective.py:fit"
trials = {trials}
patience = 0
seed = 1
[space.x]
type = "float"
min = 0
max = 1
[efficiency]
fold_racing = false
"""
OBJECTIVE = """\
import time

def fit(params, budget=1.0):
    if params["x"] > 0.9:
        raise ValueError("at amqp://user:secret@host")
    time.sleep(0.05 * budget)
    return params["x"]
"""
#: What is known once something else has happened, or of services alone.
NOT_AT_ONCE = {
    instruments.TRIALS_TARGET,
    instruments.STUDIES,
    instruments.WORKERS,
    instruments.FLEET_SLOTS,
    instruments.FLEET_SLOTS_BUSY,
    instruments.QUEUE_MESSAGES,
}
#: What a fleet on this machine has no use for: the coordinator asks the result cache before it.
NOT_OF_LOCAL_SLOTS = {
    instruments.WORKER_RESULT_CACHE_REQUESTS,
    instruments.WORKER_RESULT_CACHE_EVICTIONS,
    instruments.WORKER_RESULT_CACHE_FAILURES,
    instruments.WORKER_RESULT_CACHE_BYTES,
    instruments.WORKER_RESULT_CACHE_ENTRIES,
}


@pytest.fixture(autouse=True)
def _needs_prometheus() -> None:
    need("prometheus")


def a_study(folder: Path, trials: int) -> Path:
    (folder / "study.toml").write_text(STUDY.format(trials=trials))
    (folder / "objective.py").write_text(OBJECTIVE)
    return folder / "study.toml"


def series(metrics: Sequence[Instrument]) -> set[str]:
    """The names that Prometheus knows them by."""
    names = set()
    for metric in metrics:
        parts = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.series + part for part in parts}
    return names


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE)


def check_exposition(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        told = answer.read().decode()
    checked = subprocess.run(["promtool", "check", "metrics"], input=told, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_study_on_this_machine(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    study = a_study(tmp_path, 100_000)
    run = start_trialfleet(["run", study, "--slots", "2", "--metrics-port", str(port)], tmp_path / "home")
    try:
        with PrometheusServer(tmp_path / "prometheus", {"study": port}) as prometheus:
            wait_until(
                lambda: (prometheus.number("min(rate(trialfleet_trials_total{state=~'complete|fail'}[10s]))") or 0) > 0,
                "rates of trials are seen",
                PATIENCE,
            )
            expected = (
                instruments.BUILD_INFO,
                *instruments.OF_STUDIES,
                *instruments.OF_THE_COORDINATOR,
                *(set(instruments.OF_WORKERS) - NOT_OF_LOCAL_SLOTS),
            )
            missing = series([metric for metric in expected if metric not in NOT_AT_ONCE]) - prometheus.names("study")
            assert not missing
            # Over all of its time: between two turns of its loop a rate may be ahead of what was.
            busy = prometheus.value(
                "trialfleet_worker_busy_slot_seconds_total / trialfleet_worker_available_slot_seconds_total"
            )
            assert 0 < busy <= 1
            assert prometheus.value("trialfleet_worker_slots") == 2
            assert prometheus.value("trialfleet_study_info{mode='balanced', direction='maximize'}") == 1
            too_much = prometheus.value(
                "trialfleet_baseline_cpu_seconds_total - trialfleet_spent_cpu_seconds_total"
                " - sum without (source) (trialfleet_saved_cpu_seconds_total)"
            )
            assert too_much < 1e-6, "a baseline beyond what was spent and saved"
            check_exposition(port)
    finally:
        end(run, signal.SIGINT)


@pytest.mark.rabbitmq
def test_a_study_with_a_worker(rabbitmq: str, tmp_path: Path) -> None:
    worker_port, run_port = free_ports(2)
    broker = {"TRIALFLEET_BROKER_URL": rabbitmq}
    worker = start_trialfleet(
        ["worker", "--slots", "2", "--objective-path", tmp_path, "--metrics-port", str(worker_port)],
        tmp_path / "worker",
        **broker,
    )
    try:
        with PrometheusServer(tmp_path / "prometheus", {"worker": worker_port, "study": run_port}) as prometheus:
            wait_until(lambda: prometheus.number("trialfleet_worker_slots"), "the worker is scraped", PATIENCE)
            expected = series((instruments.BUILD_INFO, *instruments.OF_WORKERS))
            assert not expected - prometheus.names("worker")
            study = a_study(tmp_path, 100_000)
            run = start_trialfleet(
                ["run", study, "--json", "--metrics-port", str(run_port)], tmp_path / "home", **broker
            )
            try:
                # It runs until it was scraped: a short study may be over between two scrapes.
                wait_until(
                    lambda: (
                        prometheus.number("trialfleet_queue_wait_seconds_count > 0")
                        and prometheus.number("sum(trialfleet_worker_evaluations_total{outcome='error'}) > 0")
                    ),
                    "waits of the study and errors of the worker are seen",
                    PATIENCE,
                )
            finally:
                told, complaints = end(run, signal.SIGINT)
            assert run.returncode == 128 + signal.SIGINT, complaints
            report = document(told)
            evaluated = report["evaluations"] - report["cached"]
            assert evaluated > 0
            # More than the study counts when a worker was so slow that its evaluation was given to another slot too.
            wait_until(
                lambda: (prometheus.number("sum(trialfleet_worker_evaluations_total)") or 0) >= evaluated,
                f"all {evaluated} evaluations are seen",
                PATIENCE,
            )
            errors = prometheus.value("sum(trialfleet_worker_evaluations_total{outcome='error'})")
            assert errors >= report["failed"] > 0
            ran = "sum(trialfleet_worker_evaluations_total)"
            for counted in (
                "trialfleet_worker_evaluation_seconds_count",
                "trialfleet_worker_result_cache_requests_total",
            ):
                # A copy of an evaluation that was given to another slot too may be under way still.
                assert prometheus.value(f"sum({counted}) == {ran}") is not None, counted
            check_exposition(worker_port)
    finally:
        _, log = end(worker, signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines()]
    failures = [line for line in lines if line["level"] == "warning" and line.get("outcome") == "error"]
    assert failures
    assert {line["study"] for line in failures} == {"watched"}
    assert "secret" not in log
