"""Many studies over one real fleet: shared, paused, resumed, cancelled, and gone on with after the coordinator's end."""

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from support.simulated import SimulatedClock
from support.waiting import wait_until
from support.workers import WorkerProcesses, purge

from trialfleet.engine import results_address
from trialfleet.home import Home
from trialfleet.recorded import open_store
from trialfleet.watching import Watching
from trialfleet.workshop import HomeWorkshop
from trialfleet_coordinator.adapters.prometheus import KEEP_SECONDS, FleetMetrics
from trialfleet_coordinator.adapters.rabbit_workers import WorkerWatch
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_coordinator.daemon import Daemon
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission, WorkerState
from trialfleet_shared.adapters.rabbit import results_queue
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ObjectiveError, StudyBusyError
from trialfleet_workers.allowance import Allowance

pytestmark = pytest.mark.rabbitmq

OBJECTIVE = """
import time

def quadratic(params):
    time.sleep(0.02)
    return -((params["x"] - 0.3) ** 2)

def late(params):
    time.sleep(1.0)
    return 999.0

def broken(params):
    raise ValueError("out of luck")
"""
SPACE = {"x": {"type": "float", "min": 0.0, "max": 1.0}}


class Running:
    """A daemon whose ticks a thread of the test makes, as the command's loop does."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.watch = WorkerWatch(url, clock=SystemClock())
        self.watch.start()
        #: Tells the metrics when series are to go.
        self.clock = SimulatedClock()
        watching = Watching(FleetMetrics(self.clock, memory=lambda: 1))
        workshop = HomeWorkshop(Home(folder / "home"), url, Allowance((folder / "objectives",)), watching)
        self.daemon = Daemon(workshop, self.watch, RosterFiles(folder / "roster"), SystemClock(), most_running=4)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()

    def submit(self, name: str, *, trials: int = 40, objective: str = "objective.py:quadratic") -> StudyStatus:
        study = {"objective": objective, "trials": trials, "patience": 0, "name": name}
        base = str(self.folder / "objectives")
        return self.daemon.submit(Submission(tables={"study": study, "space": SPACE}, base=base))

    def decided(self, name: str) -> int:
        progress = self.daemon.status(name).progress
        return 0 if progress is None else progress.complete + progress.pruned + progress.failed

    def await_state(self, name: str, state: ServiceState) -> None:
        wait_until(lambda: self.daemon.status(name).state is state, f"{name} is {state}", 60.0)

    def await_decided(self, name: str, count: int) -> None:
        wait_until(lambda: self.decided(name) >= count, f"{name} has {count} trials", 60.0)

    def run_and_delete(self, name: str) -> None:
        self.submit(name, trials=4)
        self.await_state(name, ServiceState.DONE)
        self.daemon.delete(name)
        self.clock.now += KEEP_SECONDS

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self.daemon.close()
        self.watch.close()

    def _tick(self) -> None:
        while not self._end.wait(0.05):
            self.daemon.tick()


@pytest.fixture
def start(rabbitmq: str, tmp_path: Path) -> Iterator[Callable[[], Running]]:
    """Starts daemons, one after another, beside one worker of two slots."""
    folder = tmp_path / "objectives"
    folder.mkdir()
    (folder / "objective.py").write_text(OBJECTIVE)
    purge(rabbitmq)
    started: list[Running] = []

    def start() -> Running:
        started.append(Running(rabbitmq, tmp_path))
        return started[-1]

    with WorkerProcesses(rabbitmq, tmp_path, folder) as workers:
        workers.start()
        yield start
        for running in started:
            running.close()


def test_studies_share_the_fleet_and_all_come_to_their_end(start: Callable[[], Running]) -> None:
    running = start()
    for name in ("a", "b", "c"):
        running.submit(name)
    with pytest.raises(StudyBusyError):
        running.submit("a")
    for name in ("a", "b", "c"):
        running.await_state(name, ServiceState.DONE)
        report = running.daemon.report(name)
        assert report.complete + report.pruned == 40
        assert report.best_params is not None
        assert abs(float(str(report.best_params["x"])) - 0.3) < 0.2
    (worker,) = running.daemon.workers()
    assert (worker.state, worker.slots) == (WorkerState.LIVE, 2)
    assert running.daemon.readiness().ready


def test_a_paused_study_leaves_the_fleet_to_the_others_and_goes_on_where_it_was(start: Callable[[], Running]) -> None:
    running = start()
    running.submit("a", trials=200)
    running.await_decided("a", 10)
    running.daemon.pause("a")
    running.submit("b")
    running.await_state("b", ServiceState.DONE)
    paused_at = running.decided("a")
    assert paused_at < 200
    running.daemon.resume("a")
    running.await_state("a", ServiceState.DONE)
    report = running.daemon.report("a")
    assert [trial.number for trial in report.trials] == list(range(200))
    assert report.complete + report.pruned == 200


def test_a_new_coordinator_goes_on_with_what_ran(start: Callable[[], Running]) -> None:
    first = start()
    first.submit("a", trials=150)
    first.await_decided("a", 10)
    first.close()
    second = start()
    second.await_state("a", ServiceState.DONE)
    report = second.daemon.report("a")
    assert report.complete + report.pruned == len(report.trials) == 150


def test_a_failing_study_says_why_and_a_cancelled_one_can_be_run_again(start: Callable[[], Running]) -> None:
    running = start()
    running.submit("broken", objective="objective.py:broken")
    running.submit("a", trials=500)
    running.await_state("broken", ServiceState.FAILED)
    assert "out of luck" in running.daemon.status("broken").because
    running.await_decided("a", 5)
    running.daemon.cancel("a")
    wait_until(lambda: len(running.daemon.report("a").trials) > 0, "its record stays")
    running.submit("broken", objective="objective.py:broken")


def is_declared(url: str, queue: str) -> bool:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        try:
            connection.channel().queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
    return True


def test_what_is_answered_to_a_deleted_study_is_none_of_the_next_ones_of_its_name(
    start: Callable[[], Running], rabbitmq: str, tmp_path: Path
) -> None:
    running = start()
    running.submit("a", objective="objective.py:late")
    wait_until(lambda: any(worker.busy == 2 for worker in running.daemon.workers()), "both slots have one", 60.0)
    home = Home(tmp_path / "home")
    with open_store(home) as store:
        identity = store.identity("a")
    assert identity is not None
    queue = results_queue(results_address(home, identity))
    assert is_declared(rabbitmq, queue)
    running.daemon.cancel("a")

    def deleted() -> bool:
        try:
            running.daemon.delete("a")
        except StudyBusyError:  # it is being closed
            return False
        return True

    wait_until(deleted, "it is deleted", 60.0)
    wait_until(lambda: not is_declared(rabbitmq, queue), "its results queue is gone", 60.0)
    running.submit("a", trials=6)
    running.await_state("a", ServiceState.DONE)
    values = [trial.value for trial in running.daemon.report("a").trials]
    assert len(values) == 6
    assert all(value is not None and value <= 0 for value in values)


def test_studies_that_ended_and_were_deleted_leave_nothing_behind(start: Callable[[], Running], tmp_path: Path) -> None:
    running = start()
    running.run_and_delete("a")
    before = _objects()
    later = ("b", "c", "d")
    for name in later:
        running.run_and_delete(name)

    def left_by_each() -> dict[str, int]:
        # Single ones may be more: a bounded cache keeps what only a later study had, an answer from the record say.
        return {name: more for name, more in (_objects() - before).items() if more >= len(later)}

    try:
        wait_until(lambda: not left_by_each(), "no study leaves anything")
    except AssertionError as error:
        error.add_note(f"more than after the first study: {left_by_each()}")
        raise
    assert not list((tmp_path / "home/store/locks").iterdir())


def _objects() -> Counter[str]:
    """What trialfleet's classes are there of, by class, and how many threads."""
    gc.collect()
    classes = [str(type(thing)) for thing in gc.get_objects()]
    return Counter([*(name for name in classes if "'trialfleet" in name), *threading.active_count() * ["thread"]])


def test_objectives_elsewhere_are_refused_before_they_are_read(start: Callable[[], Running], tmp_path: Path) -> None:
    elsewhere = tmp_path / "objective.py"
    elsewhere.write_text("raise SystemExit('was imported')")
    running = start()
    for objective in (f"{elsewhere}:quadratic", "../objective.py:quadratic", "os:getcwd"):
        with pytest.raises(ObjectiveError, match="not allowed"):
            running.submit("a", objective=objective)
    assert not running.daemon.studies()
