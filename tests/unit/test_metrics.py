"""What Prometheus is told of a study and of a worker."""

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trialfleet_coordinator.adapters.prometheus import ProgressCollector
from trialfleet_coordinator.report import Progress
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Heartbeat
from trialfleet_workers.adapters.prometheus import HeartbeatCollector

PROGRESS = Progress(
    study="s",
    direction="maximize",
    ladder=Ladder((Rung(0.5, 1), Rung(1.0, 1))),
    elapsed_seconds=9.5,
    trials=7,
    trials_budget=20,
    seconds_budget=None,
    complete=1,
    pruned=3,
    failed=2,
    cached=4,
    evaluations=11,
    best_value=0.75,
    best_trial=5,
    rung_mix=(5, 2),
    trials_per_second=0.6,
    seconds_left=None,
    slots=2,
    in_flight=3,
    evaluation_seconds=1.0,
    closing=None,
)


def samples(collector: ProgressCollector | HeartbeatCollector) -> dict[tuple[str, frozenset[str]], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_a_study_is_told_by_states_and_sources() -> None:
    collector = ProgressCollector()
    collector.update(PROGRESS)
    told = samples(collector)
    assert told["trialfleet_trials_total", frozenset({"s", "complete"})] == 1
    assert told["trialfleet_trials_total", frozenset({"s", "pruned"})] == 3
    assert told["trialfleet_trials_total", frozenset({"s", "fail"})] == 2
    assert told["trialfleet_study_best_value", frozenset({"s"})] == 0.75
    assert told["trialfleet_study_trials_target", frozenset({"s"})] == 20
    assert told["trialfleet_evaluations_in_flight", frozenset({"s"})] == 3
    assert told["trialfleet_study_slots", frozenset({"s"})] == 2
    assert told["trialfleet_study_elapsed_seconds", frozenset({"s"})] == 9.5


def test_what_is_not_known_is_not_told() -> None:
    collector = ProgressCollector()
    assert samples(collector) == {}
    collector.update(msgspec.structs.replace(PROGRESS, best_value=None, trials_budget=None))
    names = {name for name, _ in samples(collector)}
    assert "trialfleet_study_best_value" not in names
    assert "trialfleet_study_trials_target" not in names


def test_a_worker_is_told_by_its_last_heartbeat() -> None:
    collector = HeartbeatCollector()
    assert samples(collector) == {}
    for busy in (0, 2):
        collector.update(
            Heartbeat("w", 4, busy, 2.0, busy_slot_seconds=3.0, available_slot_seconds=8.0, pss_bytes=2**20)
        )
    told = {name: value for (name, _), value in samples(collector).items()}
    assert told == {
        "trialfleet_worker_slots": 4,
        "trialfleet_worker_slots_busy": 2,
        "trialfleet_worker_pss_bytes": 2**20,
        "trialfleet_worker_busy_slot_seconds_total": 3,
        "trialfleet_worker_available_slot_seconds_total": 8,
    }
