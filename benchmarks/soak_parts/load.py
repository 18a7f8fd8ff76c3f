"""The load of the soak: a broker, a coordinator, a worker that stays and one that is recycled, and studies without end."""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from trialfleet.client import Client
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.rabbitmq_node import RabbitNode, free_ports
from trialfleet_coordinator.serving import Submission
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.clock import SystemClock

#: Entries of the result cache, full from the start, so that every new one drives an old one out.
CACHE_ENTRIES = 1_000_000
#: Slots of each of the two workers.
SLOTS = 2
#: Studies at the same time, and trials of each.
STUDIES, TRIALS = 2, 400
#: Studies that have ended and are kept.
KEPT = 10
#: Seconds that starting or leaving may take.
PATIENCE = 120.0

#: One evaluation in 500 kills its slot; the others cost 10 ms.
OBJECTIVE = """
import os, time

def work(params):
    if params["x"] < 0.002:
        os._exit(1)
    end = time.process_time() + 0.01
    while time.process_time() < end:
        pass
    return (params["x"] - 0.3) ** 2 + params["y"]
"""


class SoakNode(RabbitNode):
    """A private node that shows its figures to Prometheus, and so to us."""

    def __init__(self, folder: Path) -> None:
        (self._figures_port,) = free_ports(1)
        super().__init__(folder)

    def figures(self) -> dict[str, float]:
        """Queues there are, and messages on them; empty when it does not answer in time."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._figures_port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        wanted = {"rabbitmq_queues": "queues", "rabbitmq_queue_messages": "messages in queues"}
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and " " in line)
        return {wanted[name]: float(value) for name, value in pairs if name in wanted}

    def _configure(self) -> None:
        super()._configure()
        with (self._folder / "rabbitmq.conf").open("a") as configuration:
            configuration.write(f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {self._figures_port}\n")
        (self._folder / "enabled_plugins").write_text("[rabbitmq_prometheus].\n")


class Load:
    """Everything that runs; a context manager that ends all of it.

    Args:
        folder: where it keeps everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.node = SoakNode(folder / "rabbitmq")
        #: Processes that run for the whole time, and the worker that is replaced.
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.recycled = 0
        #: Studies that have ended, by state.
        self.ended: dict[str, int] = {}
        self.trials = 0
        self._submitted = 0
        self._counted: set[str] = set()
        self._client: Client | None = None

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _begin(self) -> None:
        (self.folder / "objective.py").write_text(OBJECTIVE)
        (self.folder / "fleet.toml").write_text('[coordinator]\nport = 0\nobjective_paths = ["."]\n')
        fill_cache(self.home / "results")
        self.node.start()
        self._start("coordinator", "coordinator", "--config", str(self.folder / "fleet.toml"))
        self._start_worker("worker that stays")
        self._start_worker("worker that is recycled")
        files = CoordinatorFiles(self.home)
        end = time.monotonic() + PATIENCE
        while (url := files.url()) is None and time.monotonic() < end:
            time.sleep(0.2)
        if url is None:
            raise RuntimeError("the coordinator does not listen")
        self._client = Client(url, token=files.token())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            process.wait()
        self.node.stop()

    def turn(self) -> None:
        """Submit what is missing, delete what has ended long ago."""
        assert self._client is not None
        open_studies, ended = 0, []
        for status in self._client.studies():
            if not status.state.ended:
                open_studies += 1
                continue
            ended.append(status.study)
            if status.study not in self._counted:
                self._counted.add(status.study)
                self.ended[status.state.value] = self.ended.get(status.state.value, 0) + 1
                self.trials += 0 if status.progress is None else status.progress.trials
        for study in ended[:-KEPT]:
            self._client.delete(study)
            self._counted.discard(study)
        for _ in range(open_studies, STUDIES):
            name = f"soak{self._submitted}"
            self._client.submit(Submission(tables=self._tables(name), base=str(self.folder), name=name))
            self._submitted += 1

    def recycle(self) -> None:
        """Have one worker leave as operators do, and start another."""
        name = "worker that is recycled"
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            print("the worker that is recycled did not leave in time and is killed", flush=True)
            process.kill()
            process.wait()
        self.recycled += 1
        self._start_worker(name)

    def _tables(self, name: str) -> dict[str, object]:
        line = {"type": "float", "min": 0.0, "max": 1.0}
        return {
            "study": {
                "name": name,
                "objective": "objective.py:work",
                "direction": "minimize",
                "trials": TRIALS,
                "seed": self._submitted,
            },
            "efficiency": {"cache_size": CACHE_ENTRIES},
            "space": {"x": line, "y": line},
        }

    def _start_worker(self, name: str) -> None:
        self._start(name, "worker", "--slots", str(SLOTS), "--objective-path", str(self.folder))

    def _start(self, name: str, *arguments: str) -> None:
        environment = {
            **os.environ,
            "TRIALFLEET_HOME": str(self.home),
            "TRIALFLEET_BROKER_URL": self.node.url,
            "TRIALFLEET_CACHE_SIZE": str(CACHE_ENTRIES),
        }
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "trialfleet", *arguments, "--quiet"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def fill_cache(path: Path) -> None:
    """Have a full result cache."""
    cache = LmdbResultCache(path, size=CACHE_ENTRIES, ttl_hours=24, clock=SystemClock())
    result = CachedResult(value=0.5, metrics={}, wall_seconds=1.0, cpu_seconds=1.0)
    for start in range(0, CACHE_ENTRIES, 10_000):
        keys = (
            hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in range(start, start + 10_000)
        )
        cache.put_many([(key, result) for key in keys])
    cache.close()
