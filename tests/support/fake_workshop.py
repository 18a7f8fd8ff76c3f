"""Studies that do nothing but wait to be told how they end, for tests of the daemon."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.daemon import Described
from trialfleet_coordinator.report import Progress, StudyReport, build_report
from trialfleet_coordinator.roster import Entry
from trialfleet_coordinator.runs import Run
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission, WorkerState, WorkerStatus
from trialfleet_coordinator.study import StudyState
from trialfleet_shared.errors import ConfigurationError, StoreError
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Outcome
from trialfleet_shared.settings import EfficiencyConfig

_LADDER = Ladder((Rung(1.0, 1),))


def a_report(study: str, ended: str, because: str = "so it was asked") -> StudyReport:
    """The report of a study without trials."""
    state = StudyState(
        ladder=_LADDER, maximize=True, config=EfficiencyConfig(), budget=Budget(trials=1), has_test=False
    )
    report = build_report(state, study=study, elapsed_seconds=0.0)
    return msgspec.structs.replace(report, ended=ended, ended_because=because)


def a_progress(study: str, *, in_flight: int = 0, closing: str | None = None) -> Progress:
    """The progress of a study that has just begun."""
    return Progress(
        study=study,
        direction="maximize",
        ladder=_LADDER,
        elapsed_seconds=1.0,
        trials=0,
        trials_budget=10,
        seconds_budget=None,
        complete=0,
        pruned=0,
        failed=0,
        cached=0,
        evaluations=0,
        best_value=None,
        best_trial=None,
        rung_mix=(0,),
        trials_per_second=0.0,
        seconds_left=None,
        slots=1,
        in_flight=in_flight,
        evaluation_seconds=0.0,
        closing=closing,
    )


def a_status(study: str, state: ServiceState, progress: Progress | None = None) -> StudyStatus:
    """The status of a study that nothing is said of."""
    return StudyStatus(
        study=study,
        state=state,
        because="",
        mode="balanced",
        direction="maximize",
        priority=0,
        weight=1.0,
        submitted_at=0.0,
        progress=progress,
    )


class FakeStudy:
    """One opening of a study; it runs until `end` says how it ends, or it is stopped."""

    def __init__(self, entry: Entry, most_slots: Callable[[], int], done: StudyReport | None) -> None:
        self.entry = entry
        self.most_slots = most_slots
        self.closed = threading.Event()
        #: The thread that has it open.
        self.thread = threading.current_thread()
        #: What it tells while it runs.
        self.progress = a_progress(entry.study)
        #: Whether it goes on closing when it was stopped.
        self.stays = False
        self._done = done
        self._ends: StudyReport | BaseException | None = None
        self._may_go = threading.Event()

    def end(self, how: StudyReport | BaseException) -> None:
        """Have `run` return or raise it."""
        self._ends = how
        self._may_go.set()

    def finished(self) -> StudyReport | None:
        return self._done

    def run(self, on_progress: Callable[[Progress], None], stop: Callable[[], str | None]) -> StudyReport:
        while not self._may_go.wait(0.005):
            on_progress(self.progress)
            if stop() is not None and not self.stays:
                return a_report(self.entry.study, "stopped")
        if isinstance(self._ends, BaseException):
            raise self._ends
        assert self._ends is not None
        return self._ends


A_RUN = Run(trial=0, rung=0, fold=0, outcome=Outcome.OK, worker="w", slot=1, started_at=5.0, wall_seconds=2.0)


class FakeWorkshop:
    """Implements `trialfleet_coordinator.daemon.Workshop`."""

    def __init__(self) -> None:
        self.opened: list[FakeStudy] = []
        self.deleted: list[str] = []
        #: What opening a study raises, by name.
        self.failures: dict[str, Exception] = {}
        #: What opening a study waits for, as for an import of data, by name.
        self.imports: dict[str, threading.Event] = {}
        #: Studies whose data are read from a file, for as long as they are named here; those that began to read, each time.
        self.reads: set[str] = set()
        self.readings: list[str] = []
        #: The reports of studies that have nothing left to do, by name.
        self.finished: dict[str, StudyReport] = {}

    def describe(self, submission: Submission) -> Described:
        name = submission.name or submission.tables["study"].get("name")
        if not name:
            raise ConfigurationError("study.name is missing")
        return Described(name, "fast", "maximize")

    @contextmanager
    def open(self, entry: Entry, most_slots: Callable[[], int], check: Callable[[], None]) -> Iterator[FakeStudy]:
        if entry.study in self.reads:
            self.readings.append(entry.study)
        while entry.study in self.reads:
            check()
            time.sleep(0.001)
        if entry.study in self.imports:
            self.imports[entry.study].wait()
        if entry.study in self.failures:
            raise self.failures[entry.study]
        study = FakeStudy(entry, most_slots, self.finished.get(entry.study))
        self.opened.append(study)
        try:
            yield study
        finally:
            study.closed.set()

    def report(self, study: str) -> StudyReport | None:
        known = any(opened.entry.study == study for opened in self.opened)
        return a_report(study, "open") if known else None

    def runs(self, study: str) -> list[Run] | None:
        return None if self.report(study) is None else [A_RUN]

    def delete(self, study: str) -> None:
        self.deleted.append(study)

    def trouble(self) -> str:
        return ""


class FakeWatch:
    """Implements `trialfleet_coordinator.daemon.Watch` for one worker of so many slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.state = WorkerState.LIVE
        self.metrics_address = ""

    def workers(self) -> list[WorkerStatus]:
        return [
            WorkerStatus(
                worker="w",
                state=self.state,
                slots=self.slots,
                busy=0,
                heartbeat_age_seconds=0.5,
                busy_slot_seconds=0.0,
                available_slot_seconds=0.0,
                pss_bytes=0,
                metrics_address=self.metrics_address,
            )
        ]

    def trouble(self) -> str:
        return "the broker is away"


class MemoryRoster:
    """Implements `trialfleet_coordinator.roster.RosterStore`; passes the same contract suite as the files."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        #: Whether there is no space left for a change.
        self.full = False

    def load(self) -> list[Entry]:
        return list(self.entries.values())

    def save(self, entry: Entry) -> None:
        if self.full:
            raise StoreError("no space left")
        self.entries[entry.study] = entry

    def remove(self, study: str) -> None:
        self.entries.pop(study, None)
