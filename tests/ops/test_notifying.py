"""What a service tells its manager, heard on real sockets."""

import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.commands import PATIENCE, start_trialfleet
from support.waiting import wait_until

from trialfleet.notifying import Notifier


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """What came since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@trialfleet-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    listening = Manager(name)
    with listening.socket:
        yield listening


def test_each_state_is_told_once(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    for _ in range(3):
        notifier.ready()
    for _ in range(3):
        notifier.stopping()

    assert manager.heard() == ["READY=1", "STOPPING=1"]


def test_the_watchdog_is_fed_four_times_in_its_time(manager: Manager) -> None:
    now = 50.0
    notifier = Notifier(manager.address, 60.0, monotonic=lambda: now)
    beats = []
    for _ in range(60):
        notifier.alive()
        beats += [now] * len(manager.heard())
        now += 1.0

    assert beats == [50.0, 65.0, 80.0, 95.0]


def test_without_a_watchdog_nothing_feeds_it(manager: Manager) -> None:
    Notifier(manager.address).alive()

    assert manager.heard() == []


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_watchdog_is_what_the_environment_says(variables: dict[str, str], seconds: float, manager: Manager) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address, **variables}, pid=7)
    notifier.alive()

    assert manager.heard() == (["WATCHDOG=1"] if math.isfinite(seconds) else [])


def test_a_manager_that_does_not_listen_does_no_harm(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "nobody"), str(tmp_path / ("long" * 60))):
        notifier = Notifier(address, 1.0)
        notifier.ready()
        notifier.alive()
        notifier.stopping()


def test_a_manager_that_does_not_read_holds_nothing_up(manager: Manager) -> None:
    instants = iter(range(100_000))
    notifier = Notifier(manager.address, 1.0, monotonic=lambda: float(next(instants)))
    began = time.monotonic()
    for _ in range(10_000):  # more than the socket holds
        notifier.alive()

    assert time.monotonic() - began < 10.0
    assert 0 < len(manager.heard()) < 10_000


def test_what_is_said_once_waits_for_a_manager_that_is_behind(manager: Manager) -> None:
    instants = iter(range(1_000))
    notifier = Notifier(manager.address, 1.0, monotonic=lambda: float(next(instants)))
    for _ in range(1_000):
        notifier.alive()
    heard: list[str] = []
    reading = threading.Timer(0.2, lambda: heard.extend(manager.heard()))
    reading.start()
    notifier.stopping()
    reading.join()

    heard += manager.heard()
    assert heard[-1] == "STOPPING=1"


@pytest.mark.rabbitmq
def test_a_worker_is_ready_alive_and_leaving(rabbitmq: str, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    heard: list[str] = []
    with manager.socket, ExitStack() as stack:
        worker = _start_worker(rabbitmq, tmp_path, manager, watchdog_seconds=4.0)
        stack.callback(worker.communicate, timeout=PATIENCE)
        stack.callback(worker.kill)

        def count(state: str) -> int:
            heard.extend(manager.heard())
            return heard.count(state)

        wait_until(lambda: count("WATCHDOG=1") >= 3, "the watchdog is fed", PATIENCE)
        assert heard[0] == "READY=1"

        # What is stopped feeds no watchdog: it is the loop that speaks.
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "a stop")
        before = count("WATCHDOG=1")
        time.sleep(1.5)
        assert count("WATCHDOG=1") == before
        worker.send_signal(signal.SIGCONT)

        worker.terminate()
        assert worker.wait(PATIENCE) == 0
        assert count("STOPPING=1") == 1
        assert heard.count("READY=1") == 1


def _start_worker(url: str, folder: Path, manager: Manager, *, watchdog_seconds: float) -> "subprocess.Popen[str]":
    return start_trialfleet(
        ["worker", "--slots", "1", "--objective-path", folder],
        folder / "home",
        TRIALFLEET_BROKER_URL=url,
        NOTIFY_SOCKET=manager.address,
        WATCHDOG_USEC=str(int(watchdog_seconds * 1e6)),
    )
