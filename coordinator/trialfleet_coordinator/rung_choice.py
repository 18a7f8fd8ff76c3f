"""Which rungs of the ladder are worth climbing, by what was measured on them.

A rung below all rows is there to save work: it costs c on every trial, so that only 1/eta of them need the next one,
which costs C. That pays while

    c + C / eta < C,   that is,   c / C < 1 - 1 / eta

and while its ranking of the trials has something to do with the ranking above. Both are measured, on the trials that
finished both rungs: c / C as the ratio of their summed costs, over all folds of each rung, or that of the median trial where it
is less, as few may bear what is done once, an import say; the agreement as Kendall's rank correlation tau. Who climbed was
chosen by the lower rung, which makes tau smaller than it is over all trials, so a rung is not left out for a small tau, but
for one that is below zero by more than `RANKS_ERRORS` times its standard error without any correlation,
sqrt(2 (2n + 5) / (9n (n - 1))) (Kendall 1938, "A New Measure of Rank Correlation"). So many, because it is looked at again with
every trial that climbs, and no trial comes back to a rung that was left out by chance.

A rung costs nothing where the next one that is climbed has the same fraction: its folds count there.
What a slot evaluates first is not counted: imports and compilations that are done once would make the lowest rung dear.

A rung is trusted until enough is known of it. A resumed study learns the choice anew from its record.

A rung that ranks the trials at random looks like one that ranks well: who was sent up by chance is found to differ by
chance. So every `FULL_START_EVERY`-th trial starts on all rows, whatever lower rungs would have said of it, much as some of
Hyperband's brackets do (Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization"). The
sampler learns from them where they are better, and where it draws what lower rungs misjudge, their ranks come to disagree.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from trialfleet_shared.ladder import Ladder

#: Seconds that an evaluation costs beside the objective's own time: to have it published, answered and recorded.
OVERHEAD_SECONDS = 0.001
#: Trials that must have finished two rungs before their costs are compared.
FEWEST_COSTS = 3
#: Trials that must have finished two rungs before their rankings are compared.
FEWEST_RANKS = 10
#: The latest trials whose rankings are compared, and whose median is taken.
RANKS_POOL = 100
#: Standard errors below zero at which two rankings contradict each other.
RANKS_ERRORS = 2.0
#: Once so many trials have climbed to all rows, every so many-th new one starts there. Not before: it would be the best for no
#: other reason than that nobody else has come so far. Where learning curves cross (`tests/unit/test_crossing_curves.py`, 12
#: seeds) the mean regret was 0.036 with 100 trials, 0.010 with 200 and 0.007 with 300, in place of 0.064, 0.063 and 0.052; with
#: the sampler's surrogate (16 seeds) 0.034 with 100 and 0.009 with 300, in place of 0.046 and 0.018.
FULL_START_AFTER, FULL_START_EVERY = 5, 10


class Finished(NamedTuple):
    """A trial's mark on a rung."""

    rung: int
    #: Mean seconds of its evaluations at the rung's fraction.
    seconds: float
    #: Higher is better.
    score: float
    #: Whether the seconds are what such evaluations take: none of them was the first of its slot.
    typical: bool = True


class _Pairs:
    """The trials that finished two rungs."""

    def __init__(self, lower_folds: int, upper_folds: int) -> None:
        self._lower_folds = lower_folds
        self._upper_folds = upper_folds
        #: Those whose costs are compared.
        self._costs = 0
        self._lower_seconds = 0.0
        self._upper_seconds = 0.0
        self._ratios: deque[float] = deque(maxlen=RANKS_POOL)
        self._scores: deque[tuple[float, float]] = deque()
        #: Pairs of trials that both rungs rank alike, less those that they rank the other way round.
        self._agreement = 0

    def add(self, lower: Finished, upper: Finished) -> None:
        if lower.typical and upper.typical:
            self._costs += 1
            below = self._lower_folds * (lower.seconds + OVERHEAD_SECONDS)
            above = self._upper_folds * (upper.seconds + OVERHEAD_SECONDS)
            self._lower_seconds += below
            self._upper_seconds += above
            self._ratios.append(below / above)
        if len(self._scores) == RANKS_POOL:
            oldest = self._scores.popleft()
            self._agreement -= sum(_agreement(oldest, other) for other in self._scores)
        scores = lower.score, upper.score
        self._agreement += sum(_agreement(scores, other) for other in self._scores)
        self._scores.append(scores)

    @property
    def cost_ratio(self) -> float | None:
        """Cost on the lower rung over the cost on the upper one; None until enough is known."""
        if self._costs < FEWEST_COSTS:
            return None
        return min(self._lower_seconds / self._upper_seconds, statistics.median(self._ratios))

    @property
    def ranks_disagree(self) -> bool:
        """Whether tau is below zero by more than `RANKS_ERRORS` standard errors; not until enough is known."""
        count = len(self._scores)
        if count < FEWEST_RANKS:
            return False
        tau = self._agreement / (count * (count - 1) / 2)
        return tau < -RANKS_ERRORS * math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))


def _agreement(one: tuple[float, float], other: tuple[float, float]) -> int:
    """1 if both rungs rank the two trials alike, -1 if not, 0 where one of them is undecided."""
    lower, upper = one[0] - other[0], one[1] - other[1]
    return (lower * upper > 0) - (lower * upper < 0)


class RungChoice:
    """The rungs that trials climb, learned as the study runs.

    Args:
        ladder: all rungs; those with the last one's fraction always pay, as their folds count on it.
        reduction_factor: eta.
    """

    def __init__(self, ladder: Ladder, reduction_factor: float) -> None:
        self._ladder = ladder
        self._eta = reduction_factor
        full = ladder.rungs[-1].fraction
        #: The lowest rung that has all rows.
        self._lowest_full = next(rung for rung, entry in enumerate(ladder.rungs) if entry.fraction == full)
        self._pairs = {
            (lower, upper): _Pairs(ladder.rungs[lower].folds, ladder.rungs[upper].folds)
            for upper in range(self._lowest_full + 1)
            for lower in range(upper)
        }
        self._climbed = tuple(range(len(ladder.rungs)))
        #: Trials that have climbed to all rows.
        self._arrived = 0

    @property
    def climbed(self) -> tuple[int, ...]:
        """The rungs that trials climb, in order; the last one is always among them."""
        return self._climbed

    @property
    def left_out(self) -> tuple[int, ...]:
        """The rungs that do not pay."""
        return tuple(rung for rung in range(len(self._ladder.rungs)) if rung not in self._climbed)

    @property
    def first(self) -> int:
        """Where most new trials start."""
        return self._climbed[0]

    def start(self, trial: int) -> int:
        """Where the trial of this number starts."""
        on_all_rows = self._arrived >= FULL_START_AFTER and trial % FULL_START_EVERY == 0
        return self._lowest_full if on_all_rows else self.first

    def above(self, rung: int) -> int:
        """The rung to which a trial is promoted from `rung`, which may be left out itself."""
        return next(upper for upper in self._climbed if upper > rung)

    def observe(self, earlier: Sequence[Finished], latest: Finished) -> None:
        """A trial finished a rung, and had finished `earlier` ones before."""
        self._arrived += latest.rung == self._lowest_full and bool(earlier)
        pairs = [(self._pairs[lower.rung, latest.rung], lower) for lower in earlier if latest.rung <= self._lowest_full]
        for pair, lower in pairs:
            pair.add(lower, latest)
        if pairs:
            self._choose()

    def _choose(self) -> None:
        chosen = list(range(self._lowest_full, len(self._ladder.rungs)))
        for rung in reversed(range(self._lowest_full)):
            if self._pays(rung, chosen[0]):
                chosen.insert(0, rung)
        self._climbed = tuple(chosen)

    def _pays(self, rung: int, upper: int) -> bool:
        """Whether `rung` is worth climbing on the way to `upper`."""
        if self._ladder.rungs[rung].fraction == self._ladder.rungs[upper].fraction:
            return True
        ratio = self._cost_ratio(rung, upper)
        saves = ratio is None or ratio <= 1 - 1 / self._eta
        return saves and not self._pairs[rung, upper].ranks_disagree

    def _cost_ratio(self, lower: int, upper: int) -> float | None:
        """Of the trials that finished both rungs; where they are few, by way of the rungs between."""
        direct = self._pairs[lower, upper].cost_ratio
        if direct is not None:
            return direct
        for between in range(lower + 1, upper):
            left, right = self._cost_ratio(lower, between), self._cost_ratio(between, upper)
            if left is not None and right is not None:
                return left * right
        return None
