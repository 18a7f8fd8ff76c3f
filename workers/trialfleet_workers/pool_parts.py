"""Small things a slot pool keeps: of the result cache, of time and memory, of refused studies, and of being woken."""

import math
import os
import threading
from collections.abc import Callable, Iterable

from trialfleet_shared.caching import CachedResult, ResultCache, key_of
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.messages import Evaluation, EvaluationResult, StudySpec
from trialfleet_workers import linux

#: Seconds between two looks at the processes' memory: a look costs 1 ms per process.
_LOOK_SECONDS = 5.0
#: Seconds between two looks at how many processes the kernel killed: a slot's death is noticed much sooner.
_KILLS_SECONDS = 2.0
#: Seconds for which a refusal is remembered: a batch of evaluations must not cost an import each, and a worker whose
#: copy of the objective is updated should notice.
_REFUSAL_SECONDS = 10.0
#: Seconds of work that results may stand for, and how many they may be, before they are written to the result cache: a
#: write takes a third of a millisecond, and doing quick evaluations again less.
_UNWRITTEN_SECONDS = 0.01
_UNWRITTEN_RESULTS = 100
#: Studies of which it is remembered that they run here; of one that is forgotten it is found out again.
MOST_STUDIES = 100


class KernelKills:
    """Tells a slot that the kernel killed for want of memory from one that somebody else killed.

    The kernel counts those of the whole machine, so what it killed within the last moments is taken for one of ours, each once.

    Args:
        clock: says which moments are the last.
        count: how many there have been.
    """

    def __init__(self, clock: Clock, count: Callable[[], int] = linux.oom_kills) -> None:
        self._clock = clock
        self._count = count
        #: As counted at the last look, and at the one before it.
        self._lately = self._before = count()
        self._due = clock.monotonic() + _KILLS_SECONDS

    def look(self) -> None:
        """Take note of how many there are by now. It costs nothing to call this often."""
        now = self._clock.monotonic()
        if now >= self._due:
            self._due = now + _KILLS_SECONDS
            self._before, self._lately = self._lately, self._count()

    def one_lately(self) -> bool:
        """Whether there was one that was not asked for yet."""
        if self._count() <= self._before:
            return False
        self._before += 1
        self._lately = max(self._lately, self._before)
        return True


class CachedEvaluations:
    """Asks a result cache before an evaluation and tells it after one.

    Args:
        cache: the cache; None: nothing is known and nothing kept.
        worker: who answers, as results say it.
    """

    def __init__(self, cache: ResultCache | None, worker: str) -> None:
        self._cache = cache
        self._worker = worker
        #: What is not written yet.
        self._fresh: dict[bytes, CachedResult] = {}
        #: Seconds that it took.
        self._fresh_seconds = 0.0

    def answer(self, spec: StudySpec, evaluation: Evaluation) -> EvaluationResult | None:
        """The result of an earlier evaluation of the same; None when there is none, or the study does not want it."""
        if self._cache is None or not spec.use_cache:
            return None
        key = _key(spec, evaluation)
        found = self._fresh.get(key) or self._cache.get_many([key])[0]
        if found is None:
            return None
        return found.answer(evaluation, worker=self._worker)

    def remember(self, spec: StudySpec, evaluation: Evaluation, result: EvaluationResult) -> None:
        """Keep a result that is a value, with the next `flush`."""
        if self._cache is not None and spec.use_cache and (entry := CachedResult.of(result)) is not None:
            self._fresh[_key(spec, evaluation)] = entry
            self._fresh_seconds += result.wall_seconds

    def flush(self, *, idle: bool) -> None:
        """Write what is to be kept, once it is worth a write, or where there is nothing else to do."""
        worth = self._fresh_seconds >= _UNWRITTEN_SECONDS or len(self._fresh) >= _UNWRITTEN_RESULTS
        if self._fresh and self._cache is not None and (worth or idle):
            self._cache.put_many(list(self._fresh.items()))
            self._fresh, self._fresh_seconds = {}, 0.0


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


class LatestStudies:
    """The studies that were added last, `MOST_STUDIES` of them: a worker serves new ones for weeks."""

    def __init__(self) -> None:
        self._specs: dict[StudySpec, None] = {}

    def __contains__(self, spec: StudySpec) -> bool:
        return spec in self._specs

    def __len__(self) -> int:
        return len(self._specs)

    def add(self, spec: StudySpec) -> None:
        """It is the latest now."""
        self._specs.pop(spec, None)
        self._specs[spec] = None
        if len(self._specs) > MOST_STUDIES:
            del self._specs[next(iter(self._specs))]

    def discard(self, spec: StudySpec) -> None:
        """It is none of them any more."""
        self._specs.pop(spec, None)


class Refusals:
    """Why studies are refused, for a while.

    Args:
        clock: tells when a refusal is forgotten.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[StudySpec, tuple[TrialfleetError, float]] = {}

    def add(self, spec: StudySpec, error: TrialfleetError) -> None:
        """Refuse the study from now on."""
        now = self._clock.monotonic()
        self._known = {other: refusal for other, refusal in self._known.items() if now < refusal[1]}
        self._known[spec] = (error, now + _REFUSAL_SECONDS)

    def of(self, spec: StudySpec) -> TrialfleetError | None:
        """Why the study is refused; None: it is not, or no longer."""
        if spec not in self._known:
            return None
        error, until = self._known[spec]
        if self._clock.monotonic() < until:
            return error
        del self._known[spec]
        return None

    def forget(self, spec: StudySpec) -> None:
        """Give the study another chance."""
        self._known.pop(spec, None)


class SlotUsage:
    """Slot seconds: how many there were, and how many of them evaluations took.

    Args:
        slots: how many slots there are.
        clock: measures.
    """

    def __init__(self, slots: int, clock: Clock) -> None:
        self._slots = slots
        self._clock = clock
        self._started_at: float | None = None
        self._closed_at: float | None = None
        self._busy = 0.0

    @property
    def started(self) -> bool:
        """Whether it counts."""
        return self._started_at is not None

    def start(self) -> None:
        """Count from now."""
        self._started_at = self._clock.monotonic()

    def close(self) -> None:
        """Count no further."""
        self._closed_at = self._clock.monotonic()

    def add(self, seconds: float) -> None:
        """An evaluation took so long, and has ended."""
        self._busy += seconds

    def busy(self, running: Iterable[float]) -> float:
        """Seconds that evaluations took up to now; `running` are the starts of those that have not ended."""
        now = self._clock.monotonic()
        return self._busy + sum(now - since for since in running)

    @property
    def available(self) -> float:
        """Seconds from the start to now, or to the close, times the slots."""
        if self._started_at is None:
            return 0.0
        until = self._clock.monotonic() if self._closed_at is None else self._closed_at
        return (until - self._started_at) * self._slots


class Waker:
    """Interrupts a selector from any thread, and from signal handlers, which may interrupt each other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fd: int | None = None

    def open(self) -> int:
        """The descriptor to listen to."""
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._fd

    def wake(self) -> None:
        """Make the descriptor readable, if it is open."""
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def take(self) -> None:
        """Make it unreadable again."""
        assert self._fd is not None
        os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        with self._lock:
            fd, self._fd = self._fd, None  # first: a signal may come here
            if fd is not None:
                os.close(fd)


def _key(spec: StudySpec, evaluation: Evaluation) -> bytes:
    return key_of(spec, fraction=evaluation.fraction, fold=evaluation.fold, params=evaluation.params)
