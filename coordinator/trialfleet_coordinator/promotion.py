"""Which trials earn more data and which stop: successive halving by promotion, the threshold rule, fold racing.

All three compare *scores*: the value itself when maximizing, its negative when minimizing, so that higher is better.

Halving is the promotion type of asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2): a trial that finished a rung waits there, and climbs once it is among the best
1/eta of all that finished the rung. Nobody waits for a rung to fill. Three things differ:

- No more than 1/eta of a rung climb in all. Under the original rule every trial that is better than those before it climbs at
  once, and as a sampler that learns produces just such a sequence, most trials would.
- Nobody climbs from a rung on which more trials are under way than have finished it: who finishes first is quick, not good,
  and on many slots the best of the first few would climb from rung to rung before the rest of them are heard.
- In a study that ends with its time, a trial that took far longer than others keeps its place, but does not climb before the
  study has spent so much that its next rung, which takes longer still, is no large part of it.

Where no new trials come, the last two do not hold.

The threshold rule compares values, because a factor of the best has a meaning only there: see `beyond_threshold`.

Racing compares a trial with the incumbent on the folds that both have seen. The difference of their scores varies
between folds with a standard deviation s, pooled over the complete trials. After j of k folds with mean difference d,
the mean over all k has expectation d. The other k - j folds' mean varies around the true difference, itself known to
s / sqrt(j) only, so its standard deviation is (1 - j/k) s sqrt(1/j + 1/(k - j)). The trial stops when even the upper
`RACING_CONFIDENCE` quantile of that stays below zero.
"""

import bisect
import math
import operator
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sortedcontainers import SortedList

from trialfleet_coordinator.rung_choice import Finished

#: Trials that are checked on all rows and folds at the end of a study, however few finished the rung below.
FINALISTS = 3
#: The best of a rung, whatever became of them, among whom finalists are: where all fail on all rows, not all shall be tried.
MOST_FINALISTS = 10
#: A trial is dear whose evaluation on a rung took so many times the median there, to which `SLIGHT_SECONDS` are added: less
#: is a matter of imports, caches and what else the machine does.
DEAR = 3.0
SLIGHT_SECONDS = 0.1
#: Share of the seconds spent so far that a dear trial's evaluation may have taken for it to climb; the next one takes about
#: eta times as long. In a simulated study of one slot (`tests/unit/test_dear_trials.py`, 8 seeds) the mean regret was 0.0074
#: without the rule, 0.0017 with 0.1 and 0.0004 with 0.02 where what a trial costs has nothing to do with its worth, but
#: 0.035, 0.038 and 0.046 where dear trials are the better ones.
DEAR_SHARE = 0.1
#: One-sided confidence that a raced-out trial would not have beaten the incumbent.
#: With 0.8 instead of 0.95 a fifth of the work is saved on tables of real fits, and the answer stays the same but for
#: 0.4% of the distance between the best and the median one; with 0.5, which compares means alone, it is 4%.
RACING_CONFIDENCE = 0.8
#: Complete trials whose differences to the incumbent are pooled: the latest by number, which a resumed study finds too.
RACING_POOL = 50

#: Above the number of folds that a study may have.
_SHRINK = 2.0**10
_RACING_QUANTILE = statistics.NormalDist().inv_cdf(RACING_CONFIDENCE)


def mean(values: Sequence[float]) -> float:
    """Their mean, however large they are: objectives return the largest number there is to say "never again"."""
    if len(values) == 1:
        return values[0] + 0.0  # 0.0 of -0.0, as of several
    try:
        return statistics.fmean(values)
    except OverflowError:
        # A power of two, by which numbers so large are divided and multiplied without being rounded.
        return statistics.fmean([value / _SHRINK for value in values]) * _SHRINK


class Promotion(NamedTuple):
    """`trial`, which finished `rung`, climbs to the next one."""

    trial: int
    rung: int


class Halving:
    """The scores of every rung, and who waits on it for a promotion.

    Args:
        rungs: number of rungs of the ladder; nobody is promoted from the last one.
        reduction_factor: eta; of each rung, the best 1/eta climb.
        defer_dear: whether trials that took far longer than others wait, see the module's docstring.
    """

    def __init__(self, rungs: int, reduction_factor: float, *, defer_dear: bool) -> None:
        self._eta = reduction_factor
        self._defer_dear = defer_dear
        #: Per rung, (-score, trial) of all that finished it, best first; equal scores rank by trial number.
        self._finished: list[SortedList[tuple[float, int]]] = [SortedList() for _ in range(rungs)]
        #: Per rung, those of them that wait there.
        self._waiting: list[SortedList[tuple[float, int]]] = [SortedList() for _ in range(rungs)]
        #: Those that came to nothing on a later rung: they lead none, and are no finalists.
        self._failed: set[int] = set()
        #: Per rung, how many have climbed from it.
        self._climbed = [0] * rungs
        #: Per rung, the seconds of all that finished it: by trial, and in order; where dear trials wait.
        self._seconds: list[dict[int, float]] = [{} for _ in range(rungs)]
        self._seconds_in_order: list[SortedList[float]] = [SortedList() for _ in range(rungs)]
        #: Their sum over all rungs.
        self._spent = 0.0

    def finish(self, rung: int, trial: int, score: float, seconds: float) -> None:
        """`trial` has its score on `rung`, where an evaluation took it so many seconds."""
        self._finished[rung].add((-score, trial))
        self._took(rung, trial, seconds)

    def restore(self, finished: Iterable[tuple[int, Finished]]) -> None:
        """As `finish` for each (trial, mark); sorted once, as a study may have a hundred thousand."""
        scores: list[list[tuple[float, int]]] = [[] for _ in self._finished]
        for trial, mark in finished:
            scores[mark.rung].append((-mark.score, trial))
            self._took(mark.rung, trial, mark.seconds)
        for known, new in zip(self._finished, scores, strict=True):
            known.update(new)

    def wait(self, rung: int, trial: int, score: float) -> None:
        """`trial`, which finished `rung`, may be promoted from there."""
        self._waiting[rung].add((-score, trial))

    def leave(self, rung: int, trial: int, score: float) -> None:
        """`trial` does not wait on `rung` any more: it is decided."""
        self._waiting[rung].remove((-score, trial))

    def climb(self, rung: int) -> None:
        """A trial that does not wait on `rung` any more has climbed from it."""
        self._climbed[rung] += 1

    def rule_out(self, trial: int) -> None:
        """`trial` failed; what it scored before counts among the scores of those rungs all the same."""
        self._failed.add(trial)

    def fall(self, rung: int) -> None:
        """A trial that climbed from `rung` came to nothing: another one may climb in its place."""
        self._climbed[rung] -= 1

    def candidate(self, under_way: Callable[[int], int], *, closing: bool) -> Promotion | None:
        """Who is to climb next, highest rung first; None when nobody is among the best 1/eta, or all of those are too dear.

        Args:
            under_way: how many trials are evaluated on a rung.
            closing: no new trial will come, so each rung sends up its best `FINALISTS` even where 1/eta is fewer, and
                however many are under way.
        """
        for rung in range(len(self._finished) - 2, -1, -1):
            if not closing and len(self._finished[rung]) < under_way(rung):
                continue
            waiting = self._waiting[rung]
            left = math.floor(len(self._finished[rung]) / self._eta) - self._climbed[rung]
            for place in range(min(left, len(waiting))):
                trial = waiting[place][1]
                if closing or not self._is_too_dear(rung, trial):
                    return Promotion(trial, rung)
            if closing and waiting and self._is_finalist(rung, waiting[0]):
                return Promotion(waiting[0][1], rung)
        return None

    def hopeless(self, trials_budget: int) -> list[int]:
        """Trials that can not climb from rung 0 any more, even if every trial still to come scores worse.

        Args:
            trials_budget: number of trials that will ever be started.
        """
        # The waiting climb best first, so all beyond the places left are hopeless, the finalists apart.
        waiting = self._waiting[0]
        tail = max(math.floor(trials_budget / self._eta) - self._climbed[0], 0)
        while tail < len(waiting) and self._is_finalist(0, waiting[tail]):
            tail += 1
        return [trial for _, trial in waiting[tail:]]

    def best(self, rung: int) -> float | None:
        """The best score on `rung`."""
        return -self._finished[rung][0][0] if self._finished[rung] else None

    def finished(self, rung: int) -> int:
        """How many trials have a score on `rung`."""
        return len(self._finished[rung])

    def leader(self) -> tuple[int, float] | None:
        """Trial and score of the best on the highest rung that anyone finished who did not fail later."""
        for entries in reversed(self._finished):
            for score, trial in entries:
                if trial not in self._failed:
                    return trial, -score
        return None

    def waiting_on(self, rung: int) -> int:
        """How many wait on `rung`."""
        return len(self._waiting[rung])

    def waiting(self) -> list[tuple[int, int]]:
        """(trial, rung) of all that wait, in order of trial number."""
        return sorted((trial, rung) for rung, entries in enumerate(self._waiting) for _, trial in entries)

    def _took(self, rung: int, trial: int, seconds: float) -> None:
        if self._defer_dear:
            self._seconds[rung][trial] = seconds
            self._seconds_in_order[rung].add(seconds)
            self._spent += seconds

    def _is_too_dear(self, rung: int, trial: int) -> bool:
        """Whether the trial is dear, and its next evaluation would be much of what the study has spent by then."""
        if not self._defer_dear:
            return False
        seconds, others = self._seconds[rung][trial], self._seconds_in_order[rung]
        return seconds > max(DEAR * (others[len(others) // 2] + SLIGHT_SECONDS), DEAR_SHARE * self._spent)

    def _is_finalist(self, rung: int, entry: tuple[float, int]) -> bool:
        """Whether fewer than `FINALISTS` that did not fail are better on the rung, and fewer than `MOST_FINALISTS` in all."""
        rank = self._finished[rung].bisect_left(entry)
        if rank >= MOST_FINALISTS:
            return False
        return sum(trial not in self._failed for _, trial in self._finished[rung][:rank]) < FINALISTS


def beyond_threshold(value: float, best: float, *, threshold: float, maximize: bool) -> bool:
    """Whether `value` is worse than `best` by more than the factor 1 / threshold.

    A factor has a meaning on one side of zero only, hence four cases; t is the threshold, 0 < t < 1:

        ==========  ==========================  ==========================
        direction   best > 0                    best < 0
        ==========  ==========================  ==========================
        maximize    pruned if value < t best    pruned if value < best / t
        minimize    pruned if value > best / t  pruned if value > t best
        ==========  ==========================  ==========================

    With best = 0 no value is a factor worse, and the rule says nothing.
    """
    if best == 0:
        return False
    if maximize:
        return value < (best * threshold if best > 0 else best / threshold)
    return value > (best / threshold if best > 0 else best * threshold)


class Verdict(NamedTuple):
    """What racing says of a trial."""

    goes_on: bool
    #: The score over all folds to be expected of it.
    expected: float


class Racing:
    """Races trials over the folds of the last rung against the incumbent, the best complete trial.

    Args:
        folds: number of folds of the last rung, at least 2.
    """

    def __init__(self, folds: int) -> None:
        self._folds = folds
        self._incumbent: tuple[float, ...] | None = None
        #: (trial, scores) of the complete trials that are pooled, in order.
        self._complete: list[tuple[int, tuple[float, ...]]] = []
        #: Pooled standard deviation between folds of the difference to the incumbent; None when not known yet.
        self._deviation: float | None = None

    @property
    def has_incumbent(self) -> bool:
        """Whether there is anyone to race against."""
        return self._incumbent is not None

    def complete(self, trial: int, scores: Sequence[float]) -> None:
        """`trial` has its scores on all folds."""
        entry = tuple(scores)
        # Of equal sums the larger on the first folds, whichever came first: a resumed study must find the same.
        if self._incumbent is None or (sum(entry), entry) > (sum(self._incumbent), self._incumbent):
            self._incumbent = entry
        bisect.insort(self._complete, (trial, entry))
        del self._complete[:-RACING_POOL]
        variances = [
            _variance(list(map(operator.sub, other, self._incumbent)))
            for _, other in self._complete
            if other != self._incumbent
        ]
        # Where numbers are too large for their squares, nothing is known.
        finite = [variance for variance in variances if math.isfinite(variance)]
        self._deviation = math.sqrt(mean(finite)) if finite else None

    def verdict(self, scores: Sequence[float]) -> Verdict:
        """Whether a trial with these scores on folds 0, 1, … may still beat the incumbent."""
        own = mean(scores) if scores else -math.inf
        if self._incumbent is None or self._deviation is None or not scores:
            return Verdict(goes_on=True, expected=own)
        seen, left = len(scores), self._folds - len(scores)
        difference = own - mean(self._incumbent[:seen])
        expected = mean(self._incumbent) + difference
        if left == 0:
            return Verdict(goes_on=False, expected=own)
        if not math.isfinite(expected):
            return Verdict(goes_on=True, expected=own)
        spread = (left / self._folds) * self._deviation * math.sqrt(1 / seen + 1 / left)
        return Verdict(goes_on=difference + _RACING_QUANTILE * spread >= 0, expected=expected)


def _variance(values: Sequence[float]) -> float:
    """Their sample variance; not finite where that is too large to be told."""
    center = mean(values)
    return sum((value - center) * (value - center) for value in values) / (len(values) - 1)
