"""A private Prometheus server: own port, own folder, nothing left behind."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.waiting import wait_until
from trialfleet.rabbitmq_node import free_ports

#: Seconds that the server may take to answer.
_START_SECONDS = 60.0
#: Samples by labels, `__name__` among them.
Vector = Mapping[frozenset[tuple[str, str]], float]


class PrometheusServer:
    """Scrapes its targets every second; a context manager that starts and stops it.

    Args:
        folder: where it keeps everything.
        targets: ports of this machine to scrape, by job.
    """

    def __init__(self, folder: Path, targets: Mapping[str, int]) -> None:
        self._folder = folder
        self._targets = targets
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it; return once it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "prometheus.yml"
        config.write_text(self._configuration())
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._ready, "Prometheus answers", _START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_START_SECONDS)

    def query(self, expression: str) -> Vector:
        """What an expression is at this moment."""
        answer = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        return {frozenset(sample["metric"].items()): float(sample["value"][1]) for sample in answer["data"]["result"]}

    def number(self, expression: str) -> float | None:
        """What an expression with one sample is at this moment; None when it has none."""
        vector = self.query(expression)
        assert len(vector) <= 1, vector
        return next(iter(vector.values()), None)

    def value(self, expression: str) -> float:
        """As `number`, once there is one: one scrape that takes longer than a second leaves all of a target's series out."""
        found: list[float] = []

        def has_value() -> bool:
            found.extend(number for number in [self.number(expression)] if number is not None)
            return bool(found)

        wait_until(has_value, f"{expression} has a value", _START_SECONDS)
        return found[-1]

    def names(self, job: str) -> set[str]:
        """The names of all series of a job, whether its last scrape came in time or not."""
        recent = f'last_over_time({{job="{job}"}}[1m])'
        return {dict(labels)["__name__"] for labels in self.query(f"group by (__name__) ({recent})")}

    def _configuration(self) -> str:
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in self._targets.items()
        ]
        return json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs})  # JSON is YAML

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            return json.load(answer)
