"""Commands on recorded studies: best, export, delete, dashboard."""

import csv
import io
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import optuna
import pandas as pd
import pytest
from support.chromium import open_page
from support.commands import PATIENCE, document, start_trialfleet, trialfleet

STUDY = """
[study]
name = "tiny"
objective = "objective.py:evaluate"
trials = 8
[space.x]
type = "float"
min = 0.0
max = 1.0
[space.kind]
type = "categorical"
choices = ["a", 1, true]
"""
OBJECTIVE = """
def evaluate(params):
    return {"value": params["x"], "loss": 1 - params["x"]}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one study of eight trials."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "objective.py").write_text(OBJECTIVE)
    (folder / "study.toml").write_text(STUDY)
    ran = trialfleet(["run", folder / "study.toml"], folder / "home")
    assert ran.returncode == 0, ran.stderr
    return folder / "home"


def test_the_best_trial_is_shown(home: Path) -> None:
    ran = trialfleet(["best", "tiny", "--json"], home)
    best = document(ran.stdout)
    assert best["complete"]
    assert best["value"] == best["params"]["x"]
    assert f"trial {best['trial']}" in trialfleet(["best", "tiny"], home).stdout
    unknown = trialfleet(["best", "tny"], home)
    assert unknown.returncode == 2
    assert "did you mean 'tiny'" in unknown.stderr


def test_trials_are_exported_as_tables(home: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(trialfleet(["export", "tiny"], home).stdout)))
    assert [int(row["number"]) for row in rows] == list(range(8))
    assert all(float(row["value"]) == float(row["params.x"]) for row in rows)
    assert all(float(row["metrics.loss"]) == pytest.approx(1 - float(row["value"])) for row in rows)
    file = tmp_path / "trials.csv"
    assert trialfleet(["export", "tiny", "--output", file], home).returncode == 0
    assert list(csv.DictReader(io.StringIO(file.read_bytes().decode()))) == rows
    parquet = tmp_path / "trials.parquet"
    ran = trialfleet(["export", "tiny", "--format", "parquet", "--output", parquet, "--json"], home)
    assert document(ran.stdout) == {"study": "tiny", "format": "parquet", "trials": 8}
    frame = pd.read_parquet(parquet)
    assert frame["value"].tolist() == [float(row["value"]) for row in rows]
    assert set(frame["params.kind"]) <= {"a", "1", "True"}
    report = document(trialfleet(["export", "tiny", "--format", "json"], home).stdout)
    assert len(report["trials"]) == 8
    assert report["efficiency_metrics"]["parallel_efficiency"] is None, "the record does not tell it"
    assert report["efficiency_metrics"]["memory_usage_mb"] is None


def test_a_study_is_copied_into_an_optuna_storage_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    url = f"sqlite:///{tmp_path}/study.db"
    file = tmp_path / "copied.toml"
    file.write_text(STUDY.replace('"tiny"', '"copied"').replace("true]", '"b"]'))
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    assert trialfleet(["run", str(file)], home).returncode == 0
    ran = trialfleet(["export", "copied", "--format", "optuna", "--output", url], home)
    assert ran.returncode == 0, ran.stderr
    study = optuna.load_study(study_name="copied", storage=url)
    report = document(trialfleet(["report", "copied", "--json"], home).stdout)
    assert [trial.params for trial in study.trials] == [trial["params"] for trial in report["trials"]]
    assert study.best_value == report["best_value"]
    again = trialfleet(["export", "copied", "--format", "optuna", "--output", url], home)
    assert again.returncode == 2
    assert "has a study 'copied' already" in again.stderr


def test_a_study_that_optuna_can_not_have_leaves_nothing_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "objective.py").write_text(
        f"{OBJECTIVE}\ndef space(trial):\n    trial.suggest_float('x', 0, 1)\n"
        "    kind = trial.suggest_categorical('kind', ['a', 'b'])\n"
        "    trial.suggest_categorical('more', ['c'] if kind == 'a' else ['d'])\n"
    )
    file = tmp_path / "branching.toml"
    file.write_text(
        '[study]\nname = "branching"\nobjective = "objective.py:evaluate"\nspace = "objective.py:space"\ntrials = 12\n'
    )
    assert trialfleet(["run", str(file)], home).returncode == 0
    url = f"sqlite:///{tmp_path}/branching.db"
    for _ in range(2):
        done = trialfleet(["export", "branching", "--format", "optuna", "--output", url], home)
        assert (done.returncode, "Optuna can not have this study: " in done.stderr) == (2, True)
    assert optuna.get_all_study_names(url) == []


def test_a_study_whose_choices_optuna_takes_for_one_is_not_copied(home: Path, tmp_path: Path) -> None:
    done = trialfleet(["export", "tiny", "--format", "optuna", "--output", f"sqlite:///{tmp_path}/study.db"], home)
    assert (done.returncode, "the choices 1 and True of 'kind' are one to Optuna" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--json"], 2, "--json needs --output"),
        (["--format", "parquet"], 2, "--format parquet needs --output: a file"),
        (["--format", "optuna"], 2, "a storage's URL"),
        (
            ["--format", "optuna", "--output", "nonsense://user:secret@host"],
            2,
            "--output is no storage that Optuna can use (NoSuchModuleError)",
        ),
        (["--output", "/nowhere/at/all.csv"], 1, "/nowhere/at/all.csv can not be written: No such file"),
    ],
)
def test_what_can_not_be_exported_is_told(home: Path, arguments: list[str], status: int, told: str) -> None:
    ran = trialfleet(["export", "tiny", *arguments], home)
    assert ran.returncode == status
    assert told in ran.stderr
    assert "secret" not in ran.stderr


def test_a_study_is_deleted_when_that_is_meant(home: Path, tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    (tmp_path / "study.toml").write_text(STUDY.replace("tiny", "other"))
    assert trialfleet(["run", tmp_path / "study.toml"], home).returncode == 0
    asked = trialfleet(["delete", "other"], home)
    assert asked.returncode == 2
    assert "give --yes" in asked.stderr
    deleted = trialfleet(["delete", "other", "--yes", "--json"], home)
    assert document(deleted.stdout) == {"study": "other", "deleted_trials": 8}
    assert trialfleet(["delete", "other", "--yes"], home).returncode == 2
    assert "other" not in trialfleet(["studies"], home).stdout
    assert trialfleet(["best", "tiny"], home).returncode == 0


def test_the_dashboard_shows_and_changes_nothing(home: Path, tmp_path: Path) -> None:
    with start_trialfleet(["dashboard", "--port", "0"], home) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        with urllib.request.urlopen(f"{url}/api/studies", timeout=PATIENCE) as answer:
            (summary,) = document(answer.read().decode())["study_summaries"]
        assert summary["study_name"] == "tiny"
        shown = open_page(f"{url}/dashboard", tmp_path / "profile")
        assert "tiny" in re.sub(r"<[^>]*>", " ", shown.document), "optuna-dashboard's own script lists the study"
        for method in ("DELETE", "POST", "PUT", "PATCH"):
            request = urllib.request.Request(f"{url}/api/studies/{summary['study_id']}", method=method)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=PATIENCE)
            assert (caught.value.code, caught.value.headers["Allow"]) == (405, "GET, HEAD")
            caught.value.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        process.communicate()
    assert trialfleet(["best", "tiny"], home).returncode == 0


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with start_trialfleet(["dashboard", "--port", "0"], home) as process:
        assert process.stderr is not None
        port = process.stderr.readline().rpartition(":")[2].strip()
        ran = trialfleet(["dashboard", "--port", port], home)
        process.terminate()
        process.communicate()
    assert ran.returncode == 2
    assert f"can not listen on 127.0.0.1:{port}" in ran.stderr
