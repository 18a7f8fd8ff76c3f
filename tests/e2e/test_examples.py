"""Each example runs as its first lines say, and finds something."""

import tomllib
from pathlib import Path

import pytest
from support.commands import document, trialfleet

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_there_is_a_test_for_each_example() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/study.toml")} == {
        "air_quality",
        "census",
        "digits",
        "thresholds",
    }


@pytest.mark.parametrize(
    ("name", "trials", "good"),
    [
        # What the objective gives without any tuning at all, or a little worse.
        ("digits", 10, 0.8),
        ("census", 10, 0.8),
        ("air_quality", 10, 25.0),
        ("thresholds", 100, 8.0),
    ],
)
def test_an_example_runs(name: str, trials: int, good: float, tmp_path: Path) -> None:
    study = EXAMPLES / name / "study.toml"

    done = trialfleet(["run", study, "--trials", str(trials), "--json"], tmp_path)

    assert done.returncode == 0, done.stderr
    report = document(done.stdout)
    assert len(report["trials"]) == trials or report["ended"] == "patience", "which comes first is up to the machine"
    assert report["undecided"] == report["failed"] == 0
    assert report["best_is_complete"]
    if report["direction"] == "maximize":
        assert report["best_value"] > good
    else:
        assert report["best_value"] < good
    if "data" in tomllib.loads(study.read_text()):
        assert report["pruned"] > 0
        assert report["ladder"]["rungs"][0]["fraction"] < 1
        assert report["test_value"] is not None


def test_an_example_says_how_it_is_run() -> None:
    for study in EXAMPLES.glob("*/study.toml"):
        text = study.read_text()
        assert text.startswith("# ")
        assert f"trialfleet run examples/{study.parent.name}/study.toml" in text
