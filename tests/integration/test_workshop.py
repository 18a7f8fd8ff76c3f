"""What a coordinator checks of a submission before it is queued, against what its home has recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.exposition import told

from trialfleet.engine import open_study
from trialfleet.home import Home
from trialfleet.study_file import read_study
from trialfleet.watching import Watching
from trialfleet.workshop import HomeWorkshop
from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage
from trialfleet_coordinator.adapters.prometheus import FleetMetrics
from trialfleet_coordinator.roster import Entry
from trialfleet_coordinator.serving import ServiceState, Submission
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError, DataError, StudyChangedError
from trialfleet_workers.adapters.arrow_tables import BATCH_ROWS
from trialfleet_workers.allowance import Allowance

#: More rows than are read at a time.
ROWS = BATCH_ROWS + 1
OBJECTIVE = "def evaluate(params):\n    return params['x']\n"


def tables(**study: Any) -> dict[str, Any]:
    """A study file's tables; the objective is asked in this process, so that opening the study starts no other."""
    return {
        "study": {"name": "a", "objective": "objective.py:evaluate", "trials": 4, "seed": 5, **study},
        "efficiency": {"use_process_pool": False},
        "space": {"x": {"type": "float", "min": 0.0, "max": 1.0}},
    }


@pytest.fixture
def workshop(tmp_path: Path) -> HomeWorkshop:
    """That of a coordinator whose home has the study of `tables()`."""
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    home = Home(tmp_path / "home")
    with open_study(read_study(tables(), "here", tmp_path), home) as study:
        study.run(lambda _: None, lambda: None)
    return HomeWorkshop(home, "amqp://nowhere", Allowance((tmp_path,)), Watching())


@pytest.fixture
def describe(workshop: HomeWorkshop, tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Describes a submission to it; its name."""
    return lambda asked: workshop.describe(Submission(tables=asked, base=str(tmp_path))).study


def test_a_study_goes_on_with_another_budget(describe: Callable[[dict[str, Any]], str]) -> None:
    assert describe(tables(trials=60, patience=0)) == "a"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 6}, "another seed;"),
        ({"direction": "minimize", "seed": 6}, "another direction and another seed;"),
        (
            {"objective": "objective.py:other"},
            "another objective and another objective's code, or values that it uses;",
        ),
    ],
)
def test_another_study_of_the_name_is_refused(
    describe: Callable[[dict[str, Any]], str], changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(StudyChangedError, match=f"study 'a' exists with {told}"):
        describe(tables(**changed))
    assert describe(tables(name="b", **changed)) == "b"


def test_another_space_is_refused(describe: Callable[[dict[str, Any]], str]) -> None:
    with pytest.raises(StudyChangedError, match="another search space;"):
        describe({**tables(), "space": {"x": {"type": "float", "min": 0.0, "max": 2.0}}})


def test_a_study_that_has_no_trial_yet_may_be_corrected(tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    home = Home(tmp_path / "home")
    with open_study(read_study(tables(), "here", tmp_path), home):
        pass
    workshop = HomeWorkshop(home, "amqp://nowhere", Allowance((tmp_path,)), Watching())
    assert workshop.describe(Submission(tables=tables(seed=6), base=str(tmp_path))).study == "a"


def test_a_name_with_control_characters_is_refused(workshop: HomeWorkshop, tmp_path: Path) -> None:
    submission = Submission(tables=tables(), base=str(tmp_path), name="\x1bc")
    with pytest.raises(ConfigurationError, match=r"the submission: name = .*: expected str without control characters"):
        workshop.describe(submission)


def test_other_code_is_refused(describe: Callable[[dict[str, Any]], str], tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE.replace("params['x']", "-params['x']"))
    with pytest.raises(StudyChangedError, match="another objective's code, or values that it uses;"):
        describe(tables())


def test_metrics_of_a_deleted_study_are_none_of_the_next_ones_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    home, metrics = Home(tmp_path / "home"), FleetMetrics(SystemClock(), memory=lambda: 1)
    workshop = HomeWorkshop(home, "amqp://nowhere", Allowance((tmp_path,)), Watching(metrics))
    for deleted in (False, True):
        if deleted:
            workshop.delete("a")
        with open_study(read_study(tables(), "here", tmp_path), home, watching=Watching(metrics)) as study:
            study.run(lambda _: None, lambda: None)
        assert told(metrics)["trialfleet_trials_started_total", "a"] == 4


class LeftOffError(Exception):
    pass


def entry_with_data(source: str, tmp_path: Path) -> Entry:
    """A study of data."""
    (tmp_path / "fit.py").write_text("def evaluate(params, data):\n    return params['x']\n")
    asked = {**tables(name="b", objective="fit.py:evaluate"), "data": {"source": source, "target": "y"}}
    return Entry(
        study="b",
        submission=Submission(tables=asked, base=str(tmp_path)),
        mode="balanced",
        direction="maximize",
        state=ServiceState.RUNNING,
        because="",
        submitted_at=0.0,
    )


def test_an_import_of_a_file_can_be_left_off(workshop: HomeWorkshop, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n" + "1,2\n" * ROWS)
    asked_for: list[None] = []

    def check() -> None:
        asked_for.append(None)
        raise LeftOffError

    with pytest.raises(LeftOffError), workshop.open(entry_with_data("rows.csv", tmp_path), lambda: 1, check):
        pytest.fail("it was opened")
    assert len(asked_for) == 1
    assert not [path for path in (tmp_path / "home" / "data").iterdir() if path.suffix == ".mdb" or path.is_dir()]


def test_a_function_that_gives_data_can_be_left_off(workshop: HomeWorkshop, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "rows.py").write_text(
        "import os, time\nfrom pathlib import Path\n\ndef load():\n"
        f"    Path({str(begun)!r}).write_text(str(os.getpid()))\n    time.sleep(3600)\n"
    )

    def check() -> None:
        if begun.exists() and begun.read_text():
            raise LeftOffError

    with pytest.raises(LeftOffError), workshop.open(entry_with_data("rows.py:load", tmp_path), lambda: 1, check):
        pytest.fail("it was opened")
    assert not Path("/proc", begun.read_text()).exists(), "nor is it called any longer"


def test_a_function_that_gives_data_is_called_as_it_is_by_now_and_its_exit_is_an_error(
    workshop: HomeWorkshop, tmp_path: Path
) -> None:
    digests = []
    for rows in (40, 80):
        (tmp_path / "rows.py").write_text(
            "import numpy as np\nimport pandas as pd\n\ndef load():\n"
            f"    return pd.DataFrame({{'x': np.arange({rows}), 'y': np.arange({rows}) % 2}})\n"
        )
        entry = entry_with_data("rows.py:load", tmp_path)
        entry.submission.tables["study"]["name"] = f"rows {rows}"
        with workshop.open(entry, lambda: 1, lambda: None) as study:
            digests.append(study.plan.definition.data_digest)
    assert len(set(digests)) == 2
    (tmp_path / "rows.py").write_text("import sys\n\ndef load():\n    sys.exit(0)\n")
    with pytest.raises(DataError, match=r"'rows.py:load' raised SystemExit: 0"):
        workshop.open(entry_with_data("rows.py:load", tmp_path), lambda: 1, lambda: None).__enter__()


def test_a_submission_of_the_name_of_a_study_of_optunas_can_be_deleted(workshop: HomeWorkshop, tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path / "home" / "store")
    optuna.create_study(storage=storage, study_name="theirs")
    workshop.delete("theirs")
    assert optuna.load_study(storage=storage, study_name="theirs").trials == []
    workshop.delete("a")
    assert workshop.report("a") is None
