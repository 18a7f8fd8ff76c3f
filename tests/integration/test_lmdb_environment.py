"""Growing, sharing, forking and refusing: what an environment does for the store and the cache."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trialfleet_shared.adapters.lmdb_environment import LmdbEnvironment, Transaction
from trialfleet_shared.errors import StoreError

Connect = Callable[[], LmdbEnvironment]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    opened: list[LmdbEnvironment] = []

    def connect() -> LmdbEnvironment:
        opened.append(LmdbEnvironment(tmp_path / "environment", layout="test 1", databases=("items",), map_bytes=2**16))
        return opened[-1]

    yield connect
    for environment in opened:
        environment.close()


def put(environment: LmdbEnvironment, key: bytes, value: bytes) -> None:
    environment.write(lambda transaction: transaction.put(key, value, db=environment.database("items")))


def get(environment: LmdbEnvironment, key: bytes) -> bytes | None:
    with environment.read() as transaction:
        return transaction.get(key, db=environment.database("items"))


def in_another_process(path: Path, body: str) -> str:
    """Run `body` with `environment` open in a process of its own; what it prints."""
    script = f"""
import sys
from pathlib import Path
from trialfleet_shared.adapters.lmdb_environment import LmdbEnvironment
environment = LmdbEnvironment(Path(sys.argv[1]), layout="test 1", databases=("items",), map_bytes=2**16)
items = environment.database("items")
{body}
"""
    command = [sys.executable, "-c", script, str(path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def in_a_fork(function: Callable[[], bool]) -> bool:
    """What `function` returns in a forked child."""
    child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = function()
        finally:
            os._exit(0 if passed else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_only_the_user_may_read(connect: Connect) -> None:
    path = connect().path
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert path.stat().st_mode & 0o777 == 0o700
    assert modes == {"data.mdb": 0o600, "lock.mdb": 0o600, "users": 0o600}


def test_a_write_that_does_not_fit_grows_the_map(connect: Connect) -> None:
    environment = connect()
    put(environment, b"small", b"1")
    put(environment, b"large", bytes(2**20))
    assert get(environment, b"large") == bytes(2**20)
    assert get(environment, b"small") == b"1"


def test_a_map_that_another_process_outgrew_is_followed(connect: Connect) -> None:
    environment = connect()
    put(environment, b"small", b"1")
    in_another_process(
        environment.path,
        "environment.write(lambda transaction: transaction.put(b'large', bytes(2**20), db=items))",
    )
    assert get(environment, b"large") == bytes(2**20)
    put(environment, b"after", b"2")
    assert get(environment, b"after") == b"2"


def test_a_write_that_raises_is_undone(connect: Connect) -> None:
    environment = connect()

    def work(transaction: Transaction) -> None:
        transaction.put(b"half", b"1", db=environment.database("items"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        environment.write(work)
    assert get(environment, b"half") is None


def test_handles_of_a_process_share_what_is_open(connect: Connect) -> None:
    first, second = connect(), connect()
    put(first, b"a", b"1")
    first.close()
    assert get(second, b"a") == b"1"
    second.close()
    assert get(connect(), b"a") == b"1"


def test_a_link_to_the_folder_is_the_same_folder(connect: Connect, tmp_path: Path) -> None:
    put(connect(), b"a", b"1")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "environment")
    linked = LmdbEnvironment(link, layout="test 1", databases=("items",), map_bytes=2**16)
    assert get(linked, b"a") == b"1"
    linked.close()


def test_a_closed_handle_says_so(connect: Connect) -> None:
    environment = connect()
    environment.close()
    with pytest.raises(StoreError, match="was closed"):
        get(environment, b"a")


def test_a_forked_child_opens_the_files_anew(connect: Connect) -> None:
    environment = connect()
    put(environment, b"a", b"1")

    def child() -> bool:
        put(environment, b"b", b"2")
        return get(environment, b"a") == b"1"

    assert in_a_fork(child)
    assert get(environment, b"b") == b"2"
    put(environment, b"c", b"3")
    assert get(environment, b"c") == b"3"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_forking_waits_for_the_transactions_of_other_threads(connect: Connect) -> None:
    environment = connect()
    inside, forking = threading.Event(), threading.Event()

    def work(transaction: Transaction) -> None:
        inside.set()
        forking.wait(0.2)  # the fork can not begin while this goes on: that this times out is the point
        transaction.put(b"a", b"1", db=environment.database("items"))

    writer = threading.Thread(target=lambda: environment.write(work))
    writer.start()
    assert inside.wait(10)
    assert in_a_fork(lambda: get(environment, b"a") == b"1")
    writer.join(10)
    assert get(environment, b"a") == b"1"


def test_another_layout_is_refused(connect: Connect, tmp_path: Path) -> None:
    connect().close()
    with pytest.raises(StoreError, match=r"holds 'test 1'; this trialfleet reads and writes 'test 2'"):
        LmdbEnvironment(tmp_path / "environment", layout="test 2", databases=("items",), map_bytes=2**16)
    # The refusal leaves nothing open.
    assert connect().path.is_dir()


def test_another_layout_is_refused_while_it_is_open(connect: Connect, tmp_path: Path) -> None:
    connect()
    with pytest.raises(StoreError, match="holds 'test 1'"):
        LmdbEnvironment(tmp_path / "environment", layout="other 1", databases=("items",), map_bytes=2**16)


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"short"], ids=["foreign", "short"])
def test_a_folder_with_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(StoreError, match="can not be read or written"):
        LmdbEnvironment(tmp_path, layout="test 1", databases=("items",), map_bytes=2**16)
    assert (tmp_path / "data.mdb").read_bytes() == content


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file can not be read or written"):
        LmdbEnvironment(tmp_path / "file", layout="test 1", databases=("items",), map_bytes=2**16)


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_kept(connect: Connect) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses to write in the same place."""
    environment = connect()
    put(environment, b"a", b"1")
    said = in_another_process(
        environment.path,
        """
import resource
from trialfleet_shared.errors import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
try:
    environment.write(lambda transaction: transaction.put(b"large", bytes(2**20), db=items))
except StoreError as error:
    print(error)
with environment.read() as transaction:
    print(transaction.get(b"a", db=items), transaction.get(b"large", db=items))
environment.write(lambda transaction: transaction.put(b"b", b"2", db=items))
""",
    )
    line, read = said.splitlines()
    assert line.startswith(f"{environment.path}: the disk is full or fails")
    assert read == "b'1' None"
    assert get(environment, b"b") == b"2"


def test_readers_that_were_killed_do_not_make_the_file_grow(connect: Connect) -> None:
    environment = connect()
    in_another_process(
        environment.path,
        """
import os
reader = environment.read()
reader.__enter__()
os._exit(0)
""",
    )
    for _ in range(200):
        put(environment, b"a", os.urandom(3000))
    assert (environment.path / "data.mdb").stat().st_size < 2**17
