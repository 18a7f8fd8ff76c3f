"""CPU seconds spent and saved while a study runs, as figures that never fall: `RunningSavings`.

The estimate is that of `report`, but that the test part's evaluation counts as spent, and that trials which patience left
out are not counted: `report` has them as saved by `stopping`. A trial is priced, once it is decided, at the ratio between
fractions, and what is usual at a fraction, as they are known by then. A trial that climbs to the top has cost more than the
baseline's, by what its lower rungs took: subsampling saved less than nothing. A counter can not take that back, so it is owed:
later savings by subsampling pay it off before they count. The baseline, which rises with every evaluation and every decided
trial, likewise stands still until it is right again. Where nothing is owed,

    spent + pruning + subsampling + caching = baseline
"""

from collections.abc import Iterable

from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.ports import TrialRecord
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import TEST_FOLD, EvaluationResult, Outcome


class RunningSavings:
    """Takes in results and decisions as they are recorded.

    Args:
        ladder: the study's ladder.
        trials: what earlier sessions recorded: it informs the estimates, and is not counted.
    """

    def __init__(self, ladder: Ladder, trials: Iterable[TrialRecord] = ()) -> None:
        #: CPU seconds of the evaluations that ran.
        self.spent = 0.0
        #: Estimated CPU seconds that were not spent.
        self.pruning = 0.0
        self.caching = 0.0
        self._baseline = _Rising()
        self._subsampling = _Rising()
        self._fractions = [rung.fraction for rung in ladder.rungs]
        self._folds = ladder.rungs[-1].folds
        self._undecided: dict[int, _Costs] = {}
        #: By fraction, CPU seconds of one fold on all rows and on the fraction, summed over trials that had both.
        self._pairs: dict[float, tuple[float, float]] = {}
        #: By fraction, CPU seconds of one fold summed over decided trials, and their number.
        self._usual: dict[float, tuple[float, int]] = {}
        #: Slots, given as (worker, slot), that have evaluated something.
        self._slots: set[tuple[str, int]] = set()
        for trial in trials:
            for result in trial.results:
                self._take(result)
            costs = self._undecided.pop(trial.number, None) if trial.state.decided else None
            if costs is not None:
                self._learn(costs.means())

    @property
    def baseline(self) -> float:
        """Estimated CPU seconds of the baseline."""
        return self._baseline.value

    @property
    def subsampling(self) -> float:
        """Estimated CPU seconds that were not spent, thanks to smaller fractions."""
        return self._subsampling.value

    def answered(self, result: EvaluationResult) -> None:
        """An evaluation was recorded."""
        if not result.cached:
            self.spent += result.cpu_seconds
            self._baseline.add(result.cpu_seconds)
        self._take(result)

    def decided(self, trial: int, state: TrialState) -> None:
        """A trial's decision was recorded."""
        costs = self._undecided.pop(trial, None)
        if costs is None:
            return
        means = costs.means() or self._usual_of(costs)
        if state is TrialState.FAIL or not means:
            # The baseline would have failed as well, at the same cost.
            self._save(0.0, 0.0, costs.cached)
            return
        self._learn(costs.means())
        highest = max(means)
        whole = means[highest] * self._ratio(highest)
        seen = len(costs.folds)
        self._save((self._folds - seen) * whole, seen * whole - costs.executed - costs.cached, costs.cached)

    def _take(self, result: EvaluationResult) -> None:
        if result.fold == TEST_FOLD:
            return
        costs = self._undecided.get(result.trial)
        if costs is None:
            costs = self._undecided[result.trial] = _Costs()
        seconds = result.cpu_seconds
        if result.cached:
            costs.cached += seconds
        else:
            costs.executed += seconds
        is_first = result.slot is not None and (result.worker, result.slot) not in self._slots
        if result.slot is not None:
            self._slots.add((result.worker, result.slot))
        if result.outcome is Outcome.OK:
            costs.folds.add(result.fold)
            fraction = self._fractions[result.rung]
            if is_first:
                costs.first[fraction] = seconds
                return
            total, count = costs.sums.get(fraction, (0.0, 0))
            costs.sums[fraction] = (total + seconds, count + 1)

    def _usual_of(self, costs: "_Costs") -> dict[float, float]:
        """What others cost, of a trial that has nothing but what a slot evaluated first."""
        usual = {}
        for fraction, own in costs.first.items():
            total, count = self._usual.get(fraction, (own, 1))
            usual[fraction] = total / count
        return usual

    def _learn(self, means: dict[float, float]) -> None:
        for fraction, mean in means.items():
            total, count = self._usual.get(fraction, (0.0, 0))
            self._usual[fraction] = (total + mean, count + 1)
        whole = means.get(1.0)
        if whole is None:
            return
        for fraction, mean in means.items():
            upper, lower = self._pairs.get(fraction, (0.0, 0.0))
            self._pairs[fraction] = (upper + whole, lower + mean)

    def _ratio(self, fraction: float) -> float:
        """Cost on all rows over cost on the fraction."""
        upper, lower = self._pairs.get(fraction, (0.0, 0.0))
        if lower > 0:
            return upper / lower
        return 1.0 / fraction

    def _save(self, pruning: float, subsampling: float, caching: float) -> None:
        self._baseline.add(pruning + subsampling + caching)
        self.pruning += pruning
        self._subsampling.add(subsampling)
        self.caching += caching


class _Costs:
    """What the evaluations of an undecided trial cost, in CPU seconds."""

    __slots__ = ("cached", "executed", "first", "folds", "sums")

    def __init__(self) -> None:
        self.executed = 0.0
        self.cached = 0.0
        #: Folds with a value.
        self.folds: set[int] = set()
        #: Seconds of what a slot evaluated first, by fraction.
        self.first: dict[float, float] = {}
        #: Seconds and number of the other successful evaluations at each fraction.
        self.sums: dict[float, tuple[float, int]] = {}

    def means(self) -> dict[float, float]:
        """Mean seconds of the successful evaluations at each fraction."""
        return {fraction: seconds / count for fraction, (seconds, count) in self.sums.items()}


class _Rising:
    """A sum that stands still where it would fall, until it is right again."""

    __slots__ = ("_owed", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._owed = 0.0

    def add(self, seconds: float) -> None:
        """Add seconds, which may be negative."""
        self._owed -= seconds
        if self._owed < 0:
            self.value -= self._owed
            self._owed = 0.0
