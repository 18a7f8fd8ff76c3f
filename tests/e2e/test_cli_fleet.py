"""`trialfleet run --broker` and `trialfleet worker`: as embedded, while workers come and are killed."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.waiting import wait_until

pytestmark = pytest.mark.rabbitmq

TRIALS = 40
STUDY = f"""
[study]
name = "ridge"
objective = "objective.py:train"
direction = "minimize"
trials = {TRIALS}
patience = 0
[data]
source = "table.csv"
target = "y"
[resampling]
kind = "kfold"
folds = 3
test_fraction = 0.2
[efficiency]
subsample_fraction = 0.3
[space.strength]
type = "float"
min = 1e-3
max = 1e3
log = true
"""
OBJECTIVE = """
import os, pathlib, time
import numpy as np

HERE = pathlib.Path(__file__).parent

def train(params, data):
    with (HERE / "calls").open("a") as calls:
        print(os.getppid(), file=calls)
    # Unless it is told to go on, the tenth call waits: another worker has joined by then.
    while not (HERE / "go").exists() and len((HERE / "calls").read_text().splitlines()) >= 10:
        time.sleep(0.01)
    gram = data.X.T @ data.X + params["strength"] * np.eye(data.X.shape[1])
    weights = np.linalg.solve(gram, data.X.T @ data.y)
    return float(np.mean((data.y_valid - data.X_valid @ weights) ** 2))
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 6))
    table = pd.DataFrame(x, columns=list("abcdef"))
    table["y"] = x @ np.arange(6) + random.normal(size=2000)
    folder = tmp_path / "study"
    folder.mkdir()
    table.to_csv(folder / "table.csv", index=False)
    (folder / "objective.py").write_text(OBJECTIVE)
    (folder / "study.toml").write_text(STUDY)
    (folder / "go").touch()
    return folder / "study.toml"


class Workers:
    """`trialfleet worker` processes, each with a home of its own."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self._url = url
        self._folder = folder
        self._stack = stack
        self._count = 0

    def start(self, folder: Path) -> "subprocess.Popen[str]":
        self._count += 1
        home = self._folder / f"worker{self._count}"
        process = start_trialfleet(
            ["worker", "--slots", "1", "--objective-path", folder], home, TRIALFLEET_BROKER_URL=self._url
        )
        self._stack.callback(process.communicate, timeout=PATIENCE)
        self._stack.callback(process.terminate)
        return process


@pytest.fixture
def workers(rabbitmq: str, tmp_path: Path) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(rabbitmq, tmp_path, stack)


def calls(study: Path) -> list[str]:
    file = study.parent / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_a_fleet_finds_what_an_embedded_run_finds(study: Path, workers: Workers, rabbitmq: str, tmp_path: Path) -> None:
    url_file = tmp_path / "url"
    url_file.write_text(rabbitmq)
    (study.parent / "go").unlink()
    coordinator = start_trialfleet(
        ["run", study, "--json"], tmp_path / "home", TRIALFLEET_BROKER_URL_FILE=str(url_file)
    )
    first = workers.start(study.parent)
    wait_until(lambda: len(calls(study)) >= 10, "the first worker evaluates", PATIENCE)
    # Another host has its own copy of the code, somewhere below a folder that it allows.
    copy = tmp_path / "elsewhere" / "study" / "study.toml"
    shutil.copytree(study.parent, copy.parent)
    (copy.parent / "calls").unlink()
    (copy.parent / "go").touch()
    second = workers.start(tmp_path / "elsewhere")
    wait_until(lambda: calls(copy), "the second worker evaluates", PATIENCE)
    first.kill()
    (study.parent / "go").touch()

    output, errors = coordinator.communicate(timeout=PATIENCE)
    second.terminate()

    assert coordinator.returncode == 0, errors
    assert second.wait(PATIENCE) == 0
    fleet = document(output)
    embedded = document(trialfleet(["run", study, "--json"], tmp_path / "embedded").stdout)
    assert [trial["number"] for trial in fleet["trials"]] == list(range(TRIALS))
    for report in (fleet, embedded):
        assert report["complete"] + report["pruned"] == TRIALS
        assert report["undecided"] == report["failed"] == 0
        keys = sum(trial["evaluations"] for trial in report["trials"])
        assert report["evaluations"] == keys
    # The first draws depend on nothing but the seed; the later ones on the order of the results.
    assert [t["params"] for t in fleet["trials"][:4]] == [t["params"] for t in embedded["trials"][:4]]
    values = {str(t["params"]): t["value"] for t in embedded["trials"] if t["state"] == "complete"}
    for trial in fleet["trials"]:
        if trial["state"] == "complete" and str(trial["params"]) in values:
            assert trial["value"] == pytest.approx(values[str(trial["params"])])
    assert fleet["best_value"] == pytest.approx(embedded["best_value"], rel=0.01)
    assert fleet["test_value"] == pytest.approx(embedded["test_value"], rel=0.01)
    assert rabbitmq not in output + errors


def test_a_worker_in_burst_mode_leaves_when_there_is_nothing_to_do(study: Path, rabbitmq: str, tmp_path: Path) -> None:
    done = trialfleet(
        ["worker", "--burst", "--slots", "1", "--objective-path", study.parent],
        tmp_path / "home",
        TRIALFLEET_BROKER_URL=rabbitmq,
    )

    assert done.returncode == 0, done.stderr


PLAIN = """
[study]
name = "plain"
objective = "objective.py:plain"
direction = "minimize"
trials = 12
[space.x]
type = "float"
min = -1.0
max = 1.0
"""


def serving(worker: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    """The same, once it takes work."""
    assert worker.stderr is not None
    assert any(" serves " in line for line in worker.stderr), "the worker does not start"
    return worker


def said(worker: "subprocess.Popen[str]") -> str:
    """What a worker said after it began to serve; it is ended."""
    worker.terminate()
    return worker.communicate(timeout=PATIENCE)[1]


def with_code(folder: Path, code: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "objective.py").write_text(code)
    return folder


@pytest.mark.parametrize("has_data", [True, False])
def test_a_worker_with_other_code_leaves_the_study_to_those_that_can_evaluate_it(
    has_data: bool, study: Path, workers: Workers, rabbitmq: str, tmp_path: Path
) -> None:
    plain = "\n\ndef plain(params):\n    time.sleep(0.3)\n    return params['x'] ** 2\n"
    with_code(tmp_path / "plain" / "study", "import time\n" + plain)
    (tmp_path / "plain" / "study" / "study.toml").write_text(PLAIN)
    old = workers.start(with_code(tmp_path / "old" / "study", OBJECTIVE + plain + "\n# as it was before\n"))
    chosen = study if has_data else tmp_path / "plain" / "study" / "study.toml"
    serving(workers.start(chosen.parent))
    serving(old)

    done = trialfleet(["run", chosen, "--json"], tmp_path / "home", TRIALFLEET_BROKER_URL=rabbitmq)

    assert "refused: the code of objective" in said(old)
    assert done.returncode == 0, done.stderr
    report = document(done.stdout)
    assert (report["failed"], report["undecided"]) == (0, 0)
    assert report["complete"] + report["pruned"] == (TRIALS if has_data else 12)


def test_a_study_that_no_worker_can_evaluate_fails_with_the_reason(
    study: Path, workers: Workers, rabbitmq: str, tmp_path: Path
) -> None:
    both = [
        serving(workers.start(with_code(tmp_path / folder / "study", f"{OBJECTIVE}\n# as it was {folder}\n")))
        for folder in ("before", "long ago")
    ]

    done = trialfleet(["run", study], tmp_path / "home", TRIALFLEET_BROKER_URL=rabbitmq)

    assert done.returncode == 1
    assert "trials all failed" in done.stderr
    assert "refused: the code of objective" in done.stderr
    assert all("refused: the code of objective" in said(worker) for worker in both)
