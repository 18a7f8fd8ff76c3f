"""A coordinator that serves many studies at once over one fleet: `Daemon`.

Each running study has a thread of its own, which runs `run_study` as a command for one study would; a study that waits
for its data, or fails, is no other's concern. What they share are the fleet's slots, which `tick` divides among them
(see `shares`), and the roster, which the lock guards.

Whoever ends the process, however, loses nothing: a study's record is in its store, what workers answer meanwhile waits
with the broker, and the roster says which studies are to go on at the next start.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import msgspec

from trialfleet_coordinator.recent_reports import RecentReports
from trialfleet_coordinator.report import Progress, StudyReport, progress_of
from trialfleet_coordinator.roster import Entry, RosterStore
from trialfleet_coordinator.runs import Run
from trialfleet_coordinator.serving import Readiness, ServiceState, StudyStatus, Submission, WorkerState, WorkerStatus
from trialfleet_coordinator.shares import Claim, FairShare
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import (
    BrokerError,
    StoreError,
    StudyBusyError,
    StudyLockedError,
    TrialfleetError,
    UnknownStudyError,
)
from trialfleet_shared.tables import nearest

#: Seconds after which a study is tried again whose broker was out of reach.
RETRY_SECONDS = 5.0
#: Seconds that studies which are being opened have to leave off when the coordinator is closed: imports of data take hours.
OPENING_SECONDS = 2.0
#: Slots that a study can use which goes on starting trials: as many as there are.
_ALL = 2**31

_LOG = logging.getLogger("trialfleet.coordinator")


class Runnable(Protocol):
    """A study that is open."""

    def finished(self) -> StudyReport | None:
        """Its report, when it has nothing left to do."""
        ...

    def run(self, on_progress: Callable[[Progress], None], stop: Callable[[], str | None]) -> StudyReport:
        """See `trialfleet_coordinator.driver.run_study`."""
        ...


class Described(NamedTuple):
    """What a submission asks for."""

    study: str
    mode: str
    direction: str


class Workshop(Protocol):
    """What the daemon needs done to studies; called from any thread."""

    def describe(self, submission: Submission) -> Described:
        """Check a submission as far as can be done at once.

        Raises:
            ConfigurationError: it is not usable; StudyChangedError: a study of its name is recorded, and is another one.
            StoreError: what is recorded can not be read.
        """
        ...

    def open(
        self, entry: Entry, most_slots: Callable[[], int], check: Callable[[], None]
    ) -> AbstractContextManager[Runnable]:
        """Open the study to run it on at most so many slots.

        Entering may take as long as an import of data takes; while a file is read `check` is called now and then, and may
        raise to end it.
        """
        ...

    def report(self, study: str) -> StudyReport | None:
        """What is recorded of a study; None when nothing is."""
        ...

    def runs(self, study: str) -> Sequence[Run] | None:
        """Its evaluations that ran, as recorded; None when nothing is."""
        ...

    def delete(self, study: str) -> None:
        """Remove the record of a study, if there is one."""
        ...

    def trouble(self) -> str:
        """What is wrong with the store; empty when nothing is."""
        ...


class Watch(Protocol):
    """What is known of the workers."""

    def workers(self) -> Sequence[WorkerStatus]:
        """Those heard of within the last minutes."""
        ...

    def trouble(self) -> str:
        """What is wrong with the broker; empty when nothing is."""
        ...


class Daemon:
    """Implements `trialfleet_coordinator.serving.StudyService`.

    Args:
        workshop: opens studies.
        watch: knows the workers.
        roster: keeps the studies' entries.
        clock: tells the time.
        most_running: studies that run at the same time; the others are queued.

    Raises:
        StoreError: the roster can not be read.
    """

    def __init__(
        self, workshop: Workshop, watch: Watch, roster: RosterStore, clock: Clock, *, most_running: int
    ) -> None:
        self._workshop = workshop
        self._watch = watch
        self._roster = roster
        self._clock = clock
        self._most_running = most_running
        self._lock = threading.RLock()
        self._entries = {
            entry.study: entry for entry in sorted(roster.load(), key=lambda entry: (entry.submitted_at, entry.study))
        }
        self._runs: dict[str, _Run] = {}
        #: When studies may be started again that could not go on.
        self._not_before: dict[str, float] = {}
        self._shares = FairShare()
        self._reports = RecentReports(clock)
        self._closing = False

    # StudyService

    def submit(self, submission: Submission) -> StudyStatus:
        """See `StudyService.submit`."""
        described = self._workshop.describe(submission)
        with self._lock:
            known = self._entries.get(described.study)
            if known is not None:
                self._require_ended(known)
            entry = Entry(
                study=described.study,
                submission=submission,
                mode=described.mode,
                direction=described.direction,
                state=ServiceState.QUEUED,
                because="waits to be started",
                submitted_at=self._clock.time(),
                progress=known.progress if known is not None else None,
                before=known if known is not None and known.progress is not None else None,
            )
            self._roster.save(entry)
            # At the end: a study that is submitted again is the newest.
            self._entries.pop(entry.study, None)
            self._entries[entry.study] = entry
            _LOG.info("study %s was submitted", entry.study, extra={"study": entry.study})
            return self._status(entry)

    def studies(self) -> list[StudyStatus]:
        """See `StudyService.studies`."""
        with self._lock:
            return [self._status(entry) for entry in self._entries.values()]

    def status(self, study: str) -> StudyStatus:
        """See `StudyService.status`."""
        with self._lock:
            return self._status(self._entry(study))

    def pause(self, study: str) -> StudyStatus:
        """See `StudyService.pause`."""
        return self._command(study, ServiceState.PAUSED, "by request")

    def resume(self, study: str) -> StudyStatus:
        """See `StudyService.resume`."""
        with self._lock:
            if self._entry(study).state in (ServiceState.QUEUED, ServiceState.RUNNING):
                return self.status(study)
            return self._command(study, ServiceState.QUEUED, "waits to be started")

    def cancel(self, study: str) -> StudyStatus:
        """See `StudyService.cancel`."""
        with self._lock:
            if self._entry(study).state.ended:
                return self.status(study)
            return self._command(study, ServiceState.CANCELLED, "by request")

    def delete(self, study: str) -> None:
        """See `StudyService.delete`."""
        with self._lock:
            entry = self._entry(study)
            self._require_ended(entry, "; cancel it first")
            self._workshop.delete(study)
            self._roster.remove(study)
            del self._entries[study]
            self._not_before.pop(study, None)
            _LOG.info("study %s was deleted", study, extra={"study": study})

    def report(self, study: str) -> StudyReport:
        """See `StudyService.report`."""
        with self._lock:
            entry = self._entry(study)
        report = self._reports.get(entry)
        if report is None:
            began = self._clock.monotonic()
            report = self._workshop.report(study)
            if report is None:
                raise StudyBusyError(f"study {study!r} has no record yet")
            self._reports.keep(entry, report, seconds=self._clock.monotonic() - began)
        if not entry.state.ended:
            return report
        # The record tells of trials; what else is known of the end is the roster's.
        return msgspec.structs.replace(
            report,
            ended=entry.ended,
            ended_because=entry.because,
            efficiency_metrics=entry.efficiency or report.efficiency_metrics,
        )

    def runs(self, study: str) -> Sequence[Run]:
        """See `StudyService.runs`."""
        with self._lock:
            self._entry(study)
        runs = self._workshop.runs(study)
        if runs is None:
            raise StudyBusyError(f"study {study!r} has no record yet")
        return runs

    def workers(self) -> Sequence[WorkerStatus]:
        """See `StudyService.workers`."""
        return self._watch.workers()

    def readiness(self) -> Readiness:
        """See `StudyService.readiness`."""
        return Readiness(broker=self._watch.trouble(), store=self._workshop.trouble())

    # The service's own

    def tick(self) -> None:
        """Conclude studies that came to an end, start queued ones, divide the slots; to be called several times a second."""
        with self._lock:
            self._conclude_ended()
            for study, run in self._runs.items():
                if run.opened and self._entries[study].before is not None:  # it is not what it was before any more
                    self._note(_latest(self._entries[study], run))
            self._start_queued()
            self._divide()

    def close(self) -> bool:
        """Have all studies leave off where they are; those that were running go on at the next start.

        Returns:
            whether all have; a study that is still being opened, as its data are imported, may not have. It is left behind:
            the process may end in the midst of it, as of everything else.
        """
        with self._lock:
            self._closing = True
            runs = list(self._runs.values())
            for run in runs:
                run.abandon()
        end = self._clock.monotonic() + OPENING_SECONDS
        for run in runs:
            run.join(max(end - self._clock.monotonic(), 0.0))
        with self._lock:
            self._conclude_ended()
            return not self._runs

    def _command(self, study: str, state: ServiceState, because: str) -> StudyStatus:
        with self._lock:
            entry = self._entry(study)
            if entry.state.ended:
                raise StudyBusyError(f"study {study!r} has ended: it is {entry.state}; submit it again to go on")
            run = self._runs.get(study)
            # With what is known so far: there may be no later moment to write it.
            self._enter(entry if run is None else _latest(entry, run), state, because, asked=True)
            if run is not None and state is ServiceState.PAUSED:
                run.stop("paused")
            elif run is not None and state is ServiceState.CANCELLED:
                run.abandon()
            return self.status(study)

    def _entry(self, study: str) -> Entry:
        entry = self._entries.get(study)
        if entry is None:
            hint = (
                nearest(study, self._entries, all_of_them="there are")
                if self._entries
                else "; there are no studies yet"
            )
            raise UnknownStudyError(f"there is no study {study!r}{hint}")
        return entry

    def _require_ended(self, entry: Entry, instead: str = "") -> None:
        if not entry.state.ended:
            raise StudyBusyError(f"study {entry.study!r} has not ended: it is {entry.state}{instead}")
        if entry.study in self._runs:
            raise StudyBusyError(
                f"study {entry.study!r} is {entry.state}, and still being closed; try again in a moment"
            )

    def _enter(
        self, entry: Entry, state: ServiceState, because: str, *, last: StudyReport | None = None, asked: bool = False
    ) -> None:
        """Take the study to a state.

        Args:
            entry: the study.
            state: the state.
            because: why.
            last: the report of the session that took it there.
            asked: whether somebody asks for it: it is then durable, or raises StoreError and nothing has changed.
        """
        entered = msgspec.structs.replace(
            entry,
            state=state,
            because=because,
            ended=last.ended if last is not None else "stopped" if state.ended else "open",
            efficiency=last.efficiency_metrics if last is not None else None,
            before=None if state.ended else entry.before,
        )
        if asked:
            self._keep(entered)
        else:
            self._note(entered)
        _LOG.info(
            "study %s is %s%s%s",
            entry.study,
            state,
            ": " if because else "",
            because,
            extra={"study": entry.study, "state": state.value, "cause": because},
        )

    def _keep(self, entry: Entry) -> None:
        self._roster.save(entry)
        self._entries[entry.study] = entry

    def _note(self, entry: Entry) -> None:
        """As `_keep`, of what is so whether it can be written or not: a full disk is not the end of all studies."""
        try:
            self._keep(entry)
        except StoreError as error:
            self._entries[entry.study] = entry
            _LOG.error(  # where it comes from is known
                "what became of study %s can not be written: %s", entry.study, error, extra={"study": entry.study}
            )

    def _status(self, entry: Entry) -> StudyStatus:
        run = self._runs.get(entry.study)
        because = entry.because
        if entry.refused:
            because += f"; what was submitted again is refused: {entry.refused}"
        return StudyStatus(
            study=entry.study,
            state=entry.state,
            because=because,
            mode=entry.mode,
            direction=entry.direction,
            priority=entry.submission.priority,
            weight=entry.submission.weight,
            submitted_at=entry.submitted_at,
            progress=(run.progress if run is not None else None) or entry.progress,
            refused=entry.refused,
        )

    def _conclude_ended(self) -> None:
        for study, run in list(self._runs.items()):
            if run.ended:
                del self._runs[study]
                self._conclude(_latest(self._entries[study], run), run)

    def _conclude(self, entry: Entry, run: "_Run") -> None:
        """A study's thread has ended: what has become of the study?"""
        match run.outcome:
            case None | StudyReport(ended="stopped"):
                # Abandoned or paused: the state says so; or resumed meanwhile, and then it is queued.
                self._note(entry)
            case StudyReport() if entry.state is ServiceState.CANCELLED:
                # It was about to end by itself; who cancelled it was told that it is cancelled.
                self._note(entry)
            case BaseException() as error if entry.state not in (ServiceState.RUNNING, ServiceState.QUEUED):
                # It was about to fail when somebody asked for another state, which it keeps.
                _LOG.warning("study %s: %s", entry.study, error, extra={"study": entry.study})
                self._note(entry)
            case StudyReport() as report:
                entry = msgspec.structs.replace(entry, progress=entry.progress or progress_of(report))
                state = ServiceState.FAILED if report.ended == "failed" else ServiceState.DONE
                self._enter(entry, state, report.ended_because, last=report)
            case BrokerError() as error:
                self._not_before[entry.study] = self._clock.monotonic() + RETRY_SECONDS
                self._enter(entry, ServiceState.QUEUED, f"waits for the broker: {error}")
            case StoreError() as error if not isinstance(error, StudyLockedError):
                # A full disk, most likely: an operator mends it, and resumes.
                self._enter(entry, ServiceState.PAUSED, str(error))
            case TrialfleetError() as error if entry.before is not None:
                # A mistaken submission, or a foreign one of the same name, is not the end of what there is.
                _LOG.warning("study %s is what it was: %s", entry.study, error, extra={"study": entry.study})
                self._note(msgspec.structs.replace(entry.before, refused=str(error)))
            case TrialfleetError() as error:
                self._enter(entry, ServiceState.FAILED, str(error))
            case error:
                self._enter(entry, ServiceState.FAILED, f"unexpected {type(error).__name__}: {error}; this is a bug")

    def _start_queued(self) -> None:
        now = self._clock.monotonic()
        waiting = [
            entry
            for entry in self._entries.values()
            # One that is running without a thread was running when the last coordinator ended.
            if entry.state in (ServiceState.QUEUED, ServiceState.RUNNING)
            and entry.study not in self._runs
            and now >= self._not_before.get(entry.study, now)
        ]
        waiting.sort(key=lambda entry: -entry.submission.priority)
        running = sum(self._entries[study].state is ServiceState.RUNNING for study in self._runs)
        for entry in waiting[: max(self._most_running - running, 0)]:
            if self._closing:
                return
            self._not_before.pop(entry.study, None)
            self._enter(entry, ServiceState.RUNNING, "")
            self._runs[entry.study] = _Run(self._workshop, self._entries[entry.study])

    def _divide(self) -> None:
        slots = sum(worker.slots for worker in self._watch.workers() if worker.state is WorkerState.LIVE)
        claims = [_claim(run) for run in self._runs.values()]
        shares = self._shares.allot(claims, slots, self._clock.monotonic())
        spare = slots - sum(shares.values())
        for study, run in self._runs.items():
            # What nobody claims is there for the stragglers of studies that close: they are run again on idle slots.
            run.slots = shares[study] + (spare if run.closes else 0)


class _Abandoned(BaseException):
    """A study leaves off at once; like KeyboardInterrupt, it passes every `except Exception`."""


class _Run:
    """A study's thread, from now on."""

    _numbers = itertools.count()

    def __init__(self, workshop: Workshop, entry: Entry) -> None:
        self.entry = entry
        #: Slots that it may use at this moment.
        self.slots = 0
        self.progress: Progress | None = None
        #: Whether the study could be opened.
        self.opened = False
        #: What came of it, once it has ended: a report, or what it failed with; None when it was abandoned.
        self.outcome: StudyReport | BaseException | None = None
        self._workshop = workshop
        self._stop: str | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._work, name=f"trialfleet-study-{next(self._numbers)}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    @property
    def closes(self) -> bool:
        """Whether it takes up no new trials any more."""
        return self.progress is not None and self.progress.closing is not None

    def stop(self, cause: str) -> None:
        """Have it start nothing new."""
        self._stop = cause

    def abandon(self) -> None:
        """Have it leave off at its next tick, which leaves nothing half done."""
        self._abandoned = True

    def join(self, opening: float) -> None:
        """Wait for its end; before its first tick, while it is opened and looks for its broker, so many seconds at most."""
        self._thread.join(opening)
        if self.progress is not None:
            self._thread.join()

    # In the thread.

    def _work(self) -> None:
        try:
            with self._workshop.open(self.entry, lambda: self.slots, self._leave_if_abandoned) as study:
                self.opened = True
                self._leave_if_abandoned()
                self.outcome = study.finished() or study.run(self._on_progress, lambda: self._stop)
        except _Abandoned:
            self.outcome = None
        except TrialfleetError as error:
            self.outcome = error
        except BaseException as error:  # noqa: BLE001  # one study's bug is no other study's end; nor is it an end without a cause
            _LOG.exception("study %s failed", self.entry.study, extra={"study": self.entry.study})
            self.outcome = error

    def _on_progress(self, progress: Progress) -> None:
        self.progress = progress
        self._leave_if_abandoned()

    def _leave_if_abandoned(self) -> None:
        if self._abandoned:
            raise _Abandoned


def _latest(entry: Entry, run: _Run) -> Entry:
    """The entry with what its thread has come to."""
    return msgspec.structs.replace(
        entry, progress=run.progress or entry.progress, before=None if run.opened else entry.before
    )


def _claim(run: _Run) -> Claim:
    progress, submission = run.progress, run.entry.submission
    if progress is None:  # it is being opened
        wanted = 0
    elif progress.closing is None:
        wanted = _ALL
    else:
        wanted = progress.in_flight
    return Claim(
        study=run.entry.study,
        weight=submission.weight,
        priority=submission.priority,
        wanted=wanted,
        evaluation_seconds=progress.evaluation_seconds if progress is not None else 0.0,
    )
