"""What a slot pool keeps beside its slots."""

from collections.abc import Sequence

import pytest

from trialfleet_shared.adapters.memory_results import MemoryResultCache
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers.pool_parts import CachedEvaluations

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
