"""What somebody who may speak to trialfleet can not reach by it."""

import ast
import fcntl
import fnmatch
import json
import logging
import re
import sys
from pathlib import Path

import click
import msgspec
import pytest

from tests.fixtures.make import ENTRY
from trialfleet.cli import cli
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.home import Home
from trialfleet.logs import JsonFormatter
from trialfleet.watching import Watching
from trialfleet.workshop import HomeWorkshop
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_coordinator.adapters.study_lock import StudyLock
from trialfleet_coordinator.serving import Submission
from trialfleet_shared.errors import ConfigurationError, DataError, ObjectiveError, StudyLockedError
from trialfleet_shared.messages import DataSpec, StudySpec
from trialfleet_workers.adapters.importing import import_apart
from trialfleet_workers.adapters.sources import stamp
from trialfleet_workers.allowance import Allowance
from trialfleet_workers.digests import code_digest
from trialfleet_workers.objective import load_function

ROOT = Path(__file__).parents[2]
NAMES = ["../x", "/etc/x", "..", "a\0b", "a\nb", "\x1b[2J", "x" * 200, "C:\\x", "a/b/../../../c"]
SPACE = {"x": {"type": "float", "min": 0.0, "max": 1.0}}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A module that says when it was imported."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\ndef f(params): return 1.0\nspace = f\n"
    )
    return folder / "evil.py"


@pytest.mark.parametrize("key", ["objective", "space", "source"])
@pytest.mark.parametrize("how", ["..", "absolute", "link", "module"])
def test_a_submission_reaches_no_code_outside(tmp_path: Path, outside: Path, how: str, key: str) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "fine.py").write_text("def f(params): return 1.0\n")
    (allowed / "link.py").symlink_to(outside)
    place = {"..": "../outside/evil.py", "absolute": str(outside), "link": "link.py", "module": "os"}[how]
    study = {"objective": "fine.py:f", "trials": 1}
    tables: dict[str, object] = {"study": study, "space": SPACE}
    if key == "source":
        tables["data"] = {"source": f"{place}:f", "target": "y"}
    else:
        study[key] = f"{place}:f"
        if key == "space":
            del tables["space"]
    workshop = HomeWorkshop(Home(tmp_path / "home"), "amqp://nowhere", Allowance((allowed,)), Watching())
    with pytest.raises(ConfigurationError, match=r"is not allowed here|names no function"):
        workshop.describe(Submission(tables=tables, base=str(allowed)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_paths(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "below" / "store"
    folder.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    StudyLock(folder, name).release()
    roster = RosterFiles(folder / "roster")
    roster.save(msgspec.structs.replace(ENTRY, study=name))
    assert [entry.study for entry in roster.load()] == [name]
    made = set(tmp_path.rglob("*")) - before
    assert made
    assert all(path.is_relative_to(folder) and len(path.name) < 60 for path in made)


@pytest.mark.parametrize("name", NAMES)
def test_names_make_no_lines(name: str) -> None:
    record = logging.LogRecord("trialfleet", logging.INFO, "", 0, "study %s was submitted", (name,), None)
    record.study = name
    line = JsonFormatter().format(record)
    assert line.isprintable()
    assert json.loads(line)["study"] == name


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("simplecache::http://127.0.0.1:1/rows.csv", "a chain of file systems"),
        ("zip://rows.csv::file:///tmp/a.zip", "a chain of file systems"),
        ("rows\0.csv", "has a NUL in it"),
        ("/etc", "is a folder"),
        ("nothing://rows.csv", "can not be opened"),
        ("ftp://127.0.0.1:1/rows.csv", "can not be opened: .*Connection refused"),
    ],
)
def test_a_source_is_one_file(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        stamp(source, tmp_path)


@pytest.mark.parametrize("source", ["ftp://user:hunter2@host/rows.csv", "s3://key:p@ss:hunter2@host:9/rows.csv"])
def test_a_source_has_no_password(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=r"'\w+://\w+:\*\*\*@host.*has a password in it") as caught:
        stamp(source, tmp_path)
    assert "hunter2" not in str(caught.value)


def test_the_signature_of_a_source_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source = 'nothing://host/rows\.csv\?X-Amz-Signature=") as caught:
        stamp("nothing://host/rows.csv?X-Amz-Signature=hunter2&x=1", tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("source", ["file://{}/a@b:c.csv", "{}/http:/user:x@y.csv", "file://{}/x:y@z.csv"])
def test_a_colon_is_no_password(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="there is no file"):
        stamp(source.format(tmp_path), tmp_path)


def test_a_data_function_is_one_of_its_own(tmp_path: Path) -> None:
    """`getcwd` is within the file, and none of its own; a worker's message may name the source."""
    file = tmp_path / "reach_data.py"
    file.write_text("from os import getcwd\ndef f(params, data): return 1.0\n")
    spec = StudySpec(
        "s",
        "reach_data.py:f",
        code_digest("reach_data.py:f", tmp_path),
        data=DataSpec(source="reach_data.py:getcwd", target="y"),
        data_digest="ab",
    )
    with pytest.raises(DataError, match="is defined elsewhere"):
        import_apart(spec, tmp_path / "cache", tmp_path, Allowance((tmp_path,)))


def test_a_module_of_the_same_name_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # nobody else is to find this one
    (tmp_path / "fnmatch.py").write_text("def f(params): return 1.0\n")
    with pytest.raises(
        ObjectiveError, match=re.escape(f"{tmp_path}/fnmatch.py, but its import gives {fnmatch.__file__}")
    ):
        load_function("fnmatch:f", tmp_path, own=True)


@pytest.mark.parametrize("command", [["run", "study.toml"], ["worker"], ["coordinator"]])
def test_a_password_is_no_argument(command: list[str]) -> None:
    with pytest.raises(click.BadParameter, match="is seen by all users") as refused:
        cli.main([*command, "--broker", "amqp://me:hunter2@host/"], standalone_mode=False)
    assert "hunter2" not in refused.value.format_message()


def test_nothing_kept_or_sent_is_unpickled() -> None:
    """Pickles are made and read for one's own child processes alone, and digests are made of them."""
    users = set()
    for package in ("trialfleet", "coordinator", "workers", "shared"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_bytes())
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            if names & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}:
                users.add(path.name)
            if "unpickle_function" in path.read_text():
                users.add(path.name)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                    assert "allow_pickle=False" in ast.unparse(node)
    assert users == {"in_memory.py", "function_digests.py", "zygote.py"}
    assert "loads" not in (ROOT / "workers/trialfleet_workers/function_digests.py").read_text()


def test_who_listens_where_a_killed_coordinator_did_is_not_shown_the_token(tmp_path: Path) -> None:
    files = CoordinatorFiles(tmp_path)
    with files.locked(), files.announced("http://127.0.0.1:1"):
        assert files.url() == "http://127.0.0.1:1"
        kept = (tmp_path / "coordinator" / "url").read_text()
    (tmp_path / "coordinator" / "url").write_text(kept)  # as `kill -9` leaves it
    assert files.url() is None
    with files.locked():
        assert files.url() == "http://127.0.0.1:1"


def test_who_looks_whether_a_coordinator_runs_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CoordinatorFiles(tmp_path)
    with files.locked():
        pass
    looking = (tmp_path / "coordinator" / "lock").open("r+")
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("trialfleet.coordinator_files.time.sleep", lambda _: looking.close())
    with files.locked(), pytest.raises(StudyLockedError, match="another coordinator runs"), files.locked():
        pass
