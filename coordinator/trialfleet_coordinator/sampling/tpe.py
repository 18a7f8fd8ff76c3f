"""The tree-structured Parzen estimator, at a cost per trial that does not grow with the study, and help while that is small.

Bergstra et al. 2011 ("Algorithms for Hyper-Parameter Optimization"): split the trials into good and bad ones, estimate
the density of each set, draw candidates from the good density and take the one with the highest ratio of good to bad.

- Trials take each parameter from a good trial of its own, every sixth of those that are drawn singly all of them from the same.
  One by one is better where several trials are drawn at a time, together where parameters interact and results come singly: on
  eighteen functions (`benchmarks/sampler_quality.py`, 20 seeds) the mean decimal logarithm of the regret was -1.50 with 1 trial
  in flight, -1.57 with 2, -1.45 with 8 and -1.09 with 32 without any together; with every sixth of all trials -1.55, -1.52,
  -1.44 and -1.08; with every third -1.57, -1.51, -1.39 and -1.06.
- In a conditional space a trial has the branch of its first candidate, which is drawn and not chosen; the ratio chooses
  among the candidates of that branch only. The densities of parameters that only one of two branches has say nothing about
  which is better. Choosing among the candidates of all branches settled early in one: on the function `models` -1.26
  instead of -2.50, with 8 in flight.
- While a study is small, half of its trials are chosen by what a Gaussian process expects of them, not by the ratio: see
  `surrogate.py`. What it costs grows with the study, so a large one does without.
- A batch is drawn from one model, whose cost its trials share. `estimator.py` says which trials are in it, and why their
  number is bounded.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.candidates import Candidates, Layout
from trialfleet_coordinator.sampling.drawing import Drawing, Drawn
from trialfleet_coordinator.sampling.estimator import Estimator
from trialfleet_coordinator.sampling.normal import Array
from trialfleet_coordinator.sampling.points import draw_point
from trialfleet_coordinator.sampling.surrogate import Surrogate
from trialfleet_shared.space import SearchSpace, Space

#: Candidates per trial, as in Optuna.
CANDIDATES = 24
#: Trials drawn from one model. Those that the ratio chooses do not see each other as pending: their candidates are different
#: anyway.
MAX_BATCH = 512
#: Every so many-th trial has its parameters drawn together, if it is drawn singly.
JOINT_EVERY = 6
#: Of every four trials those that the surrogate chooses while it is in use: half of all, and half of those whose numbers
#: are divisible by ten, which may start on all rows (`rung_choice.py`).
SURROGATE_TURNS = (0, 3)
#: Candidates among which it chooses all trials of a batch, and how many more there are for each after the first one.
SURROGATE_CANDIDATES = 200
MORE_CANDIDATES = 10
#: Trials that it chooses of one batch, at most: what it costs grows with the square of their number.
SURROGATE_BATCH = 32
#: Points made of its candidates at first, and then as many as there are already: of a small space most were drawn before.
MADE_TOGETHER = 16
#: Observed trials, failed ones too, up to which it is in use.
MOST_MODELLED = 300
#: More than any two ratios differ.
_FAR = 1e6
#: Best trials of an earlier study that are tried first.
FIRST_TRIED = 5

#: Makes points of the candidates at these places.
_Make = Callable[[list[int]], list[Draw]]


class EarlierTrial(NamedTuple):
    """A trial of an earlier study, in the space of this one."""

    #: A point that has the trial's values, and any value of parameters that the trial did not have.
    point: Draw
    #: What the trial had of it.
    known: Draw


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
        #: None for a space function, which asks for what it likes.
        self._layout = Layout(space.parameters) if isinstance(space, SearchSpace) else None
        self._startup = max(startup, 1)
        self._estimator = Estimator(maximize=maximize)
        #: None once there are too many results for it.
        self._surrogate = None if self._layout is None else Surrogate(self._layout, maximize=maximize)
        #: Points to try first, the next one last.
        self._first: list[Draw] = []

    @property
    def space(self) -> Space:
        """Where it draws from."""
        return self._space

    def ask(self, numbers: range) -> list[Draw]:
        """One draw for each trial number; fewer when every point of the space was drawn already."""
        draws: list[Draw] = []
        while self._first and len(draws) < len(numbers):
            draw = self._first.pop()
            if self._drawing.add(draw.params):
                self._estimator.add(numbers[len(draws)], *draw)
                draws.append(draw)
        while len(draws) < len(numbers):
            chunk = numbers[len(draws) : len(draws) + MAX_BATCH]
            drawn = self._uniform(chunk) if self._estimator.results < self._startup else self._modelled(chunk)
            for number, draw in zip(chunk, drawn, strict=False):
                self._estimator.add(number, *draw)
            draws += drawn
            if len(drawn) < len(chunk):
                break
        return draws

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; a trial is observed once per rung it finished."""
        for observation in observations:
            if observation.trial not in self._estimator:
                self._drawing.add(observation.params)
        self._estimator.observe(observations)
        if self._surrogate is not None:
            self._surrogate.observe(observations)
            if len(self._surrogate) > MOST_MODELLED:
                self._surrogate = None

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        """Take up where an earlier session ended.

        Args:
            draws: its trials, by number.
            observations: what it was told.
        """
        self.add(draws)
        self.tell(observations)

    def add(self, draws: Sequence[Drawn]) -> None:
        """These trials were drawn elsewhere, and are pending."""
        for number, params, distributions in draws:
            self._drawing.add(params)
            self._estimator.add(number, params, distributions)

    def generator(self, number: int) -> np.random.Generator:
        """The random stream of trial `number`."""
        return self._drawing.generator(number)

    def learn_from(self, ranked: Sequence[EarlierTrial]) -> None:
        """Begin with an earlier study's trials, best first; see `warm_start.py`.

        The best few are tried first. All of them are in the model, until the study has enough results of its own; the
        uniform draws at the start are left out if they are enough for a model.
        """
        self._first = [trial.point for trial in reversed(ranked[:FIRST_TRIED])]
        self._estimator.add_earlier([trial.known for trial in ranked])

    def _uniform(self, numbers: range) -> list[Draw]:
        draws = []
        for number in numbers:
            draw = self._drawing.uniform(number)
            if draw is None:
                break
            draws.append(draw)
        return draws

    def _modelled(self, numbers: range) -> list[Draw]:
        by_surrogate: list[int] = []
        if self._surrogate is not None and self._surrogate.scored >= self._startup:
            by_surrogate = [number for number in numbers if number % 4 in SURROGATE_TURNS][:SURROGATE_BATCH]
        by_ratio = sorted(set(numbers).difference(by_surrogate))
        joint = [len(numbers) == 1 and number % JOINT_EVERY == 0 for number in by_ratio for _ in range(CANDIDATES)]
        first = len(joint)
        if by_surrogate:
            more = SURROGATE_CANDIDATES + MORE_CANDIDATES * (len(by_surrogate) - 1)
            joint += [place % 2 == 0 for place in range(more)]
        candidates = self._estimator.candidates(np.array(joint), self._drawing.generator(numbers[0]))
        make = self._drawer(candidates)
        draws = self._by_ratio(by_ratio, candidates, make)
        if by_surrogate:
            draws |= self._by_surrogate(by_surrogate, candidates, make, first)
        return [draws[number] for number in sorted(draws)]

    def _by_ratio(self, numbers: Sequence[int], candidates: Candidates, make: _Make) -> dict[int, Draw]:
        """Of the first candidates, `CANDIDATES` for each trial, those with the highest ratio of good to bad."""
        if not numbers:
            return {}
        firsts = np.arange(len(numbers)) * CANDIDATES
        # Others come after those with the parameters of the first one.
        scores = candidates.scores(len(numbers) * CANDIDATES).reshape(len(numbers), CANDIDATES)
        branches = candidates.branches()[: scores.size].reshape(scores.shape)
        scores = np.where(branches == branches[:, :1], scores, scores - _FAR)
        draws = {}
        for position, best in enumerate(make((firsts + scores.argmax(axis=1)).tolist())):
            draw = best if self._drawing.add(best.params) else None
            if draw is None:
                order = np.argsort(-scores[position], kind="stable") + firsts[position]
                draw = self._first_new(make(order.tolist())) or self._drawing.uniform(numbers[position])
            if draw is None:
                break
            draws[numbers[position]] = draw
        return draws

    def _by_surrogate(self, numbers: Sequence[int], candidates: Candidates, make: _Make, first: int) -> dict[int, Draw]:
        """Of the candidates from the `first` on, those that the surrogate expects most of."""
        assert self._surrogate is not None
        pool = _Pool(candidates.branches()[first:], lambda places: make([first + place for place in places]))
        draws: dict[int, Draw] = {}

        def pick(turn: int, scores: Array) -> int | None:
            for place, draw in pool.best_first(turn, scores):
                if self._drawing.add(draw.params):
                    draws[numbers[turn]] = draw
                    return place
            other = self._drawing.uniform(numbers[turn])
            if other is not None:
                draws[numbers[turn]] = other
            return None

        self._surrogate.choose(
            candidates.points(first),
            pick,
            picks=len(numbers),
            columns=self._estimator.columns,
            rows=self._estimator.rows,
            pending=self._estimator.pending_rows(),
        )
        return draws

    def _drawer(self, candidates: Candidates) -> _Make:
        """Draw the candidates; return what makes points of them."""
        if self._layout is not None:
            parameters = self._layout.parameters
            candidates.activate(self._layout)
            return lambda chosen: candidates.draws(chosen, parameters)
        # A space function says by itself which parameters a candidate has.
        candidates.draw(Layout(self._estimator.parameters))
        points = [
            draw_point(self._space, functools.partial(candidates.suggest, candidate))
            for candidate in range(len(candidates))
        ]
        return lambda chosen: [points[candidate] for candidate in chosen]

    def _first_new(self, draws: Iterable[Draw]) -> Draw | None:
        """The first point that was not drawn before."""
        return next((draw for draw in draws if self._drawing.add(draw.params)), None)


class _Pool:
    """Candidates of which the surrogate chooses; those that were offered once are not offered again.

    Args:
        branches: equal for candidates that have the same parameters.
        make: makes points of them.
    """

    def __init__(self, branches: npt.NDArray[np.void], make: _Make) -> None:
        self._branches = branches
        self._make = make
        self._left = np.ones(len(branches), dtype=np.bool_)
        self._made: dict[int, Draw] = {}

    def best_first(self, turn: int, scores: Array) -> Iterator[tuple[int, Draw]]:
        """Those that are left, with their places: first those that have the parameters of the turn's own candidate."""
        alike = self._branches == self._branches[turn]
        for among in (alike & self._left, ~alike & self._left):
            ranked = np.where(among, scores, -np.inf)
            for _ in range(np.count_nonzero(among)):
                place = int(ranked.argmax())
                if place not in self._made:
                    # With it those that may be next: to make them together costs hardly more.
                    best = np.argsort(-ranked, kind="stable")[: max(len(self._made), MADE_TOGETHER)].tolist()
                    self._made.update(zip(best, self._make(best), strict=True))
                ranked[place], self._left[place] = -np.inf, False
                yield place, self._made[place]
