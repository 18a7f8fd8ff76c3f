"""What is kept is for its user alone, whatever the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import start_trialfleet, trialfleet
from support.waiting import wait_until

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_shared.adapters.private_files import make_private_folder
from trialfleet_shared.errors import BrokerError

STUDY = """
[study]
name = "line"
objective = "objective.py:line"
trials = 3
[data]
source = "rows.csv"
target = "y"
[space.x]
type = "float"
min = 0.0
max = 1.0
"""
OBJECTIVE = """
def line(params, data):
    return params["x"] * len(data.frame)
"""


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """What below the folder, itself included, its group or others may read, write or enter."""
    return [
        f"{stat.filemode(mode)} {path}"
        for path in (folder, *folder.rglob("*"))
        if (mode := path.lstat().st_mode) & 0o077 and not stat.S_ISLNK(mode)
    ]


def test_a_study_leaves_nothing_that_others_can_read(tmp_path: Path, no_umask: None) -> None:
    """Store, caches, locks and imported data, in a home that had to be made."""
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "".join(f"{i},t{i % 3},{i / 7}\n" for i in range(200)))
    (tmp_path / "study.toml").write_text(STUDY)
    home = tmp_path / "share" / "trialfleet"
    done = trialfleet(["run", tmp_path / "study.toml"], home)
    assert done.returncode == 0, done.stderr
    assert {each.name for each in home.iterdir()} >= {"store", "results", "data"}
    assert open_to_others(tmp_path / "share") == []


def test_a_coordinator_leaves_nothing_that_others_can_read(tmp_path: Path, no_umask: None) -> None:
    """Its token above all."""
    home = tmp_path / "home"
    nowhere = "amqp://nobody:nothing@127.0.0.1:1/"
    (tmp_path / "fleet.toml").write_text("[coordinator]\nport = 0\n")
    coordinator = start_trialfleet(
        ["coordinator", "--config", tmp_path / "fleet.toml"], home, TRIALFLEET_BROKER_URL=nowhere
    )
    try:
        wait_until(lambda: CoordinatorFiles(home).url() is not None, "a coordinator", 60)
        assert CoordinatorFiles(home).token() is not None
        assert open_to_others(home) == []
    finally:
        coordinator.terminate()
        coordinator.communicate(timeout=60)


def test_a_private_node_leaves_nothing_that_others_can_read(tmp_path: Path, no_umask: None) -> None:
    """Its configuration has a password in it."""
    try:
        RabbitNode(tmp_path / "node")
    except BrokerError as error:
        pytest.skip(str(error))
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "node" / "rabbitmq.conf").stat().st_mode) == 0o600


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is no folder"):
        make_private_folder(tmp_path / "file")
    RosterFiles(tmp_path / "a" / "b")
    assert open_to_others(tmp_path / "a") == []
