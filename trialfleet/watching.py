"""Who watches the studies of this process: `Watching`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trialfleet_coordinator.adapters.study_log import StudyLog
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord
from trialfleet_coordinator.telemetry import Telemetry, Watchers
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_workers.telemetry import NO_TELEMETRY, WorkerTelemetry

if TYPE_CHECKING:  # most studies are run without metrics
    from trialfleet_coordinator.adapters.prometheus import FleetMetrics
    from trialfleet_workers.adapters.prometheus import WorkerMetrics


class Watching:
    """Metrics and a log, each where it is wanted.

    Args:
        metrics: of the coordinator and its studies.
        worker_metrics: of the slots that this process evaluates on itself.
        log: whether to log what becomes of evaluations and trials, as services do.
    """

    def __init__(
        self,
        metrics: "FleetMetrics | None" = None,
        worker_metrics: "WorkerMetrics | None" = None,
        *,
        log: bool = False,
    ) -> None:
        self._metrics = metrics
        self._worker_metrics = worker_metrics
        self._log = log

    @property
    def worker(self) -> WorkerTelemetry:
        """Watches the slots of this process."""
        return self._worker_metrics or NO_TELEMETRY

    def data_found(self) -> None:
        """A study's data were in the data cache."""
        if self._metrics is not None:
            self._metrics.data_found()

    def data_imported(self, seconds: float, size: int) -> None:
        """A study's data were brought into the data cache: so many bytes."""
        if self._metrics is not None:
            self._metrics.data_imported(seconds, size)

    def study_deleted(self, study: str) -> None:
        """A study that had ended was deleted: one of its name is another one."""
        if self._metrics is not None:
            self._metrics.forget(study)

    @contextmanager
    def study(
        self, definition: StudyDefinition, mode: str, record: StudyRecord, cache: LmdbResultCache | None
    ) -> Iterator[Telemetry]:
        """Watch a study until it is left.

        Args:
            definition: the study.
            mode: the mode it names.
            record: what earlier sessions recorded.
            cache: the result cache that it uses.
        """
        watchers: list[Telemetry] = []
        if self._log:
            watchers.append(StudyLog(definition.name))
        if self._metrics is None:
            yield Watchers(*watchers)
            return
        watchers.append(self._metrics.study(definition, mode, record.trials))
        if cache is not None:
            self._metrics.watch_cache(definition.name, cache.stats)
        try:
            yield Watchers(*watchers)
        finally:
            self._metrics.retire(definition.name)
