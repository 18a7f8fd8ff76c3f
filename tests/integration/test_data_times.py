"""Texts in a time column: those that sort in time order the rows, all others are told."""

import numpy as np
import pandas as pd
import pytest

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec
from trialfleet_workers.adapters.lmdb_data import DataCache


def in_time(column: str) -> DataSpec:
    return DataSpec(source="memory:table", target="y", time_column=column, order="temporal")


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%Y%m%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S.%f", "%Y-W%W-%w", "%Y-%m", "%H:%M:%S"]
)
def test_texts_that_sort_in_time_order_the_rows(form: str, cache: DataCache) -> None:
    times = pd.date_range("2022-01-03 00:00:30", periods=40, freq="10h" if "d" in form else "35D")
    if form == "%H:%M:%S":
        times = pd.date_range("2022-01-03 00:00:30", periods=40, freq="25min")
    frame = pd.DataFrame({"when": [time.strftime(form) for time in times], "y": np.arange(40.0)})
    shuffled = frame.sample(frac=1.0, random_state=0)
    info = cache.import_object(shuffled, in_time("when"))
    data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    assert data.y.max() < data.y_valid.min()


@pytest.mark.parametrize(
    "form",
    [
        *("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d%m%Y", "%Y-%-m-%-d", "%Y-%m-%d %-H:%M", "%b %Y", "%d:%m:%Y"),
        "%Y-%m-%d %I:%M %p",
    ],
)
def test_texts_that_do_not_sort_in_time_are_told(form: str, cache: DataCache) -> None:
    days = pd.date_range("2022-09-28 09:00", periods=40)
    frame = pd.DataFrame({"day": days.strftime(form), "y": np.arange(40.0)})
    with pytest.raises(DataError) as caught:
        cache.import_object(frame, in_time("day"))
    assert f"data.time_column = 'day' has the text {days[0].strftime(form)!r}" in str(caught.value)
    assert "allowed are points in time, numbers, and texts as of ISO 8601" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"),
        ("%Y-%m-%d %H:%M+01:00", "%Y-%m-%d %H:%M+02:00"),
        ("%Y-%m-%d", "%Y%m%d"),
        ("%Y-%m", "%Y-Q1"),
        ("%H:%M", "%Y"),
        ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"),
        ("%Y-%m-%d %H:%M:%S.5Z", "%Y-%m-%d %H:%M:%S.55Z"),
        ("%Y-%m-%d", "%Y-%m-%d %H:%MZ"),
    ],
)
def test_texts_of_two_forms_that_do_not_sort_in_time_together_are_told(one: str, other: str, cache: DataCache) -> None:
    times = pd.date_range("2022-09-28 09:00", periods=40)
    texts = [time.strftime(other if number % 3 else one) for number, time in enumerate(times)]
    frame = pd.DataFrame({"day": texts, "y": np.arange(40.0)})
    with pytest.raises(
        DataError, match=r"data.time_column = 'day' has texts like '.+' and like '.+', which do not sort"
    ):
        cache.import_object(frame, in_time("day"))


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("%Y-%m-%d", "%Y-%m-%d %H:%M"),
        ("%Y-%m-%dT%H:%M:%S+01:00", "%Y-%m-%dT%H:%M:%S.%f+01:00"),
        ("%Y-%m-%d %H:%M:%S-08:00", "%Y-%m-%d %H:%M:%S.5-08:00"),
        ("%Y-%m-%d %H:%M UTC", "%Y-%m-%d %H:%M:%S UTC"),
    ],
)
def test_texts_that_say_less_sort_together_with_those_that_say_more(less: str, more: str, cache: DataCache) -> None:
    times = pd.date_range("2022-09-28", periods=40, freq="12h")
    texts = [time.strftime(less if time.hour == 0 else more) for time in times]
    frame = pd.DataFrame({"day": texts, "y": np.arange(40.0)}).sample(frac=1.0, random_state=0)
    info = cache.import_object(frame, in_time("day"))
    data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    assert data.y.max() < data.y_valid.min()
