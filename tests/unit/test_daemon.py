"""Many studies in one coordinator: their states, their starts and ends, their shares."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from support.fake_workshop import A_RUN, FakeStudy, FakeWatch, FakeWorkshop, MemoryRoster, a_progress, a_report
from support.simulated import SimulatedClock
from support.waiting import wait_until

from trialfleet_coordinator import daemon
from trialfleet_coordinator.daemon import RETRY_SECONDS, Daemon
from trialfleet_coordinator.recent_reports import KEPT_FOR, RecentReports
from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.serving import ServiceState, Submission, WorkerState
from trialfleet_shared.errors import (
    BrokerError,
    ConfigurationError,
    DataError,
    StoreError,
    StudyBusyError,
    StudyChangedError,
    StudyLockedError,
    UnknownStudyError,
)

QUEUED, RUNNING, PAUSED = ServiceState.QUEUED, ServiceState.RUNNING, ServiceState.PAUSED
DONE, FAILED, CANCELLED = ServiceState.DONE, ServiceState.FAILED, ServiceState.CANCELLED


class Service:
    """A daemon and its fakes."""

    def __init__(self, *, slots: int = 4, most_running: int = 8) -> None:
        self.workshop, self.watch, self.roster = FakeWorkshop(), FakeWatch(slots), MemoryRoster()
        self.clock = SimulatedClock()
        self.most_running = most_running
        self.daemon = self.start()

    def start(self) -> Daemon:
        self.daemon = Daemon(self.workshop, self.watch, self.roster, self.clock, most_running=self.most_running)
        return self.daemon

    def submit(self, name: str, *, priority: int = 0, weight: float = 1.0) -> None:
        self.daemon.submit(Submission(tables={}, base="/", name=name, priority=priority, weight=weight))

    def state(self, name: str) -> ServiceState:
        return self.daemon.status(name).state

    def tick_until(self, name: str, state: ServiceState) -> None:
        def reached() -> bool:
            self.daemon.tick()
            return self.state(name) is state

        wait_until(reached, f"{name} to be {state}")

    def running(self, name: str) -> FakeStudy:
        """Have it run, and be the one that is open."""
        self.tick_until(name, RUNNING)

        def opened() -> list[FakeStudy]:
            return [s for s in self.workshop.opened if s.entry.study == name and not s.closed.is_set()]

        wait_until(lambda: self.daemon.status(name).progress is not None and bool(opened()), f"{name} to run")
        return opened()[-1]


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.daemon.close()


def test_a_study_is_queued_runs_and_is_done(service: Service) -> None:
    service.submit("a")
    assert service.state("a") is QUEUED
    service.running("a").end(a_report("a", "trials", "all trials are done"))
    service.tick_until("a", DONE)
    status = service.daemon.status("a")
    assert status.because == "all trials are done"
    assert status.progress is not None, "what it came to stays to be seen"
    assert service.roster.entries["a"].state is DONE
    service.start()
    assert service.daemon.status("a") == status, "also by another coordinator"


@pytest.mark.parametrize(
    ("outcome", "state", "because"),
    [
        (a_report("a", "failed", "its first trials failed"), FAILED, "its first trials failed"),
        (DataError("no such file"), FAILED, "no such file"),
        (StudyLockedError("somebody runs it"), FAILED, "somebody runs it"),
        (StoreError("the disk is full"), PAUSED, "the disk is full"),
        (BrokerError("nobody answers"), QUEUED, "waits for the broker: nobody answers"),
        (KeyError("x"), FAILED, "unexpected KeyError: 'x'; this is a bug"),
        (SystemExit(0), FAILED, "unexpected SystemExit: 0; this is a bug"),
    ],
)
def test_what_ends_a_study_is_told_in_its_state(
    service: Service, outcome: BaseException, state: ServiceState, because: str
) -> None:
    service.submit("a")
    service.running("a").end(outcome)
    service.tick_until("a", state)
    assert service.daemon.status("a").because == because


def test_a_study_that_can_not_be_opened_fails_and_the_others_go_on(service: Service) -> None:
    service.workshop.failures["a"] = ConfigurationError("no objective")
    service.submit("a")
    service.submit("b")
    service.running("b")
    service.tick_until("a", FAILED)
    assert service.state("b") is RUNNING


def test_a_study_whose_broker_was_away_is_tried_again_after_a_while(service: Service) -> None:
    service.submit("a")
    service.running("a").end(BrokerError("nobody answers"))
    service.tick_until("a", QUEUED)
    service.daemon.tick()
    assert service.state("a") is QUEUED
    service.clock.now += RETRY_SECONDS
    service.running("a")


def test_a_study_does_not_wait_for_what_a_deleted_one_of_its_name_waited_for(service: Service) -> None:
    service.submit("a")
    service.running("a").end(BrokerError("nobody answers"))
    service.tick_until("a", QUEUED)
    service.daemon.cancel("a")
    service.daemon.delete("a")
    service.submit("a")
    service.daemon.tick()
    assert service.state("a") is RUNNING


@pytest.mark.parametrize(
    "outcome", [BrokerError("nobody answers"), StoreError("the disk is full"), DataError("odd"), KeyError("x")]
)
@pytest.mark.parametrize("asked", [PAUSED, CANCELLED])
def test_a_study_that_fails_while_it_is_paused_or_cancelled_stays_so(
    service: Service, outcome: Exception, asked: ServiceState
) -> None:
    service.submit("a")
    study = service.running("a")
    study.end(outcome)
    study.thread.join()
    (service.daemon.pause if asked is PAUSED else service.daemon.cancel)("a")
    service.clock.now += RETRY_SECONDS
    for _ in range(2):
        service.daemon.tick()
    assert (service.state("a"), len(service.workshop.opened)) == (asked, 1)


@pytest.mark.parametrize("ended", ["trials", "failed"])
def test_a_study_that_comes_to_its_end_while_it_is_cancelled_is_cancelled(service: Service, ended: str) -> None:
    service.submit("a")
    study = service.running("a")
    study.end(a_report("a", ended))
    study.thread.join()
    assert service.daemon.cancel("a").state is CANCELLED
    service.daemon.tick()
    assert (service.state("a"), service.daemon.status("a").because) == (CANCELLED, "by request")
    assert service.daemon.report("a").ended == "stopped"
    assert service.roster.entries["a"].state is CANCELLED


def test_a_full_disk_ends_neither_the_coordinator_nor_other_studies(service: Service) -> None:
    service.submit("a")
    service.submit("b")
    first, other = service.running("a"), service.running("b")
    service.roster.full = True
    first.end(StoreError("no space left"))
    service.tick_until("a", PAUSED)
    with pytest.raises(StoreError, match="no space left"):
        service.daemon.resume("a")
    assert service.state("a") is PAUSED, "what is asked for is kept, or refused"
    service.roster.full = False
    assert service.daemon.resume("a").state is QUEUED
    assert not other.closed.is_set()
    other.end(a_report("b", "trials"))
    service.tick_until("b", DONE)


def test_a_study_that_is_submitted_again_shows_what_it_came_to(service: Service) -> None:
    service.submit("a")
    service.running("a").end(a_report("a", "trials"))
    service.tick_until("a", DONE)
    before = service.daemon.status("a").progress
    assert before is not None
    service.workshop.finished["a"] = a_report("a", "trials", "all trials are decided")
    service.submit("a")
    assert service.daemon.status("a").progress == before
    service.tick_until("a", DONE)
    assert service.daemon.status("a").progress == before
    assert service.daemon.status("a").because == "all trials are decided"


@pytest.mark.parametrize("error", [StudyChangedError("another data set"), StudyLockedError("somebody runs it")])
def test_a_study_is_what_it_was_when_a_submission_of_its_name_can_not_be_opened(
    service: Service, error: Exception
) -> None:
    service.submit("a")
    service.running("a").end(a_report("a", "target", "the target value is reached"))
    service.tick_until("a", DONE)
    before, report = service.daemon.status("a"), service.daemon.report("a")
    service.workshop.failures["a"] = error
    service.submit("a", priority=5)
    assert service.state("a") is QUEUED
    service.start()  # also where another coordinator opens it
    service.tick_until("a", DONE)
    told = f"the target value is reached; what was submitted again is refused: {error}"
    assert service.daemon.status("a") == msgspec.structs.replace(before, because=told, refused=str(error))
    assert service.daemon.report("a") == report
    del service.workshop.failures["a"]
    service.submit("a")
    assert service.daemon.status("a").refused == ""
    service.running("a").end(DataError("damaged"))
    service.tick_until("a", FAILED)
    assert service.daemon.status("a").because == "damaged", "once it was open, its end is its own"


def test_a_study_that_came_to_nothing_fails_again_when_it_is_submitted_again(service: Service) -> None:
    for told in ("no such file", "no such column"):
        service.workshop.failures["a"] = DataError(told)
        service.submit("a")
        service.tick_until("a", FAILED)
        assert (service.daemon.status("a").because, service.daemon.status("a").refused) == (told, "")


def test_a_submission_that_is_cancelled_before_it_is_opened_stays_cancelled(service: Service) -> None:
    service.submit("a")
    service.running("a").end(a_report("a", "trials"))
    service.tick_until("a", DONE)
    service.submit("a")
    service.daemon.cancel("a")
    service.workshop.failures["a"] = StudyChangedError("another data set")
    service.submit("a")
    service.tick_until("a", CANCELLED)
    assert service.daemon.status("a").refused == "another data set"


def test_a_study_that_somebody_else_finished_shows_what_it_came_to(service: Service) -> None:
    report = msgspec.structs.replace(a_report("a", "trials"), complete=7, pruned=3, best_value=0.5, best_trial=2)
    service.workshop.finished["a"] = report
    service.submit("a")
    service.tick_until("a", DONE)
    progress = service.daemon.status("a").progress
    assert progress is not None
    assert (progress.trials, progress.decided, progress.best_value, progress.best_trial) == (10, 10, 0.5, 2)
    assert service.roster.entries["a"].progress == progress


def test_a_paused_study_closes_and_goes_on_when_it_is_resumed(service: Service) -> None:
    service.submit("a")
    first = service.running("a")
    assert service.daemon.pause("a").state is PAUSED
    wait_until(first.closed.is_set, "the study to close")
    service.daemon.tick()
    assert (service.state("a"), service.daemon.status("a").because) == (PAUSED, "by request")
    assert service.daemon.resume("a").state is QUEUED
    assert service.running("a") is not first


def test_resuming_what_runs_or_waits_for_its_turn_changes_nothing() -> None:
    service = Service(most_running=1)
    service.submit("a")
    service.running("a")
    service.submit("b")
    for name in ("a", "b"):
        before = service.daemon.status(name)
        assert msgspec.structs.replace(service.daemon.resume(name), progress=before.progress) == before
    service.daemon.close()


def test_a_study_that_is_resumed_while_it_still_closes_goes_on_afterwards(service: Service) -> None:
    service.submit("a")
    first = service.running("a")
    service.daemon.pause("a")
    service.daemon.resume("a")
    wait_until(first.closed.is_set, "the study to close")
    assert service.running("a") is not first


def test_a_cancelled_study_ends_and_its_name_is_free_again(service: Service) -> None:
    service.submit("a")
    first = service.running("a")
    assert service.daemon.cancel("a").state is CANCELLED
    for refused in (service.submit, service.daemon.delete):
        with pytest.raises(StudyBusyError, match="'a' is cancelled, and still being closed; try again in a moment"):
            refused("a")
    wait_until(first.closed.is_set, "the study to close")
    service.daemon.tick()
    assert service.daemon.cancel("a").state is CANCELLED, "once more changes nothing"
    service.submit("a")
    assert service.running("a") is not first


def test_what_has_ended_can_not_be_paused_and_what_has_not_can_not_be_submitted_or_deleted(service: Service) -> None:
    service.submit("a")
    with pytest.raises(StudyBusyError, match="queued"):
        service.submit("a")
    with pytest.raises(StudyBusyError, match="cancel it first"):
        service.daemon.delete("a")
    service.daemon.cancel("a")
    for verb in (service.daemon.pause, service.daemon.resume):
        with pytest.raises(StudyBusyError, match="cancelled"):
            verb("a")
    service.daemon.delete("a")
    assert service.workshop.deleted == ["a"]
    assert not service.daemon.studies()
    assert not service.roster.entries


def test_an_unknown_study_is_named_with_the_nearest_one(service: Service) -> None:
    service.submit("census")
    for verb in (service.daemon.status, service.daemon.pause, service.daemon.cancel, service.daemon.report):
        with pytest.raises(UnknownStudyError, match="'censu'; did you mean 'census'"):
            verb("censu")
        with pytest.raises(UnknownStudyError, match="'digits'; there are census"):
            verb("digits")


def test_a_submission_that_is_not_usable_leaves_nothing_behind(service: Service) -> None:
    with pytest.raises(ConfigurationError):
        service.daemon.submit(Submission(tables={"study": {}}, base="/"))
    assert not service.roster.entries


def test_no_more_studies_run_than_may_and_the_highest_priority_is_next() -> None:
    service = Service(most_running=1)
    for name, priority in (("a", 0), ("b", 0), ("c", 5)):
        service.submit(name, priority=priority)
    service.running("c").end(a_report("c", "trials"))
    assert (service.state("a"), service.state("b")) == (QUEUED, QUEUED)
    service.tick_until("c", DONE)
    service.running("a")
    assert service.state("b") is QUEUED
    service.daemon.close()


def test_a_restarted_coordinator_goes_on_with_what_ran_and_leaves_paused_what_was(service: Service) -> None:
    for name in "abc":
        service.submit(name)
    service.running("a")
    service.daemon.pause("b")
    service.daemon.cancel("c")
    service.daemon.close()
    assert {name: entry.state for name, entry in service.roster.entries.items()} == {
        "a": RUNNING,
        "b": PAUSED,
        "c": CANCELLED,
    }
    service.start()
    service.running("a")
    assert (service.state("b"), service.state("c")) == (PAUSED, CANCELLED)


@pytest.mark.parametrize("killed", [False, True])
def test_a_submission_that_was_opened_is_what_the_next_coordinator_knows_of(service: Service, killed: bool) -> None:
    service.submit("a")
    service.running("a").end(a_report("a", "trials"))
    service.tick_until("a", DONE)
    service.submit("a")
    service.running("a")
    service.daemon.tick()
    first = service.daemon
    if not killed:
        first.close()
    service.workshop.failures["a"] = DataError("no such file")
    service.start()
    service.tick_until("a", FAILED)
    assert (service.daemon.status("a").because, service.daemon.status("a").refused) == ("no such file", "")
    first.close()


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("asked", [PAUSED, CANCELLED])
def test_a_study_that_is_paused_or_cancelled_at_a_restart_shows_what_it_came_to(
    service: Service, asked: ServiceState, killed: bool
) -> None:
    service.submit("a")
    progress = service.running("a").progress
    (service.daemon.pause if asked is PAUSED else service.daemon.cancel)("a")
    first = service.daemon
    if not killed:
        first.close()
    service.start()
    assert (service.state("a"), service.daemon.status("a").progress) == (asked, progress)
    first.close()


def test_a_study_that_runs_at_a_restart_shows_what_it_came_to_until_it_runs_again(service: Service) -> None:
    service.submit("a")
    progress = service.running("a").progress
    service.daemon.close()
    service.start()
    assert (service.state("a"), service.daemon.status("a").progress) == (RUNNING, progress)


def test_a_study_that_ends_while_the_coordinator_is_closed_has_ended(service: Service) -> None:
    service.submit("a")
    study = service.running("a")
    study.end(a_report("a", "trials", "all trials are done"))
    study.thread.join()
    service.daemon.close()
    service.start()
    assert (service.state("a"), service.daemon.status("a").because) == (DONE, "all trials are done")


def test_closing_waits_for_no_import_of_data(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "OPENING_SECONDS", 0.0)
    imported = service.workshop.imports["a"] = threading.Event()
    service.submit("a")
    service.submit("b")
    other = service.running("b")
    with ThreadPoolExecutor() as pool:
        try:
            assert not pool.submit(service.daemon.close).result(20.0), "it is still imported"
        finally:
            imported.set()
    assert other.closed.is_set()
    wait_until(lambda: service.workshop.opened[-1].entry.study == "a", "the import to end")
    wait_until(service.workshop.opened[-1].closed.is_set, "the study to close")
    assert service.daemon.close()
    assert service.daemon.status("a").progress is None, "it was not run"
    assert service.roster.entries["a"].state is RUNNING, "the next coordinator goes on with it"


def test_a_study_that_is_cancelled_while_its_data_are_read_leaves_off(service: Service) -> None:
    service.workshop.reads.add("a")
    service.submit("a")
    service.tick_until("a", RUNNING)
    wait_until(lambda: service.workshop.readings == ["a"], "its data to be read")
    service.daemon.cancel("a")

    def gone() -> bool:
        service.daemon.tick()
        with contextlib.suppress(StudyBusyError):  # it is still being closed
            service.daemon.delete("a")
            return True
        return False

    wait_until(gone, "it to leave off, though its data are read on and on")
    assert service.workshop.opened == []


def test_closing_leaves_no_study_open(service: Service) -> None:
    for name in "abc":
        service.submit(name)
    opened = [service.running(name) for name in "abc"]
    assert service.daemon.close()
    assert all(study.closed.is_set() for study in opened)
    service.daemon.tick()
    assert len(service.workshop.opened) == 3, "a closed daemon starts nothing"


def test_slots_are_shared_by_weight_and_go_to_the_highest_priority(service: Service) -> None:
    service.submit("a")
    service.submit("b", weight=3.0)
    a, b = service.running("a"), service.running("b")
    service.daemon.tick()
    assert (a.most_slots(), b.most_slots()) == (1, 3)
    service.watch.slots = 40
    service.submit("c", priority=1)
    c = service.running("c")
    service.daemon.tick()
    assert (a.most_slots(), b.most_slots(), c.most_slots()) == (1, 3, 36)
    service.watch.state = WorkerState.LOST
    service.daemon.tick()
    assert (a.most_slots(), b.most_slots(), c.most_slots()) == (0, 0, 0)


def test_slots_that_nobody_claims_are_there_for_a_closing_studys_stragglers(service: Service) -> None:
    service.submit("a")
    a = service.running("a")
    a.progress = a_progress("a", in_flight=1, closing="trials")

    def closes() -> bool:
        progress = service.daemon.status("a").progress
        return progress is not None and progress.closing is not None

    wait_until(closes, "it closes")
    service.daemon.tick()
    assert a.most_slots() == 4, "one is claimed, and the three that nobody claims are there too"
    service.submit("b")
    b = service.running("b")
    service.daemon.tick()
    assert (a.most_slots(), b.most_slots()) == (1, 3)


def test_a_paused_study_that_still_closes_keeps_no_other_from_running() -> None:
    service = Service(most_running=1)
    service.submit("a")
    a = service.running("a")
    a.stays = True
    service.daemon.pause("a")
    service.submit("b")
    service.running("b")
    a.stays = False
    service.daemon.close()


def test_what_is_wrong_with_the_broker_is_told(service: Service) -> None:
    readiness = service.daemon.readiness()
    assert not readiness.ready
    assert (readiness.broker, readiness.store) == ("the broker is away", "")


def test_a_report_that_took_long_is_given_again_until_the_study_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that pages through a large study asks for it with every page."""
    made: list[str] = []
    seconds = 2.0

    def report(study: str) -> StudyReport:
        made.append(study)
        service.clock.now += seconds
        return a_report(study, "open")

    monkeypatch.setattr(service.workshop, "report", report)
    service.submit("a")
    study = service.running("a")
    first = service.daemon.report("a")
    assert service.daemon.report("a") is first
    service.clock.now += KEPT_FOR * seconds
    service.daemon.report("a")
    assert made == ["a", "a"]
    study.end(a_report("a", "trials", "all trials are done"))
    service.tick_until("a", DONE)
    assert [service.daemon.report("a").ended for _ in range(2)] == ["trials", "trials"]
    assert made == ["a", "a", "a"]
    service.daemon.delete("a")
    service.clock.now += 1.0
    seconds = 0.0
    service.submit("a")
    service.running("a")
    for _ in range(2):
        service.daemon.report("a")
    assert made == ["a"] * 5, "another study of the name, and reports that cost nothing"


def test_reports_of_a_few_studies_are_kept(service: Service) -> None:
    reports = RecentReports(service.clock)
    entries = []
    for name in "abcdef":
        service.submit(name)
        entries.append(service.roster.load()[-1])
        reports.keep(entries[-1], a_report(name, "open"), seconds=1.0)
    assert [reports.get(entry) is not None for entry in entries] == [False] * 2 + [True] * 4


def test_a_report_needs_a_record(service: Service) -> None:
    service.submit("a")
    for ask in (service.daemon.report, service.daemon.runs):
        with pytest.raises(StudyBusyError, match="no record"):
            ask("a")
    service.running("a").end(a_report("a", "target", "the target value is reached"))
    assert service.daemon.report("a") == a_report("a", "open"), "of the end the next tick tells"
    assert service.daemon.runs("a") == [A_RUN]
    service.tick_until("a", DONE)
    for _ in range(2):
        report = service.daemon.report("a")
        assert (report.ended, report.ended_because) == ("target", "the target value is reached")
        service.start()  # another coordinator says the same
