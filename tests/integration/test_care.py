"""`doctor`, `backup` and `restore` on homes that are whole, damaged, or in use."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import commands
from support.commands import document, start_trialfleet, trialfleet
from support.flipping import flipped
from support.waiting import wait_until

from tests.fixtures.make import ENTRY
from tests.integration.test_lmdb_results_damage import KEYS, RESULTS
from tests.integration.test_lmdb_store import DEFINITION, result, trial
from tests.integration.test_lmdb_store_damage import change
from tests.support.simulated import SimulatedClock
from trialfleet import backup, doctor, examination
from trialfleet.backup import back_up, restore
from trialfleet.commands.care import backup_command, doctor_command
from trialfleet.commands.report import studies_command
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.doctor import examine
from trialfleet.environment import read_environment
from trialfleet.home import Home
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_coordinator.commands import RecordEvaluation
from trialfleet_coordinator.ports import StudyRecord, TrialRecord
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.errors import ConfigurationError, StoreError, StudyLockedError
from trialfleet_shared.messages import DataSpec
from trialfleet_workers.adapters.lmdb_data import DataCache

OTHER = msgspec.structs.replace(DEFINITION, name="other")
SLOW = """
import time

def slow(params):
    time.sleep(0.05)
    return params["x"]
"""
STUDY = """
[study]
name = "slow"
objective = "objective.py:slow"
trials = 100000
[space.x]
type = "float"
min = 0.0
max = 1.0
"""


def opened(home: Home) -> LmdbStudyStore:
    return LmdbStudyStore(home.store, clock=SimulatedClock())


def loaded(home: Home, name: str) -> StudyRecord | None:
    store = opened(home)
    try:
        return store.load(name)
    finally:
        store.close()


def identity_of(home: Home) -> str | None:
    store = opened(home)
    try:
        return store.identity(DEFINITION.name)
    finally:
        store.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """One with two studies, cached results, a data set, and a roster."""
    home = Home(tmp_path / "home")
    for definition in (OTHER, DEFINITION):
        store = opened(home)
        store.open(definition)
        store.commit([trial(0), RecordEvaluation(result(0, 0, 0.5))], elapsed=1.0)
        store.close()
    cache = LmdbResultCache(home.results, size=100, ttl_hours=24, clock=SimulatedClock())
    cache.put_many(list(zip(KEYS, RESULTS, strict=True))[:3])
    cache.close()
    DataCache(home.data).import_object({"x": range(9), "y": range(9)}, DataSpec(source="memory:d", target="y"))
    RosterFiles(home.path / "coordinator" / "studies").save(ENTRY)
    home.path.chmod(0o700)
    return home


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look in this process, which nothing here ends: one of its own takes a second to import what it needs."""

    def look(work: str, *arguments: str) -> Any:
        return examination.WORK[work](*arguments)

    for module in (backup, doctor):
        monkeypatch.setattr(module, "apart", look)


def states(home: Home, *, repair: bool = False) -> dict[tuple[str, str], str]:
    """By kind and state-independent name: the state of each item, whole ones left out."""
    items = examine(home, repair=repair)
    return {(item.kind, item.name): item.state for item in items if item.state != "ok"}


def damage_all(home: Home) -> None:
    """One bit in everything."""
    change(home.store, "trials", place=0, work="flip")
    change(home.results, "entries", place=0, work="flip")
    data = next(home.data.glob("*.mdb"))
    data.write_bytes(flipped(data.read_bytes(), (5000, 1)))
    roster = next((home.path / "coordinator" / "studies").glob("*.json"))
    roster.write_bytes(flipped(roster.read_bytes(), (0, 0x80)))
    (home.path / "store").chmod(0o755)


def test_what_is_whole_is_called_so(home: Home, at_once: None) -> None:
    assert [item.kind for item in examine(home, repair=False)] == [
        "files",
        "study",
        "study",
        "roster",
        "results",
        "data",
    ]
    assert states(home) == {}
    assert states(Home(home.path / "nothing")) == {}


def test_damage_is_told_then_repaired_then_gone(home: Home, at_once: None) -> None:
    before = loaded(home, DEFINITION.name)
    damage_all(home)
    told = states(home)
    assert [kind for kind, _ in told] == ["files", "study", "roster", "results", "data"]
    assert ("study", "other") in told
    assert set(told.values()) == {"damaged"}
    assert states(home, repair=True) == dict.fromkeys(told, "repaired")
    assert states(home) == {}
    assert loaded(home, DEFINITION.name) == before
    assert loaded(home, "other") is None
    assert (home.store / "damaged-1.mdb").exists()


def test_a_store_in_use_is_looked_at_and_not_repaired(home: Home, at_once: None) -> None:
    damage_all(home)
    store = opened(home)
    told = states(home, repair=True)
    store.close()
    assert told[("study", "other")] == "damaged"
    assert told[("results", str(home.results))] == "repaired"


def test_what_ends_whoever_reads_it_is_told(home: Home) -> None:
    """LMDB's own pages, written over: whether it says so or dies of it."""
    for folder in (home.store, home.results):
        file = folder / "data.mdb"
        content = file.read_bytes()
        file.write_bytes(content[: 2 * 4096] + b"\xff" * (len(content) - 2 * 4096))
    told = states(home)
    assert told == {("store", str(home.store)): "damaged", ("results", str(home.results)): "damaged"}
    told = states(home, repair=True)
    assert told == {("store", str(home.store)): "damaged", ("results", str(home.results)): "repaired"}
    assert states(home) == {("store", str(home.store)): "damaged"}


def test_a_backup_brings_back_what_was(home: Home, tmp_path: Path, at_once: None) -> None:
    before = {name: loaded(home, name) for name in (DEFINITION.name, "other")}
    manifest = back_up(home, tmp_path / "backup", now=7.0)
    assert (manifest.made_at, sorted(manifest.studies)) == (7.0, ["digits", "other"])
    assert not any(path.stat().st_mode & 0o077 for path in (tmp_path / "backup").rglob("*"))
    store = opened(home)
    store.delete("other")
    store.close()
    RosterFiles(home.path / "coordinator" / "studies").remove(ENTRY.study)
    with pytest.raises(ConfigurationError, match="has studies; give --force"):
        restore(home, tmp_path / "backup", force=False)
    assert loaded(home, "other") is None
    identities = [identity_of(home)]
    for target in (home, Home(tmp_path / "elsewhere")):
        restore(target, tmp_path / "backup", force=target is home)
        assert {name: loaded(target, name) for name in before} == before
        assert RosterFiles(target.path / "coordinator" / "studies").load() == [ENTRY]
        assert states(target) == {}
        identities.append(identity_of(target))
    assert len(set(identities)) == 3, (
        "what was answered to trials that are not in it any more is not for those that follow"
    )
    assert {path.name for path in home.path.iterdir()} == {"store", "results", "data", "coordinator"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_is_the_owners_of_the_home(
    home: Home, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd keeps a home: of a user of its own, behind a link."""
    behind = Home(tmp_path / "link")
    behind.path.symlink_to(home.path)
    secret = tmp_path / "secret"
    secret.touch()
    (home.path / "linked").hardlink_to(secret)
    (home.path / "pointing").symlink_to(secret)

    def strangers() -> list[str]:
        return [str(path) for path in home.path.rglob("*") if path.lstat().st_uid != 10001 and path.name != "linked"]

    for path in (home.path, *home.path.rglob("*")):
        os.chown(path, 10001, 10002, follow_symlinks=False)
    os.chown(secret, 0, 0)
    (home.store / "lock.mdb").unlink()
    back_up(behind, tmp_path / "backup", now=7.0)
    assert strangers() == []
    restore(behind, tmp_path / "backup", force=True)
    assert strangers() == []
    assert (home.store / "data.mdb").stat().st_gid == 10002
    change(home.store, "trials", place=0, work="flip")
    assert "repaired" in states(behind, repair=True).values()
    assert list(home.store.glob("damaged-*"))
    assert strangers() == []
    assert secret.stat().st_uid == 0, "neither kind of link gives away what is outside"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (home.store / "made").touch()
    monkeypatch.setattr(os, "chown", refuse)
    last = list(examine(behind, repair=False))[-1]
    assert (last.kind, last.state) == ("files", "damaged")
    assert last.detail == "what root has made here can not be given to the home's owner: Read-only file system"


def test_a_backup_in_the_home_is_there_after_it_was_restored(home: Home, at_once: None) -> None:
    """Whatever it is called, even as the folder that a restore which was killed has left."""
    for name in ("restore-monday", f"{backup.BESIDE}monday"):
        source = home.path / name
        back_up(home, source, now=0.0)
        before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
        restore(home, source, force=True)
        assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_a_restore_takes_away_what_one_that_was_killed_has_left(home: Home, tmp_path: Path, at_once: None) -> None:
    back_up(home, tmp_path / "backup", now=0.0)
    left = home.path / f"{backup.BESIDE}0"
    left.mkdir()
    (left / "data.mdb").write_bytes(b"half of it")
    restore(home, tmp_path / "backup", force=True)
    assert not left.exists()


def test_a_backup_among_what_it_would_replace_is_not_restored(home: Home, at_once: None) -> None:
    source = home.path / "coordinator" / "studies" / "backup"
    back_up(home, source, now=0.0)
    with pytest.raises(ConfigurationError, match=f"is in {source.parent}, which is replaced; move it out"):
        restore(home, source, force=True)
    assert (source / "backup.json").exists()


@pytest.mark.parametrize("name", ["store/data.mdb", "coordinator/studies/*.json"])
def test_a_damaged_backup_is_not_restored(home: Home, tmp_path: Path, at_once: None, name: str) -> None:
    back_up(home, tmp_path / "backup", now=0.0)
    file = next((tmp_path / "backup").glob(name))
    content = file.read_bytes()
    for offset in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(flipped(content, (offset, 1)))
        with pytest.raises(StoreError, match=f"is damaged: {file.relative_to(tmp_path / 'backup')}"):
            restore(Home(tmp_path / "new"), tmp_path / "backup", force=True)
    assert not (tmp_path / "new" / "store" / "data.mdb").exists()


def test_nothing_is_restored_over_what_is_in_use(home: Home, tmp_path: Path, at_once: None) -> None:
    back_up(home, tmp_path / "backup", now=0.0)
    store = opened(home)
    with pytest.raises(StoreError, match="is in use"):
        restore(home, tmp_path / "backup", force=True)
    store.close()
    with CoordinatorFiles(home.path).locked(), pytest.raises(StudyLockedError, match="another coordinator runs"):
        restore(home, tmp_path / "backup", force=True)


def test_what_can_not_be_backed_up_or_restored_is_told(home: Home, tmp_path: Path, at_once: None) -> None:
    with pytest.raises(ConfigurationError, match="is there; a backup is a new folder"):
        back_up(home, tmp_path, now=0.0)
    with pytest.raises(ConfigurationError, match="has no studies"):
        back_up(Home(tmp_path / "none"), tmp_path / "backup", now=0.0)
    with pytest.raises(ConfigurationError, match="is no backup"):
        restore(home, tmp_path, force=True)
    change(home.store, "trials", place=0, work="flip")
    with pytest.raises(StoreError, match="study 'other' is damaged, and can not be backed up"):
        back_up(home, tmp_path / "backup", now=0.0)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"backup can not be written: .*file is no folder"):
        back_up(home, tmp_path / "file" / "backup", now=0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "file"}


def test_a_backup_touches_nothing_beside_it(home: Home, tmp_path: Path, at_once: None) -> None:
    own = tmp_path / "backup.part"
    own.mkdir()
    (own / "notes").write_text("mine")
    back_up(home, tmp_path / "backup", now=0.0)
    assert (own / "notes").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"home", "backup", "backup.part"}


def test_of_two_backups_to_one_target_the_second_is_refused(
    home: Home, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup"
    look = backup.apart

    def look_while_another_is_made(work: str, *arguments: str) -> Any:
        monkeypatch.setattr(backup, "apart", look)
        back_up(home, target, now=1.0)
        return look(work, *arguments)

    monkeypatch.setattr(backup, "apart", look_while_another_is_made)
    with pytest.raises(ConfigurationError, match="is there; a backup is a new folder"):
        back_up(home, target, now=2.0)
    assert restore(Home(tmp_path / "new"), target, force=False).made_at == 1.0
    assert {path.name for path in tmp_path.iterdir()} == {"home", "backup", "new"}


def test_a_running_study_is_looked_at_and_backed_up(tmp_path: Path, at_once: None) -> None:
    (tmp_path / "objective.py").write_text(SLOW)
    (tmp_path / "study.toml").write_text(STUDY)
    home = Home(tmp_path / "home")

    def trials(where: Home) -> list[TrialRecord]:
        record = loaded(where, "slow") if where.store.exists() else None
        return [] if record is None else record.trials

    running = start_trialfleet(["run", tmp_path / "study.toml", "--slots", "1"], home.path)
    try:
        wait_until(lambda: len(trials(home)) >= 3, "trials", 90)
        assert states(home) == {}
        saved = trialfleet(["backup", tmp_path / "backup"], home.path)
        assert saved.returncode == 0, saved.stderr
        assert "1 study of" in saved.stderr
        with pytest.raises(StoreError, match="is in use"):
            restore(home, tmp_path / "backup", force=True)
        assert running.poll() is None
    finally:
        running.terminate()
        _, errors = running.communicate(timeout=90)
    assert "damaged" not in errors
    restored = trialfleet(["restore", tmp_path / "backup", "--json"], tmp_path / "new")
    assert restored.returncode == 0, restored.stderr
    told = {"source": str(tmp_path / "backup"), "target": str(tmp_path / "new"), "studies": ["slow"]}
    assert document(restored.stdout) == told
    then, later = trials(Home(tmp_path / "new")), trials(home)
    assert 3 <= len(then) <= len(later)
    assert [one.params for one in then] == [one.params for one in later[: len(then)]]
    for one, same in zip(then, later, strict=False):
        assert not one.state.decided or one == same


def test_the_doctors_word_is_its_exit_status(home: Home, at_once: None, capfd: pytest.CaptureFixture[str]) -> None:
    environment = read_environment({"TRIALFLEET_HOME": str(home.path)})
    damage_all(home)
    assert doctor_command(environment, repair=False, as_json=False) == 1
    assert "5 of 6 are damaged; --repair mends what it can" in capfd.readouterr().err
    looked = trialfleet(["doctor"], home.path)
    assert (looked.returncode, "5 of 6 are damaged" in looked.stderr) == (1, True), looked.stderr
    assert doctor_command(environment, repair=True, as_json=True) == 0
    assert {item["state"] for item in document(capfd.readouterr().out)["items"]} == {"ok", "repaired"}


def test_names_and_paths_are_shown_as_they_are(
    tmp_path: Path, at_once: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also those that the library for tables would take for a style or an emoji."""
    home = Home(tmp_path / "h[/q]:key:")
    environment = read_environment({"TRIALFLEET_HOME": str(home.path)})
    studies_command(environment, as_json=False)
    assert f"There are no studies in {home.path} yet." in capfd.readouterr().out
    names = ["a[/b]", "xgb[depth=3]", ":key:"]
    for name in names:
        store = opened(home)
        store.open(msgspec.structs.replace(DEFINITION, name=name))
        store.close()
    home.path.chmod(0o700)
    assert doctor_command(environment, repair=False, as_json=False) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [row[1] for row in rows if row[0] == "study"] == names
    target = tmp_path / "b[/q]:key:"
    backup_command(environment, target, as_json=False)
    assert capfd.readouterr().err == f"3 studies of {home.path} are in {target}\n"


def beyond_reach(home: Home, arguments: list[str], how: str) -> "subprocess.CompletedProcess[str]":
    """Run `trialfleet` on a home that can only be read ("read-only"), or as one without root's rights ("plain")."""
    program = [sys.executable, "-m", "trialfleet", *arguments]
    if how == "read-only":
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit 77; exec "$@"'
        program = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(home.path), *program]
    else:
        program = ["unshare", "--user", *program]
    done = subprocess.run(program, env=commands.environment(home.path), capture_output=True, text=True, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("this machine lets nobody have a user namespace")
    return done


def test_what_can_only_be_read_is_not_called_damaged(home: Home) -> None:
    (home.store / "data.mdb").chmod(0o644)
    done = beyond_reach(home, ["doctor", "--repair", "--json"], "read-only")
    assert done.returncode == 1
    looked = document(done.stdout)
    assert not looked["whole"]
    told = {item["kind"]: (item["state"], item["detail"]) for item in looked["items"]}
    unreadable = {kind: detail for kind, (state, detail) in told.items() if state == "unreadable"}
    assert list(unreadable) == ["store", "results"]
    for detail in unreadable.values():
        assert "can not be opened: Read-only file system; to read it, its lock files are written" in detail
    assert told["files"] == ("damaged", "1 are open to other users; not repaired: Read-only file system")
    assert {told["roster"][0], told["data"][0]} == {"ok"}
    assert "1 of 5 are damaged\n2 of 5 could not be read, so nothing is known of them\n" in done.stderr
    done = beyond_reach(home, ["studies"], "read-only")
    assert (done.returncode, done.stdout) == (4, "")
    assert "can not be opened: Read-only file system; to read it, its lock files are written" in done.stderr


def test_what_may_not_be_read_is_not_called_damaged_nor_removed(home: Home) -> None:
    locked = [home.store, *home.data.glob("*.mdb"), *(home.path / "coordinator" / "studies").glob("*.json")]
    for path in locked:
        path.chmod(0)
    done = beyond_reach(home, ["doctor", "--repair", "--json"], "plain")
    items = document(done.stdout)["items"]
    assert [(item["kind"], item["state"]) for item in items] == [
        ("files", "ok"),
        ("store", "unreadable"),
        ("roster", "unreadable"),
        ("results", "ok"),
        ("data", "unreadable"),
    ]
    assert all("Permission denied" in item["detail"] for item in items if item["state"] == "unreadable")
    for path in locked:
        path.chmod(0o700)
    assert states(home) == {}


@pytest.mark.parametrize("kind", ["roster", "data"])
def test_what_can_not_be_repaired_is_told_with_the_reason(
    home: Home, at_once: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    damage_all(home)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename" if kind == "roster" else "unlink", refuse)
    item = next(item for item in examine(home, repair=True) if item.kind == kind)
    assert item.state == "damaged"
    assert item.detail.endswith("; not repaired: Read-only file system")


def test_a_folder_that_goes_away_while_it_is_looked_at_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of imports do."""
    for folder in (tmp_path / "home", tmp_path / "home" / "import-1"):
        folder.mkdir(mode=0o700)
    scandir = os.scandir

    def scan(path: str) -> object:
        if Path(path).name == "import-1":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    found = [(item.kind, item.state) for item in examine(Home(tmp_path / "home"), repair=False)]
    assert ("files", "ok") in found
