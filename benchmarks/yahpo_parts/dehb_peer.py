"""DEHB (Awad et al. 2021), through its ask and tell."""

import shutil
import tempfile
from typing import Any

import ConfigSpace
from dehb import DEHB
from loguru import logger

from trialfleet_shared.space import Categorical, Distribution, Float, Int, Scalar
from yahpo_parts.optuna_peers import ETA, RESOURCE
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Job

logger.remove()


class DehbSearch:
    """DEHB with its defaults, on rungs of 1/27, 1/9, 1/3 and 1.

    Args:
        problem: what is searched; every evaluation pays in full, as DEHB does not resume one.
        seed: of its random stream.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._space = problem.space
        # It writes its state and its log somewhere in any case.
        self._folder = tempfile.mkdtemp(prefix="dehb-")
        self._dehb = DEHB(
            cs=config_space(problem, seed),
            min_fidelity=1,
            max_fidelity=RESOURCE,
            eta=ETA,
            n_workers=1,  # more would start a Dask cluster, which ask and tell do not use
            seed=seed,
            output_path=self._folder,
            save_freq="end",
            log_level="ERROR",
        )

    def ask(self) -> Job:
        """The next configuration of a bracket."""
        job = self._dehb.ask()
        params = self._space.draw(lambda name, _: plain(job["config"][name]))
        return Job(params, round(job["fidelity"]) / RESOURCE, job)

    def tell(self, job: Job, score: float) -> None:
        """A result, as a loss."""
        self._dehb.tell(job.token, {"fitness": -score, "cost": 0.0})

    def close(self) -> None:
        """Remove what it wrote."""
        shutil.rmtree(self._folder, ignore_errors=True)


def config_space(problem: Problem, seed: int) -> ConfigSpace.ConfigurationSpace:
    """The problem's space, with its conditions."""
    space = ConfigSpace.ConfigurationSpace(seed=seed)
    parameters = {name: _parameter(name, one) for name, one in problem.space.parameters.items()}
    space.add(list(parameters.values()))
    space.add(
        [
            ConfigSpace.InCondition(parameters[name], parameters[parent], values)
            for name, one in problem.space.parameters.items()
            for parent, values in one.when.items()
        ]
    )
    return space


def _parameter(name: str, distribution: Distribution) -> Any:
    match distribution:
        case Float():
            return ConfigSpace.Float(name, (distribution.min, distribution.max), log=distribution.log)
        case Int():
            return ConfigSpace.Integer(name, (distribution.min, distribution.max), log=distribution.log)
        case Categorical():
            return ConfigSpace.Categorical(name, distribution.choices)


def plain(value: Any) -> Scalar:
    """A numpy scalar as Python has it."""
    plain: Scalar = value.item() if hasattr(value, "item") else value
    return plain
