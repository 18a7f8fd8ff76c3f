"""The daemon by its commands: submitted to, watched, paused, killed, started again, stopped."""

import re
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.fleet_processes import Fleet
from support.waiting import wait_until

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def fleet(rabbitmq: str, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(rabbitmq, tmp_path, stack)


def test_a_study_is_submitted_watched_and_reported(fleet: Fleet) -> None:
    assert fleet.run("health").returncode == 0, "it is found as by every command"
    watched = fleet.run("submit", fleet.write("a"), "--watch", "--json")
    assert watched.returncode == 0, watched.stderr
    assert document(watched.stdout)["state"] == "done"
    assert re.search(r"trials 40 of 40 decided.* slots 0 \(0 in flight\),.* ended$", watched.stderr, re.MULTILINE)
    known = document(fleet.run("report", "a", "--json").stdout)
    assert (known["ended"], known["ended_because"]) == ("trials", "all 40 trials of the budget are decided")
    assert known["efficiency_metrics"]["parallel_efficiency"] > 0, "of the coordinator, which measured it"
    listed = fleet.run("list")
    assert "a      done   balanced" in listed.stdout
    reported = fleet.run("run", fleet.write("b"), "--json", TRIALFLEET_BROKER_URL=fleet.url)
    assert reported.returncode == 0, reported.stderr
    report = document(reported.stdout)
    assert (report["study"], report["ended"]) == ("b", "trials")
    assert report["complete"] + report["pruned"] == 40
    assert [one["study"] for one in document(fleet.run("list", "--json").stdout)] == ["a", "b"]


def test_what_came_of_a_study_is_told_and_deleted_from_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.run("submit", fleet.write("a"), "--watch").returncode == 0
    there = {
        "TRIALFLEET_URL": (fleet.home / "coordinator" / "url").read_text().strip(),
        "TRIALFLEET_TOKEN_FILE": str(fleet.home / "coordinator" / "token"),
    }
    elsewhere = tmp_path / "elsewhere"
    best = document(trialfleet(["best", "a", "--json"], elsewhere, **there).stdout)
    assert best["value"] == document(fleet.run("best", "a", "--json").stdout)["value"]
    report = document(trialfleet(["report", "a", "--json"], elsewhere, **there).stdout)
    assert (report["ended"], len(report["trials"])) == ("trials", 40)
    page = tmp_path / "report.html"
    written = trialfleet(["report", "a", "--html", page, "--json"], elsewhere, **there)
    assert document(written.stdout) == {"study": "a", "html": str(page)}
    assert "<title>Timeline of slots" in page.read_text(), "workers told when and where each evaluation ran"
    exported = trialfleet(["export", "a"], elsewhere, **there)
    assert exported.stdout.count("\n") == 41
    storage = trialfleet(["export", "a", "--format", "optuna", "--output", "sqlite:///x.db"], elsewhere, **there)
    assert storage.returncode == 2
    assert trialfleet(["delete", "a", "--yes"], elsewhere, **there).returncode == 0
    assert fleet.run("best", "a").returncode == 2


def test_exit_statuses_tell_what_became_of_it(fleet: Fleet) -> None:
    broken = fleet.run("submit", fleet.write("broken", function="broken"), "--watch")
    assert broken.returncode == 1
    assert "out of luck" in broken.stderr
    assert fleet.run("status", "brokn").returncode == 2
    again = fleet.run("submit", fleet.write("long", trials=100_000))
    assert again.returncode == 0, again.stderr
    busy = fleet.run("submit", fleet.write("long", trials=100_000))
    assert busy.returncode == 1
    assert "has not ended" in busy.stderr
    with start_trialfleet(["watch", "long"], fleet.home) as watching:
        cancelled = fleet.run("cancel", "long", "--json")
        assert document(cancelled.stdout)["state"] == "cancelled"
        assert watching.wait(PATIENCE) == 1
        watching.communicate()
    assert fleet.run("pause", "long").returncode == 1


def test_another_study_of_a_done_ones_name_is_refused_and_leaves_it_done(fleet: Fleet) -> None:
    study = fleet.write("a", trials=10)
    assert fleet.run("submit", study, "--watch").returncode == 0
    before = fleet.status("a")
    refused = fleet.run("submit", study, "--seed", "7")
    assert refused.returncode == 2
    assert "study 'a' exists with another seed" in refused.stderr
    assert fleet.status("a") == before
    larger = fleet.run("submit", fleet.write("a", trials=20), "--watch", "--json")
    assert larger.returncode == 0, larger.stderr
    assert document(larger.stdout)["progress"]["complete"] == 20
    done = fleet.status("a")
    # Its data are looked at when it is opened.
    opened = fleet.run("submit", study, "--set", "data.source=nowhere.csv", "--set", "data.target=y", "--watch")
    assert opened.returncode == 1, opened.stderr
    assert "error: a can not be run as submitted: " in opened.stderr
    after = fleet.status("a")
    assert (after["state"], after["progress"]) == ("done", done["progress"])
    assert after["because"].startswith("all 20 trials of the budget are decided; what was submitted again is refused: ")


def test_a_killed_coordinator_goes_on_where_it_was(fleet: Fleet) -> None:
    submitted = fleet.run("submit", fleet.write("a", trials=600))
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: fleet.decided("a") >= 20, "20 trials", PATIENCE)
    fleet.coordinator.kill()
    fleet.coordinator.communicate()
    unreachable = fleet.run("list")
    assert unreachable.returncode == 2
    assert "no coordinator runs on" in unreachable.stderr, "nobody is shown its token where it listened"
    assert fleet.run("report", "a").returncode == 0, "the record is there"
    fleet.start_coordinator()
    watched = fleet.run("watch", "a", "--json")
    assert watched.returncode == 0, watched.stderr
    progress = document(watched.stdout)["progress"]
    assert progress["complete"] + progress["pruned"] == 600
    report = document(fleet.run("report", "a", "--json").stdout)
    assert [trial["number"] for trial in report["trials"]] == list(range(600))


def test_a_paused_study_waits_and_the_coordinator_ends_at_once_when_it_is_told_to(fleet: Fleet) -> None:
    fleet.run("submit", fleet.write("a", trials=10_000))
    wait_until(lambda: fleet.decided("a") >= 5, "5 trials", PATIENCE)
    assert document(fleet.run("pause", "a", "--json").stdout)["state"] == "paused"
    wait_until(lambda: fleet.status("a")["progress"]["in_flight"] == 0, "nothing is in flight", PATIENCE)
    count = fleet.decided("a")
    assert count < 10_000
    assert document(fleet.run("resume", "a", "--json").stdout)["state"] == "queued"
    wait_until(lambda: fleet.decided("a") > count, "more trials", PATIENCE)
    fleet.coordinator.send_signal(signal.SIGTERM)
    assert fleet.coordinator.wait(PATIENCE) == 0
    assert not (fleet.home / "coordinator" / "url").exists()
    none = fleet.run("list")
    assert none.returncode == 2
    assert "no coordinator runs" in none.stderr
    assert fleet.run("delete", "a", "--yes").returncode == 0
    fleet.start_coordinator()
    assert document(fleet.run("list", "--json").stdout) == [], "what was deleted meanwhile does not begin anew"


def test_the_token_is_for_the_owner_alone_and_in_no_log(fleet: Fleet) -> None:
    file = fleet.home / "coordinator" / "token"
    token = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    refused = fleet.run("list", TRIALFLEET_TOKEN="another-token-than-that")
    assert refused.returncode == 2
    second = trialfleet(["coordinator"], fleet.home, TRIALFLEET_BROKER_URL=fleet.url)
    assert second.returncode == 4
    assert "another coordinator runs" in second.stderr
    fleet.coordinator.send_signal(signal.SIGTERM)
    out, err = fleet.coordinator.communicate(timeout=PATIENCE)
    assert out == ""
    assert token not in err + refused.stderr + second.stderr
    password = fleet.url.split(":")[2].split("@")[0]
    assert password not in err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[coordinator]\nprot = 1\n", "coordinator.prot: unknown key; did you mean 'port'?"),
        ("[coordinator]\nport = 70000\n", "coordinator.port = 70000: expected int <= 65535"),
        ("[worker]\n", "worker: unknown table or key"),
        ('[coordinator]\nobjective_paths = ["nowhere"]\n', "is no folder"),
        ("[coordinator", "fleet.toml"),
    ],
)
def test_a_fleet_file_with_a_mistake_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    ran = trialfleet(["coordinator", "--config", file], tmp_path, TRIALFLEET_BROKER_URL="amqp://nowhere")
    assert ran.returncode == 2
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_coordinator_needs_a_broker(tmp_path: Path) -> None:
    ran = trialfleet(["coordinator"], tmp_path)
    assert ran.returncode == 2
    assert "TRIALFLEET_BROKER_URL" in ran.stderr


SOURCE = """
import time
from concurrent.futures import {pool}
from pathlib import Path

def rows():
    with {pool}() as pool:
        done = pool.submit(time.sleep, 3600)
        Path(__file__).with_name("begun").touch()
        done.result()

def fit(params, data):
    return 0.0
"""


def submit_endless_import(fleet: Fleet, pool: str) -> Path:
    """Submit the study a, whose data never come; wait until they are asked for, of which the file tells."""
    (fleet.folder / "source.py").write_text(SOURCE.format(pool=pool))
    begun = fleet.folder / "begun"
    study = fleet.write("a")
    words = study.read_text().replace("objective.py:quadratic", "source.py:fit")
    study.write_text(words + '[data]\nsource = "source.py:rows"\ntarget = "y"\n')
    submitted = fleet.run("submit", study)
    assert submitted.returncode == 0, submitted.stderr
    wait_until(begun.exists, "the import begins", PATIENCE)
    return begun


@pytest.mark.parametrize("pool", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_an_import_of_data_keeps_no_coordinator_from_ending(fleet: Fleet, pool: str) -> None:
    begun = submit_endless_import(fleet, pool)
    fleet.coordinator.send_signal(signal.SIGTERM)
    assert fleet.coordinator.wait(PATIENCE) == 0
    assert not (fleet.home / "coordinator" / "url").exists()
    begun.unlink()
    fleet.start_coordinator()
    wait_until(begun.exists, "the import begins again", PATIENCE)
    assert fleet.status("a")["state"] == "running"
    fleet.coordinator.send_signal(signal.SIGTERM)
    assert fleet.coordinator.wait(PATIENCE) == 0


def test_a_second_signal_waits_for_no_import_either(fleet: Fleet) -> None:
    submit_endless_import(fleet, "ThreadPoolExecutor")
    fleet.coordinator.send_signal(signal.SIGTERM)
    log = fleet.coordinator.stderr
    assert log is not None
    assert any("studies leave off where they are" in line for line in log), "the first signal is heard"
    fleet.coordinator.send_signal(signal.SIGTERM)
    assert fleet.coordinator.wait(PATIENCE) == 128 + signal.SIGTERM
