"""What a slot pool keeps beside its slots."""

import os
import signal
import weakref
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from support.simulated import SimulatedClock

from trialfleet_shared.adapters.memory_results import MemoryResultCache
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ObjectiveError
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers.pool_parts import (
    MOST_STUDIES,
    CachedEvaluations,
    KernelKills,
    LatestStudies,
    MemoryWatch,
    Refusals,
    SlotUsage,
    Waker,
)

SPEC = StudySpec(study="s", objective="f", objective_digest="ab")


class Cache(MemoryResultCache):
    """Remembers how many results each write had."""

    def __init__(self) -> None:
        super().__init__(size=1000, ttl_hours=1.0, clock=SystemClock())
        self.writes: list[int] = []

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        self.writes.append(len(entries))
        super().put_many(entries)


def evaluation(number: int) -> Evaluation:
    return Evaluation(trial=number, rung=0, fold=0, fraction=1.0, params={"x": number})


def remember(cached: CachedEvaluations, number: int, seconds: float) -> None:
    result = EvaluationResult(number, 0, 0, 0, Outcome.OK, value=1.0, wall_seconds=seconds)
    cached.remember(SPEC, evaluation(number), result)


def test_quick_results_share_a_write() -> None:
    cache = Cache()
    cached = CachedEvaluations(cache, "worker")
    for number in range(250):
        remember(cached, number, 1e-5)
        cached.flush(idle=False)
    assert cache.writes == [100, 100]
    cached.flush(idle=True)
    cached.flush(idle=True)
    assert cache.writes == [100, 100, 50]


def test_a_result_that_is_not_written_yet_is_an_answer() -> None:
    cache = Cache()
    cached = CachedEvaluations(cache, "worker")
    remember(cached, 0, 1e-5)
    answer = cached.answer(SPEC, evaluation(0))
    assert answer is not None
    assert (answer.cached, answer.value, cache.writes) == (True, 1.0, [])
    assert cached.answer(SPEC, evaluation(1)) is None


@pytest.mark.parametrize("seconds", [0.01, 3600.0])
def test_a_result_that_took_a_while_is_written_at_once(seconds: float) -> None:
    cache = Cache()
    cached = CachedEvaluations(cache, "worker")
    remember(cached, 0, 1e-5)
    remember(cached, 1, seconds)
    cached.flush(idle=False)
    assert cache.writes == [2]
    answer = cached.answer(SPEC, evaluation(1))
    assert answer is not None
    assert answer.cached


def study(number: int) -> StudySpec:
    return StudySpec(study=f"s{number}", objective="f", objective_digest="ab")


def test_of_studies_without_end_the_latest_are_remembered() -> None:
    latest = LatestStudies()
    for number in range(MOST_STUDIES):
        latest.add(study(number))
    latest.add(study(0))
    latest.add(study(MOST_STUDIES))
    assert len(latest) == MOST_STUDIES
    assert study(0) in latest, "it was added again"
    assert study(1) not in latest
    latest.discard(study(0))
    assert study(0) not in latest


def test_a_refusal_is_forgotten_though_nobody_asks_for_it_again() -> None:
    clock = SimulatedClock()
    refusals = Refusals(clock)
    error = weakref.ref(first := ObjectiveError("it is other code"))
    refusals.add(study(0), first)
    assert refusals.of(study(0)) is first
    del first
    clock.now += 60.0
    refusals.add(study(1), ObjectiveError("so is this"))
    assert error() is None


def test_slot_seconds_are_those_from_the_start_to_the_close() -> None:
    clock = SimulatedClock()
    usage = SlotUsage(3, clock)
    clock.now += 100.0
    assert (usage.started, usage.available, usage.busy([])) == (False, 0.0, 0.0)
    usage.start()
    clock.now += 10.0
    usage.add(4.0)
    assert (usage.started, usage.available) == (True, 30.0)
    assert usage.busy([clock.now - 6.0, clock.now - 1.0]) == 4.0 + 6.0 + 1.0
    usage.close()
    clock.now += 10.0
    assert (usage.available, usage.busy([])) == (30.0, 4.0)


def test_memory_is_looked_at_every_few_seconds_and_its_peak_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes = SimulatedClock(), {os.getpid(): 5, 17: 7}
    monkeypatch.setattr("trialfleet_workers.linux.pss_bytes", sizes.__getitem__)
    memory = MemoryWatch(clock)
    assert (memory.due(), memory.current, memory.peak) == (True, 0, 0)
    memory.look([17])
    assert (memory.due(), memory.current, memory.peak) == (False, 12, 12)
    clock.now += 4.9
    assert not memory.due()
    clock.now += 0.2
    assert memory.due()
    memory.look([])
    assert (memory.due(), memory.current, memory.peak) == (False, 5, 12)


def test_a_study_that_wants_no_cache_is_neither_answered_nor_remembered() -> None:
    cache = Cache()
    cached = CachedEvaluations(cache, "worker")
    without = msgspec.structs.replace(SPEC, use_cache=False)
    result = EvaluationResult(0, 0, 0, 0, Outcome.OK, value=1.0, wall_seconds=1.0)
    cached.remember(without, evaluation(0), result)
    cached.flush(idle=True)
    assert cache.writes == []
    remember(cached, 0, 1.0)
    assert cached.answer(without, evaluation(0)) is None
    assert cached.answer(SPEC, evaluation(0)) is not None
    assert CachedEvaluations(None, "worker").answer(SPEC, evaluation(0)) is None


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends what would wait for ever."""

    def fail(*_: object) -> None:
        raise TimeoutError("it waits for itself")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 10.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("interrupted", ["eventfd_write", "close"])
def test_a_signal_may_wake_what_a_signal_wakes_or_closes(interrupted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waker = Waker()
    waker.open()
    original, met, woken = getattr(os, interrupted), [], []

    def wake_as_well(number: int, _frame: object) -> None:
        waker.wake()
        woken.append(number)

    def meet_a_signal(*args: int) -> None:
        if not met:
            met.append(args)
            signal.raise_signal(signal.SIGUSR1)
        original(*args)

    before = signal.signal(signal.SIGUSR1, wake_as_well)
    try:
        monkeypatch.setattr(os, interrupted, meet_a_signal)
        waker.wake()
        waker.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert woken == [signal.SIGUSR1]


def test_a_kill_by_the_kernel_is_of_the_last_moments_and_counts_once() -> None:
    clock, count = SimulatedClock(), [3]
    kills = KernelKills(clock, lambda: count[0])

    def pass_time(seconds: float) -> None:
        clock.now += seconds
        kills.look()

    assert not kills.one_lately()
    pass_time(2.0)
    count[0] += 1
    for _ in range(2):
        pass_time(0.5)  # too soon for a look of its own
    assert kills.one_lately()
    assert not kills.one_lately(), "that was the one before"
    count[0] += 2
    pass_time(2.0)
    assert kills.one_lately()
    assert kills.one_lately()
    assert not kills.one_lately()
    count[0] += 1  # another process of the machine
    pass_time(2.0)
    pass_time(2.0)
    assert not kills.one_lately(), "somebody else killed this slot"
