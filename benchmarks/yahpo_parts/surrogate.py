"""YAHPO Gym's surrogates, read straight from their ONNX files.

Pfisterer et al. 2022, "YAHPO Gym - An Efficient Multi-Objective Multi-Fidelity Benchmark for Hyperparameter
Optimization". The package `yahpo_gym` wants numpy 1 and an old ConfigSpace; what it does between a configuration and the
model's input is a dozen lines, which stand here. On 72 points the answers were those of `yahpo_gym` 1.0.2 within 0.0005.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params, SearchSpace

#: Least cost of an evaluation, in simulated seconds: surrogates predict some below zero.
LEAST_COST = 1e-2


class Scenario(NamedTuple):
    """What `yahpo_gym` knows of a scenario beside the files."""

    instance_name: str
    #: Inputs of the model, in its order.
    cont_names: tuple[str, ...]
    cat_names: tuple[str, ...]
    #: Outputs of the model.
    score: int
    cost: int
    #: The parameter that is the fidelity, its value at fraction 1, and whether it is a whole number.
    fidelity: str
    full: float
    whole: bool
    #: Parameters that are the same in all evaluations.
    fixed: Mapping[str, float]
    #: Whether an evaluation can go on where an earlier one of the same configuration ended.
    continues: bool


SCENARIOS = {
    # Fidelity: share of the rows. Ten repetitions, as the least noisy. The score is `acc`, as in the suite YAHPO-SO.
    "rbv2_xgboost": Scenario(
        instance_name="task_id",
        cont_names=(
            "nrounds",
            "eta",
            "gamma",
            "lambda",
            "alpha",
            "subsample",
            "max_depth",
            "min_child_weight",
            "colsample_bytree",
            "colsample_bylevel",
            "rate_drop",
            "skip_drop",
            "trainsize",
            "repl",
        ),
        cat_names=("task_id", "booster", "num.impute.selected.cpo"),
        score=0,
        cost=6,
        fidelity="trainsize",
        full=1.0,
        whole=False,
        fixed={"repl": 10},
        continues=False,
    ),
    # Fidelity: epochs. The score is `val_accuracy`, in per cent.
    "lcbench": Scenario(
        instance_name="OpenML_task_id",
        cont_names=(
            "epoch",
            "batch_size",
            "learning_rate",
            "momentum",
            "weight_decay",
            "num_layers",
            "max_units",
            "max_dropout",
        ),
        cat_names=("OpenML_task_id",),
        score=1,
        cost=0,
        fidelity="epoch",
        full=52.0,
        whole=True,
        fixed={},
        continues=True,
    ),
}


class Surrogate:
    """One scenario: its space, its instances, and the model of them all.

    Args:
        data: folder of the YAHPO data.
        name: one of `SCENARIOS`.
    """

    def __init__(self, data: Path, name: str) -> None:
        self.scenario = SCENARIOS[name]
        space = json.loads((data / name / "config_space.json").read_text())
        self._codes: dict[str, dict[str, int]] = json.loads((data / name / "encoding.json").read_text())
        entries = {entry["name"]: entry for entry in space["hyperparameters"]}
        known = self._codes[self.scenario.instance_name]
        #: All instances, in order.
        self.instances = sorted(
            (one for one in entries[self.scenario.instance_name]["choices"] if one in known), key=int
        )
        #: What is searched: all but instance, fidelity and fixed parameters.
        self.space = _search_space(self.scenario, entries, space["conditions"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            data / name / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def evaluate(
        self, instance: str, params: Sequence[Params], fractions: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """Scores (higher is better) and costs in simulated seconds of configurations at shares of the fidelity."""
        scenario = self.scenario
        cont = np.zeros((len(params), len(scenario.cont_names)), dtype=np.float32)
        cat = np.zeros((len(params), len(scenario.cat_names)), dtype=np.int32)
        for row, (one, fraction) in enumerate(zip(params, fractions, strict=True)):
            values: dict[str, Any] = {**one, **scenario.fixed, scenario.instance_name: instance}
            level = scenario.full * fraction
            values[scenario.fidelity] = max(round(level), 1) if scenario.whole else level
            # What a model does not have is 0, and "#na#", whose code is 0.
            cont[row] = [values.get(name, 0) for name in scenario.cont_names]
            cat[row] = [self._codes[name][values.get(name, "#na#")] for name in scenario.cat_names]
        output = self._session.run(None, {"x_cat": cat, "x_cont": cont})[0]
        scores = output[:, scenario.score].astype(float).tolist()
        return scores, np.maximum(output[:, scenario.cost].astype(float), LEAST_COST).tolist()


class Problem(NamedTuple):
    """One instance of a scenario, to be maximised."""

    surrogate: Surrogate
    name: str
    instance: str

    @property
    def space(self) -> SearchSpace:
        """What is searched."""
        return self.surrogate.space

    @property
    def continues(self) -> bool:
        """Whether an evaluation can go on where an earlier one of the same configuration ended."""
        return self.surrogate.scenario.continues

    def evaluate(self, params: Sequence[Params], fractions: Sequence[float]) -> tuple[list[float], list[float]]:
        """See `Surrogate.evaluate`."""
        return self.surrogate.evaluate(self.instance, params, fractions)

    def full_scores(self, params: Sequence[Params]) -> list[float]:
        """Scores at the full fidelity."""
        return self.evaluate(params, [1.0] * len(params))[0]


def _search_space(
    scenario: Scenario, entries: Mapping[str, Mapping[str, Any]], conditions: Sequence[Mapping[str, Any]]
) -> SearchSpace:
    whens = {one["child"]: {one["parent"]: one.get("values") or [one["value"]]} for one in conditions}
    left_out = {scenario.instance_name, scenario.fidelity, *scenario.fixed}
    names = sorted((name for name in entries if name not in left_out), key=lambda name: name in whens)
    return SearchSpace({name: _distribution(entries[name], whens.get(name, {})) for name in names})


def _distribution(entry: Mapping[str, Any], when: dict[str, list[Any]]) -> Distribution:
    match entry["type"]:
        case "uniform_float":
            return Float(entry["lower"], entry["upper"], log=entry["log"], when=when)
        case "uniform_int":
            return Int(entry["lower"], entry["upper"], log=entry["log"], when=when)
        case _:
            return Categorical(entry["choices"], when=when)
