"""Loading and calling the user's function."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.modules import write

from trialfleet_shared.errors import ObjectiveError
from trialfleet_shared.messages import Evaluation
from trialfleet_workers import user_modules
from trialfleet_workers.objective import (
    Objective,
    ParamsTrial,
    Reference,
    load_function,
    parse_reference,
    read_returned,
)


@pytest.fixture(autouse=True)
def imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("a.b:f", Reference("a.b", "f")),
        ("a:C.m", Reference("a", "C.m")),
        ("dir/my-file.py:f", Reference("dir/my-file.py", "f")),
        ("/abs/a:b.py:f", Reference("/abs/a:b.py", "f")),
    ],
)
def test_a_reference_is_taken_apart(reference: str, parsed: Reference) -> None:
    assert parse_reference(reference) == parsed
    assert parsed.is_file == (".py" in reference)


@pytest.mark.parametrize(
    "reference", ["", "a", "a.b.f", ":f", "a:", "a:f()", "a-b:f", "a/b:f", "a..b:f", "file.py:f-g"]
)
def test_what_is_no_reference_is_told(reference: str) -> None:
    with pytest.raises(ObjectiveError, match=r"names no function|is neither"):
        parse_reference(reference)


def test_a_file_is_relative_to_the_base(tmp_path: Path) -> None:
    write(tmp_path / "sub", tune_a="class C:\n    @staticmethod\n    def m(params): return 1\n")
    assert load_function("sub/tune_a.py:C.m", tmp_path)({}) == 1


def test_a_files_siblings_and_the_bases_modules_are_found(tmp_path: Path) -> None:
    write(tmp_path, common_b="two = 2\n")
    write(
        tmp_path / "sub",
        helper_b="one = 1\n",
        tune_b="import common_b, helper_b\ndef f(p): return helper_b.one + common_b.two\n",
    )
    assert load_function("sub/tune_b.py:f", tmp_path)({}) == 3


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    write(tmp_path, tune_c="state = []\ndef f(p): return state\n")
    assert load_function("tune_c.py:f", tmp_path)({}) is load_function("tune_c.py:f", tmp_path)({})


def test_a_file_called_like_another_module_does_not_replace_it(tmp_path: Path) -> None:
    import json

    write(tmp_path, json="def f(p): return 'mine'\n")
    function = load_function("json.py:f", tmp_path)
    assert function({}) == "mine"
    assert load_function("json.py:f", tmp_path) is function
    assert sys.modules["json"] is json


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    write(tmp_path / "one", tune_d="def f(p): return 1\n")
    write(tmp_path / "two", tune_d="def f(p): return 2\n")
    assert load_function("one/tune_d.py:f", tmp_path)({}) == 1
    assert load_function("two/tune_d.py:f", tmp_path)({}) == 2


def test_a_module_is_looked_for_in_the_base_first(tmp_path: Path) -> None:
    write(tmp_path / "pack_e", __init__="", tuning="def f(p): return 5\n")
    assert load_function("pack_e.tuning:f", tmp_path)({}) == 5


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("missing.py:f", "there is no file .*missing.py"),
        ("syntax_f.py:f", r"syntax error in .*syntax_f.py, line 2"),
        ("no_such_module_f:f", "there is no module 'no_such_module_f'"),
        ("needs_f.py:f", "its import failed: No module named 'no_such_dependency'"),
        ("raises_f.py:f", "its import raised ZeroDivisionError: division by zero"),
        ("exits_f.py:f", "its import raised SystemExit: 2"),
        ("fine_f.py:objectve", "fine_f.py has no 'objectve'; did you mean 'objective'"),
        ("fine_f.py:Class.run", "fine_f.py.Class has no 'run'; did you mean 'runs'"),
        ("fine_f.py:number", "is a int; a function is needed"),
        ("fine_f.py:sys.exit", "sys is another module; name its function directly"),
        ("itself_f.py:f", "starts a study while it is being imported"),
    ],
)
def test_what_can_not_be_loaded_is_told(tmp_path: Path, reference: str, message: str) -> None:
    write(
        tmp_path,
        syntax_f="x = 1\ndef f(:\n",
        needs_f="import no_such_dependency\n",
        raises_f="1 / 0\n",
        exits_f="import sys\nsys.exit(2)\n",
        fine_f="import sys\nnumber = 3\ndef objective(params): return 1\nclass Class:\n    def runs(self): pass\n",
        itself_f=f"""
from pathlib import Path
from trialfleet_workers.objective import load_function
def f(params): return 1
load_function("itself_f.py:f", Path({str(tmp_path)!r}))
""",
    )
    with pytest.raises(ObjectiveError, match=message) as raised:
        load_function(reference, tmp_path)
    assert repr(reference) in str(raised.value)


@pytest.mark.parametrize("attribute", ["Popen", "popen", "f.__class__", "f.__globals__.get", "Folder"])
def test_only_own_functions_are_within_reach_of_a_message(tmp_path: Path, attribute: str) -> None:
    """`Popen(params)` would run the params' names as a program."""
    write(
        tmp_path,
        helper_g="def g(params): return 2\n",
        tune_g="""
import functools
from os import popen
from pathlib import Path as Folder
from subprocess import Popen
from helper_g import g
class C:
    def m(self, params): return 3
def f(params): return 1
bound = C().m
part = functools.partial(f)
""",
    )
    for own in ("f", "g", "bound", "part", "C"):
        assert callable(load_function(f"tune_g.py:{own}", tmp_path, own=True))
    assert callable(load_function(f"tune_g.py:{attribute}", tmp_path))
    with pytest.raises(ObjectiveError, match="defined elsewhere"):
        load_function(f"tune_g.py:{attribute}", tmp_path, own=True)


EVALUATION = Evaluation(trial=7, rung=1, fold=0, fraction=0.5, params={"x": 3})


class Caller:
    def __call__(self, params: dict[str, Any], *, data: Any) -> Any:
        return ("called", params["x"], data)


def annotated(t: "optuna.Trial") -> Any:  # type: ignore[name-defined]  # noqa: F821  # never resolved
    return t.suggest_int("x", 0, 9)


async def waits(params: dict[str, Any]) -> Any:
    return params["x"] + 1


@pytest.mark.parametrize(
    ("function", "returned", "takes_data", "takes_budget"),
    [
        (lambda params: params, {"x": 3}, False, False),
        (lambda p: p["x"], 3, False, False),
        (lambda params, data: data, "data", True, False),
        (lambda params, budget: budget, 0.5, False, True),
        (lambda params, data, budget: (data, budget), ("data", 0.5), True, True),
        (lambda params, budget, data: (data, budget), ("data", 0.5), True, True),
        (lambda params, data=None: data, "data", True, False),
        (lambda params, verbose=False, **more: (verbose, more), (False, {}), False, False),
        (lambda *args: args, ({"x": 3},), False, False),
        (lambda trial: (trial.number, trial.params, trial.suggest_float("x", 0, 5)), (7, {"x": 3}, 3.0), False, False),
        (lambda trial, data: (trial.params["x"], data), (3, "data"), True, False),
        (annotated, 3, False, False),
        (Caller(), ("called", 3, "data"), True, False),
        (waits, 4, False, False),
        (dict, {"x": 3}, False, False),
    ],
)
def test_the_signature_decides_how_it_is_called(
    function: Callable[..., Any], returned: Any, takes_data: bool, takes_budget: bool
) -> None:
    objective = Objective(function, "f")
    assert objective(EVALUATION, "data") == returned
    assert (objective.takes_data, objective.takes_budget) == (takes_data, takes_budget)
    assert objective.has_fidelity(has_data=True) == (takes_data or takes_budget)
    assert objective.has_fidelity(has_data=False) == takes_budget


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda: 1, "takes no params first"),
        (lambda data: 1, "takes no params first"),
        (lambda budget, params: 1, "takes no params first"),
        (lambda *, params: 1, "takes no params first"),
        (lambda learning_rate, depth: 1, "needs 'depth'"),
        (lambda params, data, folds: 1, "needs 'folds'"),
    ],
)
def test_another_signature_is_told_with_what_is_allowed(function: Callable[..., Any], what: str) -> None:
    with pytest.raises(ObjectiveError, match=rf"objective 'f' {what}; allowed is objective\(params\), "):
        Objective(function, "f")


def test_data_that_are_needed_have_to_be_there() -> None:
    Objective(lambda params, data=None: 1, "f").check(has_data=False)
    Objective(lambda params, data: 1, "f").check(has_data=True)
    assert Objective(lambda params, data=3: data, "f")(EVALUATION, None) == 3
    with pytest.raises(ObjectiveError, match="'f' takes data, but the study has no data set"):
        Objective(lambda params, data: 1, "f").check(has_data=False)


def test_an_objective_can_not_change_the_params_of_others() -> None:
    def objective(params: dict[str, Any]) -> int:
        params.clear()
        return 1

    Objective(objective, "f")(EVALUATION, None)
    assert EVALUATION.params == {"x": 3}


def test_a_trial_answers_as_optunas_does() -> None:
    trial = ParamsTrial(4, {"x": 2, "rate": 0.1, "kind": "a"})
    assert trial.suggest_int("x", 0, 10, step=2) == 2
    assert trial.suggest_float("x", 0, 10) == 2.0
    assert isinstance(trial.suggest_float("x", 0, 10), float)
    assert trial.suggest_float("rate", 1e-3, 1.0, log=True) == 0.1
    assert trial.suggest_categorical("kind", ["b", "a"]) == "a"
    trial.report(0.5, step=3)
    trial.set_user_attr("note", "n")
    assert trial.should_prune() is False
    assert trial.intermediate_values == {3: 0.5}
    assert trial.user_attrs == {"note": "n"}
    with pytest.raises(ObjectiveError, match="outside of Int"):
        trial.suggest_int("x", 0, 10, step=3)
    with pytest.raises(ObjectiveError, match="did you mean 'rate'"):
        trial.suggest_float("rat", 0, 1)


@pytest.mark.parametrize(
    ("returned", "value", "metrics"),
    [
        (1, 1.0, {}),
        (True, 1.0, {}),
        (np.float32(0.5), 0.5, {}),
        (np.array(2.5), 2.5, {}),
        ({"value": np.int64(3), "loss": 1, "bad": float("nan")}, 3.0, {"loss": 1.0}),
    ],
)
def test_what_casts_to_a_number_is_a_value(returned: Any, value: float, metrics: dict[str, float]) -> None:
    assert read_returned(returned) == (value, metrics)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (float("nan"), "objective returned nan; a finite number is needed"),
        (float("inf"), "objective returned inf; a finite number is needed"),
        (None, "objective returned None; a finite number is needed"),
        ("0.5", "objective returned '0.5'; a finite number is needed"),
        ((1.0, 2.0), r"objective returned \(1.0, 2.0\); a finite number is needed"),
        (1j, "objective returned 1j; a finite number is needed"),
        (10**400, "objective returned 1000.*…; a finite number is needed"),
        ({"loss": 1.0}, r"objective returned a mapping without 'value'; its keys are \['loss'\]"),
        ({"value": None}, "objective returned for 'value' None; a finite number is needed"),
        ({"value": 1.0, "name": "x"}, "objective returned for 'name' 'x'; a finite number is needed"),
    ],
)
def test_what_is_no_number_is_told(returned: Any, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message):
        read_returned(returned)


def test_metrics_are_bounded_as_messages_are() -> None:
    with pytest.raises(ObjectiveError, match="objective returned 1002 numbers; allowed are 1000"):
        read_returned({"value": 1.0} | {f"m{i}": 0.0 for i in range(1001)})
    with pytest.raises(ObjectiveError, match="name has 501 characters; allowed are 500"):
        read_returned({"value": 1.0, "m" * 501: 0.0})
    assert read_returned({"value": 1.0, "caf\udce9": 2.0}) == (1.0, {"caf?": 2.0})


def test_studies_that_share_a_module_may_be_opened_at_the_same_time(tmp_path: Path) -> None:
    """Whether Python finds the file under its name or not."""
    write(tmp_path, shared_g="import time\ntime.sleep(0.3)\ndef f(p): return 1\n")
    write(tmp_path, json="import time\ntime.sleep(0.3)\ndef f(p): return 1\n")
    with ThreadPoolExecutor(4) as pool:
        for own in (False, True):
            for reference in ("shared_g.py:f", "json.py:f"):
                loads = [pool.submit(load_function, reference, tmp_path, own=own) for _ in range(4)]
                assert [load.result()({}) for load in loads] == [1] * 4


def test_a_coordinator_has_the_functions_of_today_and_of_the_folder_that_it_was_told(tmp_path: Path) -> None:
    found = []
    for folder, value in (("one_h", 1), ("two_h", 2), ("one_h", 3)):
        write(
            tmp_path / folder,
            common_h=f"value = {value}\n",
            space_h="import common_h\ndef f(p): return common_h.value\n",
        )
        found.append(load_function("space_h.py:f", tmp_path / folder, own=True))
    assert [function({}) for function in found] == [1, 2, 3], "and what was loaded before stays what it was"


def test_an_import_that_never_ends_is_told_to_those_who_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_modules, "PATIENCE_SECONDS", 0.05)
    write(tmp_path, fine_i="def f(p): return 1\n")
    with user_modules.imported_anew([]), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(load_function, "fine_i.py:f", tmp_path, own=True)
        with pytest.raises(ObjectiveError, match=r"have been importing for 0.05 seconds"):
            waiting.result()
