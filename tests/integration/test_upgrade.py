"""What earlier versions left behind: later ones read it, and go on with it (tests/fixtures/make.py)."""

import shutil
from pathlib import Path

import msgspec
import pytest
from support.commands import document, trialfleet

from tests.fixtures.make import ENTRY, MESSAGES
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_shared.codec import decode
from trialfleet_shared.messages import SCHEMA_VERSION, ResultBatch

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = sorted(folder.name for folder in FIXTURES.iterdir() if folder.is_dir() and folder.name.startswith("v"))


@pytest.fixture(params=VERSIONS)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version left."""
    copy: Path = tmp_path / "left"
    shutil.copytree(FIXTURES / request.param, copy)
    return copy


def test_there_is_something_of_every_version() -> None:
    assert [f"v{version}" for version in range(1, SCHEMA_VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_mean_what_they_meant(left: Path, name: str) -> None:
    payload = (left / f"{name}.json").read_bytes()
    version = msgspec.json.decode(payload)["version"]
    said = MESSAGES[name]
    expected = said.as_of(version) if isinstance(said, ResultBatch) else msgspec.structs.replace(said, version=version)
    assert decode(payload) == expected


def test_a_roster_is_read(left: Path) -> None:
    assert RosterFiles(left / "roster").load() == [ENTRY]


def test_a_study_is_reported_and_gone_on_with(left: Path) -> None:
    before = document(trialfleet(["report", "quadratic", "--json"], left / "home").stdout)
    assert len(before["trials"]) == 12
    ran = trialfleet(["run", left / "study" / "study.toml", "--trials", "15", "--json"], left / "home")
    assert ran.returncode == 0, ran.stderr
    assert "goes on after 12 trials" in ran.stderr
    after = document(ran.stdout)
    assert [trial["params"] for trial in after["trials"][:12]] == [trial["params"] for trial in before["trials"]]
    assert len(after["trials"]) == 15


def test_a_store_of_a_later_version_is_refused_by_name(left: Path) -> None:
    environment = left / "home" / "store" / "data.mdb"
    environment.write_bytes(environment.read_bytes().replace(b"study store 1", b"study store 9"))
    ran = trialfleet(["studies"], left / "home")
    assert ran.returncode == 4
    assert "'study store 9'" in ran.stderr
