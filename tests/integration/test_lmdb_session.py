"""Writes that do not wait for the disk: what is trusted after a process died, and after the machine did."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trialfleet_shared.adapters import lmdb_environment, lmdb_session
from trialfleet_shared.adapters.lmdb_environment import LmdbEnvironment

Connect = Callable[..., LmdbEnvironment]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    opened: list[LmdbEnvironment] = []

    def connect() -> LmdbEnvironment:
        path = tmp_path / "cache"
        opened.append(LmdbEnvironment(path, layout="test 1", databases=("all",), map_bytes=2**20, durable=False))
        return opened[-1]

    yield connect
    for environment in opened:
        environment.close()


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names the boot."""
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(lmdb_session, "BOOT_ID", path)
    return path


def put(environment: LmdbEnvironment, key: bytes) -> None:
    environment.write(lambda transaction: transaction.put(key, b"1", db=environment.database("all")))


def has(environment: LmdbEnvironment, key: bytes) -> bool:
    with environment.read() as transaction:
        return transaction.get(key, db=environment.database("all")) is not None


def killed_writer(tmp_path: Path, boot: Path) -> None:
    """A process that writes the key "a" and is killed."""
    script = """
import os, sys
from pathlib import Path
from trialfleet_shared.adapters import lmdb_session
from trialfleet_shared.adapters.lmdb_environment import LmdbEnvironment
lmdb_session.BOOT_ID = Path(sys.argv[2])
environment = LmdbEnvironment(Path(sys.argv[1]), layout="test 1", databases=("all",), map_bytes=2**20, durable=False)
environment.write(lambda transaction: transaction.put(b"a", b"1", db=environment.database("all")))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache"), str(boot)], check=False, timeout=60)
    assert done.returncode == -9


def test_what_a_killed_process_wrote_is_there(connect: Connect, boot: Path, tmp_path: Path) -> None:
    killed_writer(tmp_path, boot)
    assert has(connect(), b"a")


def test_what_was_not_synced_before_a_crash_of_the_machine_is_removed(
    connect: Connect, boot: Path, tmp_path: Path
) -> None:
    killed_writer(tmp_path, boot)
    boot.write_text("second\n")
    environment = connect()
    assert not has(environment, b"a")
    put(environment, b"b")
    assert has(environment, b"b")


def test_closing_syncs_so_that_the_next_boot_trusts_it(connect: Connect, boot: Path, tmp_path: Path) -> None:
    killed_writer(tmp_path, boot)
    environment = connect()
    put(environment, b"b")
    environment.close()
    boot.write_text("second\n")
    environment = connect()
    assert has(environment, b"a")
    assert has(environment, b"b")


def test_a_write_after_another_handle_closed_takes_the_note_back(connect: Connect, boot: Path, tmp_path: Path) -> None:
    first = connect()
    put(first, b"a")
    first.close()
    assert (tmp_path / "cache" / "synced").exists()
    second = connect()
    put(second, b"b")
    assert not (tmp_path / "cache" / "synced").exists()


def test_a_note_that_can_not_be_written_takes_nothing_from_who_has_the_files_open(
    connect: Connect, boot: Path, tmp_path: Path
) -> None:
    first = connect()
    put(first, b"a")
    script = """
import resource, signal, sys
from pathlib import Path
from trialfleet_shared.adapters import lmdb_session
lmdb_session.BOOT_ID = Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a full disk
with lmdb_session.Session(Path(sys.argv[1]), ("data.mdb", "lock.mdb")).opening():
    pass
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache"), str(boot)], check=False, timeout=60)
    assert (tmp_path / "cache" / "boot").read_text() == "first\n"
    put(first, b"b")
    assert has(connect(), b"b"), "they are the same files"


def test_files_that_were_written_durably_are_trusted(connect: Connect, boot: Path, tmp_path: Path) -> None:
    durable = LmdbEnvironment(tmp_path / "cache", layout="test 1", databases=("all",), map_bytes=2**20)
    put(durable, b"a")
    durable.close()
    assert not (tmp_path / "cache" / "boot").exists()
    assert has(connect(), b"a")


def test_where_the_kernel_names_no_boot_writes_are_durable(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_environment, "BOOT_ID", tmp_path / "missing")
    put(connect(), b"a")
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == ["data.mdb", "lock.mdb", "users"]
