"""What a study tells of its work to whoever watches it: values, never metrics."""

from collections.abc import Mapping, Sequence

from trialfleet_coordinator.commands import Record
from trialfleet_coordinator.report import Progress
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import Evaluation, EvaluationResult


class Telemetry:
    """Watches one study. Its methods are called from any thread, return at once, and raise nothing.

    Here they do nothing: whoever watches overrides what it wants to hear of.
    """

    def published(self, evaluations: Sequence[Evaluation]) -> None:
        """The fleet was handed these, in one batch."""

    def received(self, results: Sequence[EvaluationResult], lost: Sequence[LostEvaluation]) -> None:
        """The fleet answered; perhaps not for the first time."""

    def looked_up(self, hits: int, misses: int) -> None:
        """So many evaluations were found in the result cache, and so many were not."""

    def drew(self, seconds: float) -> None:
        """The sampler took so long to draw trials."""

    def learned(self, seconds: float) -> None:
        """The sampler took so long to take in what came of trials."""

    def committed(self, records: Sequence[Record], seconds: float) -> None:
        """These were written to the store, which took so long; each record once in the life of a study."""

    def progressed(self, progress: Progress, discarded: Mapping[str, int]) -> None:
        """Where the study stands, and how many results changed nothing in this session, by reason."""

    def reconnected(self) -> None:
        """The broker is back after it had been away."""

    def redelivered(self) -> None:
        """A message with results came for a second time."""

    def unreadable(self) -> None:
        """A message could not be read, and went to the dead letters."""


#: For who is not watched.
NO_TELEMETRY = Telemetry()


class Watchers(Telemetry):
    """Several that watch the same study.

    Args:
        watchers: are told one after the other.
    """

    def __init__(self, *watchers: Telemetry) -> None:
        self._watchers = watchers

    def published(self, evaluations: Sequence[Evaluation]) -> None:
        """See `Telemetry.published`."""
        for watcher in self._watchers:
            watcher.published(evaluations)

    def received(self, results: Sequence[EvaluationResult], lost: Sequence[LostEvaluation]) -> None:
        """See `Telemetry.received`."""
        for watcher in self._watchers:
            watcher.received(results, lost)

    def looked_up(self, hits: int, misses: int) -> None:
        """See `Telemetry.looked_up`."""
        for watcher in self._watchers:
            watcher.looked_up(hits, misses)

    def drew(self, seconds: float) -> None:
        """See `Telemetry.drew`."""
        for watcher in self._watchers:
            watcher.drew(seconds)

    def learned(self, seconds: float) -> None:
        """See `Telemetry.learned`."""
        for watcher in self._watchers:
            watcher.learned(seconds)

    def committed(self, records: Sequence[Record], seconds: float) -> None:
        """See `Telemetry.committed`."""
        for watcher in self._watchers:
            watcher.committed(records, seconds)

    def progressed(self, progress: Progress, discarded: Mapping[str, int]) -> None:
        """See `Telemetry.progressed`."""
        for watcher in self._watchers:
            watcher.progressed(progress, discarded)

    def reconnected(self) -> None:
        """See `Telemetry.reconnected`."""
        for watcher in self._watchers:
            watcher.reconnected()

    def redelivered(self) -> None:
        """See `Telemetry.redelivered`."""
        for watcher in self._watchers:
            watcher.redelivered()

    def unreadable(self) -> None:
        """See `Telemetry.unreadable`."""
        for watcher in self._watchers:
            watcher.unreadable()
