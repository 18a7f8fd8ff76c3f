"""Search spaces: what can be drawn, and what can not be written."""

import math
import random
import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from trialfleet.study_file import read_space
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.fingerprint import canonical_params, digest_bytes, result_key
from trialfleet_shared.messages import Resampling
from trialfleet_shared.space import (
    Categorical,
    Distribution,
    Float,
    FunctionSpace,
    Int,
    Scalar,
    SearchSpace,
    SpaceTrial,
    Suggest,
)


def first_value(_name: str, distribution: Distribution) -> Scalar:
    return distribution.choices[0] if isinstance(distribution, Categorical) else distribution.min


def test_the_guides_step_does_not_divide_its_range_and_ends_below_it() -> None:
    distribution = Float(0.5, 0.95, step=0.02)
    assert distribution.cardinality() == 23
    assert distribution.high == 0.94
    assert [distribution.at(index) for index in (0, 4, 22)] == [0.5, 0.58, 0.94]


def test_no_grid_point_lies_beyond_the_range_where_its_ends_nearly_cancel() -> None:
    distribution = Float(-131074.0, -1.00001, step=131072.99999)
    assert distribution.contains(distribution.at(0))
    assert distribution.contains(distribution.at(1))


def test_a_step_that_divides_reaches_the_end_in_spite_of_rounding() -> None:
    assert Float(0.0, 1.0, step=0.1).high == 1.0
    assert Float(0.0, 1.0, step=0.1).cardinality() == 11


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ({"type": "float", "min": 1, "max": 0}, r"min = 1.0 is above max = 0.0"),
        ({"type": "float", "min": 0, "max": 1, "step": 2}, r"step = 2.0 is wider than the range"),
        ({"type": "float", "min": 0, "max": 1, "step": 0}, r"step = 0.0 must be positive"),
        ({"type": "float", "min": 0, "max": 1, "log": True}, r"log needs min > 0"),
        ({"type": "float", "min": 1, "max": 2, "log": True, "step": 0.1}, r"exclude each other"),
        ({"type": "int", "min": 3, "max": 1}, r"min = 3 is above max = 1"),
        ({"type": "int", "min": 0, "max": 9, "log": True}, r"log needs min >= 1"),
        ({"type": "int", "min": 1, "max": 9, "log": True, "step": 2}, r"exclude each other"),
        (
            {"type": "int", "min": 0, "max": 2**53 + 1},
            r"max = 9007199254740993; allowed are whole numbers from -2\*\*53 to 2\*\*53",
        ),
        ({"type": "int", "min": -(2**63), "max": 0}, r"min = -9223372036854775808; allowed are"),
        ({"type": "categorical", "choices": []}, r"choices must not be empty"),
        ({"type": "categorical", "choices": ["a", "a"]}, r"'a' stands twice"),
        ({"type": "floot", "min": 0, "max": 1}, r"Invalid value 'floot'"),
        ({"type": "float", "min": 0, "max": 1, "low": 0}, r"unknown field `low`"),
    ],
)
def test_a_distribution_that_makes_no_sense_says_why(mapping: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(mapping, Distribution)


def test_a_choice_is_unicode() -> None:
    with pytest.raises(ValueError, match=r"the choice 'a\\udcff' is not Unicode"):
        Categorical(["a\udcff", "b"])


def test_true_is_not_one() -> None:
    assert Categorical([True, 1]).index(1) == 1
    assert not Categorical([1]).contains(True)
    assert not Int(0, 1).contains(True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5, 10**400])
def test_what_is_no_whole_number_or_larger_than_any_float_is_in_no_range_of_them(value: float) -> None:
    assert not Int(0, 1).contains(value)


def test_conditional_parameters_are_drawn_only_while_their_parents_say_so() -> None:
    space = SearchSpace(
        {
            "kernel": Categorical(["rbf", "linear"]),
            "gamma": Float(0.1, 1.0, when={"kernel": ["rbf"]}),
            "twice": Int(1, 2, when={"gamma": [0.1]}),
        }
    )
    assert space.draw(first_value) == {"kernel": "rbf", "gamma": 0.1, "twice": 1}
    linear: Suggest = lambda name, d: "linear" if name == "kernel" else first_value(name, d)  # noqa: E731
    assert space.draw(linear) == {"kernel": "linear"}


def test_conditions_must_name_parameters_above_and_values_they_have() -> None:
    with pytest.raises(ConfigurationError, match=r"space.a.when names 'b'; allowed are the parameters above it: none"):
        SearchSpace({"a": Float(0, 1, when={"b": [1]}), "b": Int(0, 1)})
    with pytest.raises(ConfigurationError, match=r"space.b.when.a lists 7, which 'a' never has"):
        SearchSpace({"a": Int(0, 1), "b": Float(0, 1, when={"a": [7]})})
    with pytest.raises(ConfigurationError, match=r"space.b.when.a lists no value: 'b' would never be there"):
        SearchSpace({"a": Int(0, 1), "b": Float(0, 1, when={"a": []})})


def test_cardinality_counts_points() -> None:
    assert SearchSpace({"a": Int(1, 10, step=3), "b": Categorical(["x", "y"])}).cardinality() == 8
    assert SearchSpace({"a": Float(0, 1)}).cardinality() is None


def test_a_function_space_draws_what_its_branches_suggest() -> None:
    def space(trial: SpaceTrial) -> None:
        if trial.suggest_categorical("kernel", ["linear", "rbf"]) == "rbf":
            trial.suggest_float("gamma", 1e-3, 1.0, log=True)
        trial.suggest_int("depth", 1, 9)

    generator = random.Random(0)
    pick: Suggest = lambda _n, d: generator.choice(d.choices) if isinstance(d, Categorical) else d.min  # noqa: E731
    drawn = [FunctionSpace(space, digest="d").draw(pick) for _ in range(20)]
    assert {tuple(params) for params in drawn} == {("kernel", "depth"), ("kernel", "gamma", "depth")}


@pytest.mark.parametrize("choices", [[1, 2], [1.0, 2.0], [True, 2], ["1", "2"]])
def test_a_space_function_has_the_choices_that_it_names_whatever_equal_ones_others_do(choices: list[Any]) -> None:
    for first in ([1, 2], choices):
        space = FunctionSpace(lambda trial, first=first: trial.suggest_categorical("c", iter(first)), digest="")
        (drawn,) = space.draw(lambda _, distribution: distribution.choices[0]).values()  # type: ignore[union-attr]
        assert type(drawn) is type(first[0])


def test_a_space_function_may_choose_among_scalars_only() -> None:
    space = FunctionSpace(lambda trial: trial.suggest_categorical("c", [["a"], ["b"]]), digest="")
    with pytest.raises(ConfigurationError, match="allowed are texts, numbers, booleans and None"):
        space.draw(lambda _, distribution: distribution.choices[0])  # type: ignore[union-attr]


def lookup(trial: SpaceTrial) -> None:
    trial.suggest_float("x", 0, 1)
    {}["oops"]


def inverted(trial: SpaceTrial) -> None:
    trial.suggest_float("x", 1, 0)


def of_another_version(trial: Any) -> None:
    trial.suggest_uniform("x", 0, 1)


def positional(trial: Any) -> None:
    trial.suggest_int("x", 0, 10, 1)


def ending(trial: Any) -> None:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lookup, "KeyError: 'oops'"),
        (inverted, "ValueError: min = 1.0 is above max = 0.0; min <= max is needed"),
        (of_another_version, "AttributeError: 'SpaceTrial' object has no attribute 'suggest_uniform'"),
        (ending, "SystemExit: 0"),
        (positional, "TypeError: SpaceTrial.suggest_int() takes 4 positional arguments but 5 were given"),
    ],
)
def test_what_a_space_function_raises_is_told_with_its_place(function: Any, words: str) -> None:
    space = FunctionSpace(function, digest="", name="study.space")
    line = function.__code__.co_firstlineno + (2 if function is lookup else 1)
    with pytest.raises(ConfigurationError) as caught:
        space.check()
    assert str(caught.value) == f"study.space raised {words}, in {__file__}, line {line}"


def test_what_a_sampler_raises_is_no_error_of_the_space_function() -> None:
    def suggest(_name: str, _distribution: Distribution) -> Scalar:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FunctionSpace(lookup, digest="").draw(suggest)


def test_digests_do_not_depend_on_the_order_of_keys_nor_on_how_a_number_is_written() -> None:
    assert canonical_params({"b": 1.0, "a": -0.0}) == canonical_params({"a": 0, "b": 1})
    assert canonical_params({"a": True}) != canonical_params({"a": 1})
    assert digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc")


def test_every_part_of_a_result_key_counts() -> None:
    base: dict[str, Any] = {
        "objective": "o",
        "data": "d",
        "fraction": 0.5,
        "fold": 0,
        "seed": 0,
        "params": {"x": 1.5},
    }
    changes: list[dict[str, Any]] = [
        {"objective": "p"},
        {"data": "e"},
        {"fraction": 1.0},
        {"fold": 1},
        {"seed": 1},
        {"params": {"x": 2.5}},
    ]
    keys = {result_key(**base), *(result_key(**(base | change)) for change in changes)}
    assert len(keys) == 1 + len(changes)


def test_a_result_is_of_params_of_its_types() -> None:
    """One feature per split is not all of them: scikit-learn takes max_features = 1 and 1.0 for that."""
    base: dict[str, Any] = {"objective": "o", "data": "d", "fraction": 0.5, "fold": 0, "seed": 0}
    keys = {result_key(**base, params={"x": value}) for value in (1, 1.0, True, "1", 0, 0.0, False, None)}
    assert len(keys) == 8
    assert result_key(**base, params={"a": 1, "b": 2.0}) == result_key(**base, params={"b": 2.0, "a": 1})


def test_real_numbers_are_real_numbers_however_their_range_is_written() -> None:
    for written in (Float(0, 8, step=4), Float(np.float64(0), np.float64(8), step=np.float64(4))):
        assert [type(number) for number in (written.min, written.max, written.step)] == [float, float, float]
        assert written == Float(0.0, 8.0, step=4.0)
        assert written.at(1) == 4.0


@pytest.mark.parametrize(
    ("grid", "points"),
    [
        (Float(1e12, 1e12 + 100, step=0.5), 201),
        (Float(1.7e15, 1.7e15 + 1000, step=10), 101),
        (Float(-1e9, -1e9 + 1, step=1e-3), 1001),
        (Float(0.0, 1e-9, step=1e-13), 10_001),
        (Float(1.0, 1.0 + 2**-40, step=2**-50), 1025),
    ],
)
def test_points_of_a_fine_grid_are_different_numbers_and_belong_to_it(grid: Float, points: int) -> None:
    drawn = [grid.at(index) for index in range(points)]
    assert grid.cardinality() == points
    assert drawn == sorted(set(drawn))
    assert drawn[-1] == grid.high == grid.max
    assert all(grid.contains(value) for value in drawn)
    between = (drawn[0] + drawn[1]) / 2
    assert between in drawn or not grid.contains(between)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Float(1e17, 1e17 + 100, step=8.0), "8.0 is too small for the range .*: real numbers of that size"),
        (lambda: Float(0, 10**400), "number out of range"),
        (lambda: Float(-1e308, 1e308), "is wider than any number"),
        (lambda: Float(-1e308, 1e308, step=1.0), "is wider than any number"),
        (lambda: Float(0.0, 1e308, step=1e-300), "is too small for the range"),
        (lambda: Float(0.0, 1.0, step=math.nan), "step = nan must be finite"),
        (lambda: Float(1.0, 1.0, step=math.inf), "step = inf must be finite"),
        (lambda: Float(0.0, 1e17, step=1.0), "is too small for the range"),
        (lambda: Float(0.0, 2.17e-322, step=1e-323), "is too small for the range"),
    ],
)
def test_a_range_whose_values_can_not_be_counted_is_refused(build: Callable[[], Float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("choice", [(50, 50), [50], b"a", {"depth": 1}, {50}, 1j])
def test_a_choice_that_is_no_scalar_is_refused_and_the_way_out_told(choice: Any) -> None:
    words = rf"the choice {re.escape(repr(choice))} is of type {type(choice).__name__}; allowed are texts, .* look up"
    with pytest.raises(ValueError, match=words):
        Categorical(["a", choice])


def test_numbers_of_numpy_become_pythons_own() -> None:
    given: list[Any] = [
        Float(np.float32(0), np.float64(1), step=np.float64(0.25), log=np.bool_(False)),  # type: ignore[arg-type]
        Int(np.int64(0), np.int32(4), step=np.int8(2), when={"k": [np.int64(3)]}),  # type: ignore[arg-type,list-item]
        *(Categorical(list(np.array(each))) for each in ([1, 2], [1.5, 2.5], [True, False], ["a", "b"])),
        Categorical(np.array([1, 2])),  # type: ignore[arg-type]
    ]
    plain: list[Any] = [
        Float(0.0, 1.0, step=0.25),
        Int(0, 4, step=2, when={"k": [3]}),
        *(Categorical(each) for each in ([1, 2], [1.5, 2.5], [True, False], ["a", "b"])),
        Categorical([1, 2]),
    ]
    assert msgspec.json.encode(given) == msgspec.json.encode(plain)
    mapping = {
        "n": {"type": "int", "min": np.int64(1), "max": 3},
        "c": {"type": "categorical", "choices": np.arange(2)},
    }
    assert read_space(mapping, "").parameters == {"n": Int(1, 3), "c": Categorical([0, 1])}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Float(0, "1"), 'max = "1": expected float, got str'),  # type: ignore[arg-type]
        (lambda: Float(1, 2, log=1), "log = 1: expected bool, got int"),  # type: ignore[arg-type]
        (lambda: Int(1, 5.5), "max = 5.5: expected int, got float"),  # type: ignore[arg-type]
        (lambda: Int(1, 5, when={"k": True}), "when = {k = true}: expected array, got bool"),  # type: ignore[dict-item]
        (lambda: Categorical("ab"), 'choices = "ab": expected array, got str'),  # type: ignore[arg-type]
        (lambda: Resampling("kfold", folds=3, test_fraction=1.5), "test_fraction = 1.5: expected float < 1.0"),
        (lambda: Resampling("kfold", folds=101), "folds = 101: expected int <= 100"),
        (lambda: Resampling("nfold", folds=3), 'kind = "nfold": allowed are holdout, kfold'),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_told_where_it_is_given(
    build: Callable[[], object], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(words)}"):
        build()
