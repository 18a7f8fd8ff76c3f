"""What Prometheus is told of a worker."""

import pytest
from support.exposition import a_result, busy_worker, cache_stats, told
from support.simulated import SimulatedClock

from trialfleet_shared.adapters.lmdb_results import CacheStats
from trialfleet_shared.errors import StoreError
from trialfleet_shared.messages import Outcome
from trialfleet_workers.adapters.prometheus import FIRST_RUNGS, WorkerMetrics
from trialfleet_workers.telemetry import PoolFigures


class Worker:
    """Metrics on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.metrics = WorkerMetrics(self.clock, data_bytes=lambda: 1)

    def turn(self, *, busy: int, busy_seconds: float, available_seconds: float) -> None:
        self.metrics.turned(PoolFigures(4, busy, 0, busy_seconds, available_seconds, 1, {}, draining=False))

    def seconds(self) -> tuple[float, float]:
        """Busy and available."""
        figures = told(self.metrics)
        return (
            figures["trialfleet_worker_busy_slot_seconds_total",],
            figures["trialfleet_worker_available_slot_seconds_total",],
        )


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_worker_tells_what_it_did() -> None:
    figures = told(busy_worker())
    assert figures["trialfleet_worker_slots",] == 4
    assert figures["trialfleet_worker_slots_busy",] == 2
    assert figures["trialfleet_worker_evaluations_queued",] == 1
    assert figures["trialfleet_worker_draining",] == 0
    assert figures["trialfleet_worker_pss_bytes",] == 2**20
    assert figures["trialfleet_worker_evaluations_total", "ok", "0"] == 1
    assert figures["trialfleet_worker_evaluations_total", "crash", "2"] == 1
    assert figures["trialfleet_worker_evaluation_seconds_count", "2"] == 1
    assert figures["trialfleet_worker_evaluation_cpu_seconds_total", "0"] == 1
    assert figures["trialfleet_worker_slot_restarts_total", "crash"] == 1
    assert figures["trialfleet_worker_slot_restarts_total", "memory"] == 0
    assert figures["trialfleet_worker_result_cache_requests_total", "hit"] == 3
    assert figures["trialfleet_worker_result_cache_requests_total", "miss"] == 4
    assert figures["trialfleet_worker_result_cache_evictions_total",] == 2
    assert figures["trialfleet_worker_result_cache_failures_total",] == 5
    assert figures["trialfleet_worker_result_cache_bytes",] == 4096
    assert figures["trialfleet_worker_data_cache_requests_total", "hit"] == 1
    assert figures["trialfleet_worker_data_cache_requests_total", "miss"] == 1
    assert figures["trialfleet_worker_data_imported_bytes_total",] == 2**30
    assert figures["trialfleet_worker_data_cache_bytes",] == 2**30
    assert figures["trialfleet_worker_broker_reconnects_total",] == 1
    assert figures["trialfleet_worker_messages_redelivered_total",] == 1
    assert figures["trialfleet_worker_dead_letters_total",] == 1


def test_every_outcome_of_the_usual_rungs_is_there_from_the_start(worker: Worker) -> None:
    outcomes = [labels for labels in told(worker.metrics) if labels[0] == "trialfleet_worker_evaluations_total"]
    assert len(outcomes) == FIRST_RUNGS * len(Outcome)


def test_a_longer_ladder_has_its_series_too(worker: Worker) -> None:
    worker.metrics.answered("s", [a_result(0, FIRST_RUNGS)])
    assert told(worker.metrics)["trialfleet_worker_evaluations_total", "ok", str(FIRST_RUNGS)] == 1


def test_what_a_cache_answered_took_no_time_here(worker: Worker) -> None:
    worker.metrics.answered("s", [a_result(0, cached=True)])
    figures = told(worker.metrics)
    assert figures["trialfleet_worker_evaluations_total", "ok", "0"] == 1
    assert figures["trialfleet_worker_evaluation_seconds_count", "0"] == 0
    assert figures["trialfleet_worker_evaluation_cpu_seconds_total", "0"] == 0


def test_busy_seconds_are_those_up_to_the_scrape(worker: Worker) -> None:
    worker.turn(busy=2, busy_seconds=10, available_seconds=40)
    assert worker.seconds() == (10, 40)
    worker.clock.now += 5
    assert worker.seconds() == (10 + 2 * 5, 40 + 4 * 5)


def test_busy_seconds_never_fall(worker: Worker) -> None:
    worker.turn(busy=2, busy_seconds=10, available_seconds=40)
    worker.clock.now += 5
    before = worker.seconds()
    # One of the slots was free sooner than was known.
    worker.turn(busy=1, busy_seconds=16, available_seconds=60)
    assert worker.seconds() == before
    worker.clock.now += 5
    assert worker.seconds() == (16 + 1 * 5, 60 + 4 * 5)


def test_a_worker_that_is_being_started_tells_no_slots(worker: Worker) -> None:
    names = {labels[0] for labels in told(worker.metrics)}
    assert "trialfleet_worker_slots" not in names
    assert "trialfleet_worker_slot_restarts_total" in names


def test_a_cache_that_can_not_be_read_is_told_as_it_was_last(worker: Worker) -> None:
    broken = False

    def stats() -> CacheStats:
        if broken:
            raise StoreError("it is closed")
        return cache_stats()

    worker.metrics.watch_cache(stats)
    before = told(worker.metrics)
    broken = True
    assert told(worker.metrics) == before
    assert ("trialfleet_worker_result_cache_entries",) in before


def test_only_a_process_of_its_own_tells_what_it_is() -> None:
    assert "trialfleet_build_info" in {labels[0] for labels in told(busy_worker())}
    assert "trialfleet_build_info" not in {labels[0] for labels in told(busy_worker(alone=False))}
