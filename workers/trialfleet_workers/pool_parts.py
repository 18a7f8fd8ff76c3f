"""Small things a slot pool keeps: what the result cache knows, and what its processes take of the memory."""

import math
import os
from collections.abc import Iterable

from trialfleet_shared.caching import CachedResult, ResultCache
from trialfleet_shared.clock import Clock
from trialfleet_shared.fingerprint import result_key
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers import linux

#: Seconds between two looks at the processes' memory: a look costs 1 ms per process.
_LOOK_SECONDS = 5.0


class CachedEvaluations:
    """Asks a result cache before an evaluation and tells it after one.

    Args:
        cache: the cache; None: nothing is known and nothing kept.
        worker: who answers, as results say it.
    """

    def __init__(self, cache: ResultCache | None, worker: str) -> None:
        self._cache = cache
        self._worker = worker
        self._fresh: list[tuple[bytes, CachedResult]] = []

    def answer(self, spec: StudySpec, evaluation: Evaluation) -> EvaluationResult | None:
        """The result of an earlier evaluation of the same; None when there is none, or the study does not want it."""
        if self._cache is None or not spec.use_cache:
            return None
        found = self._cache.get_many([_key(spec, evaluation)])[0]
        if found is None:
            return None
        return EvaluationResult(
            trial=evaluation.trial,
            rung=evaluation.rung,
            fold=evaluation.fold,
            attempt=evaluation.attempt,
            outcome=Outcome.OK,
            value=found.value,
            metrics=found.metrics,
            wall_seconds=found.wall_seconds,
            cpu_seconds=found.cpu_seconds,
            cached=True,
            worker=self._worker,
        )

    def remember(self, spec: StudySpec, evaluation: Evaluation, result: EvaluationResult) -> None:
        """Keep a result that is a value, with the next `flush`."""
        if self._cache is not None and spec.use_cache and result.value is not None:
            entry = CachedResult(result.value, result.metrics, result.wall_seconds, result.cpu_seconds)
            self._fresh.append((_key(spec, evaluation), entry))

    def flush(self) -> None:
        """Write what is to be kept."""
        if self._fresh and self._cache is not None:
            self._cache.put_many(self._fresh)
            self._fresh = []


class MemoryWatch:
    """Proportional set size of this process and others, looked at every few seconds.

    Args:
        clock: tells when a look is due.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked_at = -math.inf
        #: Bytes at the last look, and at the highest so far.
        self.current = 0
        self.peak = 0

    def due(self) -> bool:
        """Whether the last look is too old."""
        return self._clock.monotonic() - self._looked_at >= _LOOK_SECONDS

    def look(self, pids: Iterable[int]) -> None:
        """Measure this process and those with these ids."""
        self.current = sum(map(linux.pss_bytes, (os.getpid(), *pids)))
        self.peak = max(self.peak, self.current)
        self._looked_at = self._clock.monotonic()


def _key(spec: StudySpec, evaluation: Evaluation) -> bytes:
    return result_key(
        objective=spec.objective_digest,
        data=spec.data_digest,
        fraction=evaluation.fraction,
        fold=evaluation.fold,
        seed=spec.seed,
        params=evaluation.params,
    )
