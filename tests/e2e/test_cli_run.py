"""`trialfleet run` as its users run it: results, resuming, and stopping."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.modules import HELD
from support.waiting import wait_until

STUDY = """
[study]
name = "parabola"
objective = "objective.py:parabola"
trials = {trials}
patience = 0
direction = "minimize"
[space.x]
type = "float"
min = -1.0
max = 1.0
"""
#: Notes each call in a file beside it, so that tests see what ran; a call takes a while.
OBJECTIVE = """
import os, pathlib, time

print("imported")

def parabola(params):
    with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
        print(os.getpid(), params["x"], file=calls)
    print("called")
    time.sleep({seconds})
    return (params["x"] - 0.25) ** 2
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def write_study(folder: Path, *, trials: int = 12, seconds: float = 0.0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "objective.py").write_text(OBJECTIVE.format(seconds=seconds))
    study = folder / "study.toml"
    study.write_text(STUDY.format(trials=trials))
    return study


def calls(study: Path) -> list[str]:
    file = study.parent / "calls"
    return file.read_text().splitlines() if file.exists() else []


def check_whole(report: dict[str, Any], trials: int) -> None:
    """Each trial is there once, complete, with one evaluation."""
    assert [trial["number"] for trial in report["trials"]] == list(range(trials))
    assert {trial["state"] for trial in report["trials"]} == {"complete"}
    assert {trial["evaluations"] for trial in report["trials"]} == {1}
    assert report["complete"] == report["evaluations"] == trials
    assert report["best_value"] == min(trial["value"] for trial in report["trials"])


def test_json_is_the_only_thing_on_standard_output(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")

    done = trialfleet(["run", study, "--json"], home)

    assert done.returncode == 0, done.stderr
    report = document(done.stdout)
    check_whole(report, 12)
    assert report["study"] == "parabola"
    assert report["ended"] == "trials"
    assert report["home"] == str(home)
    assert report["cache_stats"]["enabled"]
    assert set(report["efficiency_metrics"]) >= {
        "total_time_seconds",
        "avg_trial_time_seconds",
        "cache_hit_rate",
        "parallel_efficiency",
        "memory_usage_mb",
        "speedup_factor",
        "saved_cpu_seconds",
    }
    assert report["efficiency_metrics"]["memory_usage_mb"] > 10
    assert "imported" in done.stderr
    assert "parabola: trials 12 of 12 decided (12 complete, 0 pruned, 0 failed)" in done.stderr


def test_people_get_tables(tmp_path: Path, home: Path) -> None:
    done = trialfleet(["run", write_study(tmp_path / "study")], home)

    assert done.returncode == 0, done.stderr
    for words in (
        "parabola: all 12 trials of the budget are decided",
        "Best params",
        "Values (minimize)",
        "total time",
        "time per trial",
        "cache hit rate",
        "parallel efficiency",
        "memory",
        "speed-up *",
        "saved by pruning *",
        "saved by subsampling *",
        "saved by caching",
        "* estimated",
        f"Kept in {home}; see it again with: trialfleet report parabola",
    ):
        assert words in done.stdout
    assert "called" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_finished_study_says_so_and_runs_nothing(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")
    first = document(trialfleet(["run", study, "--json"], home).stdout)
    before = calls(study)

    again = trialfleet(["run", study, "--json"], home)

    assert again.returncode == 0
    assert "parabola is finished already" in again.stderr
    assert document(again.stdout)["trials"] == first["trials"]
    assert calls(study) == before


def test_a_larger_budget_goes_on(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")
    trialfleet(["run", study], home)

    more = trialfleet(["run", study, "--trials", "20", "--json"], home)

    check_whole(document(more.stdout), 20)
    assert "goes on after 12 trials" in more.stderr
    assert len(calls(study)) == 20


def test_a_changed_study_is_refused_and_can_be_forked(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")
    trialfleet(["run", study], home)
    study.write_text(study.read_text().replace("max = 1.0", "max = 2.0"))

    refused = trialfleet(["run", study], home)
    forked = trialfleet(["run", study, "--fork", "wider", "--json"], home)

    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "search space" in refused.stderr
    assert "--fork" in refused.stderr
    assert forked.returncode == 0, forked.stderr
    assert document(forked.stdout)["study"] == "wider"


def test_a_study_whose_trials_all_failed_is_run_again_once_it_is_mended(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")
    objective = study.parent / "objective.py"
    mended = objective.read_text()
    objective.write_text(mended.replace('params["x"] - 0.25', 'params["y"] - 0.25'))
    failed = trialfleet(["run", study], home)
    objective.write_text(mended)

    done = trialfleet(["run", study, "--json"], home)

    assert failed.returncode == 1
    assert done.returncode == 0, done.stderr
    check_whole(document(done.stdout), 12)


def test_a_study_with_an_added_parameter_can_be_forked(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")
    best = document(trialfleet(["run", study, "--json"], home).stdout)["best_params"]["x"]
    study.write_text(study.read_text() + '\n[space.added]\ntype = "float"\nmin = 0.0\nmax = 1.0\n')

    forked = trialfleet(["run", study, "--fork", "larger", "--json"], home)

    assert forked.returncode == 0, forked.stderr
    assert "say nothing of 'added'" in forked.stderr
    trials = document(forked.stdout)["trials"]
    assert trials[0]["params"]["x"] == best
    assert len({trial["params"]["added"] for trial in trials}) == len(trials)


def test_given_points_come_first_and_later_ones_when_the_study_goes_on(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=3)
    plain = study.read_text()
    study.write_text(plain.replace("trials = 3", "trials = 3\npoints_to_evaluate = [{ x = 0.5 }]"))
    first = document(trialfleet(["run", study, "--json"], home).stdout)
    study.write_text(plain.replace("trials = 3", "trials = 5\npoints_to_evaluate = [{ x = 0.5 }, { x = 0.25 }]"))
    then = document(trialfleet(["run", study, "--json"], home).stdout)
    study.write_text(plain.replace("trials = 3", "trials = 6\npoints_to_evaluate = [{ x = 5 }]"))
    refused = trialfleet(["run", study], home)

    assert first["trials"][0]["params"] == {"x": 0.5}
    assert [trial["params"] for trial in then["trials"][:3]] == [trial["params"] for trial in first["trials"]]
    assert then["trials"][3]["params"] == {"x": 0.25}
    check_whole(then, 5)
    assert refused.returncode == 2
    assert "study.points_to_evaluate[0].x = 5: allowed is -1.0 to 1.0" in refused.stderr


def test_repeated_params_come_from_the_cache_of_another_study(tmp_path: Path, home: Path) -> None:
    # So few that none depends on the order in which the results of others come.
    study = write_study(tmp_path / "study", trials=8)
    trialfleet(["run", study], home)
    before = len(calls(study))

    again = document(trialfleet(["run", study, "--name", "again", "--json"], home).stdout)

    assert again["cached"] == 8
    assert again["cache_stats"]["hits"] == 8
    assert len(calls(study)) == before


def test_the_first_signal_finishes_what_is_in_flight_and_the_same_command_goes_on(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=30)
    objective = study.parent / "objective.py"
    objective.write_text(objective.read_text().replace("time.sleep(0.0)", HELD))
    process = start_trialfleet(["run", study, "--json"], home)
    wait_until(lambda: len(calls(study)) >= 4, "four evaluations began", PATIENCE)

    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C is for the slots as well
    assert process.stderr is not None
    assert any("SIGINT: finishing what is in flight" in line for line in process.stderr)
    (study.parent / "go").touch()
    output, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 128 + signal.SIGINT, errors
    stopped = document(output)
    assert stopped["ended"] == "stopped"
    assert stopped["complete"] == len(calls(study)) < 30

    resumed = trialfleet(["run", study, "--json"], home)

    check_whole(document(resumed.stdout), 30)
    assert len(calls(study)) == 30


def test_a_second_signal_gives_up_what_is_in_flight(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", seconds=60)
    process = start_trialfleet(["run", study], home)
    wait_until(lambda: len(calls(study)) >= 1, "an evaluation began")

    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert any("once more" in line for line in process.stderr), "it says what a second signal does"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 128 + signal.SIGTERM
    assert output == ""
    assert "Traceback" not in errors
    wait_until(lambda: not any(is_alive(int(line.split()[0])) for line in calls(study)), "the slots are gone")


def test_kill_9_loses_nothing_and_leaves_nobody_behind(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=30, seconds=0.05)
    process = start_trialfleet(["run", study, "--json"], home)
    wait_until(lambda: len(calls(study)) >= 10, "ten evaluations began")

    process.kill()
    process.communicate(timeout=PATIENCE)

    wait_until(lambda: not any(is_alive(int(line.split()[0])) for line in calls(study)), "the slots are gone")
    resumed = trialfleet(["run", study, "--json"], home)

    assert resumed.returncode == 0, resumed.stderr
    check_whole(document(resumed.stdout), 30)
    # What was in flight ran twice, nothing else: two slots, and what they had been handed beforehand.
    assert len(calls(study)) <= 30 + 2 * (os.cpu_count() or 1) + 2


def test_a_second_coordinator_is_refused(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=1000, seconds=0.2)
    first = start_trialfleet(["run", study], home)
    wait_until(lambda: len(calls(study)) >= 1, "an evaluation began")

    second = trialfleet(["run", study], home)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=PATIENCE)

    assert second.returncode == 4
    assert "error: study 'parabola' is being run by process" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_study_whose_first_trials_all_fail_stops_and_says_why(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=100)
    (study.parent / "objective.py").write_text(
        "import time\n\ndef parabola(params):\n    time.sleep(0.05)\n    raise ValueError('no such luck')\n"
    )

    done = trialfleet(["run", study, "--json"], home)

    assert done.returncode == 1
    assert "no such luck" in done.stderr
    assert "Traceback" not in done.stderr.rpartition("error:")[2]
    report = document(done.stdout)
    assert report["ended"] == "failed"
    assert report["failed"] < 50


def test_some_failures_do_not_stop_a_study(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=20)
    (study.parent / "objective.py").write_text(
        "def parabola(params):\n    return params['x'] if params['x'] < 0.3 else float('nan')\n"
    )

    report = document(trialfleet(["run", study, "--json"], home).stdout)

    assert report["ended"] == "trials"
    assert report["failed"] > 0
    assert report["complete"] + report["failed"] == 20
    assert "nan" in report["failures"][-1]


def test_flags_and_environment_reach_the_study(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=1000)

    done = trialfleet(
        ["run", study, "--json", "--set", "efficiency.enable_caching=false", "--slots", "1"],
        home,
        TRIALFLEET_TRIALS="7",
        TRIALFLEET_NAME="seven",
    )

    report = document(done.stdout)
    assert (report["study"], len(report["trials"])) == ("seven", 7)
    assert not report["cache_stats"]["enabled"]


def test_reports_and_the_list_of_studies(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study")
    ran = document(trialfleet(["run", study, "--json"], home).stdout)

    listed = trialfleet(["studies"], home)
    told = trialfleet(["report", "parabola"], home)
    as_json = document(trialfleet(["report", "parabola", "--json"], home).stdout)

    assert listed.stdout.splitlines()[1].split()[:6] == ["parabola", "minimize", "12", "12", "0", "0"]
    assert "parabola: all 12 trials of the budget are decided" in told.stdout
    smaller = trialfleet(["run", study, "--trials", "5"], home)
    assert "parabola: all its 12 trials are decided, which are more than the budget of 5" in smaller.stdout
    assert "Best params" in told.stdout
    assert as_json["trials"] == ran["trials"]
    assert document(trialfleet(["studies", "--json"], home).stdout)[0]["best_value"] == ran["best_value"]


def test_a_recorded_study_is_reported_as_it_was_when_it_ended(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=60)
    ran = document(trialfleet(["run", study, "--json", "--set", "study.patience=5"], home).stdout)

    told = document(trialfleet(["report", "parabola", "--json"], home).stdout)

    assert ran["ended"] == "patience"
    assert ran["efficiency_metrics"]["saved_cpu_seconds"]["stopping"] > 0
    for report in (ran, told):
        metrics = report["efficiency_metrics"]
        del report["cache_stats"], metrics["parallel_efficiency"], metrics["memory_usage_mb"]  # a session's, of itself
        for timed in (
            "total_time_seconds",
            "avg_trial_time_seconds",
            "speedup_factor",
        ):  # the record's ends with a commit
            del metrics[timed]
    assert told == ran


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


#: Data that are there once the objective is imported: whoever imports one before the other waits in vain.
MUTUAL = """
import pathlib, time
here = pathlib.Path(__file__).parent

def load():
    while not (here / "imported").exists():
        time.sleep(0.01)
    return [[1.0]] * 20, [0.0, 1.0] * 10
"""


def test_the_objective_is_imported_while_the_data_are_brought_in(tmp_path: Path, home: Path) -> None:
    study = write_study(tmp_path / "study", trials=2)
    study.write_text(study.read_text() + '[data]\nsource = "rows:load"\n')
    (study.parent / "rows.py").write_text(MUTUAL)
    (study.parent / "objective.py").write_text(
        "import pathlib\n"
        "(pathlib.Path(__file__).parent / 'imported').touch()\n"
        "def parabola(params, data):\n"
        "    return params['x'] + len(data.y)\n"
    )
    done = trialfleet(["run", study, "--json"], home)
    assert done.returncode == 0, done.stderr
    assert document(done.stdout)["complete"] == 2
