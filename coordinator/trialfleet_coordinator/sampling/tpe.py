"""The tree-structured Parzen estimator, at a cost per trial that does not grow with the study.

Bergstra et al. 2011 ("Algorithms for Hyper-Parameter Optimization"): split the trials into good and bad ones, estimate
the density of each set, draw candidates from the good density and take the one with the highest ratio of good to bad.

- The good set is the best tenth, at most 25, as in Optuna. The bad set is bounded too: it is thinned evenly over the
  ranks. What is gathered per batch is a few hundred rows of columns that grow in place, however long the study is.
- Densities are joint: a candidate takes all its parameters from one trial's kernels, so that what belongs together
  stays together. A parameter that a trial does not have is the prior there.
- Pending trials are in the bad set ("constant liar"), so that trials drawn at the same time differ.
- Fidelity: see `ranking.py`.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.candidates import Candidates
from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_coordinator.sampling.drawing import Drawing, Drawn, draw_point
from trialfleet_coordinator.sampling.parzen import Indices
from trialfleet_coordinator.sampling.ranking import Ranking
from trialfleet_shared.space import SearchSpace, Space

#: Candidates per trial, as in Optuna.
CANDIDATES = 24
#: Good trials are this share of all, and at most `MAX_GOOD`, as in Optuna.
GOOD_SHARE = 0.1
MAX_GOOD = 25
#: Bad trials in the model.
MAX_BAD = 200
#: Pending trials in the model, the latest.
MAX_PENDING = 100
#: Trials drawn from one fit.
MAX_BATCH = 32


class TpeSampler:
    """Learns where good trials are; draws no point twice.

    Args:
        space: where to draw from.
        maximize: whether higher values are better.
        startup: trials with a value before the model is used; until then draws are uniform.
        seed: of the random stream.
    """

    def __init__(self, space: Space, *, maximize: bool, startup: int, seed: int) -> None:
        self._drawing = Drawing(space, seed=seed)
        self._space = space
        self._startup = max(startup, 1)
        self._ranking = Ranking(maximize=maximize)
        self._columns = Columns()
        self._rows: dict[int, int] = {}
        self._pending: dict[int, None] = {}
        conditional = not isinstance(space, SearchSpace) or any(one.when for one in space.parameters.values())
        #: The parameters of a space whose parameters are always active; None for any other space.
        self._always = None if conditional else space.parameters  # type: ignore[attr-defined]  # a SearchSpace

    def ask(self, numbers: range) -> list[Draw]:
        """One draw for each trial number; fewer when every point of the space was drawn already."""
        draws: list[Draw] = []
        while len(draws) < len(numbers):
            chunk = numbers[len(draws) : len(draws) + MAX_BATCH]
            drawn = self._uniform(chunk) if self._ranking.scored < self._startup else self._modelled(chunk)
            for number, draw in zip(chunk, drawn, strict=False):
                self._note(number, draw)
            draws += drawn
            if len(drawn) < len(chunk):
                break
        return draws

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; a trial is observed once per rung it finished."""
        for observation in observations:
            trial = observation.trial
            if trial not in self._rows:
                self._drawing.add(observation.params)
                self._rows[trial] = self._columns.append(observation.params, observation.distributions)
            self._pending.pop(trial, None)
            self._ranking.observe(observation)

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        """Take up where an earlier session ended.

        Args:
            draws: its trials, by number.
            observations: what it was told.
        """
        for number, params, distributions in draws:
            self._drawing.add(params)
            self._note(number, Draw(params, distributions))
        self.tell(observations)

    def _note(self, number: int, draw: Draw) -> None:
        self._rows[number] = self._columns.append(draw.params, draw.distributions)
        self._pending[number] = None

    def _uniform(self, numbers: range) -> list[Draw]:
        draws = []
        for number in numbers:
            draw = self._drawing.uniform(number)
            if draw is None:
                break
            draws.append(draw)
        return draws

    def _modelled(self, numbers: range) -> list[Draw]:
        good, bad = self._split()
        candidates = Candidates(
            self._columns,
            good=good,
            bad=bad,
            count=len(numbers) * CANDIDATES,
            generator=self._drawing.generator(numbers.start),
        )
        if self._always is not None:
            candidates.activate(self._always)
        else:
            for candidate in range(len(numbers) * CANDIDATES):
                self._space.draw(functools.partial(candidates.suggest, candidate))
        scores = candidates.scores()
        draws = []
        for position, number in enumerate(numbers):
            first = position * CANDIDATES
            order = np.argsort(-scores[first : first + CANDIDATES], kind="stable") + first
            draw = self._first_new(candidates, order) or self._drawing.uniform(number)
            if draw is None:
                break
            draws.append(draw)
        return draws

    def _first_new(self, candidates: Candidates, order: Indices) -> Draw | None:
        """The best candidate that was not drawn before."""
        for candidate in order.tolist():
            draw = draw_point(self._space, functools.partial(candidates.suggest, candidate))
            if self._drawing.add(draw.params):
                return draw
        return None

    def _split(self) -> tuple[Indices, Indices]:
        """Rows of the good trials and of the bad ones."""
        scored = self._ranking.scored
        count = min(math.ceil(GOOD_SHARE * scored), MAX_GOOD)
        good = self._ranking.at(range(count))
        rest = len(self._ranking) - count
        bad = self._ranking.at(count + index * rest // min(rest, MAX_BAD) for index in range(min(rest, MAX_BAD)))
        pending = list(self._pending)[-MAX_PENDING:]
        return self._rows_of(good), self._rows_of(bad + pending)

    def _rows_of(self, trials: list[int]) -> Indices:
        return np.array([self._rows[trial] for trial in trials], dtype=np.intp)
