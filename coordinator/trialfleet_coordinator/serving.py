"""What a coordinator that serves many studies offers: `StudyService`, which the HTTP API and the commands speak to.

    queued ──> running ──> done | failed
      │         │    ▲
      │         ▼    │
      │        paused
      └──────────┴────> cancelled

All methods may be called from any thread; they return what was true when they were carried out.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from trialfleet_coordinator.report import Progress, StudyReport
from trialfleet_coordinator.runs import Run
from trialfleet_shared.messages import Name

#: Priorities of studies: a higher one overtakes at the next free slot.
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100


class ServiceState(StrEnum):
    """Where a study is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to the study any more, unless it is submitted again."""
        return self in (ServiceState.DONE, ServiceState.FAILED, ServiceState.CANCELLED)


class Submission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A study that somebody wants to have run."""

    #: The tables of a study file: study, data, resampling, efficiency, space.
    tables: dict[str, Any]
    #: Folder, on the coordinator's machine, that relative paths and references are relative to.
    base: Annotated[str, Meta(min_length=1, max_length=4096)]
    #: In place of study.name.
    name: Name | None = None
    #: A study whose record seeds the sampler.
    warm_start: Name | None = None
    priority: Annotated[int, Meta(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)] = 0
    #: Share of the slots, relative to the other studies of the same priority.
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class StudyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One study of the service."""

    study: str
    state: ServiceState
    #: Why it is in this state, one sentence; empty while it runs.
    because: str
    mode: str
    direction: str
    priority: int
    weight: float
    #: Seconds since the epoch.
    submitted_at: float
    #: Of its latest tick, also of an earlier submission; None before the first.
    progress: Progress | None
    #: Why its latest submission came to nothing, where the study is what it was before it; else empty.
    refused: str = ""


class WorkerState(StrEnum):
    """What a worker was when it was heard last."""

    LIVE = "live"
    DRAINING = "draining"
    LOST = "lost"


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that was heard of lately."""

    worker: str
    state: WorkerState
    slots: int
    busy: int
    #: Seconds since its last heartbeat.
    heartbeat_age_seconds: float
    busy_slot_seconds: float
    available_slot_seconds: float
    pss_bytes: int
    #: host:port where it serves metrics; empty when it does not.
    metrics_address: str


class Readiness(msgspec.Struct, frozen=True):
    """Whether the service can do its work; the texts say what is wrong, and are empty where nothing is."""

    broker: str
    store: str

    @property
    def ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.broker and not self.store


class StudyService(Protocol):
    """A coordinator of many studies."""

    def submit(self, submission: Submission) -> StudyStatus:
        """Queue a study. One that ended may be submitted again, with a larger budget say, and goes on where it was.

        Where it turns out later that what is submitted again can not be opened, as its data are others say, the study is
        what it was before, and `StudyStatus.refused` says why.

        Raises:
            ConfigurationError: what is submitted is not usable; the message names the key, the value, what is allowed.
            StudyChangedError: a study of the name is recorded with another space, objective, direction or seed.
            StoreError: what is recorded can not be read.
            StudyBusyError: a study of the name has not ended.
        """
        ...

    def studies(self) -> Sequence[StudyStatus]:
        """All studies, the oldest submission first."""
        ...

    def status(self, study: str) -> StudyStatus:
        """One of them. Raises UnknownStudyError, as do the methods below."""
        ...

    def pause(self, study: str) -> StudyStatus:
        """Start nothing new of a queued or running study. Raises StudyBusyError when it has ended."""
        ...

    def resume(self, study: str) -> StudyStatus:
        """Go on with a paused study; one that runs stays as it is. Raises StudyBusyError when it has ended."""
        ...

    def cancel(self, study: str) -> StudyStatus:
        """End a study that has not ended; what is recorded stays. One that has ended stays as it is."""
        ...

    def delete(self, study: str) -> None:
        """Forget a study and its record. Raises StudyBusyError unless it has ended."""
        ...

    def report(self, study: str) -> StudyReport:
        """What came of it so far. Raises StudyBusyError while there is no record of it yet."""
        ...

    def runs(self, study: str) -> Sequence[Run]:
        """Its evaluations that ran, by when they began. Raises as `report`."""
        ...

    def workers(self) -> Sequence[WorkerStatus]:
        """The workers heard of within the last minutes."""
        ...

    def readiness(self) -> Readiness:
        """Whether broker and store can be reached."""
        ...
