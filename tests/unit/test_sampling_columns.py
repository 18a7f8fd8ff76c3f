"""Values of trials as columns: gathered as the distribution at hand sees them."""

import numpy as np
import pytest

from trialfleet_coordinator.sampling.columns import Columns
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Scalar


def gathered(values: list[Scalar], drawn_from: Distribution, seen_as: Distribution) -> list[float | None]:
    columns = Columns()
    rows = [columns.append({"x": value}, {"x": drawn_from}) for value in values]
    return [None if np.isnan(one) else float(one) for one in columns.gather({"x": seen_as}, np.array(rows))[:, 0]]


def test_numbers_are_as_they_were_whatever_the_range_is_now() -> None:
    assert gathered([0.5, 3, 10.0], Float(0, 10), Float(1, 10)) == [0.5, 3, 10]
    assert gathered([1, 7, 9], Int(1, 9), Int(1, 8)) == [1, 7, 9]


def test_a_choice_that_is_not_offered_is_left_out() -> None:
    assert gathered(["a", "b"], Categorical(["a", "b"]), Categorical(["b", "c"])) == [None, 0]


def test_choices_are_positions_and_true_is_not_one() -> None:
    drawn_from = Categorical(["a", 1, True, None])
    assert gathered(["a", 1, True, None], drawn_from, Categorical([True, None, "a"])) == [2, None, 0, 1]


def test_a_trial_without_the_parameter_has_nan_also_beyond_the_columns_end() -> None:
    columns = Columns()
    columns.append({"x": 1.0}, {"x": Float(0, 9)})
    for number in range(500):
        columns.append({"y": number}, {"y": Int(0, 999)})
    columns.append({"x": 2.0}, {"x": Float(0, 9)})
    assert len(columns) == 502
    assert columns.gather({"x": Float(0, 9)}, np.array([0, 1, 501]))[:, 0] == pytest.approx(
        [1.0, np.nan, 2.0], nan_ok=True
    )
    assert columns.gather({"y": Int(0, 999)}, np.array([500, 501, 0]))[:, 0] == pytest.approx(
        [499, np.nan, np.nan], nan_ok=True
    )
    assert np.isnan(columns.gather({"z": Float(0, 1)}, np.array([0, 1]))[:, 0]).all()


def test_one_name_may_be_a_number_here_and_a_choice_there() -> None:
    columns = Columns()
    columns.append({"x": 1}, {"x": Int(0, 9)})
    columns.append({"x": "one"}, {"x": Categorical(["one"])})
    rows = np.array([0, 1])
    assert columns.gather({"x": Int(0, 9)}, rows)[:, 0] == pytest.approx([1, np.nan], nan_ok=True)
    assert columns.gather({"x": Categorical(["one"])}, rows)[:, 0] == pytest.approx([np.nan, 0], nan_ok=True)
