"""Optuna's own contract suite on our sampler for Optuna's users."""

import pickle
from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState, create_trial

from trialfleet_coordinator.adapters.trialfleet_sampler import TrialfleetSampler
from trialfleet_shared.errors import ConfigurationError


class TestOptunasSuite(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: TrialfleetSampler(startup=1, seed=0)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def quadratic(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -5, 5)
    if trial.suggest_categorical("kind", ["shifted", None]) is None:
        return (x - 1) ** 2
    return (x - 1) ** 2 + 0.5 + trial.suggest_float("extra", 0, 1)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_learns_in_either_direction(direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction, sampler=TrialfleetSampler(seed=1))
    study.optimize(lambda trial: sign * quadratic(trial), n_trials=60)
    assert sign * study.best_value < 0.01
    assert sum(abs(trial.params["x"] - 1) < 1 for trial in study.trials[30:]) > 15


def test_equal_seeds_draw_equal_trials() -> None:
    runs = []
    for _ in range(2):
        study = optuna.create_study(sampler=TrialfleetSampler(seed=3))
        study.optimize(quadratic, n_trials=25)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]


def test_learns_from_trials_that_others_added() -> None:
    study = optuna.create_study(sampler=TrialfleetSampler(seed=0))
    distribution = optuna.distributions.FloatDistribution(0, 1)
    for index in range(50):
        x = index / 50
        study.add_trial(create_trial(params={"x": x}, distributions={"x": distribution}, value=(x - 0.9) ** 2))
    drawn = [study.ask({"x": distribution}).params["x"] for _ in range(10)]
    assert sum(x > 0.75 for x in drawn) >= 8


def test_pruned_trials_count_by_the_step_they_reached_and_failed_ones_as_bad() -> None:
    """The lowest values are those of trials that were pruned first, or failed."""
    study = optuna.create_study(sampler=TrialfleetSampler(seed=0))
    distribution = optuna.distributions.FloatDistribution(0, 1)
    for index in range(60):
        x = index / 60
        state = TrialState.FAIL if x < 0.3 else TrialState.PRUNED
        steps = {} if x < 0.3 else ({0: x, 1: x} if x > 0.8 else {0: x - 1})
        study.add_trial(
            create_trial(state=state, params={"x": x}, distributions={"x": distribution}, intermediate_values=steps)
        )
    drawn = [study.ask({"x": distribution}).params["x"] for _ in range(10)]
    assert sum(x > 0.7 for x in drawn) >= 8


def test_running_trials_keep_others_away() -> None:
    def best_choices(*, told: bool) -> int:
        study = optuna.create_study(sampler=TrialfleetSampler(seed=0))
        choices = optuna.distributions.CategoricalDistribution(list("abcdefgh"))
        for choice in choices.choices * 2:
            study.add_trial(
                create_trial(params={"c": choice}, distributions={"c": choices}, value=0.0 if choice == "a" else 1.0)
            )
        trials = []
        for _ in range(30):
            trials.append(study.ask({"c": choices}))
            if told:
                study.tell(trials[-1], 0.0 if trials[-1].params["c"] == "a" else 1.0)
        return sum(trial.params["c"] == "a" for trial in trials)

    assert best_choices(told=False) < best_choices(told=True)


def test_reads_each_trial_of_a_study_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=TrialfleetSampler(startup=5, seed=0))
    study.add_trials(
        optuna.create_trial(
            params={"x": index / 500}, distributions={"x": optuna.distributions.FloatDistribution(0, 1)}, value=index
        )
        for index in range(500)
    )
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    read = []
    known = study.sampler._known[study]
    finish = known._finish
    monkeypatch.setattr(known, "_finish", lambda trial: (read.append(trial.number), finish(trial)))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    assert read == [500, 501, 502, 503, 504]


def test_one_sampler_serves_one_study_after_another_and_other_processes() -> None:
    sampler = TrialfleetSampler(seed=0)
    for _ in range(2):
        study = optuna.create_study(sampler=sampler)
        study.optimize(quadratic, n_trials=15)
    copied = pickle.loads(pickle.dumps(sampler))
    study = optuna.create_study(sampler=copied)
    study.optimize(quadratic, n_trials=15)
    assert study.best_value < 5


def test_choices_may_be_anything() -> None:
    study = optuna.create_study(sampler=TrialfleetSampler(startup=2, seed=0))
    study.optimize(lambda trial: float(trial.suggest_categorical("c", [True, 1.5, float("inf"), "x"]) is True), 15)
    assert study.best_value == 0.0


def test_trials_running_elsewhere_count_as_pending() -> None:
    study = optuna.create_study(sampler=TrialfleetSampler(startup=5, seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=30)
    values = [study.ask().suggest_float("x", 0, 1) for _ in range(20)]
    assert len(set(values)) == 20
    known = study.sampler._known[study]
    assert len(known.estimator._pending) == 20


RANGES: dict[str, Callable[[optuna.Trial], float]] = {
    "whole numbers of 65 bits": lambda trial: trial.suggest_int("x", 0, 2**64),
    "all whole numbers of 64 bits": lambda trial: trial.suggest_int("x", -(2**63), 2**63 - 1),
    "whole numbers of 64 bits by their size": lambda trial: trial.suggest_int("x", 1, 2**64, log=True),
    "nearly all real numbers": lambda trial: trial.suggest_float("x", -1.7e308, 1.7e308),
    "a grid that can not be counted": lambda trial: trial.suggest_float("x", 0, 1e17, step=1.0),
}


@pytest.mark.parametrize("suggest", RANGES.values(), ids=RANGES)
def test_ranges_that_we_have_no_model_of_are_drawn_from_beside_others(suggest: Callable[[optuna.Trial], float]) -> None:
    runs = []
    for _ in range(2):
        study = optuna.create_study(sampler=TrialfleetSampler(seed=0))
        study.optimize(lambda trial: 0 * suggest(trial) + abs(trial.suggest_float("y", 0, 1) - 0.3), n_trials=40)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]
    assert len({params["x"] for params in runs[0]}) > 20
    assert sum(abs(params["y"] - 0.3) < 0.1 for params in runs[0][20:]) > 5


def test_a_range_that_we_have_no_model_of_may_be_the_only_one() -> None:
    study = optuna.create_study(sampler=TrialfleetSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_int("x", 0, 2**64) / 2**64, n_trials=40)
    assert len({trial.params["x"] for trial in study.trials}) == 40


@pytest.mark.parametrize("name", ["startup", "seed"])
def test_a_negative_startup_or_seed_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} = -1; allowed is 0 and more"):
        TrialfleetSampler(**{name: -1})
