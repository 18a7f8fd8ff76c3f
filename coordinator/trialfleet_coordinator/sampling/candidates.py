"""Candidates for new trials: drawn from the density of the good trials, ranked by its ratio to that of the bad ones.

A candidate's parameters are drawn either together, all from the kernels of one good trial, so that what belongs together
stays together; or each from a good trial of its own, which finds more new points where several are drawn at a time.
`tpe.py` says which is done when.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.normal import Array
from trialfleet_coordinator.sampling.parzen import Axis, Indices, Kernels, log_mean_exp, make_axis, make_kernels
from trialfleet_shared.space import Distribution, Scalar

Mask = npt.NDArray[np.bool_]

#: Good trials are this share of all.
GOOD_SHARE = 0.1


class Split(NamedTuple):
    """Rows of the trials in a model."""

    good: Indices
    #: Best first.
    bad: Indices
    #: Not observed yet; they count as bad.
    pending: Indices


class Candidates:
    """Points of the space.

    A parameter is drawn when the space first asks for it, for all candidates at once; where a space function asks with
    another range than before, that is a dimension of its own.

    Args:
        columns: values of all trials.
        split: the trials in the model.
        joint: of each candidate, whether its parameters are drawn together.
        generator: source of randomness.
    """

    def __init__(self, columns: Columns, split: Split, *, joint: Mask, generator: np.random.Generator) -> None:
        self._columns = columns
        self._split = split
        self._joint = joint
        self._generator = generator
        self._components = generator.integers(len(split.good) + 1, size=len(joint))
        self._dimensions: dict[str, _Dimension] = {}
        self._others: dict[tuple[str, bytes], _Dimension] = {}

    def suggest(self, candidate: int, name: str, distribution: Distribution) -> Scalar:
        """The candidate's value of a parameter, which is thereby active for it."""
        dimension = self._dimension(name, distribution)
        dimension.active[candidate] = True
        return dimension.value(candidate)

    def activate(self, parameters: dict[str, Distribution]) -> None:
        """These parameters are active for every candidate."""
        for name, distribution in parameters.items():
            self._dimension(name, distribution).active[:] = True

    def _dimension(self, name: str, distribution: Distribution) -> "_Dimension":
        first = self._dimensions.get(name)
        if first is not None and (first.distribution is distribution or first.distribution == distribution):
            return first
        if first is None:
            self._dimensions[name] = self._draw(name, distribution)
            return self._dimensions[name]
        key = name, msgspec.json.encode(distribution)
        if key not in self._others:
            self._others[key] = self._draw(name, distribution)
        return self._others[key]

    def _draw(self, name: str, distribution: Distribution) -> "_Dimension":
        good, bad, pending = (self._columns.gather(name, distribution, rows) for rows in self._split)
        return _Dimension(
            distribution,
            good,
            bad,
            pending,
            joint=self._joint,
            components=self._components,
            generator=self._generator,
        )

    def scores(self) -> Array:
        """Log ratio of the good density to the bad one at every candidate."""
        dimensions = (*self._dimensions.values(), *self._others.values())
        scores = np.zeros(len(self._joint))
        for dimension in dimensions:
            dimension.add_ratios(scores)
        joint = np.flatnonzero(self._joint)
        if len(joint):
            good = np.zeros((len(joint), len(self._split.good) + 1))
            bad = np.zeros((len(joint), len(self._split.bad) + len(self._split.pending) + 1))
            for dimension in dimensions:
                dimension.add_joint_densities(joint, good, bad)
            scores[joint] = log_mean_exp(good) - log_mean_exp(bad)
        return scores


class _Dimension:
    """One parameter of all candidates.

    Args:
        distribution: of the parameter.
        good: its values in the good trials, NaN where a trial does not have it.
        bad: in the bad ones, best first.
        pending: in the pending ones.
        joint: of each candidate, whether it is drawn from its component.
        components: each candidate's component among the good trials and the prior.
        generator: source of randomness.
    """

    def __init__(
        self,
        distribution: Distribution,
        good: Array,
        bad: Array,
        pending: Array,
        *,
        joint: Mask,
        components: Indices,
        generator: np.random.Generator,
    ) -> None:
        self.distribution = distribution
        self._axis = make_axis(distribution)
        self._joint = joint
        #: Candidates that have the parameter.
        self.active: Mask = np.zeros(len(joint), dtype=np.bool_)
        self._points = np.empty(len(joint))
        shares = generator.random(len(joint))
        if joint.any():
            self._good = make_kernels(self._axis, good)
            self._bad = make_kernels(self._axis, np.concatenate([bad, pending]))
            self._points[joint] = self._good.sample(components[joint], shares[joint])
        if not joint.all():
            self._own_good, self._own_bad = _own_kernels(self._axis, good, bad, pending)
            alone = ~joint
            kernels = generator.integers(len(self._own_good), size=int(alone.sum()))
            self._points[alone] = self._own_good.sample(kernels, shares[alone])

    def value(self, candidate: int) -> Scalar:
        return self._axis.value(float(self._points[candidate]))

    def add_ratios(self, scores: Array) -> None:
        """Add the log ratio of this parameter's densities for each active candidate that is not drawn jointly."""
        alone = np.flatnonzero(self.active & ~self._joint)
        if len(alone):
            points = self._points[alone]
            scores[alone] += self._own_good.log_mean_density(points) - self._own_bad.log_mean_density(points)

    def add_joint_densities(self, joint: Indices, good: Array, bad: Array) -> None:
        """Add each active joint candidate's log density under each component."""
        active = self.active[joint]
        points = self._points[joint]
        if active.all():
            good += self._good.log_density(points)
            bad += self._bad.log_density(points)
        elif active.any():
            good[active] += self._good.log_density(points[active])
            bad[active] += self._bad.log_density(points[active])


def _own_kernels(axis: Axis, good: Array, bad: Array, pending: Array) -> tuple[Kernels, Kernels]:
    """Kernels of the trials that have the parameter; the best tenth of them are good, whatever others reached.

    So a branch of a conditional space is modelled even while its trials are among the bad ones.
    """
    good, bad, pending = (values[~np.isnan(values)] for values in (good, bad, pending))
    lacking = max(int(np.ceil(GOOD_SHARE * (len(good) + len(bad)))) - len(good), 0)
    return (
        make_kernels(axis, np.concatenate([good, bad[:lacking]])),
        make_kernels(axis, np.concatenate([bad[lacking:], pending])),
    )
