"""trialfleet's TPE as an Optuna sampler, for studies that Optuna itself runs.

    study = optuna.create_study(sampler=TrialfleetSampler(seed=0))

It learns from a study's trials as they come instead of fitting all of them anew for each. Every parameter is drawn from
its own density; ranges that only Optuna has, such as whole numbers beyond 2**53, are drawn from uniformly. Trials that
run already count as pending, so that `n_jobs` and several processes do not all try the same.
"""

import math
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from trialfleet_coordinator.adapters.optuna_distributions import from_optuna
from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.candidates import Layout
from trialfleet_coordinator.sampling.drawing import uniform_value
from trialfleet_coordinator.sampling.estimator import Estimator
from trialfleet_coordinator.sampling.tpe import CANDIDATES
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.space import Categorical, Distribution, Params

#: Ranks complete trials before pruned ones, whatever steps those reached.
_COMPLETE_RUNG = sys.maxsize


class TrialfleetSampler(BaseSampler):
    """Tree-structured Parzen estimator whose cost per trial does not grow with the study.

    Args:
        startup: trials with a value before the model is used; until then draws are uniform.
        seed: of the random stream; None: another one each time.

    Raises:
        ConfigurationError: `startup` or `seed` is negative.
    """

    def __init__(self, *, startup: int = 10, seed: int | None = None) -> None:
        for name, value in (("startup", startup), ("seed", seed)):
            if value is not None and value < 0:
                raise ConfigurationError(f"{name} = {value}; allowed is 0 and more")
        self._startup = max(startup, 1)
        self._generator = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._known: weakref.WeakKeyDictionary[Study, _KnownStudy] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {"_startup": self._startup, "_generator": self._generator}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._known = weakref.WeakKeyDictionary()

    def reseed_rng(self) -> None:
        """Another random stream: Optuna calls it in each of several processes."""
        self._generator = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002  # Optuna's signature
        """The parameters that all trials have. Raises ValueError for a study with several objectives."""
        self._raise_error_if_multi_objective(study)
        with self._lock:
            space = self._study(study).space.calculate(study)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for the parameters that all trials have, but for those without a model, which Optuna asks for alone."""
        space = _modelled(search_space)
        if not space:
            return {}
        with self._lock:
            known = self._study(study)
            known.read(study)
            params = self._draw(known, space)
            known.estimator.add(trial.number, params, space)
        return {name: _external(search_space[name], value) for name, value in params.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter. Raises ValueError for a study with several objectives."""
        self._raise_error_if_multi_objective(study)
        ours = _positions(param_distribution)
        with self._lock:
            if ours is None:
                return self._uniform(study, trial, param_name, param_distribution)
            known = self._study(study)
            known.read(study, asking=trial.number)
            params = self._draw(known, {param_name: ours})
        return _external(param_distribution, params[param_name])

    def _uniform(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, FloatDistribution) and not math.isfinite(distribution.high - distribution.low):
            share = self._generator.random()  # Optuna's samplers do not draw from these either
            return (1 - share) * distribution.low + share * distribution.high
        drawing = RandomSampler(seed=int(self._generator.integers(2**32)))
        return drawing.sample_independent(study, trial, name, distribution)

    def _study(self, study: Study) -> "_KnownStudy":
        if study not in self._known:
            self._known[study] = _KnownStudy(maximize=study.direction == StudyDirection.MAXIMIZE)
        return self._known[study]

    def _draw(self, known: "_KnownStudy", space: dict[str, Distribution]) -> Params:
        if known.estimator.results < self._startup:
            return {name: uniform_value(one, self._generator.random()) for name, one in space.items()}
        candidates = known.estimator.candidates(np.zeros(CANDIDATES, dtype=np.bool_), self._generator)
        candidates.activate(Layout(space))
        best = int(candidates.scores(CANDIDATES).argmax())
        return {name: candidates.suggest(best, name, one) for name, one in space.items()}


class _KnownStudy:
    """What was read of a study so far."""

    def __init__(self, *, maximize: bool) -> None:
        self.estimator = Estimator(maximize=maximize)
        self.space = IntersectionSearchSpace(include_pruned=True)
        #: Trials below this number are finished and read.
        self._read = 0
        #: Finished trials above it that are read.
        self._ahead: set[int] = set()
        #: Parameters that a running trial was last seen with.
        self._running: dict[int, int] = {}

    def read(self, study: Study, *, asking: int | None = None) -> None:
        """Take in what has happened since; the trial that asks for a parameter is not its own rival."""
        for trial in study.get_trials(deepcopy=False)[self._read :]:
            if trial.state.is_finished():
                if trial.number not in self._ahead:
                    self._finish(trial)
            elif trial.number != asking and len(trial.params) > self._running.get(trial.number, 0):
                self._running[trial.number] = len(trial.params)
                self.estimator.add(trial.number, *_ours(trial))
        while self._read in self._ahead:
            self._ahead.remove(self._read)
            self._read += 1

    def _finish(self, trial: FrozenTrial) -> None:
        self._ahead.add(trial.number)
        self._running.pop(trial.number, None)
        params, distributions = _ours(trial)
        rung, value = _COMPLETE_RUNG, None
        if trial.state == TrialState.COMPLETE:
            value = trial.value
        elif trial.state == TrialState.PRUNED and trial.last_step is not None:
            rung, value = trial.last_step, trial.intermediate_values[trial.last_step]
        self.estimator.add(trial.number, params, distributions)
        self.estimator.observe([Observation(trial.number, params, distributions, rung, value)])


def _positions(distribution: BaseDistribution) -> Distribution | None:
    """Our distribution of a parameter; choices, which may be any objects in Optuna, are their positions.

    None for a range that Optuna has and we do not.
    """
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(list(range(len(distribution.choices))))
    try:
        return from_optuna(distribution)
    except ValueError:
        return None


def _modelled(distributions: Mapping[str, BaseDistribution]) -> dict[str, Distribution]:
    """Our distributions of the parameters that we have one of."""
    return {name: ours for name, one in distributions.items() if (ours := _positions(one)) is not None}


def _external(distribution: BaseDistribution, value: Any) -> Any:
    return distribution.choices[value] if isinstance(distribution, CategoricalDistribution) else value


def _ours(trial: FrozenTrial) -> tuple[Params, dict[str, Distribution]]:
    given: Mapping[str, BaseDistribution] = trial.distributions
    space = _modelled(given)
    params = {
        name: int(given[name].to_internal_repr(value)) if isinstance(given[name], CategoricalDistribution) else value
        for name, value in trial.params.items()
        if name in space
    }
    return params, space
