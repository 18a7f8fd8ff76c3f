"""Candidates for new trials: drawn from the density of the good trials, ranked by its ratio to that of the bad ones.

A candidate's parameters are drawn either together, all from the kernels of one good trial, so that what belongs together
stays together; or each from a good trial of its own, which finds more new points where several are drawn at a time.
`tpe.py` says which is done when.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.normal import Array, Single
from trialfleet_coordinator.sampling.parzen import (
    Axes,
    ChoiceAxes,
    Indices,
    Kernels,
    Mask,
    NumberAxes,
    log_densities,
    log_mean_exp,
    log_ratio,
    make_kernels,
)
from trialfleet_shared.space import Categorical, Distribution, Scalar, same_scalar


class Split(NamedTuple):
    """Rows of the trials in a model."""

    good: Indices
    #: Best first.
    bad: Indices
    #: Not observed yet; they count as bad.
    pending: Indices
    #: The share of the observed trials that is good, of those too that have a certain parameter.
    share: float


class Layout:
    """Parameters by their kind.

    Args:
        parameters: of the space; parents before those whose conditions name them.
    """

    def __init__(self, parameters: Mapping[str, Distribution]) -> None:
        #: Never changed: draws that have all of them share it.
        self.parameters = dict(parameters)
        numbers = {name: one for name, one in parameters.items() if not isinstance(one, Categorical)}
        choices = {name: one for name, one in parameters.items() if isinstance(one, Categorical)}
        self.kinds: list[tuple[Axes, Mapping[str, Distribution]]] = []
        if numbers:
            self.kinds.append((NumberAxes(tuple(numbers.values())), numbers))
        if choices:
            self.kinds.append((ChoiceAxes(tuple(choices.values())), choices))


class Candidates:
    """Points of the space.

    Parameters are drawn for all candidates in one go: by `activate` where the space is known, by `draw` where a function
    is expected to ask for them. Others are drawn when it first does; where it asks with another range than before, that
    is a parameter of its own.

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
        #: Each joint candidate's kernel; `len(split.good)` is the prior.
        self._kernels = generator.integers(len(split.good) + 1, size=len(joint))
        self._blocks: list[_Block] = []
        self._places: dict[str, _Place] = {}
        self._others: dict[tuple[str, bytes], _Place] = {}
        #: Of the activated parameters, by which of them are active.
        self._distributions: dict[tuple[bool, ...], dict[str, Distribution]] = {}

    def __len__(self) -> int:
        return len(self._joint)

    def suggest(self, candidate: int, name: str, distribution: Distribution) -> Scalar:
        """The candidate's value of a parameter, which is thereby active for it."""
        place = self._place(name, distribution)
        place.block.active[candidate, place.column] = True
        return place.value(candidate)

    def draw(self, layout: "Layout") -> None:
        """Draw these parameters for all candidates; they become active where `suggest` asks for them."""
        rows = np.concatenate((self._split.good, self._split.bad, self._split.pending))
        for axes, parameters in layout.kinds:
            block = _Block(axes, self._joint)
            values = self._columns.gather(parameters, rows)
            block.draw(values, self._split, kernels=self._kernels, generator=self._generator)
            self._blocks.append(block)
            for column, (name, distribution) in enumerate(parameters.items()):
                self._places[name] = _Place(block, column, distribution)

    def activate(self, layout: "Layout") -> None:
        """Draw these parameters, each active for the candidates that fulfil its conditions; parents come first."""
        self.draw(layout)
        for name, distribution in layout.parameters.items():
            place = self._places[name]
            active = place.block.active[:, place.column]
            active[:] = True
            for parent, values in distribution.when.items():
                active &= self._places[parent].is_one_of(values)

    def draws(self, candidates: Iterable[int], parameters: dict[str, Distribution]) -> list[Draw]:
        """These candidates as points of the activated parameters."""
        chosen = np.fromiter(candidates, dtype=np.intp)
        values_of = {block: block.values(chosen) for block in self._blocks}
        places = [self._places[name] for name in parameters]
        rows = zip(*(values_of[place.block][place.column] for place in places), strict=True)
        if not any(one.when for one in parameters.values()):
            return [Draw(dict(zip(parameters, row, strict=True)), parameters) for row in rows]
        active = np.column_stack([place.block.active[chosen, place.column] for place in places]).tolist()
        draws = []
        for row, flags in zip(rows, active, strict=True):
            branch = tuple(flags)
            if branch not in self._distributions:
                self._distributions[branch] = {name: parameters[name] for name in itertools.compress(parameters, flags)}
            distributions = self._distributions[branch]
            draws.append(Draw(dict(zip(distributions, itertools.compress(row, flags), strict=True)), distributions))
        return draws

    def points(self, first: int) -> list[tuple[Array, Mask]]:
        """Of each kind of parameters the activated candidates' coordinates, from this one on, and which of them are active."""
        return [(block.points[first:], block.active[first:]) for block in self._blocks]

    def branches(self) -> npt.NDArray[np.void]:
        """Equal for candidates that have the same parameters."""
        active = np.packbits(np.concatenate([block.active for block in self._blocks], axis=1), axis=1)
        return active.view(np.dtype((np.void, active.shape[1])))[:, 0]

    def scores(self, count: int) -> Array:
        """Log ratio of the good density to the bad one at so many candidates, the first ones."""
        scores = np.zeros(count)
        alone, joint = np.flatnonzero(~self._joint[:count]), np.flatnonzero(self._joint[:count])
        if len(alone):
            scores[alone] = sum(block.ratios(alone) for block in self._blocks)
        if len(joint):
            good = np.zeros((len(joint), len(self._split.good) + 1), dtype=np.float32)
            bad = np.zeros((len(joint), len(self._split.bad) + len(self._split.pending) + 1), dtype=np.float32)
            for block in self._blocks:
                block.add_joint_densities(joint, good, bad)
            scores[joint] = log_mean_exp(good) - log_mean_exp(bad)
        return scores

    def _place(self, name: str, distribution: Distribution) -> "_Place":
        first = self._places.get(name)
        if first is not None and (first.distribution is distribution or first.distribution == distribution):
            return first
        if first is None:
            self.draw(Layout({name: distribution}))
            return self._places[name]
        key = name, msgspec.json.encode(distribution)
        if key not in self._others:
            del self._places[name]
            self.draw(Layout({name: distribution}))
            self._others[key], self._places[name] = self._places[name], first
        return self._others[key]


class _Place:
    """Where a parameter's points are."""

    def __init__(self, block: "_Block", column: int, distribution: Distribution) -> None:
        self.block = block
        self.column = column
        self.distribution = distribution

    def value(self, candidate: int) -> Scalar:
        return self.block.all_values[self.column][candidate]

    def is_one_of(self, values: list[Scalar]) -> Mask:
        """Of each candidate, whether the parameter is active and has one of these values."""
        active = self.block.active[:, self.column]
        if isinstance(self.distribution, Categorical):
            listed = [any(same_scalar(choice, value) for value in values) for choice in self.distribution.choices]
            allowed = np.array(listed)[self.block.points[:, self.column].astype(np.intp)]
        else:
            allowed = np.isin(np.array(self.block.all_values[self.column]), np.array(values, dtype=np.float64))
        return np.asarray(active & allowed)


class _Block:
    """Parameters of one kind, of all candidates.

    Args:
        axes: of the parameters.
        joint: of each candidate, whether its parameters are drawn together.
    """

    def __init__(self, axes: Axes, joint: Mask) -> None:
        self._axes = axes
        self._joint = joint
        #: Of each candidate and parameter, whether the candidate has it.
        self.active: Mask = np.zeros((len(joint), len(axes)), dtype=np.bool_)
        self.points: Array = np.empty((len(joint), len(axes)))

    def draw(self, values: Array, split: Split, *, kernels: Indices, generator: np.random.Generator) -> None:
        """Draw all points; `values` has the parameters of the split's trials, by trial."""
        axes, alone, joint = self._axes, ~self._joint, self._joint
        observed = axes.observed(values)
        complete = not np.isnan(observed).any()
        self._sets = observed[: len(split.good)], observed[len(split.good) :]
        self._own_sets = self._sets if complete else _own(observed, split)
        choosing, placing = generator.random((2, *self.points.shape))
        together = np.broadcast_to(kernels[:, None], placing.shape)
        if complete:
            rows = np.where(joint[:, None], together, self._good.components.choose(choosing))
            self.points = self._good.sample(rows, placing)
            return
        if joint.any():
            self.points[joint] = self._good.sample(together[joint], placing[joint])
        self.points[alone] = self._own_good.sample(self._own_good.components.choose(choosing[alone]), placing[alone])

    # Kernels are made when they are first asked for: who ranks the candidates by something else needs no bad ones.

    @functools.cached_property
    def _good(self) -> Kernels:
        return make_kernels(self._axes, self._sets[0])

    @functools.cached_property
    def _bad(self) -> Kernels:
        return make_kernels(self._axes, self._sets[1])

    @functools.cached_property
    def _own_good(self) -> Kernels:
        """The parameters' own."""
        return self._good if self._own_sets is self._sets else make_kernels(self._axes, self._own_sets[0])

    @functools.cached_property
    def _own_bad(self) -> Kernels:
        """The parameters' own."""
        return self._bad if self._own_sets is self._sets else make_kernels(self._axes, self._own_sets[1])

    def values(self, candidates: Indices) -> list[list[Scalar]]:
        """These candidates' values, a list for each parameter."""
        return self._axes.values(self.points[candidates])

    @functools.cached_property
    def all_values(self) -> list[list[Scalar]]:
        """All candidates' values."""
        return self._axes.values(self.points)

    def ratios(self, alone: Indices) -> Array:
        """Log ratio of the parameters' own densities for candidates that are not drawn jointly."""
        ratios = log_ratio(self._own_good, self._own_bad, self.points[alone])
        total: Array = (ratios * self.active[alone]).sum(axis=1)
        return total

    def add_joint_densities(self, joint: Indices, good: Single, bad: Single) -> None:
        """Add each joint candidate's log density under each kernel."""
        features = self._good.features(self.points[joint], self.active[joint])
        good += log_densities(features, self._good.factors())
        bad += log_densities(features, self._bad.factors())


def _own(observed: Array, split: Split) -> tuple[Array, Array]:
    """Each parameter's own good and bad trials, NaN for all others.

    Of the trials that have the parameter the best share are good, whatever others reached. So a branch of a conditional
    space is modelled even while its trials are among the bad ones.
    """
    good = len(split.good)
    results = observed[: good + len(split.bad)]
    ranks = np.cumsum(~np.isnan(results), axis=0)
    goods = np.ceil(split.share * ranks[-1:])
    if good:
        goods = np.maximum(goods, ranks[good - 1 : good])
    bad = observed.copy()
    bad[: len(results)][ranks <= goods] = np.nan
    return np.where(ranks <= goods, results, np.nan), bad
