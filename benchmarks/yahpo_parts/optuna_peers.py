"""Random search, and Optuna's TPE alone and with its multi-fidelity pruners, through ask and tell.

Optuna's pruners stop a trial at a rung or let it go on, so a trial keeps its worker from rung to rung. Where the
fidelity can not be continued each rung costs an evaluation of its own, and a trial of a Hyperband bracket that begins
higher is not evaluated below, where its pruner would not look anyway.
"""

import random

import optuna
from optuna.trial import TrialState

from trialfleet_coordinator.sampling.drawing import uniform_value
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Scalar
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Job

#: Fidelity of the full evaluation in the resource's unit, a power of `ETA`: rungs are at 1/27, 1/9, 1/3 and 1.
RESOURCE = 27
ETA = 3

optuna.logging.set_verbosity(optuna.logging.ERROR)


class RandomSearch:
    """Uniform draws at full fidelity."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._space = problem.space
        self._random = random.Random(seed)

    def ask(self) -> Job:
        """A uniform draw."""
        return Job(self._space.draw(lambda _, distribution: uniform_value(distribution, self._random.random())), 1.0)

    def tell(self, job: Job, score: float) -> None:
        """Nothing is learned."""


class OptunaSearch:
    """A study of Optuna.

    Args:
        problem: what is searched.
        sampler: of the study.
        pruner: of the study; None: every trial is evaluated at full fidelity at once.
        name: of the study; Hyperband's choice of brackets depends on it.
    """

    def __init__(
        self,
        problem: Problem,
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner | None,
        name: str,
    ) -> None:
        self._space = problem.space
        self._pruner = pruner
        self._study = optuna.create_study(study_name=name, direction="maximize", sampler=sampler, pruner=pruner)

    def ask(self) -> Job:
        """A new trial, on its lowest rung."""
        trial = self._study.ask()
        params = self._space.draw(lambda name, distribution: _suggest(trial, name, distribution))
        return Job(params, self._first(trial) / RESOURCE, trial)

    def tell(self, job: Job, score: float) -> Job | None:
        """The trial is complete, or pruned, or goes on."""
        trial: optuna.Trial = job.token
        step = round(job.fraction * RESOURCE)
        trial.report(score, step)
        if step == RESOURCE:
            self._study.tell(trial, score)
        elif trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            return job._replace(fraction=min(ETA * step, RESOURCE) / RESOURCE, done=job.fraction)
        return None

    def _first(self, trial: optuna.Trial) -> int:
        if self._pruner is None:
            return RESOURCE
        if not isinstance(self._pruner, optuna.pruners.HyperbandPruner):
            return 1
        # Its own test initialises the brackets; nothing was reported, so that is all it does.
        trial.should_prune()
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        return int(ETA ** self._pruner._get_bracket_id(self._study, frozen))  # noqa: SLF001  # no public way


def optuna_tpe(problem: Problem, *, workers: int, seed: int, pruner: str | None = None) -> OptunaSearch:
    """Optuna's TPE with its defaults, constant liar where several trials are in flight.

    Args:
        problem: what is searched.
        workers: how many trials are in flight.
        seed: of the sampler.
        pruner: "halving", "hyperband" or None.
    """
    pruners = {
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=ETA),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=RESOURCE, reduction_factor=ETA
        ),
    }
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=workers > 1)
    return OptunaSearch(problem, sampler, pruners[pruner]() if pruner else None, f"yahpo-{seed}")


def _suggest(trial: optuna.Trial, name: str, distribution: Distribution) -> Scalar:
    match distribution:
        case Float():
            return trial.suggest_float(name, distribution.min, distribution.max, log=distribution.log)
        case Int():
            return trial.suggest_int(name, distribution.min, distribution.max, log=distribution.log)
        case Categorical():
            return trial.suggest_categorical(name, distribution.choices)
