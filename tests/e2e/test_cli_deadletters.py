"""An evaluation that kills whoever takes it, from the first crash to `trialfleet deadletters drop`."""

from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.workers import purge

from trialfleet_shared.adapters.dead_letters import DeadLetters

pytestmark = [pytest.mark.rabbitmq, pytest.mark.chaos]

STUDY = """
[study]
name = "poisoned"
objective = "objective.py:work"
trials = 8
[efficiency]
warm_start_trials = 8
[space.x]
type = "int"
min = 0
max = 7
"""
OBJECTIVE = """
import os

def work(params):
    if params["x"] == 3:
        os.abort()
    return float(params["x"])
"""


def test_poison_fails_its_trial_alone_and_is_kept_for_people(rabbitmq: str, tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    (tmp_path / "study.toml").write_text(STUDY)
    purge(rabbitmq)
    with DeadLetters(rabbitmq) as dead:
        dead.drop(None)
    home, broker = tmp_path / "home", {"TRIALFLEET_BROKER_URL": rabbitmq}
    worker = start_trialfleet(["worker", "--slots", "2", "--objective-path", tmp_path], tmp_path / "worker", **broker)
    try:
        ran = trialfleet(["run", tmp_path / "study.toml", "--json"], home, **broker)
        assert worker.poll() is None, "the worker bears it"
    finally:
        worker.terminate()
        worker.communicate(timeout=PATIENCE)
    assert ran.returncode == 0, ran.stderr
    report = document(ran.stdout)
    trials = {trial["params"]["x"]: trial for trial in report["trials"]}
    assert {x: trial["state"] for x, trial in trials.items()} == {x: "fail" if x == 3 else "complete" for x in range(8)}
    assert trials[3]["reason"] == "crash: 3 times, the last time: killed by SIGABRT"

    (letter,) = document(trialfleet(["deadletters", "list", "--json"], home, **broker).stdout)
    assert [attempt["what"] for attempt in letter["attempts"]] == ["killed by SIGABRT"] * 3
    assert all(attempt["worker"] and attempt["at"] > 1.7e9 for attempt in letter["attempts"])
    shown = trialfleet(["deadletters", "show", letter["id"]], home, **broker)
    assert "attempt 2" in shown.stdout
    assert "died at an unknown time" not in shown.stdout
    assert letter["at"] > 1.7e9
    assert "{'x': 3}" in shown.stdout
    assert rabbitmq not in shown.stdout + shown.stderr

    again = trialfleet(["deadletters", "requeue", letter["id"]], home, **broker)
    assert again.returncode == 1
    assert f"error: {letter['id']} stays: nobody waits for results of study 'poisoned' any more" in again.stderr
    dropped = trialfleet(["deadletters", "drop", letter["id"], "--yes", "--json"], home, **broker)
    assert document(dropped.stdout) == {"dropped": [letter["id"]]}
    assert trialfleet(["deadletters", "list"], home, **broker).stdout == "There are no dead letters.\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["list"],
            2,
            "dead letters are a broker's: give --broker, TRIALFLEET_BROKER_URL or TRIALFLEET_BROKER_URL_FILE",
        ),
        (["drop", "--yes"], 2, "give the names of dead letters, as `trialfleet deadletters list` shows them, or --all"),
        (["requeue", "abc", "--all"], 2, "give the names of dead letters"),
        (["drop", "--all"], 2, "nobody can be asked whether that is meant; give --yes"),
        (["list", "--broker", "nowhere"], 2, "broker URL 'nowhere' is none"),
    ],
)
def test_what_can_not_be_done_says_why(arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    ran = trialfleet(["deadletters", *arguments], tmp_path)
    assert ran.returncode == status
    assert message in ran.stderr
