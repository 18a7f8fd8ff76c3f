"""The signature that is read agrees with the one that an import finds, or nothing is read."""

import sys
from pathlib import Path

import pytest

from trialfleet_shared.errors import ObjectiveError
from trialfleet_workers.declared import declared_function
from trialfleet_workers.objective import Objective, load_function

READ = {
    "params": "def train(params): return 1.0",
    "params and data": "def train(params: dict[str, float], data: object) -> float: return 1.0",
    "budget with a default": "LEAST = 0.5\ndef train(params, *, budget=LEAST, more=None): return 1.0",
    "a trial by name": "def train(trial, data=None): return 1.0",
    "a trial by annotation": "import optuna\ndef train(t: optuna.Trial): return 1.0",
    "a trial by quoted annotation": "def train(t: 'optuna.Trial'): return 1.0",
    "positional only": "def train(params, /, data): return 1.0",
    "variadic": "def train(params, *rest: int, **more: str): return 1.0",
    "a coroutine": "async def train(params, data): return 1.0",
    "another function beside it": "def other(train): return train\ndef train(params, data): return 1.0",
}
NOT_READ = {
    "decorated": "import functools\n@functools.cache\ndef train(params): return 1.0",
    "defined twice": "def train(params): return 1.0\ndef train(params, data): return 1.0",
    "defined under a condition": "if True:\n    def train(params): return 1.0",
    "rebound": "def train(params): return 1.0\ntrain = print",
    "rebound by a loop": "def train(params): return 1.0\nfor train in (print,): pass",
    "rebound by an import": "def train(params): return 1.0\nfrom json import loads as train",
    "perhaps rebound": "def train(params): return 1.0\nfrom json import *",
    "a class": "class train:\n    def __init__(self, params): pass",
    "a lambda": "train = lambda params: 1.0",
    "an alias for an annotation": "from optuna import Trial as T\ndef train(t: T): return 1.0",
    "nothing of that name": "def other(params): return 1.0",
    "a syntax error": "def train(params:",
}


@pytest.mark.parametrize("source", READ.values(), ids=READ)
def test_a_plain_definition_is_read(source: str, tmp_path: Path) -> None:
    (tmp_path / "objective_read.py").write_text(source)
    sys.modules.pop("objective_read", None)

    declared = declared_function("objective_read.py:train", tmp_path)

    assert declared is not None
    assert "objective_read" not in sys.modules
    read, loaded = Objective(declared, "o"), Objective(load_function("objective_read.py:train", tmp_path), "o")
    assert read.takes_trial == loaded.takes_trial
    assert read.takes_data == loaded.takes_data
    assert read.takes_budget == loaded.takes_budget
    assert read.needs_data == loaded.needs_data


@pytest.mark.parametrize("source", NOT_READ.values(), ids=NOT_READ)
def test_what_only_an_import_can_tell_is_not_read(source: str, tmp_path: Path) -> None:
    (tmp_path / "objective_not_read.py").write_text(source)

    assert declared_function("objective_not_read.py:train", tmp_path) is None


def test_an_objective_without_params_is_refused_as_when_imported(tmp_path: Path) -> None:
    (tmp_path / "objective_bare.py").write_text("def train(): return 1.0")
    declared = declared_function("objective_bare.py:train", tmp_path)

    assert declared is not None
    with pytest.raises(ObjectiveError, match="takes no params first"):
        Objective(declared, "o")


def test_modules_are_found_as_imports_find_them(tmp_path: Path) -> None:
    package = tmp_path / "declared_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.py").write_text("def train(params, data): return 1.0")

    assert declared_function("declared_package.model:train", tmp_path) is not None
    assert declared_function("no_such_package.model:train", tmp_path) is None
    assert declared_function("none.py:train", tmp_path) is None
