"""Care for a study store: what of it is whole, and a new one made of that.

Reading needs no lock and disturbs nobody. LMDB itself may crash on files that are damaged where it does not look twice: let
a process of its own look.
"""

from pathlib import Path
from typing import NamedTuple

from trialfleet_coordinator.adapters.lmdb_layout import DATABASES, StudyTables, unsealed
from trialfleet_coordinator.adapters.lmdb_store import DEFINITION_ATTR, LmdbStudyStore
from trialfleet_shared.adapters.lmdb_environment import Transaction
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import StoreError

#: Bytes that a study's id takes at the beginning of a key.
_ID_BYTES = 8


class Examined(NamedTuple):
    """A study, or the store beside its studies, and what is wrong with it."""

    study: str
    #: Its id; -1 for what belongs to no study that is known.
    number: int
    #: Empty when it is whole.
    trouble: str


def examine_store(path: Path) -> list[Examined]:
    """Look at everything in the store at `path`. Raises StoreError: it can not be opened at all."""
    tables = StudyTables(path)
    try:
        with tables.environment.read() as transaction:
            damaged = _damaged_values(tables, transaction)
            names = _names(tables, transaction)
            read = {number: _read(tables, path, transaction, number, name) for number, name in names.items()}
            itself = _itself(tables, transaction, max(names, default=-1))
    finally:
        tables.environment.close()
    found = [
        Examined(name, number, "; ".join(filter(None, (damaged.pop(number, ""), read[number]))))
        for number, name in names.items()
    ]
    found += [Examined(f"study {number}", number, trouble) for number, trouble in sorted(damaged.items())]
    return found + [Examined("the store itself", -1, itself)] * bool(itself)


def salvage_store(path: Path, target: Path) -> list[str]:
    """Write the whole studies of the store at `path` into a new one in `target`; their names.

    Raises:
        StoreError: either can not be used.
    """
    whole = {each.number: each.study for each in examine_store(path) if not each.trouble}
    old, new = StudyTables(path), StudyTables(target)
    try:
        with old.environment.read() as transaction:
            rows = {
                table: [
                    (key, value)
                    for key, stored in transaction.cursor(old.environment.database(table))
                    if (value := unsealed(table, key, stored)) is not None and _owner(table, key, value) in whole
                ]
                for table in DATABASES
            }
        new.environment.write(lambda into: new.adopt(into, rows, next_study=max(whole, default=-1) + 1))
    finally:
        old.environment.close()
        new.environment.close()
    return list(whole.values())


def _owner(table: str, key: bytes, value: bytes) -> int:
    """Id of the study that a value belongs to."""
    return int.from_bytes(value if table == "names" else key[:_ID_BYTES], "big")


def _damaged_values(tables: StudyTables, transaction: Transaction) -> dict[int, str]:
    """By study: how many values are not as they were written, or belong to no study that is known."""
    counts: dict[int, int] = {}
    known = {int.from_bytes(key, "big") for key, _ in transaction.cursor(tables.environment.database("studies"))}
    for table in DATABASES:
        for key, stored in transaction.cursor(tables.environment.database(table)):
            value = unsealed(table, key, stored)
            # Whose name it was, nobody can tell.
            owner = -1 if table == "names" and value is None else _owner(table, key, value or b"")
            if value is None or owner not in known:
                counts[owner] = counts.get(owner, 0) + 1
    return {owner: f"{count} values are not what was written, or of no study" for owner, count in counts.items()}


def _itself(tables: StudyTables, transaction: Transaction, last: int) -> str:
    """What is wrong with what the store keeps beside its studies: no study could be added."""
    try:
        tables.identity(transaction)
        return "" if tables.next_study(transaction) > last else "the number of its next study is taken"
    except StoreError:
        return "what it keeps beside its studies is not what was written"


def _names(tables: StudyTables, transaction: Transaction) -> dict[int, str]:
    names = {}
    for key, stored in transaction.cursor(tables.environment.database("studies")):
        number = int.from_bytes(key, "big")
        try:
            names[number] = tables.study(transaction, number).name
        except StoreError:
            names[number] = f"study {number}"
        except KeyError:
            names[number] = f"study {number} of {len(stored)} bytes"
    return names


def _read(tables: StudyTables, path: Path, transaction: Transaction, number: int, name: str) -> str:
    """What is wrong with a study when it is read as its users do."""
    try:
        if tables.study_id(transaction, name) != number:
            return "it is not found by its name"
        count = sum(1 for _ in tables.stored_trials(transaction, number, 0))
        if count != tables.count_trials(transaction, number):
            return "trials are missing"
        if any(key == DEFINITION_ATTR for key in tables.attrs(transaction, number, b"s")):
            store = LmdbStudyStore(path, clock=SystemClock())
            try:
                store.load(name)
            finally:
                store.close()
    except (StoreError, KeyError, ValueError) as error:
        return " ".join(str(error).split())
    return ""
