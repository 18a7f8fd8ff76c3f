"""What a worker tells of its work to whoever watches it: values, never metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from trialfleet_shared.messages import EvaluationResult


class MeteredPool(Protocol):
    """What is looked at of slots; see `trialfleet_workers.slots.SlotPool`."""

    slots: int

    @property
    def restarts(self) -> Mapping[str, int]:
        """Slots that died or were ended early, by reason."""
        ...

    @property
    def busy(self) -> int:
        """Slots that have an evaluation."""
        ...

    @property
    def queued(self) -> int:
        """Evaluations that wait for a slot."""
        ...

    @property
    def busy_slot_seconds(self) -> float:
        """Seconds that slots spent evaluating."""
        ...

    @property
    def available_slot_seconds(self) -> float:
        """Seconds that slots were there."""
        ...

    def pss_bytes(self) -> int:
        """Proportional set size of this process and the slots."""
        ...


class PoolFigures(NamedTuple):
    """Slots at one moment."""

    slots: int
    busy: int
    queued: int
    busy_slot_seconds: float
    available_slot_seconds: float
    pss_bytes: int
    #: Slots that died or were ended early, by reason.
    restarts: Mapping[str, int]
    #: Whether nothing new is taken up.
    draining: bool

    @classmethod
    def of(cls, pool: MeteredPool, *, draining: bool = False) -> "PoolFigures":
        """The slots at this moment, looked at by the thread that owns them."""
        return cls(
            slots=pool.slots,
            busy=pool.busy,
            queued=pool.queued,
            busy_slot_seconds=pool.busy_slot_seconds,
            available_slot_seconds=pool.available_slot_seconds,
            pss_bytes=pool.pss_bytes(),
            restarts=dict(pool.restarts),
            draining=draining,
        )


class WorkerTelemetry:
    """Watches a worker. Its methods are called from any thread, return at once, and raise nothing.

    Here they do nothing: whoever watches overrides what it wants to hear of.
    """

    def answered(self, study: str, results: Sequence[EvaluationResult]) -> None:
        """These evaluations of a study came to an end here."""

    def turned(self, figures: PoolFigures) -> None:
        """The worker's loop made a turn."""

    def data_found(self) -> None:
        """A batch's data were in the data cache."""

    def data_imported(self, seconds: float, size: int) -> None:
        """A batch's data were brought into the data cache: so many bytes."""

    def reconnected(self) -> None:
        """The broker is back after it had been away."""

    def redelivered(self) -> None:
        """A batch came that had been delivered before, to this worker or another."""

    def unreadable(self) -> None:
        """A message could not be read, and went to the dead letters."""


#: For who is not watched.
NO_TELEMETRY = WorkerTelemetry()


class Watchers(WorkerTelemetry):
    """Several that watch the same worker.

    Args:
        watchers: are told one after the other.
    """

    def __init__(self, *watchers: WorkerTelemetry) -> None:
        self._watchers = watchers

    def answered(self, study: str, results: Sequence[EvaluationResult]) -> None:
        """See `WorkerTelemetry.answered`."""
        for watcher in self._watchers:
            watcher.answered(study, results)

    def turned(self, figures: PoolFigures) -> None:
        """See `WorkerTelemetry.turned`."""
        for watcher in self._watchers:
            watcher.turned(figures)

    def data_found(self) -> None:
        """See `WorkerTelemetry.data_found`."""
        for watcher in self._watchers:
            watcher.data_found()

    def data_imported(self, seconds: float, size: int) -> None:
        """See `WorkerTelemetry.data_imported`."""
        for watcher in self._watchers:
            watcher.data_imported(seconds, size)

    def reconnected(self) -> None:
        """See `WorkerTelemetry.reconnected`."""
        for watcher in self._watchers:
            watcher.reconnected()

    def redelivered(self) -> None:
        """See `WorkerTelemetry.redelivered`."""
        for watcher in self._watchers:
            watcher.redelivered()

    def unreadable(self) -> None:
        """See `WorkerTelemetry.unreadable`."""
        for watcher in self._watchers:
            watcher.unreadable()
