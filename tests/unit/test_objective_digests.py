"""What a digest of an objective notices, and what it must not."""

import errno
from pathlib import Path

import pytest
from support.modules import write

from trialfleet_shared.errors import ObjectiveError
from trialfleet_workers.digests import code_digest

PROJECT = {
    "tune": (
        "import helper\nfrom package import part\ndef objective(params): return helper.x\ndef other(params): return 1\n"
    ),
    "helper": "def f():\n    import deep\nx = 1\n",
    "deep": "import tune\n",
    "unused": "x = 1\n",
}


def make_project(folder: Path) -> Path:
    write(folder, **PROJECT)
    write(folder / "package", __init__="from . import sibling\n", part="from .sub.leaf import x\n", sibling="")
    write(folder / "package" / "sub", __init__="", leaf="from ... import nothing\nx = 1\n")
    return folder


def test_equal_files_have_equal_digests_wherever_they_are(tmp_path: Path) -> None:
    one, two = make_project(tmp_path / "one"), make_project(tmp_path / "two" / "deeper")
    assert code_digest("tune.py:objective", one) == code_digest("tune.py:objective", two)
    assert code_digest("tune.py:objective", one) == code_digest("one/tune.py:objective", tmp_path)
    assert code_digest("tune.py:objective", one) == code_digest("tune:objective", one)


@pytest.mark.parametrize(
    "changed", ["tune", "helper", "deep", "package/__init__", "package/part", "package/sibling", "package/sub/leaf"]
)
def test_a_change_of_any_local_module_is_noticed(tmp_path: Path, changed: str) -> None:
    before = code_digest("tune.py:objective", make_project(tmp_path))
    with (tmp_path / f"{changed}.py").open("a") as file:
        file.write("changed = True\n")
    assert code_digest("tune.py:objective", tmp_path) != before


def test_the_function_counts(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert code_digest("tune.py:objective", tmp_path) != code_digest("tune.py:other", tmp_path)


def test_line_ends_and_modules_that_are_not_imported_do_not_count(tmp_path: Path) -> None:
    before = code_digest("tune.py:objective", make_project(tmp_path))
    (tmp_path / "unused.py").write_text("x = 2\n")
    (tmp_path / "helper.py").write_bytes(PROJECT["helper"].replace("\n", "\r\n").encode())
    assert code_digest("tune.py:objective", tmp_path) == before


def test_installed_packages_do_not_count_and_nothing_is_run(tmp_path: Path) -> None:
    write(tmp_path, tune="import sklearn, numpy, no_such_module\nraise SystemExit\ndef f(p): return 1\n")
    assert code_digest("tune.py:f", tmp_path)


def test_an_installed_module_counts_with_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    write(site / "mine_d", __init__="", tuning="import other_d, mine_d.helper\ndef f(p): return 1\n", helper="")
    write(site, other_d="x = 1\n")
    monkeypatch.syspath_prepend(str(site))
    before = code_digest("mine_d.tuning:f", tmp_path / "elsewhere")
    write(site, other_d="x = 2\n")
    assert code_digest("mine_d.tuning:f", tmp_path / "elsewhere") == before
    write(site / "mine_d", helper="x = 1\n")
    assert code_digest("mine_d.tuning:f", tmp_path / "elsewhere") != before


def test_the_packages_that_a_module_is_in_count(tmp_path: Path) -> None:
    """Importing it runs them."""
    write(tmp_path / "outer_d", __init__="import outer_d.used\n", used="x = 1\n")
    write(tmp_path / "outer_d" / "inner", __init__="", tuning="def f(p): return 1\n")
    found = {code_digest("outer_d.inner.tuning:f", tmp_path)}
    for changed in ("outer_d/__init__", "outer_d/used", "outer_d/inner/__init__"):
        with (tmp_path / f"{changed}.py").open("a") as file:
            file.write("changed = True\n")
        found.add(code_digest("outer_d.inner.tuning:f", tmp_path))
    assert len(found) == 4


def test_a_helper_with_a_syntax_error_counts_by_its_bytes(tmp_path: Path) -> None:
    write(tmp_path, tune="import helper\ndef f(p): return 1\n", helper="def (\n")
    assert code_digest("tune.py:f", tmp_path)
    write(tmp_path, tune="def (\n")
    with pytest.raises(ObjectiveError, match=r"syntax error in .*tune.py, line 1"):
        code_digest("tune.py:f", tmp_path)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ObjectiveError, match="there is no file"):
        code_digest("tune.py:f", tmp_path)
    with pytest.raises(ObjectiveError, match=r"there is no module 'no_such\.module'"):
        code_digest("no_such.module:f", tmp_path)


NESTED_TOO_DEEPLY = f"x = {'+'.join(['1'] * 20_000)}\n"


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("a" * 300 + ".py:f", "can not be read: .*File name too long"),
        ("a" * 300 + ":f", "there is no module"),
        ("tune\0.py:f", "names no function"),
        ("deep.py:f", r"syntax error in .*deep\.py: it is nested too deeply"),
        ("zero.py:f", r"syntax error in .*zero\.py.*: .*null byte"),
        ("loop.py:f", r"(can not be read|there is no file).*loop\.py"),
    ],
)
def test_what_can_not_be_looked_at_is_told(tmp_path: Path, reference: str, told: str) -> None:
    write(tmp_path, deep=NESTED_TOO_DEEPLY, zero="x = 1\0\n")
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    with pytest.raises(ObjectiveError, match=told):
        code_digest(reference, tmp_path)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, tune="def f(p): return 1\n")
    forbid(monkeypatch, tmp_path / "tune.py")
    with pytest.raises(ObjectiveError, match=r"'tune\.py:f' can not be read: .*Permission denied: .*tune\.py"):
        code_digest("tune.py:f", tmp_path)


def forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Have a file be somebody else's: to root, whom tests may run as, nothing is forbidden."""
    read = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_what_is_imported_and_can_not_be_compiled_or_found_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path, tune="import deep\ndef f(p): return 1\n", deep=NESTED_TOO_DEEPLY)
    before = code_digest("tune.py:f", tmp_path)
    write(tmp_path, deep=NESTED_TOO_DEEPLY + "y = 1\n")
    assert code_digest("tune.py:f", tmp_path) != before
    write(tmp_path, tune=f"def f(p):\n    from os import {'b' * 300}\n")
    assert code_digest("tune.py:f", tmp_path)
