"""The environment is read strictly."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trialfleet.environment import VARIABLES, read_environment
from trialfleet.study_file import StudySection
from trialfleet.tls import client_tls
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.settings import EfficiencyConfig


def test_sections_share_no_key() -> None:
    """Otherwise one variable would set two things."""
    assert not set(StudySection.__struct_fields__) & set(EfficiencyConfig.__struct_fields__)


def test_variables_become_settings_of_their_section() -> None:
    environment = read_environment({"TRIALFLEET_TRIALS": "5", "TRIALFLEET_MAX_WORKERS": "2", "HOME": "/root", "X": "y"})

    assert [(s.key, s.value, s.origin, s.is_text) for s in environment.settings["study"]] == [
        ("trials", "5", "TRIALFLEET_TRIALS", True)
    ]
    assert [(s.key, s.value) for s in environment.settings["efficiency"]] == [("max_workers", "2")]
    assert "TRIALFLEET_OBJECTIVE" not in VARIABLES


def test_an_unknown_variable_is_an_error() -> None:
    expected = "environment: TRIALFLEET_MAX_WRKERS: unknown variable; did you mean 'TRIALFLEET_MAX_WORKERS'?"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
        read_environment({"TRIALFLEET_MAX_WRKERS": "5"})


@pytest.mark.parametrize(
    "name",
    [
        "TRIALFLEET_COORDINATOR_SERVICE_HOST",
        "TRIALFLEET_COORDINATOR_SERVICE_PORT",
        "TRIALFLEET_COORDINATOR_SERVICE_PORT_METRICS",
        "TRIALFLEET_COORDINATOR_PORT",
        "TRIALFLEET_COORDINATOR_PORT_9400_TCP",
        "TRIALFLEET_COORDINATOR_PORT_9400_TCP_ADDR",
    ],
)
def test_what_kubernetes_sets_for_a_service_is_passed_over(name: str) -> None:
    assert read_environment({name: "10.0.0.1"}).settings == {"study": [], "efficiency": []}


def test_an_empty_variable_counts_as_not_set() -> None:
    environment = read_environment({"TRIALFLEET_TRIALS": "", "TRIALFLEET_BROKER_URL": "", "TRIALFLEET_NONE": ""})

    assert environment.settings["study"] == []
    assert environment.broker_url is None


def test_home_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    assert read_environment({}).home == Path("/home/me/.local/share/trialfleet")
    assert read_environment({"XDG_DATA_HOME": "/data"}).home == Path("/data/trialfleet")
    assert read_environment({"XDG_DATA_HOME": "relative"}).home == Path("/home/me/.local/share/trialfleet")
    assert read_environment({"XDG_DATA_HOME": "/data", "TRIALFLEET_HOME": "~/fleet"}).home == Path("/home/me/fleet")


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_environment, "TRIALFLEET_HOME"),
        (read_environment, "TRIALFLEET_BROKER_URL_FILE"),
        (client_tls, "TRIALFLEET_CA_FILE"),
    ],
)
def test_a_path_below_the_home_of_nobody_is_an_error(read: Callable[[dict[str, str]], object], name: str) -> None:
    told = f"{name} = ~no.such.user/x: there is no home folder to put in place of ~"
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        read({name: "~no.such.user/x"})


def test_a_user_without_a_home_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def without() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", without)
    with pytest.raises(ConfigurationError, match="this user has no home folder; set TRIALFLEET_HOME"):
        read_environment({})
    assert read_environment({"TRIALFLEET_HOME": "/x"}).home == Path("/x")


def test_the_brokers_url_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("amqp://me:secret@host/\n")

    environment = read_environment({"TRIALFLEET_BROKER_URL_FILE": str(file)})

    assert environment.broker_url == "amqp://me:secret@host/"
    assert "secret" not in repr(environment)


def test_a_file_with_the_brokers_url_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"TRIALFLEET_BROKER_URL_FILE = .*none: .*No such file"):
        read_environment({"TRIALFLEET_BROKER_URL_FILE": str(tmp_path / "none")})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigurationError, match="the file is empty"):
        read_environment({"TRIALFLEET_BROKER_URL_FILE": str(tmp_path / "empty")})
    with pytest.raises(ConfigurationError, match="are both set; keep one"):
        read_environment({"TRIALFLEET_BROKER_URL_FILE": "x", "TRIALFLEET_BROKER_URL": "y"})
