"""The units of ops/systemd, as systemd itself reads them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rabbit_node import OPS

from trialfleet.environment import read_environment
from trialfleet_shared.errors import ConfigurationError

UNITS = OPS / "systemd"
SERVICES = ("trialfleet-coordinator.service", "trialfleet-worker@.service")
#: Where the units expect the command, and what stands there in a test.
COMMAND = "/opt/trialfleet/bin/trialfleet"
#: Tenths of systemd's exposure level, 0 to 100, up to which it says OK and somewhat below that.
MOST_EXPOSED = 25

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def units(tmp_path: Path) -> Iterator[Path]:
    """The units, with a command that is there."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(COMMAND, "/bin/true"))
    return tmp_path


def verify(units: Path) -> str:
    """What systemd has to say: nothing, when all is well. It exits with 0 on many mistakes."""
    names = [str(path).replace("@.", "@9401.") for path in units.iterdir()]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}")


def settings(unit: str) -> dict[str, list[str]]:
    """The unit's settings, each with its values in order."""
    values: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            values.setdefault(key, []).append(value)
    return values


def test_systemd_has_nothing_to_say(units: Path) -> None:
    assert verify(units) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("WatchdogSec=", "WatchDogSec="), ("KillMode=mixed", "KillMode=mixt"), ("Type=notify", "Type=x")],
)
def test_a_mistake_is_noticed(right: str, wrong: str, units: Path) -> None:
    unit = units / "trialfleet-worker@.service"
    assert right in unit.read_text()
    unit.write_text(unit.read_text().replace(right, wrong))

    assert verify(units) != ""


@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_is_hardened(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", UNITS / unit],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_is_told_apart_from_a_hung_one(unit: str) -> None:
    assert settings(unit)["Type"] == ["notify"]
    assert "WatchdogSec" in settings(unit)


@pytest.mark.parametrize("unit", SERVICES)
def test_secrets_are_credentials(unit: str) -> None:
    variables = dict(value.split("=", 1) for value in settings(unit)["Environment"])
    credentials = dict(value.split(":", 1) for value in settings(unit)["LoadCredential"])
    files = {value.removeprefix("%d/") for name, value in variables.items() if name.endswith("_FILE")}

    assert files == set(credentials)
    assert all(path.startswith("/etc/trialfleet/secrets/") for path in credentials.values())


@pytest.mark.parametrize("unit", SERVICES)
def test_the_environment_is_one_that_trialfleet_knows(unit: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("amqp://localhost/")
    variables = dict(value.split("=", 1) for value in settings(unit)["Environment"])
    filled = {name: str(secret) if name.endswith("_FILE") else value for name, value in variables.items()}

    read_environment(filled)
    with pytest.raises(ConfigurationError, match="unknown variable"):
        read_environment({**filled, "TRIALFLEET_HOMES": "/"})


@pytest.mark.parametrize("unit", SERVICES)
def test_the_command_line_is_one_that_trialfleet_knows(unit: str) -> None:
    from trialfleet.cli import cli

    program, name, *arguments = settings(unit)["ExecStart"][0].split()
    command = cli.commands[name]  # type: ignore[attr-defined]  # it is a group
    known = {option for parameter in command.params for option in parameter.opts}

    assert program == COMMAND
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_a_worker_is_not_stopped_by_one_evaluation() -> None:
    worker = settings("trialfleet-worker@.service")

    assert worker["OOMPolicy"] == ["continue"]
    assert worker["KillMode"] == ["mixed"]
