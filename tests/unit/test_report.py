"""The efficiency figures: what they add up to, and what they say of known costs."""

import msgspec
import pytest

from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord, TrialRecord
from trialfleet_coordinator.report import TrialCosts, build_report, estimate_savings, progress_of
from trialfleet_coordinator.study import StudyState
from trialfleet_shared.fleet import FleetReport
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig

LADDER = Ladder((Rung(0.25, 1), Rung(1.0, 1), Rung(1.0, 4)))


def result(
    rung: int, fold: int, seconds: float, *, cached: bool = False, outcome: Outcome = Outcome.OK
) -> EvaluationResult:
    value = 1.0 if outcome is Outcome.OK else None
    return EvaluationResult(
        0, rung, fold, 0, outcome, value=value, wall_seconds=seconds, cpu_seconds=2 * seconds, cached=cached
    )


def state_of(trials: list[TrialRecord], *, test: tuple[int, float] | None = None) -> StudyState:
    definition = StudyDefinition("s", "maximize", {}, "f", "", "", LADDER, 0)
    return StudyState(
        ladder=LADDER,
        maximize=True,
        config=EfficiencyConfig(),
        budget=Budget(),
        has_test=test is not None,
        record=StudyRecord(definition, trials, elapsed=1.0, test=test),
    )


CLIMBER = TrialCosts(
    [result(0, 0, 2.0), result(1, 0, 8.0), *(result(2, fold, 8.0) for fold in (1, 2, 3))], failed=False
)
STOPPED = TrialCosts([result(0, 0, 3.0)], failed=False)


def test_a_stopped_trial_is_priced_by_the_ratio_measured_on_those_that_climbed() -> None:
    savings = estimate_savings([CLIMBER, STOPPED], LADDER, cpu=False)
    # The climber paid 34 where the baseline pays 4 x 8; the stopped one paid 3 for one fold that costs 4 x 3 in full.
    assert savings.spent == 37.0
    assert savings.baseline == 32.0 + 48.0
    assert savings.pruning == 3 * 12.0
    assert savings.subsampling == (32.0 - 34.0) + (12.0 - 3.0)


def test_where_cost_does_not_grow_with_the_rows_the_measured_ratio_counts() -> None:
    slow_to_begin = TrialCosts([result(0, 0, 2.0), *(result(2, fold, 5.0) for fold in range(4))], failed=False)
    savings = estimate_savings([slow_to_begin, STOPPED], LADDER, cpu=False)
    assert savings.baseline == 4 * 5.0 + 4 * 3.0 * (5.0 / 2.0)


def test_what_a_slot_evaluates_first_prices_nothing() -> None:
    first = msgspec.structs.replace(result(0, 0, 60.0), trial=1)
    early = TrialCosts([first], failed=False)
    savings = estimate_savings([CLIMBER, early, STOPPED], LADDER, cpu=False, firsts={first.key})
    # Priced as the mean of the two others on a quarter of the rows, 2.5, at the ratio of 4.
    assert savings.baseline == 32.0 + 48.0 + 4 * 10.0
    assert savings.spent == 34.0 + 60.0 + 3.0
    assert savings.spent + savings.pruning + savings.subsampling == savings.baseline


def test_of_a_trial_that_climbs_what_its_slot_evaluated_first_prices_nothing() -> None:
    slow, *others = CLIMBER.results
    slow = msgspec.structs.replace(slow, wall_seconds=60.0)
    climber = TrialCosts([slow, *others], failed=False)
    savings = estimate_savings([climber, CLIMBER, STOPPED], LADDER, cpu=False, firsts={slow.key})
    assert savings.baseline == 32.0 + 32.0 + 48.0


def test_where_nothing_else_is_known_the_first_is_taken_as_it_is() -> None:
    savings = estimate_savings([STOPPED], LADDER, cpu=False, firsts={STOPPED.results[0].key})
    assert savings.baseline == 4 * 12.0


def test_before_anything_climbed_cost_is_taken_to_grow_with_the_rows() -> None:
    savings = estimate_savings([STOPPED], LADDER, cpu=False)
    assert savings.baseline == 4 * 3.0 / 0.25


def test_trials_that_may_never_see_all_rows_save_what_the_baseline_takes_to_read_them() -> None:
    savings = estimate_savings([TrialCosts([result(0, 0, 2.0)], failed=False)], Ladder((Rung(0.1, 1),)), cpu=False)
    assert (savings.spent, savings.baseline, savings.subsampling) == (2.0, 20.0, 18.0)


def test_a_cached_answer_saves_what_it_cost_when_it_was_measured() -> None:
    cached = TrialCosts([result(0, 0, 3.0, cached=True)], failed=False)
    savings = estimate_savings([CLIMBER, cached], LADDER, cpu=False)
    assert savings.caching == 3.0
    assert savings.spent == 34.0


def test_the_sum_of_the_parts_is_the_baseline() -> None:
    failed = TrialCosts([result(0, 0, 1.5, outcome=Outcome.ERROR)], failed=True)
    cached = TrialCosts([result(0, 0, 3.0, cached=True), result(1, 0, 9.0)], failed=False)
    savings = estimate_savings([CLIMBER, STOPPED, failed, cached], LADDER, cpu=True)
    parts = savings.spent + savings.pruning + savings.subsampling + savings.caching
    assert parts == pytest.approx(savings.baseline)


def test_trials_that_were_never_started_cost_what_the_others_do() -> None:
    ended, whole = (estimate_savings([CLIMBER, STOPPED], LADDER, cpu=False, unstarted=count) for count in (3, 0))
    assert whole.stopping == 0.0
    assert ended.stopping == 3 * whole.baseline / 2
    parts = ended.spent + ended.stopping + ended.pruning + ended.subsampling + ended.caching
    assert parts == pytest.approx(ended.baseline)


def test_without_any_trial_there_is_nothing_to_go_by() -> None:
    assert estimate_savings([], LADDER, cpu=False, unstarted=10).baseline == 0.0


def test_a_failure_would_have_failed_in_the_baseline_too() -> None:
    failed = TrialCosts([result(0, 0, 1.5, outcome=Outcome.TIMEOUT)], failed=True)
    assert estimate_savings([failed], LADDER, cpu=False).baseline == 1.5
    before = TrialCosts([result(0, 0, 2.0, cached=True), *failed.results], failed=True)
    assert estimate_savings([before], LADDER, cpu=False).baseline == 2.0 + 1.5


def test_the_test_part_is_no_part_of_the_search() -> None:
    with_test = TrialCosts([*CLIMBER.results, result(2, TEST_FOLD, 100.0)], failed=False)
    assert estimate_savings([with_test], LADDER, cpu=False) == estimate_savings([CLIMBER], LADDER, cpu=False)


def test_cpu_and_wall_are_kept_apart() -> None:
    wall, cpu = (estimate_savings([CLIMBER, STOPPED], LADDER, cpu=cpu) for cpu in (False, True))
    assert cpu.baseline == 2 * wall.baseline


def test_a_study_that_is_only_looked_at_says_how_far_it_is() -> None:
    trials = [
        TrialRecord(0, {}, {}, TrialState.PRUNED, 0.5, "halving", [result(0, 0, 1.0)]),
        TrialRecord(1, {}, {}, TrialState.RUNNING, None, "", []),
    ]
    for count, told in ((2, "2 trials, 1 of them undecided"), (1, "1 trial, all decided")):
        report = build_report(state_of(trials[:count]), study="s", elapsed_seconds=3.0)
        assert report.ended_because == f"what is recorded of it so far: {told}"
        progress = progress_of(report)
        assert (progress.trials, progress.decided, progress.undecided) == (count, 1, count - 1)
        assert (progress.slots, progress.in_flight, progress.trials_per_second) == (0, 0, 0.0)


def test_a_report_leaves_out_of_its_prices_what_slots_evaluated_first() -> None:
    def of(trial: int, seconds: float) -> TrialRecord:
        measured = msgspec.structs.replace(
            result(0, 0, seconds), trial=trial, worker="w", slot=0, started_at=1000.0 + trial
        )
        return TrialRecord(trial, {}, {}, TrialState.PRUNED, 0.5, "halving", [measured])

    state = state_of([of(0, 60.0), of(1, 1.0), of(2, 1.0)])
    metrics = build_report(state, study="s", elapsed_seconds=62.0).efficiency_metrics
    # Three trials on four folds at four times the rows, two CPU seconds for one of the wall's.
    assert metrics.baseline_cpu_seconds == 3 * 4 * 4 * 2.0
    assert metrics.speedup_factor == 3 * 4 * 4 * 1.0 / 62.0


#: Of a trial's evaluations: rung, fold, value, wall seconds.
WHOLE = ((0, 0, 0.2, 1.0), (1, 0, 0.4, 4.0), (2, 1, 0.5, 4.0), (2, 2, 0.5, 4.0), (2, 3, 0.6, 4.0))


def recorded(number: int, state: TrialState, *results: EvaluationResult, value: float | None = None) -> TrialRecord:
    named = [msgspec.structs.replace(result, trial=number) for result in results]
    return TrialRecord(number, {"x": number}, {}, state, value, "as it went", named)


def evaluated(rung: int, fold: int, value: float, seconds: float, *, cached: bool = False) -> EvaluationResult:
    measured = result(rung, fold, seconds, cached=cached)
    return msgspec.structs.replace(measured, value=value, metrics={"loss": 1.0 - value})


def test_a_report_adds_up_what_is_recorded_and_measured() -> None:
    whole = [evaluated(*each) for each in WHOLE]
    trials = [
        recorded(0, TrialState.COMPLETE, *whole, evaluated(2, TEST_FOLD, 0.1, 8.0), value=0.5),
        recorded(1, TrialState.PRUNED, evaluated(0, 0, 0.1, 1.0, cached=True), value=0.1),
        recorded(2, TrialState.FAIL, result(0, 0, 0.5, outcome=Outcome.ERROR)),
        recorded(3, TrialState.RUNNING),
    ]
    state = state_of(trials, test=(0, 0.1))
    fleet = FleetReport(slots=2, workers=1, busy_slot_seconds=30.0, available_slot_seconds=80.0, pss_bytes=3 * 2**20)
    report = build_report(state, study="s", elapsed_seconds=40.0, fleet=fleet, coordinator_pss_bytes=2**20)
    assert (report.best_trial, report.best_params, report.best_value) == (0, {"x": 0}, 0.5)
    assert (report.best_is_complete, report.test_value) == (True, 0.1)
    assert (report.complete, report.pruned, report.failed, report.undecided) == (1, 1, 1, 1)
    assert (report.rung_evaluations, report.evaluations, report.cached) == ((3, 1, 4), 8, 1)
    metrics = report.efficiency_metrics
    assert (metrics.total_time_seconds, metrics.avg_trial_time_seconds) == (40.0, 10.0)
    assert (metrics.cache_hit_rate, metrics.parallel_efficiency, metrics.memory_usage_mb) == (1 / 8, 30 / 80, 4.0)
    # Four folds of the complete trial and of the cached one, whose rows cost four times as much, and the failure.
    assert metrics.speedup_factor == (4 * 4.0 + 4 * 4 * 1.0 + 0.5) / 40.0
    first, second, _, last = report.trials
    assert (first.state, first.reason) == ("complete", "as it went")
    assert (first.rung, first.evaluations, first.cached) == (2, 6, 0)
    assert (first.wall_seconds, first.cpu_seconds) == (25.0, 50.0)
    assert first.metrics == {"loss": pytest.approx(0.5)}, "of all rows alone, the test part apart"
    assert (second.state, second.wall_seconds, second.evaluations, second.cached) == ("pruned", 0.0, 1, 1)
    assert (last.state, last.rung, last.evaluations, last.metrics) == ("running", 0, 0, {})
    nothing = FleetReport(slots=0, workers=0, busy_slot_seconds=0.0, available_slot_seconds=0.0, pss_bytes=0)
    unmeasured = build_report(state, study="s", elapsed_seconds=0.0, fleet=nothing).efficiency_metrics
    assert (unmeasured.parallel_efficiency, unmeasured.memory_usage_mb, unmeasured.speedup_factor) == (None, 0.0, 0.0)


def test_the_score_of_another_trial_on_the_test_part_is_not_the_best_ones() -> None:
    trials = [
        recorded(0, TrialState.COMPLETE, *(evaluated(*each) for each in WHOLE), value=0.5),
        recorded(1, TrialState.COMPLETE, *(evaluated(*each) for each in WHOLE), value=0.3),
    ]
    state = state_of(trials, test=(1, 0.1))
    report = build_report(state, study="s", elapsed_seconds=1.0)
    assert (report.best_trial, report.test_value) == (0, None)
