"""The store in LMDB and the one in memory take and refuse the same records, and end with the same study."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulated import SimulatedClock
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.memory_store import MemoryStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import (
    Record,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTerms,
    RecordTest,
    RecordTrial,
    TrialState,
)
from trialfleet_coordinator.ports import StudyDefinition, StudyStore
from trialfleet_shared.errors import StoreError
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import ERROR_CHARACTERS, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params

DEFINITION = StudyDefinition("s", "minimize", {}, "m:f", "ab", "", Ladder((Rung(1.0, 1),)), 0)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
NUMBERS = st.integers(0, 5)
VALUES = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    kind = draw(st.sampled_from(["float", "int", "categorical"]))
    if kind == "categorical":
        choices = draw(st.lists(SCALARS, min_size=1, max_size=4, unique_by=lambda each: (isinstance(each, bool), each)))
        return Categorical(choices, when={"p": [draw(SCALARS)]})
    low = draw(st.integers(1, 100))
    high = low + draw(st.integers(0, 100))
    log = draw(st.booleans())
    return Float(low / 4, high / 4, None, log) if kind == "float" else Int(low, high, 1, log)


@st.composite
def trials(draw: st.DrawFn, numbers: st.SearchStrategy[int] = NUMBERS) -> RecordTrial:
    space = draw(st.dictionaries(st.text(), distributions(), min_size=1, max_size=4))
    params: Params = {}
    for name, distribution in space.items():
        match distribution:
            case Categorical(choices=choices):
                params[name] = draw(st.sampled_from(choices))
            case Float(min=low, max=high):
                params[name] = draw(st.floats(low, high))
            case Int(min=least, max=most):
                params[name] = draw(st.integers(least, most))
    return RecordTrial(draw(numbers), params, space)


def result(outcome: Outcome, value: float | None, **others: Any) -> EvaluationResult:
    """One that may be: an outcome that is OK has a value."""
    return EvaluationResult(outcome=outcome, value=0.0 if outcome is Outcome.OK and value is None else value, **others)


RESULTS = st.builds(
    result,
    trial=NUMBERS,
    rung=st.integers(0, 3),
    fold=st.integers(-1, 3),
    attempt=st.integers(0, 2),
    outcome=st.sampled_from(Outcome),
    value=st.none() | VALUES,
    metrics=st.dictionaries(st.text(), VALUES, max_size=2),
    error=st.none() | st.text(max_size=ERROR_CHARACTERS),
    wall_seconds=st.floats(0, 1e6),
    cpu_seconds=st.floats(0, 1e6),
    cached=st.booleans(),
    worker=st.text(max_size=200),
)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    trials(),
    st.builds(RecordEvaluation, RESULTS),
    st.builds(RecordRung, NUMBERS, st.integers(0, 3), VALUES),
    st.builds(RecordDecision, NUMBERS, st.sampled_from(TrialState), st.none() | VALUES, st.text()),
    st.builds(RecordTest, NUMBERS, VALUES),
    st.builds(RecordTerms, st.just(EfficiencyConfig()), st.builds(Budget, trials=NUMBERS, target=st.none() | VALUES)),
)


def outcome(store: StudyStore, records: list[Record], elapsed: float) -> bool:
    """Whether the store took the commit."""
    try:
        store.commit(records, elapsed=elapsed)
    except StoreError:
        return False
    return True


@given(
    first=trials(st.just(0)),
    commits=st.lists(st.tuples(st.lists(RECORDS, max_size=4), st.floats(0, 1e6)), max_size=10),
)
@settings(deadline=None, max_examples=60)
def test_both_take_the_same_records(first: RecordTrial, commits: list[tuple[list[Record], float]]) -> None:
    with TemporaryDirectory() as folder:
        disk, memory = LmdbStudyStore(Path(folder), clock=SimulatedClock()), MemoryStudyStore()
        assert disk.open(DEFINITION) == memory.open(DEFINITION)
        for records, elapsed in [([first], 0.0), *commits]:
            assert outcome(disk, records, elapsed) == outcome(memory, records, elapsed)
            assert disk.load("s") == memory.load("s")
        disk.close()
