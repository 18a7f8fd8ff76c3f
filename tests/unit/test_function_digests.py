"""What a digest of a function in memory notices, and what it must not."""

import functools
import importlib
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.modules import write

from trialfleet_workers.function_digests import function_digest, used_settings

FACTOR = 2


def helper(x: float) -> float:
    return x * 2


def uses_helper(params: dict[str, Any]) -> float:
    return helper(params["x"])


def uses_constant(params: dict[str, Any]) -> float:
    return float(params["x"]) * FACTOR


class Model:
    def __init__(self, depth: int) -> None:
        self.depth = depth

    def score(self, params: dict[str, Any]) -> float:
        return float(params["x"]) * self.depth


class Base:
    @staticmethod
    def fixed(x: float) -> float:
        return helper(x)

    def inherited(self, params: dict[str, Any]) -> float:
        return helper(params["x"])


class Trainer(Base):
    factor = FACTOR

    def __call__(self, params: dict[str, Any]) -> float:
        return helper(params["x"])

    @classmethod
    def of_class(cls, params: dict[str, Any]) -> float:
        return helper(params["x"])

    @property
    def told(self) -> float:
        return helper(1.0)

    @functools.cached_property
    def told_once(self) -> float:
        return helper(1.0)


class Calls:
    """A wrapper that tells what it wraps, as `functools.lru_cache` does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __reduce__(self) -> str:
        return "wrapped"


wrapped = Calls(uses_helper)
cached = functools.lru_cache(uses_helper)


def closing_over(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda params: (params, value)


def test_functions_in_memory_differ_by_what_they_close_over() -> None:
    values = [
        1,
        2,
        1.0,
        "1",
        [1],
        (1,),
        {"a": 1},
        {"a": 2},
        {1, 2},
        None,
        np.arange(3),
        np.arange(1, 4),
        Model(1),
        Model(2),
        Model(2).score,
        helper,
        functools.partial(helper, 1),
        functools.partial(helper, 2),
        int,
        np,
    ]
    digests = [function_digest(closing_over(value)) for value in values]
    assert len(set(digests)) == len(values)
    assert digests == [function_digest(closing_over(value)) for value in values]


class Slotted:
    __slots__ = ("__depth",)

    def __init__(self, depth: int) -> None:
        self.__depth = depth

    def score(self, params: dict[str, Any]) -> float:
        return float(params["x"]) * self.__depth


class Kept(dict[str, int]):
    def score(self, params: dict[str, Any]) -> float:
        return float(params["x"]) * self["depth"]


@pytest.mark.parametrize(
    "make", [Model, Slotted, lambda depth: Kept(depth=depth)], ids=["attributes", "slots", "items"]
)
def test_methods_differ_by_what_their_objects_hold(make: Callable[[int], Any]) -> None:
    digests = [function_digest(make(depth).score) for depth in (1, 2, 2)]
    assert digests[0] != digests[1] == digests[2]


def uses_settings(params: dict[str, Any]) -> float:
    made = settings_f  # type: ignore[name-defined]  # noqa: F821  # made below
    return float(params["x"]) * made.LIMITS["bonus"] * made.STEPS[0] * made.Settings.bonus


@pytest.mark.parametrize("changed", ["LIMITS['bonus'] = 2", "STEPS.append(2)", "Settings.bonus = 2", "Settings = int"])
def test_settings_of_any_kind_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    source = "LIMITS, STEPS = {'bonus': 1}, [1]\nclass Settings:\n    bonus = 1\ndef unused():\n    pass\n"
    write(tmp_path, settings_f=source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "settings_f", raising=False)
    settings = importlib.import_module("settings_f")
    monkeypatch.setitem(globals(), "settings_f", settings)
    before = function_digest(uses_settings)
    assert function_digest(uses_settings) == before
    exec(changed, vars(settings))
    assert function_digest(uses_settings) != before
    monkeypatch.delitem(sys.modules, "settings_f")


def test_what_makes_a_class_counts() -> None:
    def doubling(factor: int) -> type:
        class Meta(type):
            def __call__(cls, value: float) -> float:
                return factor * value

        class Doubled(metaclass=Meta):
            pass

        return Doubled

    def objective_of(kind: type) -> Callable[[dict[str, Any]], Any]:
        return lambda params: kind(params["x"])  # type: ignore[call-arg]

    digests = [function_digest(objective_of(doubling(factor))) for factor in (2, 2, 3)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def uses_a_setting(params: dict[str, Any]) -> float:
    return float(params["x"]) * settings_d.SCALE  # type: ignore[name-defined,no-any-return]  # noqa: F821  # made below


def test_settings_of_modules_that_are_changed_after_their_import_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, settings_d="SCALE, OTHER = 1.0, 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = importlib.import_module("settings_d")
    monkeypatch.setitem(globals(), "settings_d", settings)
    found = [function_digest(uses_a_setting)]
    for name in ("OTHER", "SCALE"):
        monkeypatch.setattr(settings, name, 50.0)
        found.append(function_digest(uses_a_setting))
    assert found[0] == found[1] != found[2]
    monkeypatch.delitem(sys.modules, "settings_d")


def uses_a_function(params: dict[str, Any]) -> float:
    return float(settings_of_functions.scale(params["x"]))  # type: ignore[name-defined]  # noqa: F821  # made below


def test_constants_count_that_functions_of_other_modules_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "SCALE, OTHER, CALLS, LOADED = 1.0, 1.0, [], None\n"
        "def factor():\n    return SCALE\n"
        "def scale(x):\n    CALLS.append(x)\n    return again(x) * factor() if x < 0 else x\n"
        "def again(x):\n    global LOADED\n    LOADED = LOADED or 3.0\n    return scale(x + LOADED)\n"
    )
    write(tmp_path, settings_of_functions=code)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = importlib.import_module("settings_of_functions")
    monkeypatch.setitem(globals(), "settings_of_functions", settings)
    before = function_digest(uses_a_function)
    uses_a_function({"x": -1.0})
    monkeypatch.setattr(settings, "OTHER", 50.0)
    assert function_digest(uses_a_function) == before, "what it remembers is no setting"
    assert used_settings(uses_a_function) == {"settings_of_functions": {"SCALE": 1.0}}
    monkeypatch.setattr(settings, "SCALE", 50.0)
    assert function_digest(uses_a_function) != before
    monkeypatch.delitem(sys.modules, "settings_of_functions")


def test_lambdas_of_one_line_differ() -> None:
    one, two = (lambda params: 1), (lambda params: 2)
    assert function_digest(one) != function_digest(two)


def test_what_a_function_uses_of_its_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    constant, through = function_digest(uses_constant), function_digest(uses_helper)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert function_digest(uses_constant) != constant
    assert function_digest(uses_helper) == through
    monkeypatch.setitem(globals(), "helper", lambda x: x * 2.5)
    assert function_digest(uses_helper) != through


AT_ONE_REMOVE = {
    "an instance": Trainer(),
    "an inherited method": Trainer().inherited,
    "a class method": Trainer.of_class,
    "a class": closing_over(Trainer),
    "its static method": closing_over(vars(Base)["fixed"]),
    "its property": closing_over(vars(Trainer)["told"]),
    "its cached property": closing_over(vars(Trainer)["told_once"]),
    "an item of a set": closing_over({uses_helper}),
    "an object's inside": closing_over(np.array([uses_helper], dtype=object)),
    "a cached function": closing_over(cached),
    "a wrapper": wrapped,
}


@pytest.mark.parametrize("function", AT_ONE_REMOVE.values(), ids=AT_ONE_REMOVE)
def test_what_is_used_at_one_remove_counts(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = function_digest(function)
    monkeypatch.setitem(globals(), "helper", lambda x: x * 2.5)
    assert function_digest(function) != before


def test_what_a_class_was_made_with_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = function_digest(closing_over(Trainer))
    monkeypatch.setattr(Trainer, "factor", 3)
    assert function_digest(closing_over(Trainer)) != before


def test_functions_may_use_each_other_in_a_chain_longer_than_the_stack_is_deep() -> None:
    def chain(last: int) -> Callable[..., Any]:
        links: list[Callable[..., Any]] = [closing_over(last)]
        for _ in range(sys.getrecursionlimit() // 2):
            links.append(closing_over(links[-1]))
        return links[-1]

    assert function_digest(chain(1)) != function_digest(chain(2))


def test_values_that_can_not_be_pickled_and_cycles_do_no_harm() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert function_digest(closing_over([threading.Lock(), cycle])) == function_digest(
        closing_over([threading.Lock(), cycle])
    )


def test_which_of_the_values_that_were_met_before_is_used_counts() -> None:
    """A table of metrics, and the one of them that was chosen."""
    for chosen in ([helper, uses_helper], [Model(1), Model(2)], [[1], [2]]):
        first, second = (function_digest(closing_over((chosen, one))) for one in chosen)
        assert first != second


def imports_where_used(params: dict[str, Any]) -> float:
    from lazy_d.part import score  # type: ignore[import-not-found]  # made below

    return float(score(params))


def gives_one_that_imports() -> Callable[..., Any]:
    def scores(params: dict[str, Any]) -> float:
        import lazy_d.part

        return float(lazy_d.part.score(params))

    return scores


def has_many_names() -> Callable[..., Any]:
    """More than an instruction's operand has room for."""
    names = "".join(f"    params.name{number}\n" for number in range(300))
    made: dict[str, Any] = {"__name__": __name__}
    exec(f"def function(params):\n{names}    from lazy_d.part import score\n", made)  # no source to look at
    return made["function"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "function", [imports_where_used, gives_one_that_imports(), gives_one_that_imports, has_many_names()]
)
def test_what_a_function_imports_when_it_is_called_counts(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, deep_d="x = 1\n")
    write(tmp_path / "lazy_d", __init__="", part="from deep_d import x\ndef score(params): return x\n", unused="")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [function_digest(function)]
    for changed in ("lazy_d/unused", "lazy_d/__init__", "lazy_d/part", "deep_d"):
        with (tmp_path / f"{changed}.py").open("a") as file:
            file.write("changed = True\n")
        found.append(function_digest(function))
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert "lazy_d" not in sys.modules, "nothing is run"


def uses_a_submodule(params: dict[str, Any]) -> float:
    return float(within_d.sub.score(params))  # type: ignore[name-defined]  # noqa: F821  # made below


def test_a_module_within_a_package_counts_where_the_package_alone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`import package.module` gives a function the package."""
    write(tmp_path / "within_d", __init__="", sub="def score(params): return 1\n", unused="")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(globals(), "within_d", importlib.import_module("within_d"))
    found = [function_digest(uses_a_submodule)]
    importlib.import_module("within_d.sub")
    found.append(function_digest(uses_a_submodule))
    write(tmp_path / "within_d", unused="x = 2\n")
    found.append(function_digest(uses_a_submodule))
    assert len(set(found)) == 1, "what is loaded meanwhile, or not used, changes nothing"
    write(tmp_path / "within_d", sub="def score(params): return 2\n")
    assert function_digest(uses_a_submodule) != found[0]
    for name in ("within_d.sub", "within_d"):
        monkeypatch.delitem(sys.modules, name)


def test_builtins_and_partial_calls_have_digests() -> None:
    assert function_digest(len) != function_digest(max)
    assert function_digest(functools.partial(helper, 1)) != function_digest(functools.partial(uses_helper, 1))


def test_another_process_finds_the_same_digest(tmp_path: Path) -> None:
    """Sets have another order there, as hashes of strings are seeded per process, and pickles name classes at random."""
    program = """
import sys
sys.path[:0] = %r
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from trialfleet_workers.function_digests import function_digest

class Color(Enum):
    RED = 1

@dataclass
class Config:
    scale: float = 2.0
    names: set = field(default_factory=lambda: {"alpha", "beta", "gamma", "delta"})
    color: Color = Color.RED

class Scale:
    def fit(self, X, y=None): return self

class Slots:
    __slots__ = ("value",)
    def __init__(self): self.value = frozenset(["alpha", "beta", "gamma", "delta"])

names = {("alpha", frozenset(["beta", "gamma", "delta"])), len, Config, lambda: 1}
values = [Color.RED, Config(), SimpleNamespace(step=Scale()), Slots()]
def f(params): return params["x"] in {"one", "two", "three", "four"}, names, values
print(function_digest(f))
"""
    file = tmp_path / "program.py"
    file.write_text(program % (sys.path,))
    told = {subprocess.check_output([sys.executable, str(file)], env={"PYTHONHASHSEED": seed}) for seed in "123"}
    assert len(told) == 1


class Locked:
    """Can not be pickled, and neither can what holds it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.lock = threading.Lock()

    def __call__(self, params: dict[str, Any]) -> float:
        return self.scale


class Holder:
    def __init__(self, scale: float) -> None:
        self.inner = Locked(scale)


class Settings(dict[str, float]):
    """A mapping with more to it."""


def settings(scale: float) -> Settings:
    made = Settings(x=1.0)
    made.scale = scale  # type: ignore[attr-defined]
    return made


def with_attribute(scale: float) -> Callable[..., Any]:
    def score(params: dict[str, Any]) -> float:
        return float(score.scale)  # type: ignore[attr-defined]

    score.scale = scale  # type: ignore[attr-defined]
    return score


@pytest.mark.parametrize(
    "make",
    [
        Locked,
        with_attribute,
        lambda scale: closing_over(Locked(scale)),
        lambda scale: closing_over(Holder(scale)),
        lambda scale: closing_over(settings(scale)),
        lambda scale: closing_over(defaultdict(lambda: scale, x=1.0)),
    ],
    ids=["object with a lock", "attribute", "lock", "lock within", "mapping of a class of its own", "default"],
)
def test_settings_are_found_wherever_they_are_kept(make: Callable[[float], Any]) -> None:
    assert function_digest(make(1.0)) == function_digest(make(1.0))
    assert function_digest(make(1.0)) != function_digest(make(2.0))


_LOADED: list[int] | None = None


def loads_once(params: dict[str, Any]) -> int:
    global _LOADED  # noqa: PLW0603  # as people do
    if _LOADED is None:
        _LOADED = [1, 2, 3]
    return len(_LOADED)


def test_what_a_function_keeps_in_a_global_is_no_setting_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "_LOADED", None)
    before = function_digest(loads_once)
    loads_once({})
    assert function_digest(loads_once) == before
