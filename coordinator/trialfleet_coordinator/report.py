"""What a study tells about itself: `Progress` while it runs, `StudyReport` at its end, and the efficiency figures.

The figures compare with one imaginary run, the *baseline*: the same trials, one after another, each on all rows and all
folds; of a study that its patience ended, all the trials that it might have started, at the mean price of those it did.
What a trial would have cost there is estimated from measured durations alone:

    cost on all rows, one fold = the trial's own mean on all rows, where it got that far; else its mean on the
    highest fraction it reached x the ratio between the two fractions' costs, measured on the trials that ran on both,
    and until there are any, 1 / fraction.

What a slot evaluates first is no measure of that: imports and compilations that are done once would be multiplied. A trial
that has nothing else is priced as the others of its fraction.

`speedup_factor` = baseline wall seconds / wall seconds of the study: both grow alike where other work keeps the cores busy.
CPU seconds are attributed in a fixed order, so that spent + saved by stopping + saved by pruning + saved by subsampling +
saved by caching = baseline:

    stopping     trials that were never started, because the study's patience was at an end
    pruning      folds that a trial never saw, at its cost on all rows
    subsampling  folds that it saw, at its cost on all rows, less what its evaluations cost
    caching      what the cached evaluations cost when they were measured

A sum below zero (a ladder that cost more than it saved) is reported as it is.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from trialfleet_coordinator.budget import Ended
from trialfleet_coordinator.collecting import nothing_collected
from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.promotion import mean
from trialfleet_coordinator.study import StudyState
from trialfleet_coordinator.trial import Phase, Trial
from trialfleet_shared.fleet import FleetReport
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import TEST_FOLD, EvaluationKey, EvaluationResult, Outcome
from trialfleet_shared.space import Params


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A running study at one moment."""

    study: str
    direction: str
    ladder: Ladder
    #: Seconds that the study has run, over all its sessions.
    elapsed_seconds: float
    #: Trials started, and the number to start at most (None: no such budget).
    trials: int
    trials_budget: int | None
    seconds_budget: float | None
    complete: int
    pruned: int
    failed: int
    #: Evaluations answered by a result cache, and all evaluations answered.
    cached: int
    evaluations: int
    #: Best value so far; of the complete trials where there are any, else of the highest rung reached.
    best_value: float | None
    best_trial: int | None
    #: Undecided and decided trials by the highest rung they were started on.
    rung_mix: tuple[int, ...]
    #: Trials decided per second of this session.
    trials_per_second: float
    #: Estimated seconds until the study ends; None while there is nothing to estimate from.
    seconds_left: float | None
    slots: int
    in_flight: int
    #: Mean seconds of the latest evaluations; 0 before the first.
    evaluation_seconds: float
    #: Why the study takes up no new trials; None while it does.
    closing: str | None
    #: CPU seconds spent, over all sessions, and the budget of them (None: no such budget).
    cpu_seconds: float = 0.0
    cpu_seconds_budget: float | None = None

    @property
    def decided(self) -> int:
        """Trials that are COMPLETE, PRUNED or FAIL."""
        return self.complete + self.pruned + self.failed

    @property
    def undecided(self) -> int:
        """Trials that are being evaluated, or wait for a promotion."""
        return self.trials - self.decided


class SavedSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated CPU seconds saved against the baseline; see the module's docstring."""

    subsampling: float
    pruning: float
    caching: float
    stopping: float


class EfficiencyMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The guide's metrics. All seconds are wall seconds unless they say CPU."""

    #: Wall seconds of the study, over all its sessions.
    total_time_seconds: float
    #: Wall seconds of the study per trial.
    avg_trial_time_seconds: float
    #: Evaluations answered by a cache / evaluations answered.
    cache_hit_rate: float
    #: Busy slot-seconds / available slot-seconds, of this session; None: nobody measured it.
    parallel_efficiency: float | None
    #: Proportional set size of all processes of this session at its peak, in MB of 2^20 bytes; None: nobody measured it.
    memory_usage_mb: float | None
    #: Estimate: baseline wall seconds / wall seconds of the study.
    speedup_factor: float
    #: CPU seconds of the evaluations that ran, but for the one on the test part.
    spent_cpu_seconds: float
    #: Estimate: CPU seconds of the baseline.
    baseline_cpu_seconds: float
    #: Estimate: what the difference is made of.
    saved_cpu_seconds: SavedSeconds


class TrialSummary(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One trial of a report."""

    number: int
    state: str
    params: Params
    #: The complete value, or the score on the highest rung the trial finished; None when it finished none.
    value: float | None
    #: Index of the highest rung it was started on.
    rung: int
    #: Why it was decided so.
    reason: str
    wall_seconds: float
    cpu_seconds: float
    #: Evaluations, and how many of them a cache answered.
    evaluations: int
    cached: int
    #: Means of further metrics that the objective returned, over the folds it has at the highest fraction it has seen.
    metrics: dict[str, float]


class StudyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a study."""

    study: str
    direction: str
    #: Why it ended, a value of `budget.Ended`; "open" while it has not.
    ended: str
    #: One sentence about `ended`, for people.
    ended_because: str
    best_trial: int | None
    best_params: Params | None
    #: The best complete trial's mean over all folds; where no trial is complete, the best of the highest rung reached.
    best_value: float | None
    #: Whether `best_value` was measured on the last rung: all folds, and all rows if the settings let trials have them.
    best_is_complete: bool
    #: The best trial's value on the test part, which the search never saw; None without a test part.
    test_value: float | None
    complete: int
    pruned: int
    failed: int
    #: Trials not decided because the study was stopped; it goes on with them when it is run again.
    undecided: int
    ladder: Ladder
    #: Rungs of it that trials do not climb any more: they cost more than they save, or rank trials contrary to the next.
    left_out: tuple[int, ...]
    #: Evaluations answered on each rung.
    rung_evaluations: tuple[int, ...]
    evaluations: int
    cached: int
    efficiency_metrics: EfficiencyMetrics
    #: The last failures' reasons, at most five.
    failures: tuple[str, ...]
    trials: tuple[TrialSummary, ...]


def progress_of(report: StudyReport) -> Progress:
    """What a study came to that was found finished: it did not run, and its budget is not known here."""
    return Progress(
        study=report.study,
        direction=report.direction,
        ladder=report.ladder,
        elapsed_seconds=report.efficiency_metrics.total_time_seconds,
        trials=report.complete + report.pruned + report.failed + report.undecided,
        trials_budget=None,
        seconds_budget=None,
        complete=report.complete,
        pruned=report.pruned,
        failed=report.failed,
        cached=report.cached,
        evaluations=report.evaluations,
        best_value=report.best_value,
        best_trial=report.best_trial,
        rung_mix=tuple(sum(trial.rung == rung for trial in report.trials) for rung in range(len(report.ladder.rungs))),
        trials_per_second=0.0,
        seconds_left=None,
        slots=0,
        in_flight=0,
        evaluation_seconds=0.0,
        closing=report.ended,
        cpu_seconds=report.efficiency_metrics.spent_cpu_seconds,
    )


class BestTrial(msgspec.Struct, frozen=True, kw_only=True):
    """The best trial of a study so far; without a trial that has a value, everything is null."""

    study: str
    trial: int | None
    params: Params | None
    value: float | None
    #: Whether the value was measured on the last rung: all folds, and all rows if the settings let trials have them.
    complete: bool


class TrialCosts(msgspec.Struct, frozen=True):
    """What the cost estimate needs of one trial."""

    results: Sequence[EvaluationResult]
    #: Whether it failed: then the baseline would have failed as well, at the same cost.
    failed: bool


class Savings(msgspec.Struct, frozen=True):
    """Baseline and savings, in seconds of one measure (wall or CPU)."""

    spent: float
    baseline: float
    pruning: float
    subsampling: float
    caching: float
    stopping: float


def estimate_savings(
    trials: Iterable[TrialCosts],
    ladder: Ladder,
    *,
    cpu: bool,
    unstarted: int = 0,
    firsts: Collection[EvaluationKey] = (),
) -> Savings:
    """The baseline's cost and what was saved against it; see the module's docstring for the formulas.

    Args:
        trials: all trials; evaluations on the test part are left out.
        ladder: the study's ladder.
        cpu: whether to count CPU seconds; else wall seconds.
        unstarted: further trials that the baseline would have run.
        firsts: what slots evaluated first.
    """
    costs = _priced([_cost(trial, ladder, cpu=cpu, firsts=firsts) for trial in trials])
    folds = ladder.rungs[-1].folds
    ratios = _ratios([cost.means for cost in costs])
    spent = baseline = pruning = subsampling = caching = 0.0
    for cost in costs:
        spent += cost.executed
        caching += cost.cached
        if cost.failed or not cost.means:
            baseline += cost.executed + cost.cached
            continue
        highest = max(cost.means)
        whole = cost.means[highest] * ratios.get(highest, 1.0 / highest)
        baseline += folds * whole
        pruning += (folds - cost.folds) * whole
        subsampling += cost.folds * whole - cost.executed - cost.cached
    stopping = unstarted * baseline / len(costs) if costs else 0.0
    return Savings(spent, baseline + stopping, pruning, subsampling, caching, stopping)


class _Cost(NamedTuple):
    """What a trial cost, in seconds."""

    #: Of evaluations that ran, and of those that the cache answered.
    executed: float
    cached: float
    #: Mean of the successful evaluations at each fraction, but for what a slot evaluated first, which is apart.
    means: dict[float, float]
    first: dict[float, float]
    #: Folds that were successful.
    folds: int
    failed: bool


def _cost(trial: TrialCosts, ladder: Ladder, *, cpu: bool, firsts: Collection[EvaluationKey]) -> _Cost:
    executed = cached = 0.0
    by_fraction: dict[float, list[float]] = {}
    first: dict[float, float] = {}
    folds = set()
    for result in trial.results:
        if result.fold == TEST_FOLD:
            continue
        seconds = result.cpu_seconds if cpu else result.wall_seconds
        if result.cached:
            cached += seconds
        else:
            executed += seconds
        if result.outcome is Outcome.OK:
            fraction = ladder.rungs[result.rung].fraction
            if result.key in firsts:
                first[fraction] = seconds
            else:
                by_fraction.setdefault(fraction, []).append(seconds)
            folds.add(result.fold)
    means = {fraction: sum(each) / len(each) for fraction, each in by_fraction.items()}
    return _Cost(executed, cached, means, first, len(folds), trial.failed)


def _priced(costs: Sequence[_Cost]) -> list[_Cost]:
    """With the mean of the others where a trial has nothing but what a slot evaluated first."""
    usual: dict[float, list[float]] = {}
    for cost in costs:
        for fraction, seconds in cost.means.items():
            usual.setdefault(fraction, []).append(seconds)
    return [
        cost
        if cost.means
        else cost._replace(means={fraction: mean(usual.get(fraction, [own])) for fraction, own in cost.first.items()})
        for cost in costs
    ]


def _ratios(costs: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Cost on all rows over cost on each fraction, from the trials that ran on both."""
    ratios = {1.0: 1.0}
    for fraction in {fraction for means in costs for fraction in means} - {1.0}:
        pairs = [(means[1.0], means[fraction]) for means in costs if 1.0 in means and fraction in means]
        below = sum(lower for _, lower in pairs)
        if below > 0:
            ratios[fraction] = sum(upper for upper, _ in pairs) / below
    return ratios


def efficiency_metrics(
    trials: Sequence[TrialCosts],
    ladder: Ladder,
    *,
    elapsed_seconds: float,
    trials_started: int,
    unstarted: int,
    firsts: Collection[EvaluationKey],
    fleet: FleetReport | None,
    coordinator_pss_bytes: int,
) -> EfficiencyMetrics:
    """The guide's metrics of a study that ran for `elapsed_seconds`; `fleet` as of `build_report`."""
    cpu = estimate_savings(trials, ladder, cpu=True, unstarted=unstarted, firsts=firsts)
    wall = estimate_savings(trials, ladder, cpu=False, unstarted=unstarted, firsts=firsts)
    results = [result for trial in trials for result in trial.results]
    cached = sum(result.cached for result in results)
    return EfficiencyMetrics(
        total_time_seconds=elapsed_seconds,
        avg_trial_time_seconds=elapsed_seconds / trials_started if trials_started else 0.0,
        cache_hit_rate=cached / len(results) if results else 0.0,
        parallel_efficiency=(
            None
            if fleet is None or fleet.available_slot_seconds <= 0
            else fleet.busy_slot_seconds / fleet.available_slot_seconds
        ),
        memory_usage_mb=None if fleet is None else (fleet.pss_bytes + coordinator_pss_bytes) / 2**20,
        speedup_factor=wall.baseline / elapsed_seconds if elapsed_seconds > 0 else 0.0,
        spent_cpu_seconds=cpu.spent,
        baseline_cpu_seconds=cpu.baseline,
        saved_cpu_seconds=SavedSeconds(
            subsampling=cpu.subsampling, pruning=cpu.pruning, caching=cpu.caching, stopping=cpu.stopping
        ),
    )


@nothing_collected()
def build_report(
    state: StudyState,
    *,
    study: str,
    elapsed_seconds: float,
    fleet: FleetReport | None = None,
    coordinator_pss_bytes: int = 0,
) -> StudyReport:
    """The report of a study at its end, or of one that is only looked at.

    Args:
        state: the study.
        study: its name.
        elapsed_seconds: how long it ran, over all its sessions.
        fleet: what its fleet measured in this session; None: it is only looked at, and nothing was measured.
        coordinator_pss_bytes: proportional set size of the coordinator's own process.
    """
    best = state.best
    rung_evaluations = [0] * len(state.ladder.rungs)
    for trial in state.trials:
        for result in trial.results:
            rung_evaluations[result.rung] += 1
    test = state.test[1] if state.test is not None and best is not None and state.test[0] == best.trial else None
    return StudyReport(
        study=study,
        direction="maximize" if state.maximize else "minimize",
        ended=state.ended.value if state.ended else "open",
        ended_because=_because(state),
        best_trial=best.trial if best else None,
        best_params=state.trials[best.trial].params if best else None,
        best_value=best.value if best else None,
        best_is_complete=best.complete if best else False,
        test_value=test,
        complete=state.tally.decided[TrialState.COMPLETE],
        pruned=state.tally.decided[TrialState.PRUNED],
        failed=state.tally.decided[TrialState.FAIL],
        undecided=sum(not trial.decided for trial in state.trials),
        ladder=state.ladder,
        left_out=state.standings.choice.left_out,
        rung_evaluations=tuple(rung_evaluations),
        evaluations=state.tally.evaluations,
        cached=state.tally.cached,
        efficiency_metrics=efficiency_metrics(
            [TrialCosts(trial.results, failed=trial.phase is Phase.FAIL) for trial in state.trials],
            state.ladder,
            elapsed_seconds=elapsed_seconds,
            trials_started=len(state.trials),
            unstarted=_unstarted(state),
            firsts=state.standings.firsts,
            fleet=fleet,
            coordinator_pss_bytes=coordinator_pss_bytes,
        ),
        failures=tuple(state.tally.failures),
        trials=tuple(_summary(trial, state.ladder) for trial in state.trials),
    )


def _unstarted(state: StudyState) -> int:
    """Trials that the study might have started, had its patience lasted."""
    if state.ended is not Ended.PATIENCE or state.budget.trials is None:
        return 0
    return max(state.budget.trials - len(state.trials), 0)


def best_of(report: StudyReport) -> BestTrial:
    """The best trial of a report."""
    return BestTrial(
        study=report.study,
        trial=report.best_trial,
        params=report.best_params,
        value=report.best_value,
        complete=report.best_is_complete,
    )


def _summary(trial: Trial, ladder: Ladder) -> TrialSummary:
    executed = [result for result in trial.results if not result.cached]
    scored = [result for result in trial.results if result.fold != TEST_FOLD]
    highest = max((ladder.rungs[result.rung].fraction for result in scored), default=0.0)
    named: dict[str, list[float]] = {}
    for result in scored:
        if ladder.rungs[result.rung].fraction == highest:
            for name, value in result.metrics.items():
                named.setdefault(name, []).append(value)
    return TrialSummary(
        number=trial.number,
        state=trial.phase.value if trial.decided else TrialState.RUNNING.value,
        params=trial.params,
        value=trial.value,
        rung=trial.rung,
        reason=trial.reason,
        wall_seconds=sum(result.wall_seconds for result in executed),
        cpu_seconds=sum(result.cpu_seconds for result in executed),
        evaluations=len(trial.results),
        cached=len(trial.results) - len(executed),
        metrics={name: mean(values) for name, values in named.items()},
    )


def _all_decided(trials: int, budget: int | None) -> str:
    if budget is not None and trials > budget:  # an earlier session had a larger one
        return f"all its {trials} trials are decided, which are more than the budget of {budget}"
    return f"all {trials} trials of the budget are decided"


def _because(state: StudyState) -> str:
    """One sentence on why the study ended."""
    match state.ended:
        case Ended.TRIALS:
            return _all_decided(len(state.trials), state.budget.trials)
        case Ended.EXHAUSTED:
            return f"every point of the search space was tried, {len(state.trials)} in all"
        case Ended.PATIENCE:
            return _given_up(state)
        case Ended.CPU_SECONDS:
            return f"the budget of {state.budget.cpu_seconds:g} CPU seconds is used up"
        case Ended.SECONDS:
            return f"the budget of {state.budget.seconds:g} seconds is used up"
        case Ended.TARGET:
            return f"the target value {state.budget.target:g} is reached"
        case Ended.FAILED:
            return f"the first {state.first_failures} trials all failed; the last: {state.tally.failures[-1]}"
        case Ended.STOPPED:
            return "it was stopped; run it again to go on"
        case None:
            return _so_far(state)


def _so_far(state: StudyState) -> str:
    """What is recorded of a study that runs, or whose end the record does not tell."""
    undecided = sum(not trial.decided for trial in state.trials)
    rest = f"{undecided} of them undecided" if undecided else "all decided"
    trials = "1 trial" if len(state.trials) == 1 else f"{len(state.trials)} trials"
    return f"what is recorded of it so far: {trials}, {rest}"


def _given_up(state: StudyState) -> str:
    """Why a study started fewer trials than it might have."""
    most = f" of {state.budget.trials}" if state.budget.trials is not None else ""
    return (
        f"it stopped early, after {len(state.trials)}{most} trials: {state.budget.patience} in a row brought nothing better "
        "(study.patience = 0 starts all)"
    )
