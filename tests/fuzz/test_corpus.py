"""What fuzzing kept, and what Hypothesis thinks of, fails no target."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from tests.fuzz.targets import TARGETS, read_tables

CORPUS = Path(__file__).parent / "corpus"
#: Bytes that all files of a corpus may have together: it is replayed with every run of the tests.
MOST_BYTES = 200_000

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
distributions = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "int", "categorical", "x"])},
    optional={
        "min": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "max": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "step": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "log": st.booleans(),
        "choices": st.lists(st.integers() | st.text(max_size=3), max_size=4),
    },
)
tables = st.fixed_dictionaries(
    {
        "study": st.fixed_dictionaries(
            {"objective": st.just("objective.py:evaluate"), "trials": st.integers(1, 9)},
            optional={"name": st.text(max_size=9), "seed": st.integers(), "target": st.floats(), "mode": values},
        ),
        "space": st.dictionaries(st.text(min_size=1, max_size=5), distributions, max_size=3),
    },
    optional={"efficiency": st.dictionaries(st.text(max_size=9), values, max_size=2), "data": values},
)


def test_every_corpus_is_there_and_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    for folder in CORPUS.iterdir():
        sizes = [file.stat().st_size for file in folder.iterdir()]
        assert sizes
        assert sum(sizes) <= MOST_BYTES


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_is_survived(name: str) -> None:
    for file in sorted((CORPUS / name).iterdir()):
        TARGETS[name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_survived(name: str, data: bytes) -> None:
    TARGETS[name](data)


@settings(max_examples=150, deadline=None)
@given(submitted=tables)
def test_tables_shaped_like_a_study_are_survived(submitted: dict[str, Any]) -> None:
    read_tables(submitted)
    try:
        body = msgspec.json.encode({"tables": submitted, "base": "/"})
    except (ValueError, OverflowError):
        return  # JSON can not say it
    TARGETS["http"](b"\0" + body)
