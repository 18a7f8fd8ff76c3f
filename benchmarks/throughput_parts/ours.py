"""trialfleet on an objective that does nothing, evaluated by two processes: embedded, and over a RabbitMQ node of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trialfleet
from trialfleet.engine import open_study
from trialfleet.environment import BROKER_URL
from trialfleet.home import Home
from trialfleet.rabbitmq_node import RabbitNode
from trialfleet.study_file import StudyRequest
from trialfleet_coordinator.budget import Budget
from trialfleet_shared.space import SearchSpace

SPACE = {
    "rate": trialfleet.Float(1e-5, 1.0, log=True),
    "share": trialfleet.Float(0.0, 1.0),
    "leaves": trialfleet.Int(2, 1024, log=True),
    "rows": trialfleet.Int(1, 10_000),
    "kind": trialfleet.Categorical(["a", "b", "c"]),
}
PROCESSES = 2
#: What workers elsewhere import; it does what `evaluate` does.
OBJECTIVE = 'def evaluate(params):\n    return float(params["share"])\n'


def evaluate(params: dict[str, Any]) -> float:
    """What the objective costs is next to nothing."""
    return float(params["share"])


def embedded(folder: Path) -> Callable[[int], float]:
    """Takes the study to so many trials; the seconds that it ran so far."""

    def run(trials: int) -> float:
        result = trialfleet.optimize(
            evaluate, SPACE, trials, config=trialfleet.EfficiencyConfig(), home=folder, study_name="loop"
        )
        return result["efficiency_metrics"]["total_time_seconds"]

    return run


@contextmanager
def over_rabbitmq(folder: Path) -> Iterator[Callable[[int], float]]:
    """As `embedded`, on workers that are started here."""
    base = folder / "objectives"
    base.mkdir()
    (base / "nothing.py").write_text(OBJECTIVE)
    with ExitStack() as stack:
        node = stack.enter_context(RabbitNode(folder / "rabbitmq"))
        for number in range(PROCESSES):
            stack.callback(_end, _start_worker(node.url, base, folder / f"worker{number}"))

        def run(trials: int) -> float:
            request = StudyRequest(
                name="loop",
                direction="maximize",
                space=SearchSpace(SPACE),
                objective="nothing.py:evaluate",
                base=base,
                config=trialfleet.EfficiencyConfig(),
                budget=Budget(trials=trials),
            )
            with open_study(request, Home(folder / "home"), broker_url=node.url) as study:
                report = study.run(lambda _: None, lambda: None)
            return report.efficiency_metrics.total_time_seconds

        yield run


def _start_worker(url: str, base: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "trialfleet",
        "worker",
        "--home",
        str(home),
        "--slots",
        "1",
        "--objective-path",
        str(base),
    ]
    return subprocess.Popen(command, env={**os.environ, BROKER_URL: url}, stderr=subprocess.DEVNULL)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait()
