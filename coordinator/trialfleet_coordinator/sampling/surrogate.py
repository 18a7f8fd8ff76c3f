"""Which candidates are expected to be better than the best trial: a Gaussian process over the trials of a small study.

- Of each trial the value on its highest rung is in the model. Those of lower rungs are put in place by a line through the
  trials that finished both (Kennedy and O'Hagan 2000, "Predicting the output from a complex computer code when fast
  approximations are available"): a rung that says nothing of the next one makes no difference between its trials.
- What is modelled are the values' ranks, as quantiles of the normal distribution: how much worse a bad trial is does not
  matter, and what is the worst there is, as failed trials are, needs no number.
- Trials under way count as if they had come out as expected, so that others are drawn elsewhere.
- A parameter that a trial does not have stands in the middle of its range: the choice it depends on tells the trials apart.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import threadpoolctl

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.candidates import Layout
from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.gaussian_process import GaussianProcess, Posterior, log_expected_improvement
from trialfleet_coordinator.sampling.normal import Array, quantile
from trialfleet_coordinator.sampling.parzen import Axes, ChoiceAxes, Indices, Mask

#: The hyperparameters are fitted anew when there are so many times the results of the last time. With 1.35 the mean decimal
#: logarithm of the regret after 100 trials was higher by 0.03 (standard error 0.014; 24 seeds, one and eight in flight).
REFIT = 1.25
#: And where there are more results than a fit is by: it is by a part of them in any case.
LATE_REFIT = 1.5
#: By so many of them at most, as what a fit costs grows with the cube of their number: half are the best ones, the others are
#: evenly over the ranks. With as many that were evenly over all ranks the mean decimal logarithm of the regret after 300 trials
#: was higher by 0.11 (one in flight; standard error 0.05; eight functions of `benchmarks/sampler_quality.py`, six seeds).
MOST_FITTED = 96
#: The prior of the slope from rung to rung, which is 1, counts as so many trials that finished both.
SLOPE_PAIRS = 3.0
#: The variance of the normal distribution, by the median of its squared deviations.
_VARIANCE_PER_MEDIAN = 2.198
_ONE_AT_A_TIME = threading.Lock()


class Surrogate:
    """What is known of the trials of a space whose parameters are known.

    Args:
        layout: the parameters.
        maximize: whether higher values are better.
    """

    def __init__(self, layout: Layout, *, maximize: bool) -> None:
        self._layout = layout
        self._sign = 1.0 if maximize else -1.0
        #: By trial, its score on each rung that it finished; empty when it failed.
        self._scores: dict[int, dict[int, float]] = {}
        self._failed: set[int] = set()
        self._process = GaussianProcess(
            [_width(axes, column) for axes, _ in layout.kinds for column in range(len(axes))]
        )
        self._fitted = 0
        self._threads = threadpoolctl.ThreadpoolController()

    def __len__(self) -> int:
        """Trials that were observed."""
        return len(self._scores)

    @property
    def scored(self) -> int:
        """Trials that have a value and did not fail."""
        return len(self._scores) - len(self._failed)

    def observe(self, observations: Iterable[Observation]) -> None:
        """Trials finished a rung, or failed."""
        for observation in observations:
            trial, value = observation.trial, observation.value
            if value is None or math.isnan(value):
                self._scores[trial] = {}
                self._failed.add(trial)
            elif trial not in self._failed:
                self._scores.setdefault(trial, {})[observation.rung] = self._sign * value

    def choose(
        self,
        candidates: Sequence[tuple[Array, Mask]],
        pick: Callable[[int, Array], int | None],
        *,
        picks: int,
        columns: Columns,
        rows: Mapping[int, int],
        pending: Indices,
    ) -> None:
        """Have candidates picked one after another; those that are picked count as pending for the picks after theirs.

        Args:
            candidates: among which to pick: of each kind of parameters their coordinates, and which of them are active.
            pick: given which pick it is and how good the candidates are, says which was picked; None: none of them.
            picks: how many.
            columns: the values of all trials.
            rows: of each trial, its row of the columns.
            pending: rows of the trials under way.
        """
        # Matrices so small are no faster on more threads, and the other cores evaluate. The limit is the process's: who lifts
        # it must not do so under another study.
        with _ONE_AT_A_TIME, self._threads.limit(limits=1):
            values = _ranked(_on_one_rung(list(self._scores.values())))
            points = self._points(columns, np.array([rows[trial] for trial in self._scores], dtype=np.intp))
            if len(points) >= self._fitted * (REFIT if len(points) <= MOST_FITTED else LATE_REFIT):
                some = _telling(values, MOST_FITTED)
                self._process.fit(points[some], values[some])
                self._fitted = len(points)
            at = self._coordinates(candidates)
            waiting = self._points(columns, pending)
            posterior = Posterior(self._process, points, values, waiting, at, expectations=picks)
            best = float(posterior.at_points.max())
            for turn in range(picks):
                place = pick(turn, log_expected_improvement(posterior.mean, posterior.variance, best))
                if place is not None:
                    posterior.expect(place)

    def _points(self, columns: Columns, rows: Indices) -> Array:
        observed = [axes.observed(columns.gather(parameters, rows)) for axes, parameters in self._layout.kinds]
        return self._coordinates([(points, ~np.isnan(points)) for points in observed])

    def _coordinates(self, kinds: Sequence[tuple[Array, Mask]]) -> Array:
        """Points of the unit cube, one row each, from each kind's points and which of their parameters are active."""
        parts = []
        for (axes, _), (points, active) in zip(self._layout.kinds, kinds, strict=True):
            if isinstance(axes, ChoiceAxes):
                chosen = np.where(active, points, -1.0)
                # A column for each choice, so that any two of them are one apart.
                parts += [
                    (chosen[:, column, None] == np.arange(size)) * np.sqrt(0.5)
                    for column, size in enumerate(axes.sizes)
                ]
            else:
                parts.append(np.where(active, points, 0.5))
        return np.concatenate(parts, axis=1)


def _width(axes: Axes, column: int) -> int:
    """Columns that one parameter has."""
    return int(axes.sizes[column]) if isinstance(axes, ChoiceAxes) else 1


def _telling(values: Array, most: int) -> Indices:
    """Places of at most so many values, best first: the best half of these, and evenly of the others."""
    order = np.argsort(-values, kind="stable")
    rest = max(len(order) - most // 2, 0)
    kept = min(rest, most - most // 2)
    return np.concatenate((order[: most // 2], order[most // 2 :][np.arange(kept) * rest // max(kept, 1)]))


def _on_one_rung(trials: Sequence[Mapping[int, float]]) -> Array:
    """Each trial's score on the highest rung that it finished, as it may have been on the highest of all; failed: -inf."""
    rungs = sorted({rung for scores in trials for rung in scores})
    expected = np.array([scores.get(rungs[0], np.nan) if rungs else np.nan for scores in trials])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # objectives return the largest number there is
        for rung in rungs[1:]:
            higher = np.array([scores.get(rung, np.nan) for scores in trials])
            expected = np.where(np.isnan(higher), _expected(expected, higher), higher)
    return np.where(np.isnan(expected), -np.inf, expected)


def _expected(lower: Array, higher: Array) -> Array:
    """The scores to be expected on the higher rung, by those on the lower one; NaN where there are none.

    A line through the trials that finished both, of slope 1 as far as these are too few to tell.
    """
    both = np.isfinite(lower) & np.isfinite(higher)
    if not both.any():
        return lower
    away, reached = lower[both] - np.median(lower[both]), higher[both] - np.median(higher[both])
    scored = lower[np.isfinite(lower)]
    # The variance, by the median: what diverged on the lower rung says nothing of how the others differ there.
    prior = SLOPE_PAIRS * _VARIANCE_PER_MEDIAN * float(np.median((scored - np.median(scored)) ** 2))
    slope = float((prior + away @ reached) / (prior + away @ away))
    if not math.isfinite(slope):
        slope = 1.0
    expected: Array = np.where(np.isfinite(lower), slope * lower + np.median(higher[both] - slope * lower[both]), lower)
    return expected


def _ranked(scores: Array) -> Array:
    """The normal distribution's quantiles of their ranks; those of equal scores are equal."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - 0.5 * counts
    return quantile(middle[places] / len(scores))
