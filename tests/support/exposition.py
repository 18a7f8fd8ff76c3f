"""Metrics of a coordinator and of a worker that have done a bit of everything, and how to read an exposition."""

from collections.abc import Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from support.fake_workshop import a_progress, a_status
from support.simulated import SimulatedClock
from trialfleet_coordinator.adapters.prometheus import FleetMetrics, StudyMetrics
from trialfleet_coordinator.commands import RecordDecision, RecordEvaluation, RecordTrial, TrialState
from trialfleet_coordinator.ports import StudyDefinition
from trialfleet_coordinator.serving import ServiceState, StudyStatus, WorkerState, WorkerStatus
from trialfleet_shared import instruments
from trialfleet_shared.adapters.lmdb_results import CacheStats
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Evaluation, EvaluationKey, EvaluationResult, Outcome
from trialfleet_workers.adapters.prometheus import WorkerMetrics
from trialfleet_workers.telemetry import PoolFigures

EVERYTHING = (
    instruments.BUILD_INFO,
    *instruments.OF_STUDIES,
    *instruments.OF_THE_COORDINATOR,
    *instruments.OF_WORKERS,
)
LADDER = Ladder((Rung(0.1, 1), Rung(1.0, 1), Rung(1.0, 5)))
#: Samples by name and labels, the latter in the order of their names.
Told = Mapping[tuple[str, ...], float]


def a_definition(name: str, ladder: Ladder = LADDER) -> StudyDefinition:
    """A study."""
    return StudyDefinition(
        name=name,
        direction="maximize",
        space={},
        objective="o.py:f",
        objective_digest="",
        data_digest="",
        ladder=ladder,
        seed=0,
    )


def an_evaluation(trial: int, rung: int = 0, fold: int = 0, attempt: int = 0) -> Evaluation:
    """An evaluation on a rung of `LADDER`."""
    return Evaluation(trial, rung, fold, LADDER.rungs[rung].fraction, {}, attempt)


def a_result(
    trial: int,
    rung: int = 0,
    fold: int = 0,
    *,
    outcome: Outcome = Outcome.OK,
    wall: float = 1.0,
    cpu: float = 1.0,
    cached: bool = False,
) -> EvaluationResult:
    """What came of it."""
    value = 1.0 if outcome is Outcome.OK else None
    return EvaluationResult(
        trial, rung, fold, 0, outcome, value=value, wall_seconds=wall, cpu_seconds=cpu, cached=cached
    )


def told(collector: Collector) -> Told:
    """What a scrape gives."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


class FakeOverview:
    """A service of two studies and two workers."""

    def studies(self) -> Sequence[StudyStatus]:
        return [a_status("s", ServiceState.RUNNING), a_status("t", ServiceState.DONE)]

    def workers(self) -> Sequence[WorkerStatus]:
        return [
            WorkerStatus(
                worker=name,
                state=state,
                slots=4,
                busy=3,
                heartbeat_age_seconds=0.0,
                busy_slot_seconds=0.0,
                available_slot_seconds=0.0,
                pss_bytes=0,
                metrics_address="",
            )
            for name, state in (("a", WorkerState.LIVE), ("b", WorkerState.LOST))
        ]


def cache_stats() -> CacheStats:
    """A result cache that has been of use."""
    return CacheStats(entries=10, bytes=4096, hits=3, misses=4, evictions=2, expirations=0, corrupt=1, failures=4)


def work(study: StudyMetrics) -> None:
    """Something of everything that a study tells."""
    study.published([an_evaluation(0), an_evaluation(1, attempt=1)])
    study.received([a_result(0)], [LostEvaluation(EvaluationKey(1, 0, 0), 1, "its worker is gone")])
    study.looked_up(1, 2)
    study.drew(0.003)
    study.learned(0.0002)
    study.committed(
        [
            RecordTrial(0, {}, {}),
            RecordTrial(1, {}, {}),
            RecordEvaluation(a_result(0)),
            RecordEvaluation(a_result(1, outcome=Outcome.ERROR, cached=True)),
            RecordDecision(0, TrialState.PRUNED, 1.0, "halving"),
        ],
        0.004,
    )
    study.reconnected()
    study.redelivered()
    study.unreadable()
    progress = a_progress(study.definition.name, in_flight=3)
    study.progressed(msgspec.structs.replace(progress, best_value=0.5), {"duplicate": 1})


def busy_coordinator() -> FleetMetrics:
    """Metrics of a coordinator that has done a bit of everything."""
    clock = SimulatedClock()
    metrics = FleetMetrics(clock, memory=lambda: 2**20)
    metrics.watch_data(lambda: 2**30)
    metrics.watch_service(FakeOverview(), lambda: {"trialfleet.v1.evaluations": 3, "trialfleet.v1.dead": 1})
    metrics.data_found()
    metrics.data_imported(2.5, 2**30)
    metrics.watch_cache("s", cache_stats)
    work(metrics.study(a_definition("s"), "fast"))
    return metrics


def busy_worker(*, alone: bool = True) -> WorkerMetrics:
    """Metrics of a worker that has done a bit of everything."""
    metrics = WorkerMetrics(SimulatedClock(), data_bytes=lambda: 2**30, alone=alone)
    metrics.watch_cache(cache_stats)
    metrics.answered("s", [a_result(0), a_result(1, 2, outcome=Outcome.CRASH)])
    metrics.turned(PoolFigures(4, 2, 1, 3.0, 8.0, 2**20, {"crash": 1}, draining=False))
    metrics.data_found()
    metrics.data_imported(2.5, 2**30)
    metrics.reconnected()
    metrics.redelivered()
    metrics.unreadable()
    return metrics
