"""What the sampler gives users: its name in the package, and studies of discrete spaces that end when all is known."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna

import trialfleet
from trialfleet_coordinator.adapters.trialfleet_sampler import TrialfleetSampler
from trialfleet_shared.fingerprint import canonical_params

FOURTEEN: dict[str, Any] = {
    "kind": {"type": "categorical", "choices": ["a", "b"]},
    "n": {"type": "int", "min": 1, "max": 5},
    "share": {"type": "float", "min": 0, "max": 1, "step": 0.5, "when": {"kind": ["b"], "n": [2, 3]}},
}


def worth(params: dict[str, Any]) -> float:
    return float(params["n"] + params.get("share", 0))


def test_the_sampler_for_optunas_studies_is_a_name_of_the_package() -> None:
    assert trialfleet.TrialfleetSampler is TrialfleetSampler
    study = optuna.create_study(sampler=trialfleet.TrialfleetSampler(seed=0))
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - 0.5) ** 2, n_trials=30)
    assert study.best_value < 0.01


def test_importing_the_package_imports_no_optuna() -> None:
    code = "import sys, trialfleet; sys.exit('optuna' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_study_of_a_small_space_evaluates_every_point_once_and_ends(tmp_path: Path) -> None:
    found = trialfleet.optimize(worth, FOURTEEN, n_trials=1000, home=tmp_path, study_name="small")
    points = [canonical_params(result["params"]) for result in found["results"]]
    assert len(set(points)) == len(points) == 14
    assert found["best_value"] == 5.0
    again = trialfleet.optimize(worth, FOURTEEN, n_trials=1000, home=tmp_path, study_name="small")
    assert len(again["results"]) == 14


def test_points_that_another_study_evaluated_are_answered_from_the_record(tmp_path: Path) -> None:
    trialfleet.optimize(worth, FOURTEEN, n_trials=1000, home=tmp_path)
    again = trialfleet.optimize(worth, FOURTEEN, n_trials=1000, home=tmp_path, seed=0)
    assert len(again["results"]) == 14
    assert all(result["cached"] == result["evaluations"] for result in again["results"])
