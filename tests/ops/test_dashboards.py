"""The dashboards: as their program builds them, complete, and each query answered by what really runs."""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import PATIENCE
from support.deployed import OPS
from support.programs import need
from support.waiting import wait_until

from tests.ops.test_deployed_fleet import Fleet, ShippedPrometheus, fleet

__all__ = ["fleet"]

FILES = sorted((OPS / "grafana" / "dashboards").glob("*.json"))
#: A study whose name is a pattern, of another one's: it stands for itself.
NAME = "lr (v2) a.b"
#: In place of what Grafana fills in.
FILLED = {"$__rate_interval": "30s", "${study:doublequote}": json.dumps(NAME), "$instance": ".*"}
#: Series that there is nothing of in a study without data whose evaluations all end well.
EMPTY_HERE = ("trialfleet_worker_data_cache_bytes",)

pytestmark = pytest.mark.rabbitmq


def build() -> Any:
    spec = importlib.util.spec_from_file_location("build", OPS / "grafana" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in FILES:
        for panel in json.loads(file.read_text())["panels"]:
            yield f"{file.stem}: {panel['title']}", panel


def test_the_files_are_what_the_program_builds() -> None:
    program = build()
    assert [file.stem for file in FILES] == sorted(program.ALL)
    for file in FILES:
        assert file.read_text() == program.text(file.stem)


@pytest.mark.parametrize(("name", "panel"), list(panels()), ids=[name for name, _ in panels()])
def test_each_panel_tells_what_it_shows(name: str, panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert all(target["legendFormat"] for target in panel["targets"])
    used = {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])}
    provisioned = yaml.safe_load((OPS / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert used == {provisioned["datasources"][0]["uid"]}


def test_every_query_is_answered_by_a_running_fleet(fleet: Fleet, tmp_path: Path) -> None:  # a fixture
    need("prometheus")
    fleet.start_coordinator()
    wait_until(lambda: fleet.ask("health").returncode == 0, "the coordinator is ready", PATIENCE)
    fleet.start_worker()
    study = fleet.studies / "study.toml"
    with ShippedPrometheus(tmp_path / "prometheus", fleet) as prometheus:
        # A rate needs two scrapes of a study that goes on meanwhile.
        fleet.studies.joinpath("objective.py").write_text(
            "import time\ndef parabola(params):\n    time.sleep(0.05)\n    return params['x'] ** 2\n"
        )
        submitted = fleet.ask("submit", study, "--name", NAME, "--trials", "100000")
        assert submitted.returncode == 0, submitted.stderr

        def unanswered() -> list[str]:
            missing = []
            for name, panel in panels():
                for target in panel["targets"]:
                    query = target["expr"]
                    for variable, value in FILLED.items():
                        query = query.replace(variable, value)
                    if query.startswith(EMPTY_HERE):
                        continue
                    samples = prometheus.query(query)
                    labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
                    named = all(label in dict(sample) for sample in samples for label in labels)
                    if not named or not samples or all(math.isnan(value) for value in samples.values()):
                        missing.append(f"{name}: {query}: {samples}")
            return missing

        try:
            wait_until(lambda: not unanswered(), "every query is answered", PATIENCE)
        except AssertionError:
            pytest.fail("\n".join(unanswered()))
        assert fleet.ask("cancel", NAME).returncode == 0
