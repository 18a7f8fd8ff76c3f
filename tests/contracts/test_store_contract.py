"""What every study store must do; the one in LMDB and the one in memory pass the same suite."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.simulated import SimulatedClock
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.memory_store import MemoryStudies, MemoryStudyStore
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
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord, StudyStore, TrialRecord
from trialfleet_shared.errors import StoreError, StudyChangedError, StudyLockedError
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import TEST_FOLD, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Categorical, Distribution, Float, Int, Params

#: Opens another store on the same studies.
Connect = Callable[[], StudyStore]

DISTRIBUTIONS: dict[str, Distribution] = {
    "rate": Float(1e-4, 1.0, log=True),
    "depth": Int(1, 9, 2),
    "kind": Categorical(["tree", None, True, 1, 0.5]),
    "share": Float(0.0, 1.0, 0.3, when={"kind": ["tree"]}),
}
PARAMS: Params = {"rate": 0.017, "depth": 7, "kind": 1, "share": 0.3}


def definition(name: str = "digits", *, seed: int = 0, direction: str = "maximize") -> StudyDefinition:
    return StudyDefinition(
        name=name,
        direction=direction,
        space={"rate": {"type": "float", "min": 1e-4, "max": 1.0, "log": True}},
        objective="train.py:evaluate",
        objective_digest="ab12",
        data_digest="cd34",
        ladder=Ladder((Rung(0.1, 1), Rung(1.0, 1), Rung(1.0, 3))),
        seed=seed,
    )


def result(trial: int, rung: int, fold: int, value: float = 0.5, *, cached: bool = False) -> EvaluationResult:
    return EvaluationResult(
        trial=trial,
        rung=rung,
        fold=fold,
        attempt=0,
        outcome=Outcome.OK,
        value=value,
        metrics={"loss": 0.25},
        wall_seconds=1.5,
        slot=1,
        started_at=1.7e9,
        cpu_seconds=1.25,
        cached=cached,
        worker="" if cached else "host-1",
    )


def trial(number: int) -> RecordTrial:
    return RecordTrial(number, PARAMS, DISTRIBUTIONS)


class StoreContract:
    """Subclasses give the fixture `connect`."""

    @pytest.fixture
    def store(self, connect: Connect) -> StudyStore:
        return connect()

    @pytest.fixture
    def reopened(self, store: StudyStore, connect: Connect) -> Callable[[], StudyRecord]:
        """Ends the session and reads the study in another."""

        def reopen() -> StudyRecord:
            store.close()
            other = connect()
            try:
                return other.open(definition())
            finally:
                other.close()

        return reopen

    def test_a_new_study_is_empty(self, store: StudyStore) -> None:
        assert store.load("digits") is None
        assert store.names() == []
        assert store.open(definition()) == StudyRecord(definition(), [], 0.0, None)
        assert store.load("digits") == StudyRecord(definition(), [], 0.0, None)
        assert store.names() == ["digits"]

    def test_studies_do_not_mix(self, connect: Connect) -> None:
        first, second = connect(), connect()
        first.open(definition("first"))
        second.open(definition("second"))
        first.commit([trial(0), trial(1)], elapsed=1.0)
        second.commit([trial(0)], elapsed=2.0)
        first.commit([RecordEvaluation(result(1, 0, 0))], elapsed=3.0)
        one, two = first.load("first"), first.load("second")
        assert one is not None
        assert two is not None
        assert ([len(each.results) for each in one.trials], one.elapsed) == ([0, 1], 3.0)
        assert ([len(each.results) for each in two.trials], two.elapsed) == ([0], 2.0)
        assert first.names() == ["first", "second"]

    def test_a_study_comes_back_as_it_was_recorded(
        self, store: StudyStore, reopened: Callable[[], StudyRecord]
    ) -> None:
        store.open(definition())
        store.commit([trial(0), trial(1), trial(2), trial(3)], elapsed=1.0)
        store.commit(
            [
                RecordEvaluation(result(0, 0, 0, 0.4)),
                RecordRung(0, 0, 0.4),
                RecordEvaluation(result(1, 0, 0, 0.1)),
                RecordRung(1, 0, 0.1),
                RecordDecision(1, TrialState.PRUNED, 0.1, "threshold"),
                RecordDecision(2, TrialState.FAIL, 0.3, "error: no memory"),
            ],
            elapsed=2.5,
        )
        store.commit(
            [
                RecordEvaluation(result(0, 1, 0, 0.6)),
                RecordRung(0, 1, 0.6),
                RecordDecision(0, TrialState.COMPLETE, 0.6, "complete"),
            ],
            elapsed=3.5,
        )
        # The best trial's test evaluation comes when it is decided already.
        store.commit([RecordEvaluation(result(0, 2, TEST_FOLD, 0.55)), RecordTest(0, 0.55)], elapsed=4.5)
        results = [result(0, 0, 0, 0.4), result(0, 1, 0, 0.6), result(0, 2, TEST_FOLD, 0.55)]
        assert reopened() == StudyRecord(
            definition(),
            [
                TrialRecord(0, PARAMS, DISTRIBUTIONS, TrialState.COMPLETE, 0.6, "complete", results),
                TrialRecord(1, PARAMS, DISTRIBUTIONS, TrialState.PRUNED, 0.1, "threshold", [result(1, 0, 0, 0.1)]),
                TrialRecord(2, PARAMS, DISTRIBUTIONS, TrialState.FAIL, None, "error: no memory", []),
                TrialRecord(3, PARAMS, DISTRIBUTIONS, TrialState.RUNNING, None, "", []),
            ],
            4.5,
            (0, 0.55),
        )

    def test_the_terms_of_the_last_session_are_kept(
        self, store: StudyStore, reopened: Callable[[], StudyRecord]
    ) -> None:
        ladder = (Rung(0.25, 1), Rung(1.0, 3))
        first = RecordTerms(EfficiencyConfig(ladder=ladder, max_workers=3), Budget(seconds=60))
        last = RecordTerms(EfficiencyConfig.fast(), Budget(trials=100, patience=7, target=0.9))
        store.open(definition())
        for terms in (first, last):
            store.commit([terms], elapsed=1.0)
            record = store.load("digits")
            assert record is not None
            assert record.terms == terms
        assert reopened().terms == last

    def test_params_keep_their_types(self, store: StudyStore, reopened: Callable[[], StudyRecord]) -> None:
        store.open(definition())
        store.commit(
            [RecordTrial(n, {**PARAMS, "kind": kind}, DISTRIBUTIONS) for n, kind in enumerate([True, 1, None])],
            elapsed=1.0,
        )
        assert [repr(each.params["kind"]) for each in reopened().trials] == ["True", "1", "None"]

    def test_results_come_back_in_the_order_they_came_in(
        self, store: StudyStore, reopened: Callable[[], StudyRecord]
    ) -> None:
        store.open(definition())
        store.commit([trial(0), RecordEvaluation(result(0, 2, 2))], elapsed=1.0)
        store.commit([RecordEvaluation(result(0, 2, 1)), RecordEvaluation(result(0, 0, 0))], elapsed=2.0)
        assert [each.key for each in reopened().trials[0].results] == [(0, 2, 2), (0, 2, 1), (0, 0, 0)]

    def test_a_second_copy_of_a_result_changes_nothing(
        self, store: StudyStore, reopened: Callable[[], StudyRecord]
    ) -> None:
        store.open(definition())
        store.commit([trial(0), RecordEvaluation(result(0, 0, 0, 0.4))], elapsed=1.0)
        store.commit([RecordEvaluation(result(0, 0, 0, 0.9)), RecordEvaluation(result(0, 0, 0, 0.8))], elapsed=2.0)
        assert reopened().trials[0].results == [result(0, 0, 0, 0.4)]

    @pytest.mark.parametrize(
        "illegal",
        [
            pytest.param(trial(2), id="a trial out of turn"),
            pytest.param(trial(0), id="a trial twice"),
            pytest.param(RecordTrial(1, {"depth": 3}, DISTRIBUTIONS), id="params without distributions"),
            pytest.param(RecordEvaluation(result(7, 0, 0)), id="a result of no trial"),
            pytest.param(RecordRung(7, 0, 0.5), id="a rung of no trial"),
            pytest.param(RecordTest(7, 0.5), id="a test of no trial"),
            pytest.param(RecordDecision(0, TrialState.RUNNING, 0.5, ""), id="a decision that is none"),
            pytest.param(RecordDecision(0, TrialState.COMPLETE, None, "complete"), id="complete without a value"),
        ],
    )
    def test_an_illegal_record_leaves_nothing_of_its_commit(
        self, store: StudyStore, reopened: Callable[[], StudyRecord], illegal: Record
    ) -> None:
        store.open(definition())
        store.commit([trial(0), RecordEvaluation(result(0, 0, 0))], elapsed=1.0)
        before = store.load("digits")
        legal: list[Record] = [RecordEvaluation(result(0, 1, 0)), RecordRung(0, 0, 0.5), RecordTest(0, 0.5)]
        with pytest.raises(StoreError, match=r"trial \d"):
            store.commit([*legal, illegal, RecordDecision(0, TrialState.FAIL, None, "error")], elapsed=9.0)
        assert store.load("digits") == before
        assert reopened() == before

    @pytest.mark.parametrize(
        "record", [RecordRung(0, 1, 0.5), RecordDecision(0, TrialState.FAIL, None, "error")], ids=["rung", "decision"]
    )
    def test_a_trial_is_decided_once(self, store: StudyStore, record: Record) -> None:
        store.open(definition())
        store.commit([trial(0), RecordDecision(0, TrialState.PRUNED, None, "objective")], elapsed=1.0)
        with pytest.raises(StoreError, match="trial 0 is decided already: pruned"):
            store.commit([record], elapsed=2.0)

    def test_one_coordinator_at_a_time(self, store: StudyStore, connect: Connect) -> None:
        store.open(definition())
        other = connect()
        with pytest.raises(StudyLockedError, match="'digits' is being run"):
            other.open(definition())
        other.open(definition("another"))
        third = connect()
        store.close()
        third.open(definition())

    def test_reading_needs_no_lock(self, store: StudyStore, connect: Connect) -> None:
        store.open(definition())
        reader = connect()
        for number in range(3):
            store.commit([trial(number)], elapsed=float(number))
            seen = reader.load("digits")
            assert seen is not None
            assert (len(seen.trials), seen.elapsed) == (number + 1, number)

    def test_a_changed_study_is_refused_and_left_alone(self, store: StudyStore, connect: Connect) -> None:
        store.open(definition())
        store.commit([trial(0)], elapsed=1.0)
        store.close()
        other = connect()
        with pytest.raises(StudyChangedError, match="'digits' exists with another direction and another seed"):
            other.open(definition(seed=1, direction="minimize"))
        # The attempt holds no lock.
        assert connect().open(definition()).definition == definition()

    def test_a_study_without_trials_may_become_another(self, store: StudyStore, connect: Connect) -> None:
        """One that could not be run, and is corrected."""
        store.open(definition())
        store.close()
        corrected = definition(seed=1, direction="minimize")
        other = connect()
        assert other.open(corrected).definition == corrected
        other.commit([trial(0)], elapsed=1.0)
        assert other.names() == ["digits"]
        other.close()
        with pytest.raises(StudyChangedError):
            connect().open(definition())

    def test_a_study_whose_trials_all_failed_may_become_another(self, store: StudyStore, connect: Connect) -> None:
        """Of an objective that was broken, and is mended. As long as it is the same one, its trials are kept."""
        store.open(definition())
        store.commit([trial(0), RecordDecision(0, TrialState.FAIL, None, "error: no module")], elapsed=1.0)
        store.close()
        again = connect()
        assert len(again.open(definition()).trials) == 1
        again.close()
        corrected = definition(seed=1)
        other = connect()
        assert other.open(corrected) == StudyRecord(corrected, [], 0.0, None)
        other.commit([trial(0), trial(1), RecordDecision(0, TrialState.FAIL, None, "error: no memory")], elapsed=1.0)
        other.close()
        with pytest.raises(StudyChangedError):
            connect().open(definition())

    def test_a_store_holds_one_study(self, store: StudyStore) -> None:
        store.open(definition())
        with pytest.raises(StoreError, match="close it first"):
            store.open(definition("another"))

    def test_nothing_is_committed_without_a_study(self, store: StudyStore) -> None:
        with pytest.raises(StoreError, match="no study is open"):
            store.commit([trial(0)], elapsed=1.0)
        store.open(definition())
        store.close()
        store.close()
        with pytest.raises(StoreError, match="no study is open"):
            store.commit([trial(0)], elapsed=1.0)


class TestLmdbStudyStore(StoreContract):
    @pytest.fixture
    def connect(self, tmp_path: Path) -> Iterator[Connect]:
        stores: list[LmdbStudyStore] = []

        def connect() -> LmdbStudyStore:
            stores.append(LmdbStudyStore(tmp_path / "store", clock=SimulatedClock()))
            return stores[-1]

        yield connect
        for store in stores:
            store.close()


class TestMemoryStudyStore(StoreContract):
    @pytest.fixture
    def connect(self) -> Connect:
        studies = MemoryStudies()
        return lambda: MemoryStudyStore(studies)
