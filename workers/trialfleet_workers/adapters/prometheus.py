"""A worker as Prometheus metrics: `WorkerMetrics`.

The worker's loop tells of its slots once a turn. Between two turns the slots that were busy still are, so the seconds
are carried on to the moment of the scrape: a rate over them is then the slots' true utilisation, even when an evaluation
takes longer than the rate's window.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version

from prometheus_client.registry import Collector

from trialfleet_shared import instruments
from trialfleet_shared.adapters.lmdb_results import CacheStats
from trialfleet_shared.adapters.prometheus import Family, Histogram, Sample, build_info, families
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import StoreError
from trialfleet_shared.instruments import Instrument
from trialfleet_shared.messages import EvaluationResult, Outcome
from trialfleet_workers.telemetry import PoolFigures, WorkerTelemetry

#: Rungs whose series are there from the start; those of a longer ladder come with their first result.
FIRST_RUNGS = 4


class _Rung:
    """What was answered on one rung."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.seconds = Histogram(instruments.WORKER_EVALUATION_SECONDS)
        self.cpu_seconds = 0.0


class WorkerMetrics(Collector, WorkerTelemetry):
    """All metrics of a worker.

    Args:
        clock: tells how old the slots' figures are.
        data_bytes: size of the data cache; asked at each scrape.
        alone: whether the process is a worker and nothing else, and so tells what it is itself.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        data_bytes: Callable[[], int],
        alone: bool = True,
    ) -> None:
        self._clock = clock
        self._data_bytes = data_bytes
        self._version = version("trialfleet") if alone else None
        self._lock = threading.Lock()
        # All that follows belongs to the lock.
        self._rungs = {rung: _Rung() for rung in range(FIRST_RUNGS)}
        self._counts: Counter[Instrument] = Counter()
        self._imports = Histogram(instruments.WORKER_DATA_IMPORT_SECONDS)
        self._data_hits = 0
        self._figures: PoolFigures | None = None
        self._figures_at = 0.0
        #: Busy and available slot seconds that were told last: counters do not fall.
        self._busy_seconds = self._available_seconds = 0.0
        self._cache: Callable[[], CacheStats] | None = None
        self._cache_stats: CacheStats | None = None

    # What the worker tells.

    def answered(self, _study: str, results: Sequence[EvaluationResult]) -> None:
        """See `WorkerTelemetry.answered`."""
        with self._lock:
            for result in results:
                rung = self._rungs.get(result.rung)
                if rung is None:
                    rung = self._rungs[result.rung] = _Rung()
                rung.outcomes[result.outcome] += 1
                if not result.cached:
                    rung.seconds.observe(result.wall_seconds)
                    rung.cpu_seconds += result.cpu_seconds

    def turned(self, figures: PoolFigures) -> None:
        """See `WorkerTelemetry.turned`."""
        now = self._clock.monotonic()
        with self._lock:
            self._figures = figures
            self._figures_at = now

    def data_found(self) -> None:
        """See `WorkerTelemetry.data_found`."""
        with self._lock:
            self._data_hits += 1

    def data_imported(self, seconds: float, size: int) -> None:
        """See `WorkerTelemetry.data_imported`."""
        with self._lock:
            self._imports.observe(seconds)
            self._counts[instruments.WORKER_DATA_IMPORTED_BYTES] += size

    def reconnected(self) -> None:
        """See `WorkerTelemetry.reconnected`."""
        self._count(instruments.WORKER_RECONNECTS)

    def redelivered(self) -> None:
        """See `WorkerTelemetry.redelivered`."""
        self._count(instruments.WORKER_REDELIVERIES)

    def unreadable(self) -> None:
        """See `WorkerTelemetry.unreadable`."""
        self._count(instruments.WORKER_DEAD_LETTERS)

    def watch_cache(self, stats: Callable[[], CacheStats]) -> None:
        """Tell of the worker's result cache from now on."""
        with self._lock:
            self._cache = stats

    def _count(self, instrument: Instrument) -> None:
        with self._lock:
            self._counts[instrument] += 1

    # What Prometheus is told.

    def collect(self) -> Iterable[Family]:
        """Every series, for one scrape."""
        with self._lock:
            samples = [*self._evaluations(), *self._slots(), *self._caches(), *self._broker()]
        if self._version is not None:
            samples.append(build_info(self._version))
        samples.append(Sample(instruments.WORKER_DATA_CACHE_BYTES, (), self._data_bytes()))
        return families(samples)

    def _evaluations(self) -> Iterator[Sample]:
        for number, rung in self._rungs.items():
            label = str(number)
            for outcome, count in rung.outcomes.items():
                yield Sample(instruments.WORKER_EVALUATIONS, (label, outcome.value), count)
            yield Sample(instruments.WORKER_EVALUATION_SECONDS, (label,), rung.seconds.read())
            yield Sample(instruments.WORKER_CPU, (label,), rung.cpu_seconds)

    def _slots(self) -> Iterator[Sample]:
        figures = self._figures
        restarts = {} if figures is None else figures.restarts
        for reason in instruments.RESTART_REASONS:
            yield Sample(instruments.WORKER_RESTARTS, (reason,), restarts.get(reason, 0))
        if figures is None:  # it is being started
            return
        passed = self._clock.monotonic() - self._figures_at
        self._busy_seconds = max(self._busy_seconds, figures.busy_slot_seconds + passed * figures.busy)
        self._available_seconds = max(self._available_seconds, figures.available_slot_seconds + passed * figures.slots)
        for instrument, value in (
            (instruments.WORKER_SLOTS, figures.slots),
            (instruments.WORKER_BUSY, figures.busy),
            (instruments.WORKER_QUEUED, figures.queued),
            (instruments.WORKER_DRAINING, int(figures.draining)),
            (instruments.WORKER_PSS, figures.pss_bytes),
            (instruments.WORKER_BUSY_SECONDS, self._busy_seconds),
            (instruments.WORKER_AVAILABLE_SECONDS, self._available_seconds),
        ):
            yield Sample(instrument, (), value)

    def _caches(self) -> Iterator[Sample]:
        if self._cache is not None:
            with suppress(StoreError):  # then what was seen last has to do
                self._cache_stats = self._cache()
        stats = self._cache_stats
        if stats is not None:
            yield Sample(instruments.WORKER_RESULT_CACHE_REQUESTS, ("hit",), stats.hits)
            yield Sample(instruments.WORKER_RESULT_CACHE_REQUESTS, ("miss",), stats.misses)
            yield Sample(instruments.WORKER_RESULT_CACHE_EVICTIONS, (), stats.evictions)
            yield Sample(instruments.WORKER_RESULT_CACHE_FAILURES, (), stats.failures + stats.corrupt)
            yield Sample(instruments.WORKER_RESULT_CACHE_BYTES, (), stats.bytes)
            yield Sample(instruments.WORKER_RESULT_CACHE_ENTRIES, (), stats.entries)
        imports = self._imports.read()
        yield Sample(instruments.WORKER_DATA_CACHE_REQUESTS, ("hit",), self._data_hits)
        yield Sample(instruments.WORKER_DATA_CACHE_REQUESTS, ("miss",), sum(imports.counts))
        yield Sample(instruments.WORKER_DATA_IMPORT_SECONDS, (), imports)

    def _broker(self) -> Iterator[Sample]:
        for instrument in (
            instruments.WORKER_DATA_IMPORTED_BYTES,
            instruments.WORKER_RECONNECTS,
            instruments.WORKER_REDELIVERIES,
            instruments.WORKER_DEAD_LETTERS,
        ):
            yield Sample(instrument, (), self._counts[instrument])
