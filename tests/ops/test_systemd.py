"""The units of ops/systemd, as systemd itself reads them."""

import subprocess
from pathlib import Path

import pytest
from support.deployed import OPS, check_arguments, check_variables
from support.programs import need

UNITS = OPS / "systemd"
SERVICES = ("trialfleet-coordinator.service", "trialfleet-worker@.service")
#: Where the units expect the command, and what stands there in a test.
COMMAND = "/opt/trialfleet/bin/trialfleet"
#: Tenths of systemd's exposure level, 0 to 100, up to which it says OK and somewhat below that.
MOST_EXPOSED = 25


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a command that is there."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(COMMAND, "/bin/true"))
    return tmp_path


def verify(units: Path) -> str:
    """What systemd has to say: nothing, when all is well. It exits with 0 on many mistakes."""
    names = [str(path).replace("@.", "@9401.") for path in units.iterdir()]
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", *names],
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
def test_a_service_that_is_enabled_starts_at_boot(unit: str, tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    for file in UNITS.iterdir():
        (folder / file.name).write_text(file.read_text())

    enable = [need("systemctl"), f"--root={tmp_path}", "enable", unit.replace("@.", "@9401.")]
    subprocess.run(enable, check=True, capture_output=True)

    assert (folder / "multi-user.target.wants" / "trialfleet.target").is_symlink()
    assert (folder / "trialfleet.target.wants" / unit.replace("@.", "@9401.")).is_symlink()


@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_is_hardened(unit: str) -> None:
    done = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", f"--threshold={MOST_EXPOSED}", UNITS / unit],
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
def test_a_unit_says_what_trialfleet_understands(unit: str, tmp_path: Path) -> None:
    program, *arguments = settings(unit)["ExecStart"][0].replace("%i", "9401").split()

    assert program == COMMAND
    check_arguments(arguments)
    check_variables(dict(value.split("=", 1) for value in settings(unit)["Environment"]), tmp_path)


def test_a_worker_is_not_stopped_by_one_evaluation() -> None:
    worker = settings("trialfleet-worker@.service")

    assert worker["OOMPolicy"] == ["continue"]
    assert worker["KillMode"] == ["mixed"]
