"""A study store whose bytes change: what is read is what was written, or an error says that it is not."""

from pathlib import Path

import lmdb
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from support.flipping import Died, flipped, flips, seen_by_child, write_alone

from tests.integration.test_lmdb_store import DEFINITION, result, trial
from tests.support.simulated import SimulatedClock
from trialfleet.home import Home
from trialfleet.recorded import studies
from trialfleet_coordinator.adapters.lmdb_layout import LAYOUT, LAYOUT_1, sealed, unsealed
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.store_care import examine_store, salvage_store
from trialfleet_coordinator.commands import RecordDecision, RecordEvaluation, RecordTest, TrialState
from trialfleet_shared.adapters.lmdb_environment import exclusive
from trialfleet_shared.errors import StoreError

OTHER = msgspec.structs.replace(DEFINITION, name="other")


def opened(path: Path) -> LmdbStudyStore:
    return LmdbStudyStore(path, clock=SimulatedClock())


def record_two(path: Path) -> list[object]:
    """Two studies; the records of the first after each commit."""
    states: list[object] = []
    for definition in (OTHER, DEFINITION):
        store = opened(path)
        store.open(definition)
        for number in range(12):
            value = number / 7
            store.commit(
                [
                    trial(number),
                    RecordEvaluation(result(number, 0, value)),
                    RecordEvaluation(result(number, 1, value)),
                    RecordDecision(number, TrialState.COMPLETE, value, "done"),
                ],
                elapsed=float(number),
            )
            states.append(builtins(store.load(DEFINITION.name)))
        store.commit([RecordTest(3, 0.5)], elapsed=99.0)
        states.append(builtins(store.load(DEFINITION.name)))
        store.close()
    return states


def builtins(record: object) -> object:
    return msgspec.json.decode(msgspec.json.encode(record))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[object]]:
    folder = tmp_path_factory.mktemp("whole") / "store"
    states = record_two(folder)
    return (folder / "data.mdb").read_bytes(), states


def change(path: Path, table: str, *, place: int, work: str) -> None:
    """Change one value behind the store's back."""
    with lmdb.open(str(path), max_dbs=12) as environment:
        database = environment.open_db(table.encode())
        with environment.begin(write=True) as transaction:
            key, stored = list(transaction.cursor(database))[place]
            if work == "flip":
                transaction.put(key, flipped(stored, (len(stored) // 2, 1)), db=database)
            else:
                transaction.delete(key, db=database)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flip=flips(4096 * 40))
def test_a_flipped_byte_is_told_or_harmless(
    recorded: tuple[bytes, list[object]], tmp_path: Path, flip: tuple[int, int]
) -> None:
    """At worst LMDB finds the last commit gone, as after a crash: an earlier one, whole, is what is read then."""
    content, states = recorded
    write_alone(tmp_path / "store", flipped(content, (flip[0] % len(content), flip[1])))

    def look() -> object:
        try:
            store = opened(tmp_path / "store")
            record = store.load(DEFINITION.name)
        except (StoreError, KeyError) as error:
            return str(error)
        return builtins(record)

    seen = seen_by_child(look)
    assert isinstance(seen, Died | str) or seen in states[-3:]


@pytest.mark.parametrize("work", ["flip", "lose"])
@pytest.mark.parametrize("table", ["studies", "names", "attrs", "spaces", "trials", "evaluations", "progress"])
def test_each_table_tells_of_its_damage(tmp_path: Path, table: str, work: str) -> None:
    record_two(tmp_path)
    change(tmp_path, table, place=-1, work=work)
    store = opened(tmp_path)
    troubles = 0
    for name in (DEFINITION.name, OTHER.name):
        try:
            assert store.load(name) is not None
        except (StoreError, KeyError) as error:
            troubles += 1
            assert "damaged" in str(error) or isinstance(error, KeyError) or "Optuna alone" in str(error)
    store.close()
    assert troubles >= 1
    examined = examine_store(tmp_path)
    assert any(each.trouble for each in examined)


def write_unreadable(path: Path, table: str, value: bytes) -> None:
    """Put a value that is as it was written, and means nothing, in the place of the first one."""
    with lmdb.open(str(path), max_dbs=12) as environment:
        database = environment.open_db(table.encode())
        with environment.begin(write=True) as transaction:
            key, _ = next(iter(transaction.cursor(database)))
            transaction.put(key, sealed(table, key, value), db=database)


#: A search space whose choices no space may have.
ODD_SPACE = b"t" + msgspec.msgpack.encode({"x": {"type": "categorical", "choices": [[50], [50, 50]]}})


@pytest.mark.parametrize(
    ("table", "value"),
    [("spaces", ODD_SPACE), ("trials", b"?"), ("attrs", msgspec.msgpack.encode(("k", "no JSON")))],
    ids=["a space", "a trial", "the definition"],
)
def test_a_study_that_can_not_be_read_is_told_as_damaged_and_harms_no_other(
    tmp_path: Path, table: str, value: bytes
) -> None:
    home = Home(tmp_path)
    record_two(home.store)
    write_unreadable(home.store, table, value)
    store = opened(home.store)
    with pytest.raises(StoreError, match=r"damaged: study 'other' can not be read: .* see `trialfleet doctor`"):
        store.load("other")
    with pytest.raises(StoreError, match="damaged: study 'other' can not be read: "):
        store.open(OTHER)
    store.close()
    damaged, whole = studies(home)
    assert (damaged.study, whole.study, whole.trouble, whole.trials) == ("other", "digits", "", 12)
    assert "study 'other' can not be read" in damaged.trouble


def test_what_is_whole_is_saved(tmp_path: Path) -> None:
    record_two(tmp_path / "old")
    change(tmp_path / "old", "trials", place=0, work="flip")  # of the study that was made first
    assert [(each.study, bool(each.trouble)) for each in examine_store(tmp_path / "old")] == [
        ("other", True),
        ("digits", False),
    ]
    store = opened(tmp_path / "old")
    before = store.load(DEFINITION.name)
    store.close()
    assert salvage_store(tmp_path / "old", tmp_path / "new") == ["digits"]
    assert [each.trouble for each in examine_store(tmp_path / "new")] == [""]
    store = opened(tmp_path / "new")
    assert store.load(DEFINITION.name) == before
    assert store.load("other") is None
    store.open(msgspec.structs.replace(OTHER, name="third"))  # ids go on
    store.close()
    assert all(not each.trouble for each in examine_store(tmp_path / "new"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (b"next study", None, "what it keeps beside its studies is not what was written"),
        (b"identity", None, "what it keeps beside its studies is not what was written"),
        (b"next study", bytes(8), "the number of its next study is taken"),
    ],
)
def test_what_the_store_keeps_beside_its_studies_is_looked_at(
    key: bytes, value: bytes | None, told: str, tmp_path: Path
) -> None:
    """Without it no study can be added."""
    record_two(tmp_path / "old")
    with lmdb.open(str(tmp_path / "old"), max_dbs=12) as environment:
        database = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            stored = transaction.get(key, db=database)
            changed = stored[:-1] + bytes([stored[-1] ^ 1]) if value is None else sealed("meta", key, value)
            transaction.put(key, changed, db=database)
    assert [(each.study, each.trouble) for each in examine_store(tmp_path / "old")][2:] == [("the store itself", told)]
    assert sorted(salvage_store(tmp_path / "old", tmp_path / "new")) == ["digits", "other"]
    store = opened(tmp_path / "new")
    store.open(msgspec.structs.replace(OTHER, name="third"))
    assert (len(store.names()), bool(store.identity("third"))) == (3, True)
    store.close()
    assert [each.trouble for each in examine_store(tmp_path / "new")] == ["", "", ""]


def test_a_store_of_the_first_layout_is_sealed_when_it_is_opened(tmp_path: Path) -> None:
    record_two(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=12) as environment:
        for table in ("studies", "names", "attrs", "parameters", "spaces", "trials", "evaluations", "progress", "meta"):
            database = environment.open_db(table.encode())
            with environment.begin(write=True) as transaction:
                for key, stored in list(transaction.cursor(database)):
                    if key != b"format":
                        value = unsealed(table, key, stored)
                        assert value is not None
                        transaction.put(key, value, db=database)
                if table == "meta":
                    assert transaction.delete(b"identity", db=database), "it had none"
                    assert transaction.get(b"format", db=database) == LAYOUT.encode()
                    transaction.put(b"format", LAYOUT_1.encode(), db=database)
    store = opened(tmp_path)
    record = store.open(DEFINITION)
    assert (len(record.trials), record.test) == (12, (3, 0.5))
    assert store.identity(DEFINITION.name)
    store.commit([trial(12)], elapsed=100.0)
    store.close()
    assert [each.trouble for each in examine_store(tmp_path)] == ["", ""]


def test_nobody_replaces_files_that_are_open_and_nobody_opens_what_is_replaced(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StoreError, match="is in use; stop what uses it first"), exclusive(tmp_path):
        pass
    store.close()
    with exclusive(tmp_path), pytest.raises(StoreError, match="is being repaired or restored"):
        opened(tmp_path)
    opened(tmp_path).close()
