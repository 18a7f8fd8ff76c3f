"""Alerts and recording rules: well formed, right on series whose values are known, and each with a page."""

import re
import subprocess

import pytest
import yaml
from support.commands import PATIENCE
from support.deployed import OPS
from support.programs import need

RULES = sorted((OPS / "prometheus" / "rules").glob("*.yaml"))
ALERTS = [
    rule for group in yaml.safe_load((OPS / "prometheus" / "rules" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]  # fmt: skip


def promtool(*arguments: object) -> str:
    ran = subprocess.run(
        [need("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_rules_are_well_formed() -> None:
    assert promtool("check", "rules", *RULES).count("SUCCESS") == len(RULES) == 2


def test_alerts_fire_when_they_should_and_not_else() -> None:
    tests = OPS / "prometheus" / "tests" / "alerts.yaml"
    promtool("test", "rules", tests)
    tried = set(re.findall(r"exp_alerts:\n +- exp_labels.*\n", tests.read_text()))
    fired = set(re.findall(r"alertname: (\w+)\n +exp_alerts:\n", tests.read_text()))
    assert tried
    assert fired == {alert["alert"] for alert in ALERTS}, "each is seen to fire"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_it_means_and_where_to_read_on(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    annotations = alert["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    path, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^### (\w+)$", (OPS.parent / path).read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
