"""The promises of `RosterStore`, kept by the fake and by the files."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support.fake_workshop import MemoryRoster

from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_coordinator.roster import Entry, RosterStore
from trialfleet_coordinator.serving import ServiceState, Submission
from trialfleet_shared.errors import StoreError

NAMES = ("a", "../b", "c/d", "e" * 200, "ünïcode \x00", "A", ".")


def entry(study: str, state: ServiceState = ServiceState.QUEUED) -> Entry:
    return Entry(
        study=study,
        submission=Submission(tables={"study": {"objective": "f.py:f", "trials": 3}}, base="/somewhere", priority=2),
        mode="fast",
        direction="minimize",
        state=state,
        because="waits to be started",
        submitted_at=1.5,
    )


@pytest.fixture(params=["memory", "files"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], RosterStore]:
    """The same roster, as after a restart."""
    memory = MemoryRoster()
    return lambda: memory if request.param == "memory" else RosterFiles(tmp_path / "roster")


def test_what_was_saved_is_there_after_a_restart_whatever_it_is_called(reopen: Callable[[], RosterStore]) -> None:
    for name in NAMES:
        reopen().save(entry(name))
    assert sorted(reopen().load(), key=lambda one: one.study) == sorted(map(entry, NAMES), key=lambda one: one.study)


def test_the_last_entry_of_a_study_counts(reopen: Callable[[], RosterStore]) -> None:
    for state in (ServiceState.QUEUED, ServiceState.DONE):
        reopen().save(entry("a", state))
    assert [one.state for one in reopen().load()] == [ServiceState.DONE]


def test_an_entry_knows_what_its_study_was_before(reopen: Callable[[], RosterStore]) -> None:
    again = msgspec.structs.replace(entry("a"), before=entry("a", ServiceState.DONE))
    reopen().save(again)
    assert reopen().load() == [again]


def test_what_was_removed_is_gone_and_may_be_removed_again(reopen: Callable[[], RosterStore]) -> None:
    reopen().save(entry("a"))
    reopen().save(entry("b"))
    reopen().remove("a")
    reopen().remove("a")
    assert [one.study for one in reopen().load()] == ["b"]


def test_files_are_for_their_owner_alone_and_a_half_one_counts_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "roster"
    RosterFiles(folder).save(entry("a"))
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    file.with_suffix(".half").write_bytes(b"{")
    assert [one.study for one in RosterFiles(folder).load()] == ["a"]


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "roster"
    RosterFiles(folder).save(entry("a"))
    (file,) = folder.iterdir()
    file.write_bytes(msgspec.json.encode({"study": 3}))
    with pytest.raises(StoreError, match=file.name):
        RosterFiles(folder).load()
