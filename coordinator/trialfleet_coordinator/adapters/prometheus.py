"""A coordinator and its studies as Prometheus metrics: `FleetMetrics`.

Studies are watched by a `StudyMetrics` each, which counts in plain numbers under a lock of its own (a millionth of a
second an evaluation), and is read when Prometheus scrapes. Every series of a study is there from its first scrape on, at 0
or more, so that rates miss nothing after that; all go some minutes after the study's end, when Prometheus has seen the last
figures, so that a service that runs for months keeps the series of those studies alone that run, be it scraped or not.
Those of a deleted study go at once: a study of its name is another one, whose counters start again at 0.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Protocol

from prometheus_client.registry import Collector

from trialfleet_coordinator.commands import Record, RecordDecision, RecordEvaluation, RecordTrial, TrialState
from trialfleet_coordinator.ports import StudyDefinition, TrialRecord
from trialfleet_coordinator.report import Progress
from trialfleet_coordinator.savings import RunningSavings
from trialfleet_coordinator.serving import ServiceState, StudyStatus, WorkerState, WorkerStatus
from trialfleet_coordinator.telemetry import Telemetry
from trialfleet_shared import instruments
from trialfleet_shared.adapters.lmdb_results import CacheStats
from trialfleet_shared.adapters.prometheus import Family, Histogram, Sample, build_info, families
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import StoreError
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.instruments import Instrument
from trialfleet_shared.messages import Evaluation, EvaluationKey, EvaluationResult, Outcome

#: Seconds for which the series of a study stay after its end: several scrapes.
KEEP_SECONDS = 300.0


class StudyMetrics(Telemetry):
    """Watches one study.

    Args:
        definition: the study.
        mode: as of `instruments.LABELS`.
        trials: what earlier sessions recorded.
        clock: tells the time.
    """

    def __init__(self, definition: StudyDefinition, mode: str, trials: Iterable[TrialRecord], clock: Clock) -> None:
        self.definition = definition
        #: When its series may go; None while it runs.
        self.gone_at: float | None = None
        self._mode = mode
        self._clock = clock
        self._lock = threading.Lock()
        # All that follows belongs to the lock.
        rungs = range(len(definition.ladder.rungs))
        self._evaluations: list[dict[Outcome, int]] = [dict.fromkeys(Outcome, 0) for _ in rungs]
        self._cached = [0 for _ in rungs]
        self._seconds = [Histogram(instruments.EVALUATION_SECONDS) for _ in rungs]
        self._queue_wait = Histogram(instruments.QUEUE_WAIT)
        self._batch_size = Histogram(instruments.BATCH_SIZE)
        self._ask = Histogram(instruments.SAMPLER_SECONDS)
        self._tell = Histogram(instruments.SAMPLER_SECONDS)
        self._commit = Histogram(instruments.COMMIT_SECONDS)
        self._counts: Counter[Instrument] = Counter()
        self._trials = dict.fromkeys((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL), 0)
        self._trials_started = self._hits = self._misses = 0
        self._savings = RunningSavings(definition.ladder, trials)
        #: When each evaluation that is under way was handed to the fleet.
        self._published: dict[EvaluationKey, float] = {}
        self._progress: Progress | None = None
        self._discarded: Mapping[str, int] = {}
        self._best_at = 0.0

    # What the study tells.

    def published(self, evaluations: Sequence[Evaluation]) -> None:
        """See `Telemetry.published`."""
        now = self._clock.monotonic()
        with self._lock:
            self._batch_size.observe(len(evaluations))
            for evaluation in evaluations:
                self._published[evaluation.key] = now
                if evaluation.attempt:
                    self._counts[instruments.RETRIES] += 1

    def received(self, results: Sequence[EvaluationResult], lost: Sequence[LostEvaluation]) -> None:
        """See `Telemetry.received`."""
        now = self._clock.monotonic()
        with self._lock:
            for result in results:
                published = self._published.pop(result.key, None)
                if published is not None:
                    # A cached answer tells the seconds of the run that filled the cache.
                    ran = 0.0 if result.cached else result.wall_seconds
                    self._queue_wait.observe(max(now - published - ran, 0.0))
            for one in lost:
                self._published.pop(one.key, None)
            self._counts[instruments.LOST] += len(lost)

    def looked_up(self, hits: int, misses: int) -> None:
        """See `Telemetry.looked_up`."""
        with self._lock:
            self._hits += hits
            self._misses += misses

    def drew(self, seconds: float) -> None:
        """See `Telemetry.drew`."""
        with self._lock:
            self._ask.observe(seconds)

    def learned(self, seconds: float) -> None:
        """See `Telemetry.learned`."""
        with self._lock:
            self._tell.observe(seconds)

    def committed(self, records: Sequence[Record], seconds: float) -> None:
        """See `Telemetry.committed`."""
        with self._lock:
            self._commit.observe(seconds)
            self._counts[instruments.COMMITTED_RECORDS] += len(records)
            for record in records:
                if isinstance(record, RecordEvaluation):
                    self._answered(record.result)
                elif isinstance(record, RecordDecision):
                    self._trials[record.state] += 1
                    self._savings.decided(record.trial, record.state)
                elif isinstance(record, RecordTrial):
                    self._trials_started += 1

    def _answered(self, result: EvaluationResult) -> None:
        self._evaluations[result.rung][result.outcome] += 1
        if result.cached:
            self._cached[result.rung] += 1
        else:
            self._seconds[result.rung].observe(result.wall_seconds)
        self._savings.answered(result)

    def progressed(self, progress: Progress, discarded: Mapping[str, int]) -> None:
        """See `Telemetry.progressed`."""
        with self._lock:
            if self._progress is None or progress.best_value != self._progress.best_value:
                self._best_at = self._clock.time()
            self._progress = progress
            self._discarded = discarded

    def reconnected(self) -> None:
        """See `Telemetry.reconnected`."""
        self._count(instruments.RECONNECTS)

    def redelivered(self) -> None:
        """See `Telemetry.redelivered`."""
        self._count(instruments.REDELIVERIES)

    def unreadable(self) -> None:
        """See `Telemetry.unreadable`."""
        self._count(instruments.DEAD_LETTERS)

    def _count(self, instrument: Instrument) -> None:
        with self._lock:
            self._counts[instrument] += 1

    # What Prometheus is told.

    def samples(self) -> list[Sample]:
        """Every series of the study."""
        with self._lock:
            return [*self._single(), *self._by_rung(), *self._of_progress()]

    def _single(self) -> Iterator[Sample]:
        study, savings = self.definition.name, self._savings
        yield Sample(instruments.STUDY_INFO, (study, self._mode, self.definition.direction), 1)
        yield Sample(instruments.TRIALS_STARTED, (study,), self._trials_started)
        for instrument in (
            instruments.RETRIES,
            instruments.LOST,
            instruments.REDELIVERIES,
            instruments.RECONNECTS,
            instruments.DEAD_LETTERS,
            instruments.COMMITTED_RECORDS,
        ):
            yield Sample(instrument, (study,), self._counts[instrument])
        for state, count in self._trials.items():
            yield Sample(instruments.TRIALS, (study, state.value), count)
        for reason in instruments.DISCARD_REASONS:
            yield Sample(instruments.DISCARDED, (study, reason), self._discarded.get(reason, 0))
        yield Sample(instruments.RESULT_CACHE_REQUESTS, (study, "hit"), self._hits)
        yield Sample(instruments.RESULT_CACHE_REQUESTS, (study, "miss"), self._misses)
        yield Sample(instruments.SPENT_CPU, (study,), savings.spent)
        yield Sample(instruments.BASELINE_CPU, (study,), savings.baseline)
        yield Sample(instruments.SAVED_CPU, (study, "pruning"), savings.pruning)
        yield Sample(instruments.SAVED_CPU, (study, "subsampling"), savings.subsampling)
        yield Sample(instruments.SAVED_CPU, (study, "caching"), savings.caching)
        yield Sample(instruments.QUEUE_WAIT, (study,), self._queue_wait.read())
        yield Sample(instruments.BATCH_SIZE, (study,), self._batch_size.read())
        yield Sample(instruments.SAMPLER_SECONDS, (study, "ask"), self._ask.read())
        yield Sample(instruments.SAMPLER_SECONDS, (study, "tell"), self._tell.read())
        yield Sample(instruments.COMMIT_SECONDS, (study,), self._commit.read())

    def _by_rung(self) -> Iterator[Sample]:
        study = self.definition.name
        for rung, counts in enumerate(self._evaluations):
            for outcome, count in counts.items():
                yield Sample(instruments.EVALUATIONS, (study, str(rung), outcome.value), count)
            yield Sample(instruments.CACHED_EVALUATIONS, (study, str(rung)), self._cached[rung])
            yield Sample(instruments.EVALUATION_SECONDS, (study, str(rung)), self._seconds[rung].read())

    def _of_progress(self) -> Iterator[Sample]:
        """What is a moment's; nothing before the first tick, and nothing that is not known."""
        progress = self._progress
        if progress is None:
            return
        runs, study = self.gone_at is None, self.definition.name
        for state, count in (
            ("undecided", progress.undecided),
            (TrialState.COMPLETE.value, progress.complete),
            (TrialState.PRUNED.value, progress.pruned),
            (TrialState.FAIL.value, progress.failed),
        ):
            yield Sample(instruments.STUDY_TRIALS, (study, state), count)
        for instrument, value in (
            (instruments.TRIALS_TARGET, progress.trials_budget),
            (instruments.BEST_VALUE, progress.best_value),
            (instruments.BEST_TIMESTAMP, None if progress.best_value is None else self._best_at),
            (instruments.ELAPSED, progress.elapsed_seconds),
            (instruments.SLOTS, progress.slots if runs else 0),
            (instruments.IN_FLIGHT, progress.in_flight if runs else 0),
        ):
            if value is not None:
                yield Sample(instrument, (study,), value)


class Overview(Protocol):
    """What is asked of a `trialfleet_coordinator.serving.StudyService`."""

    def studies(self) -> Sequence[StudyStatus]:
        """All studies."""
        ...

    def workers(self) -> Sequence[WorkerStatus]:
        """The workers heard of within the last minutes."""
        ...


class FleetMetrics(Collector):
    """All metrics of a coordinator's process. Its methods may be called from any thread.

    Args:
        clock: tells when series are to go.
        memory: the process's proportional set size in bytes; asked at each scrape.
    """

    def __init__(self, clock: Clock, memory: Callable[[], int]) -> None:
        self._clock = clock
        self._memory = memory
        self._version = version("trialfleet")
        self._lock = threading.Lock()
        # All that follows belongs to the lock.
        self._studies: dict[str, StudyMetrics] = {}
        self._caches: dict[str, Callable[[], CacheStats]] = {}
        self._cache_stats: dict[str, CacheStats] = {}
        #: Of caches that are not watched any more.
        self._evictions = self._cache_failures = 0
        self._imports = Histogram(instruments.DATA_IMPORT_SECONDS)
        self._imported_bytes = self._data_hits = self._data_misses = 0
        self._data_bytes: Callable[[], int] | None = None
        self._service: Overview | None = None
        self._queues: Callable[[], Mapping[str, int]] | None = None

    # What the face tells.

    def study(self, definition: StudyDefinition, mode: str, trials: Iterable[TrialRecord] = ()) -> StudyMetrics:
        """Watch a study from now on; one that is taken up again soon after its end is counted on.

        Args:
            definition: the study.
            mode: as of `instruments.LABELS`.
            trials: what earlier sessions recorded.
        """
        with self._lock:
            self._forget_ended()
            known = self._studies.get(definition.name)
            if known is None or known.definition != definition:
                known = self._studies[definition.name] = StudyMetrics(definition, mode, trials, self._clock)
            known.gone_at = None
            return known

    def retire(self, study: str) -> None:
        """The study has ended: its series go in `KEEP_SECONDS`. Nothing happens where it is not watched.

        They are let go of by the next scrape, or study, after that.
        """
        self.unwatch_cache(study)
        with self._lock:
            if study in self._studies:
                self._studies[study].gone_at = self._clock.monotonic() + KEEP_SECONDS

    def forget(self, study: str) -> None:
        """The study has ended, and is deleted: one of its name is another one. Nothing happens where it is not watched."""
        with self._lock:
            self._studies.pop(study, None)

    def watch_cache(self, study: str, stats: Callable[[], CacheStats]) -> None:
        """Tell of the result cache as the study has it open, until the study is retired."""
        with self._lock:
            self._caches[study] = stats

    def unwatch_cache(self, study: str) -> None:
        """The study's cache is about to be closed."""
        with self._lock:
            stats = self._caches.pop(study, None)
            if stats is None:
                return
            self._look_at_cache(study, stats)
            if study in self._cache_stats:
                last = self._cache_stats.pop(study)
                self._evictions += last.evictions
                self._cache_failures += last.failures + last.corrupt

    def watch_data(self, size: Callable[[], int]) -> None:
        """Tell of the data cache, whose size in bytes is asked at each scrape."""
        with self._lock:
            self._data_bytes = size

    def data_found(self) -> None:
        """A study's data were in the cache."""
        with self._lock:
            self._data_hits += 1

    def data_imported(self, seconds: float, size: int) -> None:
        """A study's data were brought into the cache: so many bytes."""
        with self._lock:
            self._data_misses += 1
            self._imports.observe(seconds)
            self._imported_bytes += size

    def watch_service(self, service: Overview, queues: Callable[[], Mapping[str, int]]) -> None:
        """Tell of a coordinator of many studies.

        Args:
            service: knows the studies and the workers.
            queues: messages that wait with the broker, by queue; empty where that is not known.
        """
        with self._lock:
            self._service = service
            self._queues = queues

    # What Prometheus is told.

    def collect(self) -> Iterable[Family]:
        """Every series, for one scrape."""
        with self._lock:
            self._forget_ended()
            studies = list(self._studies.values())
            own = list(self._own())
            service, queues = self._service, self._queues
        samples = [build_info(self._version), *own]
        samples.append(Sample(instruments.COORDINATOR_PSS, (), self._memory()))
        if service is not None and queues is not None:
            # Not under the lock: a service has its own.
            samples += _of_service(service, queues())
        for study in studies:
            samples += study.samples()
        return families(samples)

    def _forget_ended(self) -> None:
        now = self._clock.monotonic()
        self._studies = {
            name: study for name, study in self._studies.items() if study.gone_at is None or now < study.gone_at
        }

    def _own(self) -> Iterator[Sample]:
        for study, stats in self._caches.items():
            self._look_at_cache(study, stats)
        evictions = self._evictions + sum(stats.evictions for stats in self._cache_stats.values())
        failures = self._cache_failures + sum(stats.failures + stats.corrupt for stats in self._cache_stats.values())
        yield Sample(instruments.RESULT_CACHE_EVICTIONS, (), evictions)
        yield Sample(instruments.RESULT_CACHE_FAILURES, (), failures)
        for last in list(self._cache_stats.values())[-1:]:  # they all are the same one's
            yield Sample(instruments.RESULT_CACHE_BYTES, (), last.bytes)
            yield Sample(instruments.RESULT_CACHE_ENTRIES, (), last.entries)
        yield Sample(instruments.DATA_CACHE_REQUESTS, ("hit",), self._data_hits)
        yield Sample(instruments.DATA_CACHE_REQUESTS, ("miss",), self._data_misses)
        yield Sample(instruments.DATA_IMPORT_SECONDS, (), self._imports.read())
        yield Sample(instruments.DATA_IMPORTED_BYTES, (), self._imported_bytes)
        if self._data_bytes is not None:
            yield Sample(instruments.DATA_CACHE_BYTES, (), self._data_bytes())

    def _look_at_cache(self, study: str, stats: Callable[[], CacheStats]) -> None:
        with suppress(StoreError):  # then what was seen last has to do
            self._cache_stats[study] = stats()


def _of_service(service: Overview, queues: Mapping[str, int]) -> Iterator[Sample]:
    studies = Counter(status.state for status in service.studies())
    for state in ServiceState:
        yield Sample(instruments.STUDIES, (state.value,), studies[state])
    workers = service.workers()
    states = Counter(worker.state for worker in workers)
    for kind in WorkerState:
        yield Sample(instruments.WORKERS, (kind.value,), states[kind])
    live = [worker for worker in workers if worker.state is WorkerState.LIVE]
    yield Sample(instruments.FLEET_SLOTS, (), sum(worker.slots for worker in live))
    yield Sample(instruments.FLEET_SLOTS_BUSY, (), sum(worker.busy for worker in live))
    for queue, messages in queues.items():
        yield Sample(instruments.QUEUE_MESSAGES, (queue,), messages)
