"""Syne Tune's ASHA and MOBSTER, driven by the calls that its own tuner makes.

Both are of the stopping type: a trial keeps its worker until a rung stops it. Syne Tune knows no conditions, so all
parameters are drawn and the inactive ones are ignored. MOBSTER (Klein et al. 2020, "Model-based Asynchronous
Hyperparameter and Neural Architecture Search") is ASHA whose trials a Gaussian process over all rungs proposes. Syne
Tune 0.14 is the last version that has it.
"""

import logging
from datetime import UTC, datetime
from typing import Any

from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer.legacy_baselines import ASHA, MOBSTER
from syne_tune.optimizer.scheduler import SchedulerDecision

from trialfleet_shared.space import Categorical, Distribution, Float, Int
from yahpo_parts.optuna_peers import ETA, RESOURCE
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Job

_SCHEDULERS = {"asha": ASHA, "mobster": MOBSTER}
#: Beside the defaults: from 50 results on the Gaussian process is fitted anew after every tenth only. With every one a run
#: takes several minutes, and far longer with many workers.
_REFITS = {"opt_skip_init_length": 50, "opt_skip_period": 10}
_OPTIONS = {"asha": {"debug_log": False}, "mobster": {"debug_log": False, **_REFITS}}
# It warns of what its own constructors do, by loggers that have levels of their own.
for _name in [name for name in logging.root.manager.loggerDict if name.startswith("syne_tune")]:
    logging.getLogger(_name).setLevel(logging.ERROR)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class SyneSearch:
    """One of Syne Tune's schedulers.

    Args:
        problem: what is searched.
        scheduler: "asha" or "mobster".
        seed: of its random stream.
    """

    def __init__(self, problem: Problem, scheduler: str, seed: int) -> None:
        self._space = problem.space
        self._trials = 0
        self._scheduler = _SCHEDULERS[scheduler](
            config_space={name: _domain(one) for name, one in problem.space.parameters.items()},
            metric="score",
            mode="max",
            resource_attr="resource",
            max_t=RESOURCE,
            type="stopping",
            grace_period=1,
            reduction_factor=ETA,
            random_seed=seed,
            search_options=_OPTIONS[scheduler],
        )

    def ask(self) -> Job | None:
        """A new trial, on the lowest rung."""
        suggestion = self._scheduler.suggest(self._trials)
        if suggestion is None:
            return None
        trial = Trial(self._trials, suggestion.config, _EPOCH)
        self._trials += 1
        self._scheduler.on_trial_add(trial)
        params = self._space.draw(lambda name, _: suggestion.config[name])
        return Job(params, 1 / RESOURCE, trial)

    def tell(self, job: Job, score: float) -> Job | None:
        """The trial is complete, or stopped, or goes on."""
        resource = round(job.fraction * RESOURCE)
        result = {"score": score, "resource": resource}
        decision = self._scheduler.on_trial_result(job.token, result)
        if resource == RESOURCE:
            self._scheduler.on_trial_complete(job.token, result)
            return None
        if decision != SchedulerDecision.CONTINUE:
            self._scheduler.on_trial_remove(job.token)
            return None
        return job._replace(fraction=min(ETA * resource, RESOURCE) / RESOURCE, done=job.fraction)


def _domain(distribution: Distribution) -> Any:
    match distribution:
        case Float():
            return (loguniform if distribution.log else uniform)(distribution.min, distribution.max)
        case Int():
            return (lograndint if distribution.log else randint)(distribution.min, distribution.max)
        case Categorical():
            return choice(distribution.choices)
