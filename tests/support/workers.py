"""Worker processes, as `trialfleet worker` runs them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pika

from support.waiting import wait_until
from trialfleet_shared.adapters.rabbit import EVALUATIONS

#: Seconds until a worker that was told to leave has left.
_PATIENCE = 30.0


class WorkerProcesses:
    """Starts workers of 2 slots with objectives from `base`, and ends those that are left.

    Args:
        url: the broker.
        home: folder for their caches and logs.
        base: folder of the objectives.
        hold_seconds: as of `actors.HOLD_SECONDS`; None: as it is.
    """

    def __init__(self, url: str, home: Path, base: Path, *, hold_seconds: float | None = None) -> None:
        self._url = url
        self._home = home
        self._base = base
        self._hold_seconds = hold_seconds
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, slots: int = 2, burst: bool = False) -> subprocess.Popen[bytes]:
        """Start one more; its broker's URL is in its environment only."""
        number = len(self.processes)
        hold = "" if self._hold_seconds is None else f"actors.HOLD_SECONDS = {self._hold_seconds}; "
        code = (
            "import os, sys; from pathlib import Path; from trialfleet_workers.adapters import actors; "
            "from trialfleet_workers.allowance import Allowance; "
            f"{hold}base, home = map(Path, sys.argv[1:3]); "
            "sys.exit(actors.run_worker(os.environ['BROKER'], slots=int(sys.argv[3]), allowance=Allowance((base,)), "
            "base=base, data_path=home / 'data', results_path=home / 'results', cache_size=1000, cache_ttl_hours=1, "
            "burst=sys.argv[4] == 'True'))"
        )
        home = self._home / f"worker{number}"
        with self.log(number).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(self._base), str(home), str(slots), str(burst)],
                env={**os.environ, "BROKER": self._url},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def log(self, number: int) -> Path:
        """Where a worker's output goes."""
        return self._home / f"worker{number}.log"

    def __enter__(self) -> Self:
        """Begin with an empty queue, whatever earlier tests left there."""
        purge(self._url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            for number in (signal.SIGTERM, signal.SIGTERM):
                process.send_signal(number)
        for process in self.processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def purge(url: str) -> None:
    """Empty the queue of work, which all tests share."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        try:
            channel.queue_purge(EVALUATIONS)
        except pika.exceptions.ChannelClosedByBroker:
            return  # nobody has declared it yet


def poll_until(poll: Callable[[], object], condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll a fleet until the condition holds."""

    def look() -> bool:
        poll()
        return condition()

    wait_until(look, what, seconds)
