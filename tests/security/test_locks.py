"""What deployments install is named by digest, and is what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "ops" / "docker" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: By lock: what it has to satisfy.
ASKED = {
    "runtime": PROJECT["project"]["dependencies"],
    "examples": PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["examples"],
    "build": PROJECT["build-system"]["requires"],
}
PYTHONS = ("3.11", "3.12", "3.13")


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock, with their digests."""
    lines = re.sub(r"\\\n\s*", "", (LOCKS / f"{name}.txt").read_text()).splitlines()
    return [(Requirement(line.partition("--hash")[0].strip()), re.findall(r"--hash=(\S+)", line)) for line in lines]


def test_there_is_a_lock_for_each_purpose() -> None:
    assert {path.stem for path in LOCKS.iterdir()} == set(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_everything_has_digests_and_nothing_has_a_host(name: str) -> None:
    for requirement, digests in locked(name):
        assert digests, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), requirement
        assert [one.operator for one in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
    assert "://" not in (LOCKS / f"{name}.txt").read_text()


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ASKED)
def test_a_lock_satisfies_what_is_asked_for(name: str, python: str) -> None:
    where = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions = {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement, _ in locked(name)
        if requirement.marker is None or requirement.marker.evaluate(where)
    }
    for text in ASKED[name]:
        asked = Requirement(text)
        assert asked.specifier.contains(versions[canonicalize_name(asked.name)]), asked
