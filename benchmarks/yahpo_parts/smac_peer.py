"""SMAC3's multi-fidelity facade (Lindauer et al. 2022): a random forest with Hyperband, through ask and tell."""

import logging
import shutil
import tempfile
from pathlib import Path

from smac import MultiFidelityFacade, Scenario
from smac.runhistory.dataclasses import TrialValue

from yahpo_parts.dehb_peer import config_space, plain
from yahpo_parts.optuna_peers import ETA, RESOURCE
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Job

#: Beyond what a run's simulated budget allows.
TRIALS = 100_000


class SmacSearch:
    """SMAC3's `MultiFidelityFacade` with its defaults, on rungs of 1/27, 1/9, 1/3 and 1.

    Args:
        problem: what is searched; every evaluation pays in full, as SMAC does not resume one.
        seed: of its random stream.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._space = problem.space
        # It writes its settings and its history somewhere in any case.
        self._folder = tempfile.mkdtemp(prefix="smac-")
        scenario = Scenario(
            config_space(problem, seed),
            output_directory=Path(self._folder),
            deterministic=True,
            n_trials=TRIALS,
            min_budget=1,
            max_budget=RESOURCE,
            seed=seed,
        )
        self._smac = MultiFidelityFacade(
            scenario,
            lambda config, seed=0, budget=0: 0.0,  # noqa: ARG005  # never called: ask and tell do without it
            intensifier=MultiFidelityFacade.get_intensifier(scenario, eta=ETA),
            logging_level=logging.ERROR,
            overwrite=True,
        )

    def ask(self) -> Job:
        """The next configuration of a bracket."""
        info = self._smac.ask()
        params = self._space.draw(lambda name, _: plain(info.config[name]))
        return Job(params, round(info.budget) / RESOURCE, info)

    def tell(self, job: Job, score: float) -> None:
        """A result, as a loss."""
        self._smac.tell(job.token, TrialValue(cost=-score), save=False)

    def close(self) -> None:
        """Remove what it wrote."""
        shutil.rmtree(self._folder, ignore_errors=True)
