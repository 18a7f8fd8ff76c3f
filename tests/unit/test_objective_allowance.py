"""Which objectives a worker agrees to run."""

from pathlib import Path

import pytest

from trialfleet_shared.errors import ObjectiveError
from trialfleet_workers.allowance import Allowance, Found, resolve
from trialfleet_workers.digests import code_digest

CODE = "def f(params): return 1\n"
OTHER = "def f(params): return 2\n"


@pytest.fixture
def digest(tmp_path: Path) -> str:
    study = tmp_path / "study"
    study.mkdir()
    (study / "tune.py").write_text(CODE)
    return code_digest("tune.py:f", study)


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    folder = tmp_path / "worker"
    (folder / "sub").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "reference",
    ["sub/tune.py:f", "/home/somebody/project/sub/tune.py:f", "../sub/tune.py:f", "project/sub/tune.py:f"],
)
def test_a_copy_is_found_by_the_tail_of_its_path(worker: Path, digest: str, reference: str) -> None:
    (worker / "sub" / "tune.py").write_text(CODE)
    assert resolve(reference, digest, worker, Allowance((worker,))) == Found("sub/tune.py:f", worker)


def test_the_copy_whose_code_is_the_studys_is_taken(worker: Path, digest: str) -> None:
    (worker / "sub" / "tune.py").write_text(OTHER)
    (worker / "tune.py").write_text(CODE)
    assert resolve("sub/tune.py:f", digest, worker, Allowance((worker,))) == Found("tune.py:f", worker)


def test_other_code_is_told_with_both_digests(worker: Path, digest: str) -> None:
    (worker / "tune.py").write_text(OTHER)
    mine = code_digest("tune.py:f", worker)
    with pytest.raises(
        ObjectiveError, match=f"is {mine[:8]} in {worker}/tune.py and {digest[:8]} in the study; update"
    ):
        resolve("tune.py:f", digest, worker, Allowance((worker,)))


@pytest.mark.parametrize(
    "reference", ["../outside/tune.py:f", "sub/../../outside/tune.py:f", "link/tune.py:f", "linked.py:f"]
)
def test_nothing_outside_is_reached(worker: Path, digest: str, reference: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "tune.py").write_text(CODE)
    (worker / "link").symlink_to(outside)
    (worker / "linked.py").symlink_to(outside / "tune.py")
    with pytest.raises(ObjectiveError, match=r"is not allowed here; allowed are files below .*worker and modules none"):
        resolve(reference, digest, worker, Allowance((worker,)))


def test_an_absolute_path_is_a_tail_like_any_other(worker: Path, digest: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match="not allowed"):
        resolve(f"{tmp_path}/study/tune.py:f", digest, worker, Allowance((worker,)))


def test_modules_are_allowed_by_folder_or_by_name(worker: Path) -> None:
    (worker / "sub" / "tune.py").write_text(CODE)
    digest = code_digest("sub.tune:f", worker)
    assert resolve("sub.tune:f", digest, worker, Allowance((worker,))) == Found("sub.tune:f", worker)
    assert resolve("sub.tune:f", digest, worker, Allowance((), ("sub",))) == Found("sub.tune:f", worker)
    assert resolve("sub.tune:f", digest, worker, Allowance((), ("sub.tune",))) == Found("sub.tune:f", worker)
    for allowance in (Allowance(()), Allowance((), ("sub.tun", "su", "tune")), Allowance((worker / "sub",))):
        with pytest.raises(ObjectiveError, match="not allowed"):
            resolve("sub.tune:f", digest, worker, allowance)
    with pytest.raises(ObjectiveError, match="not allowed"):
        resolve("os:system", digest, worker, Allowance((worker,)))


def test_without_an_allowance_the_reference_itself_counts(worker: Path, digest: str) -> None:
    (worker / "tune.py").write_text(CODE)
    assert resolve("tune.py:f", digest, worker, None) == Found("tune.py:f", worker)
    with pytest.raises(ObjectiveError, match="there is no file"):
        resolve("else/tune.py:f", digest, worker, None)


def test_a_broken_file_of_the_same_name_does_not_hide_the_studys_copy(worker: Path, digest: str) -> None:
    (worker / "sub" / "tune.py").write_text("def f(\n")
    with pytest.raises(ObjectiveError, match="syntax error"):
        resolve("sub/tune.py:f", digest, worker, Allowance((worker,)))
    (worker / "tune.py").write_text(CODE)
    assert resolve("sub/tune.py:f", digest, worker, Allowance((worker,))) == Found("tune.py:f", worker)
    (worker / "sub" / "tune.py").write_text(CODE)
    (worker / "tune.py").write_text("def f(\n")
    assert resolve("sub/tune.py:f", digest, worker, Allowance((worker,))) == Found("sub/tune.py:f", worker)


@pytest.mark.parametrize("reference", ["a" * 300 + ".py:f", "a" * 300 + ":f", "b" * 300 + "/tune.py:g"])
def test_a_name_too_long_for_a_file_is_not_here(worker: Path, digest: str, reference: str) -> None:
    with pytest.raises(ObjectiveError, match="not allowed here"):
        resolve(reference, digest, worker, Allowance((worker,)))


def test_links_in_a_circle_are_not_here(worker: Path, digest: str) -> None:
    (worker / "tune.py").symlink_to(worker / "tune.py")
    with pytest.raises(ObjectiveError, match="not allowed here"):
        resolve("tune.py:f", digest, worker, Allowance((worker,)))
