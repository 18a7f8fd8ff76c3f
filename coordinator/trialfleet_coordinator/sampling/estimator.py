"""What is known of a study's trials, split into good and bad ones for the tree-structured Parzen estimator.

- The good set is the best `GOOD_SHARE`, less where many are in flight, and at most 25 as in Optuna. The bad set is bounded
  too: it is thinned evenly over the ranks. What is gathered per model is a few hundred rows of columns that grow in place,
  however long the study is.
- Pending trials are in the bad set ("constant liar"), so that trials drawn at the same time differ.
- Trials of an earlier study enter by their rank among themselves, because the two studies' values need not compare.
  They give way as the study's own results come in.
- Fidelity: see `ranking.py`.
"""

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.candidates import Candidates, Split
from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.parzen import Indices, Mask
from trialfleet_coordinator.sampling.ranking import Ranking
from trialfleet_shared.space import Distribution, Params

#: Good trials are this share of all. Beside 0.1, which is Optuna's, and 0.2, the mean decimal logarithm of the regret
#: (`benchmarks/sampler_quality.py`) was -1.51 (-1.44, -1.57) with 1 trial in flight, -1.34 (-1.31, -1.30) with 8, and,
#: once branches were drawn, -1.06 (-1.08, -1.00) with 32 and -1.29 (-1.34, -1.22) with 128.
GOOD_SHARE = 0.15
#: Trials in flight beyond which the share is less, in proportion to the square root of their number: so many are drawn from
#: each model then that a better start is worth more than a wider one. With 128 in flight the logarithm was -1.38 so and
#: -1.32 without, on seeds that are not the benchmark's; in proportion to the number itself -1.33, beyond 16 -1.34.
MANY_IN_FLIGHT = 32
#: Pending trials, counted from the newest, that are looked at to tell how many are in flight.
MOST_IN_FLIGHT = 1024
#: A pending trial that has this many more results after it than twice the pending trials after it is taken for lost.
OVERTAKEN = 8
#: Good trials at most, as in Optuna.
MAX_GOOD = 25
#: Bad trials in the model.
MAX_BAD = 200
#: Pending trials in the model, the latest.
MAX_PENDING = 100
#: Trials of an earlier study in the model while the study has no results of its own.
MAX_EARLIER = 100
#: Results of its own after which a study no longer needs the earlier one.
OWN_RESULTS = 50


class Estimator:
    """The trials of a study, and the models made of them.

    Args:
        maximize: whether higher values are better.
    """

    def __init__(self, *, maximize: bool) -> None:
        self._ranking = Ranking(maximize=maximize)
        #: Values of all trials, those of an earlier study among them.
        self.columns = Columns()
        #: Each trial's row there.
        self.rows: dict[int, int] = {}
        self._pending: dict[int, None] = {}
        #: Every parameter that a trial had, as the last one had it.
        self.parameters: dict[str, Distribution] = {}
        #: Rows of an earlier study's trials, best first.
        self._earlier: list[int] = []

    @property
    def results(self) -> int:
        """Trials with a value, those of an earlier study among them."""
        return self._ranking.scored + len(self._earlier)

    def __contains__(self, trial: int) -> bool:
        return trial in self.rows

    def add(self, number: int, params: Params, distributions: dict[str, Distribution]) -> None:
        """A trial was drawn; until it is observed it is pending. Adding it again replaces its params."""
        self.rows[number] = self.columns.append(params, distributions)
        self.parameters.update(distributions)
        if number not in self._ranking:
            self._pending[number] = None

    def observe(self, observations: Sequence[Observation]) -> None:
        """Trials finished a rung, or failed."""
        for observation in observations:
            if observation.trial not in self.rows:
                self.add(observation.trial, observation.params, observation.distributions)
            self._pending.pop(observation.trial, None)
        self._ranking.observe(observations)

    def add_earlier(self, ranked: Sequence[tuple[Params, dict[str, Distribution]]]) -> None:
        """Trials of an earlier study, best first."""
        self._earlier = [self.columns.append(params, distributions) for params, distributions in ranked]

    def candidates(self, joint: Mask, generator: np.random.Generator) -> Candidates:
        """Candidates from a model of all that is known now; `joint` says which have their parameters drawn together."""
        return Candidates(self.columns, self._split(), joint=joint, generator=generator)

    def pending_rows(self) -> Indices:
        """Rows of the latest trials that are not observed yet."""
        return self._rows_of(list(self._pending)[-MAX_PENDING:], [])

    def _split(self) -> Split:
        share = good_share(self._in_flight())
        good = min(good_count(self._ranking.scored, share), self._ranking.most_good)
        rest = len(self._ranking) - good
        earlier_good, earlier_bad = self._split_earlier()
        return Split(
            self._rows_of(self._ranking.at(range(good)), earlier_good),
            self._rows_of(self._ranking.at(good + place for place in _thinned(rest, MAX_BAD)), earlier_bad),
            self.pending_rows(),
            share,
        )

    def _in_flight(self) -> int:
        """How many pending trials are likely to be evaluated now.

        What a killed process left behind is pending for ever: newer trials overtake it, and those that are older. Where 128
        are in flight and end in any order, the i-th newest has fewer than 2 i newer ones before it that have ended.
        """
        newest = np.array([self.rows[one] for one in islice(reversed(self._pending), MOST_IN_FLIGHT)], dtype=np.intp)
        places = np.arange(len(newest))
        ended = len(self.columns) - 1 - newest - places
        lost = ended > 2 * places + OVERTAKEN
        return int(lost.argmax()) if lost.any() else len(newest)

    def _rows_of(self, trials: list[int], earlier: list[int]) -> Indices:
        return np.array([self.rows[trial] for trial in trials] + earlier, dtype=np.intp)

    def _split_earlier(self) -> tuple[list[int], list[int]]:
        share = max(0.0, 1.0 - self._ranking.scored / OWN_RESULTS)
        count = min(len(self._earlier), MAX_EARLIER)
        good = good_count(len(self._earlier), GOOD_SHARE)
        rest = self._earlier[good:]
        bad = [rest[place] for place in _thinned(len(rest), math.ceil(share * max(count - good, 0)))]
        return self._earlier[: math.ceil(share * good)], bad


def good_share(in_flight: int) -> float:
    """The share of trials that is good while so many are in flight."""
    return GOOD_SHARE * math.sqrt(min(1.0, MANY_IN_FLIGHT / max(in_flight, 1)))


def good_count(results: int, share: float) -> int:
    """How many of so many trials are good."""
    return min(math.ceil(share * results), MAX_GOOD)


def _thinned(count: int, limit: int) -> list[int]:
    """At most `limit` positions, evenly over `count`."""
    kept = min(count, limit)
    return [place * count // kept for place in range(kept)]
