"""Optuna's samplers behind our port.

The sampler works on an Optuna study in memory, which sees each trial by one value: that of the model's rung, the highest
one with enough results. A trial that has not come so far counts as pruned with the values it has.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import Trial, TrialState, create_trial

from trialfleet_coordinator.adapters.optuna_distributions import equal_choices, to_optuna
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.drawing import Drawing, Drawn
from trialfleet_coordinator.sampling.points import as_drawn, draw_point
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params, Scalar, Space
from trialfleet_shared.tables import nearest

#: Results that a rung needs before the sampler learns from its values; Optuna's samplers begin to model at ten.
ENOUGH = 10
#: Draws of one trial that repeat earlier ones before a point is drawn uniformly among those left.
REDRAWS = 5


def optuna_sampler_names() -> list[str]:
    """The samplers that `OptunaSampler` takes by name: those that Optuna makes from a seed alone."""
    names = []
    for name in optuna.samplers.__all__:
        kind = getattr(optuna.samplers, name)
        if inspect.isclass(kind) and issubclass(kind, BaseSampler) and not inspect.isabstract(kind):
            parameters = inspect.signature(kind).parameters
            if all(one.default is not one.empty for one in parameters.values()):
                names.append(name)
    return names


class OptunaSampler:
    """Draws with one of Optuna's samplers; no point twice.

    Args:
        sampler: name of a class of `optuna.samplers`, "CmaEsSampler" say; or what makes a sampler from a seed.
        space: where to draw from.
        maximize: whether higher values are better.
        seed: of the random stream.

    Raises:
        ConfigurationError: there is no sampler of that name, what it needs is not installed, or it can not draw from
            the space.
    """

    def __init__(self, sampler: str | Callable[[int], BaseSampler], space: Space, *, maximize: bool, seed: int) -> None:
        self._name = sampler if isinstance(sampler, str) else getattr(sampler, "__name__", type(sampler).__name__)
        self._make = _named(sampler) if isinstance(sampler, str) else sampler
        self._seed = seed
        self._space = space
        self._drawing = Drawing(space, seed=seed)
        self._rehearse(maximize=maximize)
        self._storage = _Storage()
        self._study = self._open(self._storage, maximize=maximize)
        #: Optuna's id of each trial.
        self._ids: dict[int, int] = {}
        #: Values of each observed trial by rung; None once it failed.
        self._values: dict[int, dict[int, float] | None] = {}
        #: Trials with a value by rung.
        self._results: dict[int, int] = {}
        self._model_rung = 0

    def ask(self, numbers: range) -> list[Draw]:
        """One draw for each trial number; fewer when every point of the space was drawn already.

        Raises:
            ConfigurationError: the sampler can not draw from this space, which making it did not show.
        """
        draws: list[Draw] = []
        for number in numbers:
            draw = self._ask(number)
            if draw is None:
                break
            draws.append(draw)
        return draws

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; a trial is observed once per rung it finished."""
        for trial, params, distributions, rung, value, pruned in observations:
            if trial not in self._ids:
                self._add(trial, params, distributions)
            values = self._values.setdefault(trial, {})
            if value is None or math.isnan(value):
                if not values and not pruned:
                    self._values[trial] = None
            elif values is not None:
                self._results[rung] = self._results.get(rung, 0) + (rung not in values)
                values[rung] = value
            self._record(trial)
        model_rung = max((rung for rung, count in self._results.items() if count >= ENOUGH), default=0)
        if model_rung != self._model_rung:
            self._model_rung = model_rung
            for trial in self._values:
                self._record(trial)

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        """Take up where an earlier session ended.

        Args:
            draws: its trials, by number.
            observations: what it was told.
        """
        self.add(draws)
        self._study.sampler = self._sampler(self._seed + len(draws))
        self.tell(observations)

    def add(self, draws: Sequence[Drawn]) -> None:
        """These trials were drawn elsewhere, and are running."""
        for number, params, distributions in draws:
            self._add(number, params, distributions)

    def _rehearse(self, *, maximize: bool) -> None:
        """See that trials can be drawn, and from a model: Optuna's samplers ask for what they need when they use it first."""
        study = self._open(_Storage(), maximize=maximize)
        for number in range(ENOUGH + 1):
            trial, _ = self._draw(study)
            study.tell(trial, float(number))

    def _open(self, storage: InMemoryStorage, *, maximize: bool) -> Study:
        # Optuna would greet on standard error.
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
            storage.create_new_study([direction], "trialfleet")
            return _Study("trialfleet", storage, sampler=self._sampler(self._seed))
        finally:
            optuna.logging.set_verbosity(verbosity)

    def _sampler(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                return self._make(seed % 2**32)
            except ImportError as error:
                raise self._missing(error) from error

    def _missing(self, error: ImportError) -> ConfigurationError:
        return ConfigurationError(f"sampler {self._name!r} needs a package that is not installed: {error}")

    def _ask(self, number: int) -> Draw | None:
        for _ in range(REDRAWS):
            trial, draw = self._draw(self._study)
            if self._drawing.add(draw.params):
                self._ids[number] = trial._trial_id  # noqa: SLF001  # Optuna's storages are spoken to by id
                return draw
            self._study.tell(trial, state=TrialState.FAIL)
        left = self._drawing.uniform(number)
        if left is not None:
            self._add(number, left.params, left.distributions)
        return left

    def _draw(self, study: Study) -> tuple[Trial, Draw]:
        try:
            trial = study.ask()
            return trial, draw_point(self._space, lambda name, one: _suggest(trial, name, one))
        except ImportError as error:
            raise self._missing(error) from error
        except ValueError as error:
            raise ConfigurationError(f"sampler {self._name!r} can not draw from this space: {error}") from error

    def _add(self, number: int, params: Params, distributions: dict[str, Distribution]) -> None:
        """Add a trial that Optuna has not drawn, as running."""
        self._drawing.add(params)
        self._ids[number] = self._storage.create_new_trial(
            self._study._study_id,  # noqa: SLF001  # Optuna's storages are spoken to by id
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions={name: to_optuna(distributions[name]) for name in params},
            ),
        )

    def _record(self, trial: int) -> None:
        """Have Optuna see the trial as it stands."""
        optuna_id, values = self._ids[trial], self._values[trial]
        if values is None:
            state, value = TrialState.FAIL, None
        else:
            for rung, one in values.items():
                self._storage.set_trial_intermediate_value(optuna_id, rung, one)
            reached = min((rung for rung in values if rung >= self._model_rung), default=None)
            state = TrialState.PRUNED if reached is None else TrialState.COMPLETE
            value = (values[max(values)] if values else None) if reached is None else values[reached]
        self._storage.set_trial_state_values(optuna_id, state, None if value is None else [value])


class _Storage(InMemoryStorage):
    """Trials in memory, whose state may change again: one that climbs gets another value."""

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """It always is."""


class _Study(Study):
    """A study without a loop that could be stopped."""

    def stop(self) -> None:
        """Ignore that the sampler has nothing left to draw: drawing notices that itself."""


def _named(name: str) -> Callable[[int], BaseSampler]:
    if name not in optuna_sampler_names():
        known = ["tpe", "random", *optuna_sampler_names()]
        raise ConfigurationError(f"sampler {name!r} is not known{nearest(name, known)}")
    kind = getattr(optuna.samplers, name)
    return lambda seed: kind(seed=seed)


def _suggest(trial: Trial, name: str, distribution: Distribution) -> Scalar:
    match distribution:
        case Float():
            value = trial.suggest_float(
                name, distribution.min, distribution.high, step=distribution.step, log=distribution.log
            )
            # Some samplers give numpy's numbers, which are of the same value and no JSON, and some a point of a grid as two.
            return as_drawn(float(value), distribution)
        case Int():
            step = 1 if distribution.log else distribution.step
            return int(trial.suggest_int(name, distribution.min, distribution.high, step=step, log=distribution.log))
        case Categorical():
            if alike := equal_choices(distribution):
                raise ValueError(f"the choices {alike} of {name!r} are one to Optuna")
            return trial.suggest_categorical(name, distribution.choices)
