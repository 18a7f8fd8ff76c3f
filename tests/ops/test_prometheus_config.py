"""ops/prometheus/prometheus.yml, by promtool; test_deployed_fleet.py has a real Prometheus work by it."""

import subprocess
from pathlib import Path

from support.deployed import OPS
from support.programs import need

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
