"""A study that runs for real while things are done to it: its processes, its broker, its disk, its clock, its network."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.ports import StudyRecord
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import StoreError

NAME = "chaos"
#: Seconds between a connection's heartbeats: one that is silent for twice as long is over.
HEARTBEAT_SECONDS = 4
#: Bytes of the disk that store and caches are on.
DISK_BYTES = 64 * 2**20
#: Seconds that a process may take to end by itself.
PATIENCE = 60.0
#: Exit statuses of a coordinator that a fault explains: the broker, the store.
EXPLAINED = {3, 4}
#: Every Python process imports it first: its wall clock is off by what the file says, looked at anew each time.
#: (libfaketime can not do this: sleeping fails with EINVAL where the monotonic clock is to be left alone.)
_CLOCK = """
import time, pathlib, os

_true, _file = time.time, pathlib.Path(os.environ["CHAOS_WORLD"]) / "clock"

def _stepped():
    try:
        return _true() + float(_file.read_text())
    except OSError:
        return _true()

time.time = _stepped
"""

STUDY = """
[study]
name = "{name}"
objective = "objective.py:work"
direction = "minimize"
sampler = "random"
trials = {trials}
patience = {trials}
seed = {seed}
[space.x]
type = "float"
min = 0.0
max = 1.0
[space.y]
type = "float"
min = 0.0
max = 1.0
"""
OBJECTIVE = """
import pathlib, time

def work(params):
    time.sleep({seconds})
    with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
        calls.write(".")
    return (params["x"] - 0.3) ** 2 + params["y"]
"""


def right_value(params: dict[str, Any]) -> float:
    """What the objective says."""
    return float((params["x"] - 0.3) ** 2 + params["y"])


class Namespace:
    """A network namespace, and a cable to it that can be cut.

    Args:
        number: of the cable, 0 to 255: its addresses are 10.199.number.1 here and .2 there.

    Raises:
        OSError: it is not permitted.
    """

    def __init__(self, number: int) -> None:
        self.name = f"trialfleet{os.getpid()}-{number}"
        self.address = f"10.199.{number}.1"
        self._here, there = f"tf{os.getpid() % 10**6}h{number}"[:15], f"tf{os.getpid() % 10**6}t{number}"[:15]
        self._ip("netns", "add", self.name)
        try:
            self._ip("link", "add", self._here, "type", "veth", "peer", "name", there, "netns", self.name)
            self._ip("address", "add", f"{self.address}/30", "dev", self._here)
            self._ip("-n", self.name, "address", "add", f"10.199.{number}.2/30", "dev", there)
            self._ip("-n", self.name, "link", "set", "lo", "up")
            self._ip("-n", self.name, "link", "set", there, "up")
            self.heal()
        except OSError:
            self.close()
            raise

    def cut(self) -> None:
        self._ip("link", "set", self._here, "down")

    def heal(self) -> None:
        self._ip("link", "set", self._here, "up")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._ip("link", "delete", self._here)
        with contextlib.suppress(OSError):
            self._ip("netns", "delete", self.name)

    @staticmethod
    def _ip(*arguments: str) -> None:
        ran = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {ran.stderr.strip()}")


class ReachableNode(RabbitNode):
    """A private node that listens at a namespace's cable too."""

    def __init__(self, folder: Path, also_at: str | None) -> None:
        self._also_at = also_at
        super().__init__(folder)

    def url_at(self, address: str) -> str:
        return f"{self.url.replace('127.0.0.1', address)}?heartbeat={HEARTBEAT_SECONDS}"

    def _configure(self) -> None:
        super()._configure()
        with (self.folder / "rabbitmq.conf").open("a") as configuration:
            configuration.write(f"heartbeat = {HEARTBEAT_SECONDS}\n")
            if self._also_at is not None:
                configuration.write(f"listeners.tcp.2 = {self._also_at}:{self._port}\n")

    def _environment(self) -> dict[str, str]:
        mine = ("RABBITMQ_NODE_IP_ADDRESS", "RABBITMQ_NODE_PORT")  # these would replace the listeners
        return {name: value for name, value in super()._environment().items() if name not in mine}


class World:
    """One study and all that runs for it; a context manager that ends everything.

    Args:
        folder: where everything is kept.
        number: unique among the worlds of this process, below 256.
        fleet: on two workers behind a broker, one of them in a namespace of its own where that is permitted; else embedded.
        trials: of the study.
        seconds: that an evaluation takes.
    """

    def __init__(self, folder: Path, number: int, *, fleet: bool, trials: int, seconds: float) -> None:
        self.folder = folder
        self.home = folder / "disk" / "home"
        self.trials = trials
        self.is_fleet = fleet
        self.workers: list[subprocess.Popen[bytes]] = []
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.node: ReachableNode | None = None
        self.namespace: Namespace | None = None
        #: What can not be tried here, and why.
        self.missing: dict[str, str] = {}
        #: Times that the coordinator was started.
        self.sessions = 0
        #: Times that the objective came to its end, known once the world has ended.
        self.last_calls = 0
        #: What went wrong.
        self.violations: list[str] = []
        self._number = number
        self._mounted = False
        self._store: LmdbStudyStore | None = None
        (folder / "disk").mkdir(parents=True)
        (folder / "study.toml").write_text(STUDY.format(name=NAME, trials=trials, seed=number))
        (folder / "objective.py").write_text(OBJECTIVE.format(seconds=seconds))
        (folder / "python").mkdir()
        (folder / "python" / "sitecustomize.py").write_text(_CLOCK)
        self._clock_file = folder / "clock"
        self.step_clock(0)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", self.folder / "disk"],
            capture_output=True,
            check=False,
        )
        self._mounted = mounted.returncode == 0
        if not self._mounted:
            self.missing["full disk"] = "mounting is not permitted"
        if self.is_fleet:
            try:
                self.namespace = Namespace(self._number)
            except OSError as error:
                self.missing["cut network"] = str(error)
            also_at = None if self.namespace is None else self.namespace.address
            self.node = ReachableNode(self.folder / "rabbitmq", also_at)
            self.node.start()
            self.start_worker()
            self.start_worker(abroad=True)
        self.start_coordinator()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = [*self.workers, *([] if self.coordinator is None else [self.coordinator])]
        for process in processes:
            for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGTERM):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            if process.poll() is None:
                self.violations.append(f"process {process.pid} did not end when it was told to")
                process.kill()
                process.wait()
        if self.node is not None:
            self.node.stop()
        if self._store is not None:
            self._store.close()
        end = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        self.violations += [f"left behind: process {pid} ({name})" for pid, name in left.items()]
        if self.namespace is not None:
            self.namespace.close()
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.folder / "disk"], check=True)
        self.last_calls = self.calls()
        shutil.rmtree(self.folder, ignore_errors=True)

    # What runs

    def start_coordinator(self) -> None:
        self.sessions += 1
        arguments = ["run", self.folder / "study.toml", "--slots", "2", "--json"]
        with (self.folder / "report.json").open("wb") as report:
            self.coordinator = self._spawn(arguments, "coordinator", output=report)

    def start_worker(self, *, abroad: bool = False) -> None:
        """One more worker of one slot, in the namespace if `abroad`."""
        self.workers.append(
            self._spawn(["worker", "--slots", "1", "--objective-path", self.folder], "worker", abroad=abroad)
        )

    def finished(self) -> bool:
        """Whether the study has; a coordinator that ended for a reason that a fault explains is started again."""
        assert self.coordinator is not None
        status = self.coordinator.poll()
        if status is None or status == 0:
            return status == 0
        if status not in EXPLAINED:
            self.violations.append(f"the coordinator ended with status {status}: {self._last_words()}")
        self.start_coordinator()
        return False

    def evaluators(self) -> tuple[list[int], list[int]]:
        """Process ids of the zygotes and of the slots that run."""
        assert self.coordinator is not None
        parents = [self.coordinator.pid, *(worker.pid for worker in self.workers)]
        zygotes = [child for parent in parents for child in _children(parent) if _is_evaluator(child)]
        return zygotes, [child for zygote in zygotes for child in _children(zygote)]

    def processes(self) -> dict[int, str]:
        """Everything that still runs for this world, by process id."""
        found = {}
        mark = f"{self.folder}".encode()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(place.name) != os.getpid() and mark in (place / "environ").read_bytes():
                    state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX":
                        found[int(place.name)] = (place / "comm").read_text().strip()
        return found

    def _spawn(
        self, arguments: list[str | Path], name: str, *, output: Any = None, abroad: bool = False
    ) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRIALFLEET_")}
        home = self.home if name == "coordinator" else self.folder / f"worker{len(self.workers)}"
        environment |= {"TRIALFLEET_HOME": str(home), "CHAOS_WORLD": str(self.folder)}
        enter: list[str] = []
        if self.node is not None:
            address = "127.0.0.1"
            if abroad and self.namespace is not None:
                enter, address = ["ip", "netns", "exec", self.namespace.name], self.namespace.address
            environment["TRIALFLEET_BROKER_URL"] = self.node.url_at(address)
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(self.folder / "python"), environment.get("PYTHONPATH")])
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*enter, sys.executable, "-m", "trialfleet", *map(str, arguments)],
                env=environment,
                stdout=output or log,
                stderr=log,
                start_new_session=True,
            )

    # Disk and clock

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Nothing more fits on the disk of store and caches, which has to be one of their own."""
        assert self._mounted
        ballast = self.folder / "disk" / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 2**16):
                pass
        try:
            yield
        finally:
            ballast.unlink(missing_ok=True)

    def step_clock(self, seconds: int) -> None:
        """Have the wall clock of all processes be off by so much, from now on."""
        staged = self._clock_file.with_suffix(".new")
        staged.write_text(str(seconds))
        staged.rename(self._clock_file)

    # What is recorded

    def record(self) -> StudyRecord | None:
        """The study as the store has it."""
        if not (self.home / "store" / "data.mdb").exists():
            return None
        if self._store is None:
            self._store = LmdbStudyStore(self.home / "store", clock=SystemClock())
        try:
            return self._store.load(NAME)
        except StoreError:  # full, just now
            return None

    def answers(self) -> int:
        """Evaluations that are recorded."""
        record = self.record()
        return 0 if record is None else sum(len(trial.results) for trial in record.trials)

    def check(self) -> None:
        """Note everything that is wrong with a study that has finished."""
        record = self.record()
        assert record is not None
        try:
            report = json.loads((self.folder / "report.json").read_text())
        except ValueError as error:
            self.violations.append(f"the report is none: {error}")
            return
        numbers = [trial["number"] for trial in report["trials"]]
        if numbers != list(range(self.trials)) or [trial.number for trial in record.trials] != numbers:
            self.violations.append(f"trials are {numbers}, not 0 to {self.trials - 1}")
        for trial in report["trials"]:
            if trial["state"] != "complete" or trial["value"] != right_value(trial["params"]):
                self.violations.append(f"trial is wrong: {trial}")
        for entry in record.trials:
            if len(entry.results) != 1 or entry.results[0].value != entry.value or not entry.state.decided:
                self.violations.append(f"record is wrong: {entry}")
        if (report["evaluations"], report["undecided"]) != (self.trials, 0):
            self.violations.append(f"{report['evaluations']} evaluations counted, {report['undecided']} undecided")

    def calls(self) -> int:
        """Times that the objective came to its end."""
        file = self.folder / "calls"
        return file.stat().st_size if file.exists() else 0

    def _last_words(self) -> str:
        return (self.folder / "coordinator.log").read_text(errors="replace").strip()[-500:]


def _children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _is_evaluator(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"adapters.evaluator" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
