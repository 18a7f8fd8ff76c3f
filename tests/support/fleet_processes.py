"""A coordinator and a worker, as `trialfleet coordinator` and `trialfleet worker` run them."""

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.waiting import wait_until

STUDY = """
[study]
name = "{name}"
objective = "objective.py:{function}"
trials = {trials}
patience = 0
[space.x]
type = "float"
min = 0.0
max = 1.0
"""
OBJECTIVE = """
import time

def quadratic(params):
    time.sleep(0.02)
    return -((params["x"] - 0.3) ** 2)

def broken(params):
    raise ValueError("out of luck")
"""


class Fleet:
    """A coordinator and a worker as processes, in a home of the test's own."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.url = url
        self.folder = folder
        self.home = folder / "home"
        self._stack = stack
        (folder / "objective.py").write_text(OBJECTIVE)
        (folder / "fleet.toml").write_text('[coordinator]\nport = 0\nobjective_paths = ["."]\n')
        self.coordinator = self.start_coordinator()
        self.worker = self._start(["worker", "--slots", "2", "--objective-path", folder], folder / "worker")

    def start_coordinator(self) -> "subprocess.Popen[str]":
        announced = self.home / "coordinator" / "url"
        announced.unlink(missing_ok=True)
        self.coordinator = self._start(["coordinator", "--config", self.folder / "fleet.toml"], self.home)
        wait_until(announced.exists, "the coordinator listens", PATIENCE)
        return self.coordinator

    def write(self, name: str, *, trials: int = 40, function: str = "quadratic") -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(STUDY.format(name=name, trials=trials, function=function))
        return path

    def run(self, *arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        return trialfleet(list(arguments), self.home, **variables)

    def status(self, name: str) -> Any:
        ran = self.run("status", name, "--json")
        assert ran.returncode == 0, ran.stderr
        return document(ran.stdout)

    def decided(self, name: str) -> int:
        progress = self.status(name)["progress"]
        return 0 if progress is None else progress["complete"] + progress["pruned"]

    def _start(self, arguments: list[str | Path], home: Path) -> "subprocess.Popen[str]":
        process = start_trialfleet(arguments, home, TRIALFLEET_BROKER_URL=self.url)
        self._stack.callback(_end, process)
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
