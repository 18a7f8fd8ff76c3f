"""Syne Tune's ASHA and BOHB, driven by the calls that its own tuner makes.

Both are of the stopping type: a trial keeps its worker until a rung stops it. Syne Tune knows no conditions, so all
parameters are drawn and the inactive ones are ignored. Syne Tune 0.16 has no MOBSTER; its asynchronous BOHB stands in
for it as the scheduler with a model.
"""

import logging
from datetime import UTC, datetime
from typing import Any

from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer.baselines import ASHA, BOHB
from syne_tune.optimizer.scheduler import SchedulerDecision

from trialfleet_shared.space import Categorical, Distribution, Float, Int
from yahpo_parts.optuna_peers import ETA, RESOURCE
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Job

_SCHEDULERS = {"asha": ASHA, "bohb": BOHB}
# It warns of what its own constructors do.
logging.getLogger("syne_tune").setLevel(logging.ERROR)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class SyneSearch:
    """One of Syne Tune's schedulers.

    Args:
        problem: what is searched.
        scheduler: "asha" or "bohb".
        seed: of its random stream.
    """

    def __init__(self, problem: Problem, scheduler: str, seed: int) -> None:
        self._space = problem.space
        self._trials = 0
        self._scheduler = _SCHEDULERS[scheduler](
            config_space={name: _domain(one) for name, one in problem.space.parameters.items()},
            metric="score",
            time_attr="resource",
            max_t=RESOURCE,
            do_minimize=False,
            random_seed=seed,
            grace_period=1,
            reduction_factor=ETA,
        )

    def ask(self) -> Job | None:
        """A new trial, on the lowest rung."""
        suggestion = self._scheduler.suggest()
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
        if resource == RESOURCE:
            self._scheduler.on_trial_complete(job.token, result)
            return None
        if self._scheduler.on_trial_result(job.token, result) != SchedulerDecision.CONTINUE:
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
