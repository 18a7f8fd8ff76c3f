"""The image and the compose file, as far as that can be seen without a container engine."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import PATIENCE
from support.deployed import OPS, ROOT, check_arguments, check_variables, named_certificates

from trialfleet.fleet_file import load_fleet
from trialfleet_shared.errors import ConfigurationError

DOCKERFILE = OPS / "docker" / "Dockerfile"
LOCKS = OPS / "docker" / "locks"
COMPOSE = OPS / "compose.yaml"
COMPOSE_TLS = OPS / "compose.tls.yaml"
BIN = Path(sysconfig.get_path("scripts"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, check=False)


def instructions(keyword: str) -> list[str]:
    """The arguments of the Dockerfile's instructions of this kind."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{keyword} ")]


def compose() -> Any:
    return yaml.safe_load(COMPOSE.read_text())


def ignored(path: Path) -> bool:
    """Whether the build does not see the file: the last pattern that matches it, or a folder of it, decides."""
    verdict = False
    for line in (OPS / "docker" / "Dockerfile.dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.relative_to(ROOT)
        places = [parts, *list(parts.parents)[:-1]]
        names = [place.name if "**/" in line else str(place) for place in places]
        if any(fnmatch.fnmatch(name, pattern) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_hadolint_has_nothing_to_say() -> None:
    done = run(BIN / "hadolint", DOCKERFILE)

    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_notices_a_mistake(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.read_text().replace("python:3.11-slim-bookworm", "python:latest"))

    assert run(BIN / "hadolint", bad).returncode != 0


def test_the_image_is_built_from_what_the_build_sees(tmp_path: Path) -> None:
    """The instructions of the first stage, carried out here."""
    source = tmp_path / "source"
    source.mkdir()
    for copied in instructions("COPY")[:-1]:
        *names, target = copied.split()
        for name in names:
            for path in [ROOT / name, *(ROOT / name).rglob("*")]:
                if path.is_file() and not ignored(path):
                    place = source / target / path.relative_to(ROOT / name if (ROOT / name).is_dir() else ROOT)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, place)
    (build,) = (step for run_line in instructions("RUN") for step in run_line.split(" && ") if "hatchling" in step)
    here = build.replace("/opt/build/bin", str(BIN)).replace("/wheels", str(tmp_path / "wheels"))
    done = subprocess.run(shlex.split(here), cwd=source, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert {path.name for path in (source / "locks").iterdir()} == {path.name for path in LOCKS.iterdir()}
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        built = {name for name in archive.namelist() if name.endswith(".py")}
    packages = [
        ROOT / "trialfleet",
        *(ROOT / part / f"trialfleet_{part}" for part in ("coordinator", "workers", "shared")),
    ]
    assert built == {str(path.relative_to(package.parent)) for package in packages for path in package.rglob("*.py")}


def test_the_build_does_not_see_what_is_no_part_of_it() -> None:
    assert ignored(ROOT / "ops" / "secrets" / "worker-password")
    assert ignored(ROOT / ".git" / "config")
    assert ignored(ROOT / "tests" / "conftest.py")
    assert ignored(ROOT / "trialfleet" / "__pycache__" / "cli.cpython-311.pyc")
    assert not ignored(ROOT / "trialfleet" / "cli.py")


def test_the_image_runs_trialfleet_as_nobody_in_particular() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["trialfleet"]']  # not by a shell, which would keep the signal to itself
    (health,) = instructions("HEALTHCHECK")
    program, *arguments = yaml.safe_load(health.split("CMD ")[1])
    assert program == "trialfleet"
    check_arguments(arguments)


def test_the_image_sets_what_trialfleet_understands(tmp_path: Path) -> None:
    (assignments,) = instructions("ENV")
    check_variables(dict(one.split("=", 1) for one in shlex.split(assignments)), tmp_path)


def test_the_fleet_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    file = tmp_path / "fleet.toml"
    text = (OPS / "docker" / "fleet.toml").read_text()
    file.write_text(text.replace('"/studies"', f'"{tmp_path}/studies"'))

    assert load_fleet(file).port == 8765
    file.write_text(file.read_text().replace("port", "prot"))
    with pytest.raises(ConfigurationError, match="prot"):
        load_fleet(file)


def test_the_compose_files_keep_to_their_schema(tmp_path: Path) -> None:
    checker = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    bad = tmp_path / "compose.yaml"
    bad.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchecks:"))

    assert run(*checker, COMPOSE, COMPOSE_TLS).returncode == 0
    assert run(*checker, bad).returncode != 0


@pytest.mark.parametrize("service", ["coordinator", "worker"])
def test_a_service_says_what_trialfleet_understands(service: str, tmp_path: Path) -> None:
    described = compose()["services"][service]

    check_arguments(described["command"])
    check_variables(described["environment"], tmp_path)


@pytest.mark.parametrize("extras", ["", compose()["services"]["worker"]["build"]["args"]["EXTRAS"]])
def test_the_image_installs_nothing_that_is_not_named_by_digest(extras: str) -> None:
    """pip's command lines, as the shell of the build expands them."""
    installs = [step for line in instructions("RUN") for step in line.split(" && ") if "pip install" in step]
    expanded = subprocess.run(
        ["/bin/sh", "-ec", "\n".join(re.sub(r"^\S+/(\w+)/bin/pip", r"echo \1", step.strip()) for step in installs)],
        env={"EXTRAS": extras},
        capture_output=True,
        text=True,
        check=True,
    )
    needs, tools, own = (set(line.split()) for line in expanded.stdout.splitlines())

    assert {"trialfleet", "--require-hashes", "-r", f"locks/{extras or 'runtime'}.txt"} <= needs
    assert {"build", "--require-hashes", "-r", "locks/build.txt"} <= tools
    assert {"trialfleet", "--no-deps", "--no-index"} <= own
    assert (LOCKS / f"{extras or 'runtime'}.txt").is_file()


def test_every_file_that_is_mounted_is_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (OPS / volume.split(":")[0]).exists(), volume


def test_every_secret_is_one_that_is_made(tmp_path: Path) -> None:
    assert run(sys.executable, OPS / "make-secrets", tmp_path / "secrets").returncode == 0
    described = compose()
    for secret in described["secrets"].values():
        assert (tmp_path / secret["file"].replace("${SECRETS:-./secrets}", "secrets")).is_file()
    for name, service in described["services"].items():
        given = set(service.get("secrets", []))
        assert given <= described["secrets"].keys()
        # What a service is told to read is given to it, and it is given nothing else.
        read = {
            value.rpartition("/")[2] for key, value in service.get("environment", {}).items() if key.endswith("_FILE")
        }
        assert given == (read or given & {"rabbitmq-definitions"}), name


def test_with_tls_every_certificate_is_where_it_is_looked_for(tmp_path: Path) -> None:
    assert run(sys.executable, OPS / "make-secrets", tmp_path, "--tls").returncode == 0
    described = yaml.safe_load(COMPOSE_TLS.read_text())
    mounted = {
        name: {f"/run/secrets/{secret}" for secret in service["secrets"]}
        for name, service in described["services"].items()
    }

    for name in ("coordinator", "worker"):
        assert mounted[name] == named_certificates((tmp_path / f"{name}-broker-url").read_text())
    configuration = OPS / "rabbitmq" / "tls.conf"
    assert mounted["rabbitmq"] == set(re.findall(r"= (/run/secrets/\S+)", configuration.read_text()))
    (volume,) = described["services"]["rabbitmq"]["volumes"]
    assert OPS / volume.split(":")[0] == configuration
    assert {f"/run/secrets/{secret}" for secret in described["secrets"]} == set.union(*mounted.values())
    assert all(one["file"] == f"${{SECRETS:-./secrets}}/{name}" for name, one in described["secrets"].items())


def test_nothing_is_open_to_other_machines() -> None:
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not service.get("privileged")


def test_every_service_is_watched_and_keeps_its_data_in_a_volume() -> None:
    described = compose()
    for name, service in described["services"].items():
        # The coordinator's check is the image's.
        assert "healthcheck" in service or name == "coordinator"
    for volume in described["volumes"]:
        assert any(
            mounted.startswith(f"{volume}:") for one in described["services"].values() for mounted in one["volumes"]
        )


def test_a_worker_has_time_to_finish() -> None:
    assert compose()["services"]["worker"]["stop_grace_period"] == "1h"


@pytest.mark.parametrize("file", ["compose.yaml", "compose.tls.yaml", "prometheus/prometheus.yml", "kubernetes"])
def test_yaml_is_tidy(file: str) -> None:
    done = run(BIN / "yamllint", "--strict", "-c", OPS / ".yamllint", OPS / file)

    assert done.returncode == 0, done.stdout
