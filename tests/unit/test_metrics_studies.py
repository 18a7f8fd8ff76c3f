"""What Prometheus is told of studies and their coordinator."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from support.exposition import (
    LADDER,
    a_definition,
    a_result,
    an_evaluation,
    busy_coordinator,
    cache_stats,
    told,
    work,
)
from support.fake_workshop import a_progress
from support.simulated import SimulatedClock

from trialfleet_coordinator.adapters.prometheus import KEEP_SECONDS, FleetMetrics
from trialfleet_coordinator.commands import RecordEvaluation
from trialfleet_shared import instruments
from trialfleet_shared.adapters.lmdb_results import CacheStats
from trialfleet_shared.errors import StoreError
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Outcome


class Fleet:
    """Metrics on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.metrics = FleetMetrics(self.clock, memory=lambda: 1)

    def studies(self) -> set[str]:
        return {labels[-1] for labels in told(self.metrics) if labels[0] == "trialfleet_trials_started_total"}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_each_study_is_told_of_in_its_own_series() -> None:
    metrics = busy_coordinator()
    metrics.study(a_definition("t"), "custom")
    figures = told(metrics)
    assert figures["trialfleet_study_info", "maximize", "fast", "s"] == 1
    assert figures["trialfleet_study_info", "maximize", "custom", "t"] == 1
    assert figures["trialfleet_trials_started_total", "s"] == 2
    assert figures["trialfleet_trials_started_total", "t"] == 0
    assert figures["trialfleet_trials_total", "pruned", "s"] == 1
    assert figures["trialfleet_evaluations_total", "ok", "0", "s"] == 1
    assert figures["trialfleet_evaluations_total", "error", "0", "s"] == 1
    assert figures["trialfleet_cached_evaluations_total", "0", "s"] == 1
    assert figures["trialfleet_evaluations_in_flight", "s"] == 3
    assert figures["trialfleet_evaluation_retries_total", "s"] == 1
    assert figures["trialfleet_evaluations_lost_total", "s"] == 1
    assert figures["trialfleet_results_discarded_total", "duplicate", "s"] == 1
    assert figures["trialfleet_results_discarded_total", "late", "s"] == 0
    assert figures["trialfleet_broker_reconnects_total", "s"] == 1
    assert figures["trialfleet_messages_redelivered_total", "s"] == 1
    assert figures["trialfleet_dead_letters_total", "s"] == 1
    assert figures["trialfleet_committed_records_total", "s"] == 5
    assert figures["trialfleet_result_cache_requests_total", "hit", "s"] == 1
    assert figures["trialfleet_result_cache_requests_total", "miss", "s"] == 2
    assert figures["trialfleet_batch_size_sum", "s"] == 2
    assert figures["trialfleet_sampler_seconds_count", "ask", "s"] == 1
    assert figures["trialfleet_sampler_seconds_sum", "tell", "s"] == pytest.approx(0.0002)
    assert figures["trialfleet_commit_seconds_bucket", "0.005", "s"] == 1
    assert figures["trialfleet_commit_seconds_bucket", "0.002", "s"] == 0


def test_the_coordinator_tells_of_itself() -> None:
    figures = told(busy_coordinator())
    assert figures["trialfleet_studies", "running"] == 1
    assert figures["trialfleet_studies", "queued"] == 0
    assert figures["trialfleet_workers", "live"] == 1
    assert figures["trialfleet_workers", "lost"] == 1
    assert figures["trialfleet_fleet_slots",] == 4
    assert figures["trialfleet_fleet_slots_busy",] == 3
    assert figures["trialfleet_queue_messages", "trialfleet.v1.dead"] == 1
    assert figures["trialfleet_data_cache_requests_total", "hit"] == 1
    assert figures["trialfleet_data_cache_requests_total", "miss"] == 1
    assert figures["trialfleet_data_imported_bytes_total",] == 2**30
    assert figures["trialfleet_data_import_seconds_sum",] == 2.5
    assert figures["trialfleet_data_cache_bytes",] == 2**30
    assert figures["trialfleet_result_cache_evictions_total",] == 2
    assert figures["trialfleet_result_cache_failures_total",] == 5
    assert figures["trialfleet_coordinator_pss_bytes",] == 2**20


def test_every_series_of_a_study_is_there_before_anything_happened(fleet: Fleet) -> None:
    study = fleet.metrics.study(a_definition("s"), "fast")
    before = set(told(fleet.metrics))
    work(study)
    after = set(told(fleet.metrics))
    moment = {
        (f"trialfleet_{name}", "s")
        for name in (
            "evaluations_in_flight",
            "study_best_value",
            "study_best_timestamp_seconds",
            "study_elapsed_seconds",
            "study_slots",
            "study_trials_target",
        )
    }
    moment |= {("trialfleet_study_trials", state, "s") for state in ("undecided", "complete", "pruned", "fail")}
    assert after - before == moment
    outcomes = [labels for labels in before if labels[0] == "trialfleet_evaluations_total"]
    assert len(outcomes) == len(Outcome) * len(LADDER.rungs)


def test_what_is_not_known_is_not_told(fleet: Fleet) -> None:
    study = fleet.metrics.study(a_definition("s"), "fast")
    study.progressed(msgspec.structs.replace(a_progress("s"), trials_budget=None), {})
    names = {labels[0] for labels in told(fleet.metrics)}
    assert "trialfleet_study_trials_target" not in names
    assert "trialfleet_study_best_value" not in names
    assert "trialfleet_study_best_timestamp_seconds" not in names
    assert "trialfleet_queue_messages" not in names


def test_the_trials_of_all_sessions_are_told_by_state(fleet: Fleet) -> None:
    study = fleet.metrics.study(a_definition("s"), "fast")
    progress = msgspec.structs.replace(a_progress("s"), trials=20, complete=9, pruned=5, failed=2)
    study.progressed(progress, {})
    figures = told(fleet.metrics)
    counts = {
        state: figures["trialfleet_study_trials", state, "s"] for state in ("undecided", "complete", "pruned", "fail")
    }
    assert counts == {"undecided": 4, "complete": 9, "pruned": 5, "fail": 2}
    assert figures["trialfleet_trials_total", "complete", "s"] == 0, "this session has decided none"


def test_the_wait_is_the_way_there_and_back_without_the_evaluation(fleet: Fleet) -> None:
    study = fleet.metrics.study(a_definition("s"), "fast")
    study.published([an_evaluation(0), an_evaluation(1), an_evaluation(2)])
    fleet.clock.now += 10
    # The second took longer than the way, by a worker's clock; the third is a worker's cache's of another day.
    study.received([a_result(0, wall=7.0), a_result(1, wall=11.0), a_result(2, wall=100.0, cached=True)], [])
    study.received([a_result(0, wall=7.0)], [])  # a second copy
    figures = told(fleet.metrics)
    assert figures["trialfleet_queue_wait_seconds_count", "s"] == 3
    assert figures["trialfleet_queue_wait_seconds_sum", "s"] == 3 + 0 + 10


def test_evaluations_are_told_by_rung_and_those_of_a_cache_have_no_duration(fleet: Fleet) -> None:
    study = fleet.metrics.study(a_definition("s"), "fast")
    results = [a_result(0, 0, wall=0.3), a_result(0, 2, wall=40.0), a_result(1, 2, wall=40.0, cached=True)]
    study.committed([RecordEvaluation(result) for result in results], 0.001)
    figures = told(fleet.metrics)
    assert figures["trialfleet_evaluation_seconds_bucket", "0.5", "0", "s"] == 1
    assert figures["trialfleet_evaluation_seconds_bucket", "0.2", "0", "s"] == 0
    assert figures["trialfleet_evaluation_seconds_count", "2", "s"] == 1
    assert figures["trialfleet_evaluations_total", "ok", "2", "s"] == 2


def test_the_best_value_is_dated_by_its_last_change(fleet: Fleet) -> None:
    study = fleet.metrics.study(a_definition("s"), "fast")
    for best in (0.5, 0.7, 0.7):
        fleet.clock.now += 100
        study.progressed(msgspec.structs.replace(a_progress("s"), best_value=best), {})
    figures = told(fleet.metrics)
    assert figures["trialfleet_study_best_value", "s"] == 0.7
    assert figures["trialfleet_study_best_timestamp_seconds", "s"] == fleet.clock.now - 100


def test_the_series_of_a_study_go_some_minutes_after_its_end(fleet: Fleet) -> None:
    work(fleet.metrics.study(a_definition("s"), "fast"))
    fleet.metrics.study(a_definition("t"), "fast")
    fleet.metrics.retire("s")
    fleet.clock.now += KEEP_SECONDS - 1
    assert fleet.studies() == {"s", "t"}, "Prometheus is to see the last figures"
    fleet.clock.now += 1
    assert fleet.studies() == {"t"}
    fleet.metrics.retire("nobody")


def test_a_study_that_ended_holds_nothing(fleet: Fleet) -> None:
    work(fleet.metrics.study(a_definition("s"), "fast"))
    assert told(fleet.metrics)["trialfleet_study_slots", "s"] == 1
    fleet.metrics.retire("s")
    figures = told(fleet.metrics)
    assert figures["trialfleet_study_slots", "s"] == 0
    assert figures["trialfleet_evaluations_in_flight", "s"] == 0
    assert figures["trialfleet_study_best_value", "s"] == 0.5


def test_a_thousand_studies_leave_no_series(fleet: Fleet) -> None:
    before = set(told(fleet.metrics))
    for number in range(1000):
        study = fleet.metrics.study(a_definition(f"study {number}"), "fast")
        study.drew(0.1)
        fleet.metrics.retire(study.definition.name)
    fleet.clock.now += KEEP_SECONDS
    assert set(told(fleet.metrics)) == before


def test_a_study_that_ended_is_let_go_of_where_nobody_scrapes(fleet: Fleet) -> None:
    ended = weakref.ref(fleet.metrics.study(a_definition("s"), "fast"))
    fleet.metrics.retire("s")
    fleet.metrics.study(a_definition("t"), "fast")
    assert ended() is not None, "somebody may scrape yet"
    fleet.clock.now += KEEP_SECONDS
    fleet.metrics.study(a_definition("u"), "fast")
    assert ended() is None


def test_a_study_that_is_taken_up_again_soon_is_counted_on(fleet: Fleet) -> None:
    work(fleet.metrics.study(a_definition("s"), "fast"))
    fleet.metrics.retire("s")
    fleet.metrics.study(a_definition("s"), "fast")
    fleet.clock.now += 2 * KEEP_SECONDS
    assert told(fleet.metrics)["trialfleet_trials_started_total", "s"] == 2


def test_a_deleted_study_is_forgotten_and_an_equal_one_of_its_name_starts_at_nothing(fleet: Fleet) -> None:
    work(fleet.metrics.study(a_definition("s"), "fast"))
    fleet.metrics.retire("s")
    fleet.metrics.forget("s")
    assert not fleet.studies()
    fleet.metrics.study(a_definition("s"), "fast")
    assert told(fleet.metrics)["trialfleet_trials_started_total", "s"] == 0
    fleet.metrics.forget("nobody")


def test_another_study_of_the_same_name_starts_at_nothing(fleet: Fleet) -> None:
    work(fleet.metrics.study(a_definition("s"), "fast"))
    fleet.metrics.retire("s")
    fleet.metrics.study(a_definition("s", Ladder((Rung(1.0, 1),))), "fast")
    figures = told(fleet.metrics)
    assert figures["trialfleet_trials_started_total", "s"] == 0
    assert ("trialfleet_evaluations_total", "ok", "1", "s") not in figures


def test_what_befell_a_cache_outlives_it(fleet: Fleet) -> None:
    def closed() -> CacheStats:
        raise StoreError("it is closed")

    fleet.metrics.study(a_definition("s"), "fast")
    fleet.metrics.watch_cache("s", cache_stats)
    assert told(fleet.metrics)["trialfleet_result_cache_bytes",] == 4096
    fleet.metrics.retire("s")
    fleet.metrics.watch_cache("t", closed)
    figures = told(fleet.metrics)
    assert figures["trialfleet_result_cache_evictions_total",] == 2
    assert figures["trialfleet_result_cache_failures_total",] == 5
    assert ("trialfleet_result_cache_bytes",) not in figures


def test_scrapes_and_studies_do_not_mind_each_other(fleet: Fleet) -> None:
    rounds, studies = 200, 4

    def live(number: int) -> None:
        study = fleet.metrics.study(a_definition(f"s{number}"), "fast")
        for _ in range(rounds):
            work(study)

    def committed() -> dict[str, tuple[float, float]]:
        figures = told(fleet.metrics)
        names = [labels[-1] for labels in figures if labels[0] == "trialfleet_commit_seconds_count"]
        return {
            name: (
                figures["trialfleet_commit_seconds_count", name],
                figures["trialfleet_committed_records_total", name],
            )
            for name in names
        }

    with ThreadPoolExecutor() as threads:
        lives = [threads.submit(live, number) for number in range(studies)]
        while not all(life.done() for life in lives):
            assert all(records == 5 * commits for commits, records in committed().values()), "a scrape is of one moment"
        for life in lives:
            life.result()
    assert committed() == {f"s{number}": (rounds, 5 * rounds) for number in range(studies)}


def test_a_distribution_adds_up() -> None:
    figures = told(busy_coordinator())
    for instrument in instruments.OF_STUDIES:
        if instrument.kind != "histogram":
            continue
        counts = {labels[1:]: value for labels, value in figures.items() if labels[0] == f"{instrument.name}_count"}
        assert counts
        for labels, count in counts.items():
            infinite = next(
                value
                for bucket, value in figures.items()
                if bucket[0] == f"{instrument.name}_bucket" and "+Inf" in bucket and set(labels) <= set(bucket)
            )
            assert infinite == count
