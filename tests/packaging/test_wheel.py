"""The wheel, built and installed as users get it: it is whole, and it works."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, environment

ROOT = Path(__file__).parents[2]
PACKAGES = {"trialfleet", "trialfleet_coordinator", "trialfleet_workers", "trialfleet_shared"}
STUDY = """
[study]
objective = "objective.py:square"
direction = "minimize"
trials = 5
[space.x]
type = "float"
min = -1.0
max = 1.0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=150,
    )
    (built,) = folder.glob("trialfleet-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    # A folder named by a .pth file does not have its own .pth files read: the editable installation stays outside.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    roots = [
        ROOT / "trialfleet",
        *(ROOT / name / f"trialfleet_{name}" for name in ("coordinator", "workers", "shared")),
    ]
    sources = {
        str(path.relative_to(root.parent))
        for root in roots
        for path in root.rglob("*")
        if path.suffix in (".py", ".typed")
    }

    assert {name.partition("/")[0] for name in names} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {name for name in names if name.endswith((".py", ".typed"))} == sources


def test_the_installed_command_runs_a_study(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text("def square(params):\n    return params['x'] ** 2\n")
    (tmp_path / "study.toml").write_text(STUDY)

    def run(*command: str | Path) -> str:
        # Not -I: the command's evaluator processes get the same path as it has, which must not need this checkout.
        done = subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env={name: v for name, v in environment(tmp_path / "home").items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(
        installed / "python", "-c", "import trialfleet, trialfleet_workers as w; print(trialfleet.__file__, w.__file__)"
    )
    assert all(Path(path).is_relative_to(installed.parent) for path in where.split())
    assert "STUDY_FILE" in run(installed / "trialfleet", "run", "--help")
    assert document(run(installed / "trialfleet", "run", "study.toml", "--json"))["complete"] == 5
