"""`trialfleet up`, `trialfleet worker` and `--broker`: a study on a fleet, and nothing left behind."""

import os
import signal
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet, trialfleet
from support.modules import HELD
from support.waiting import wait_until

from trialfleet_workers import linux

STUDY = """
[study]
name = "parabola"
objective = "objective.py:parabola"
direction = "minimize"
trials = {trials}
[space.x]
type = "float"
min = -1.0
max = 1.0
"""
OBJECTIVE = """
import pathlib, time

def parabola(params):
    with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
        print(params["x"], file=calls)
    time.sleep({seconds})
    return (params["x"] - 0.25) ** 2
"""


def write_study(folder: Path, *, trials: int, seconds: float = 0.0) -> Path:
    folder.mkdir()
    (folder / "objective.py").write_text(OBJECTIVE.format(seconds=seconds))
    study = folder / "study.toml"
    study.write_text(STUDY.format(trials=trials))
    return study


def left_behind(home: Path) -> list[str]:
    """Processes whose environment or command names this test's home: workers, slots, the node."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            known = (process / "environ").read_bytes() + command
        except OSError:
            continue
        if str(home).encode() in known:
            found.append(command.decode(errors="replace").replace("\0", " "))
    return found


def descendants_named(name: str, pid: int) -> list[int]:
    """Processes of this name that a process has started, or what it has started."""
    return [each for each in linux.descendants(pid) if name in Path(f"/proc/{each}/comm").read_text()]


@pytest.mark.rabbitmq
def test_up_runs_a_study_on_a_fleet_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"

    done = trialfleet(["up", write_study(tmp_path / "study", trials=20), "--workers", "2", "--json"], home)

    assert done.returncode == 0, done.stderr
    report = document(done.stdout)
    assert report["complete"] == 20
    assert report["best_value"] == min(trial["value"] for trial in report["trials"])
    assert "amqp" not in done.stdout + done.stderr
    wait_until(lambda: not left_behind(home), "everything has ended")


@pytest.mark.rabbitmq
def test_a_signal_stops_everything_and_the_study_goes_on_embedded(tmp_path: Path) -> None:
    home = tmp_path / "home"
    study = write_study(tmp_path / "study", trials=30)
    objective = study.parent / "objective.py"
    objective.write_text(objective.read_text().replace("time.sleep(0.0)", HELD))
    calls = study.parent / "calls"
    process = start_trialfleet(["up", study, "--workers", "1", "--json"], home)
    wait_until(lambda: calls.exists() and len(calls.read_text().splitlines()) > 3, "evaluations began", PATIENCE)

    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert any("finishing what is in flight; once more" in line for line in process.stderr)
    (study.parent / "go").touch()
    output, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 128 + signal.SIGTERM, errors
    assert document(output)["ended"] == "stopped"
    wait_until(lambda: not left_behind(home), "everything has ended")
    assert document(trialfleet(["run", study, "--json"], home).stdout)["complete"] == 30


@pytest.mark.rabbitmq
def test_a_node_that_dies_ends_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    study = write_study(tmp_path / "study", trials=1000, seconds=0.1)
    calls = study.parent / "calls"
    with start_trialfleet(["up", study, "--workers", "1"], home) as process:
        wait_until(lambda: calls.exists() and calls.read_text().count("\n") > 3, "evaluations began", PATIENCE)
        for node in descendants_named("beam.smp", process.pid):
            os.kill(node, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, errors
    assert "the private RabbitMQ node has ended" in errors
    wait_until(lambda: not left_behind(home), "everything has ended")


@pytest.mark.rabbitmq
def test_a_kill_stops_everything_and_the_study_goes_on_embedded(tmp_path: Path) -> None:
    home = tmp_path / "home"
    study = write_study(tmp_path / "study", trials=30, seconds=0.1)
    calls = study.parent / "calls"
    process = start_trialfleet(["up", study, "--workers", "2"], home)
    wait_until(lambda: calls.exists() and len(calls.read_text().splitlines()) > 3, "evaluations began", PATIENCE)

    process.kill()
    process.communicate(timeout=PATIENCE)

    wait_until(lambda: not left_behind(home), "node, workers and slots have ended", PATIENCE)
    assert document(trialfleet(["run", study, "--json"], home).stdout)["complete"] == 30


@pytest.mark.rabbitmq
def test_a_signal_while_the_node_starts_stops_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = start_trialfleet(["up", write_study(tmp_path / "study", trials=5)], home)
    assert process.stderr is not None
    while "starting a private RabbitMQ node" not in process.stderr.readline():
        pass

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)

    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not left_behind(home), "everything has ended")


#: Nobody listens there.
NOWHERE = "amqp://me:hunter2@127.0.0.1:1/"


def test_an_unreachable_broker_is_told_without_its_password(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", trials=5)

    done = trialfleet(["run", study], tmp_path / "home", TRIALFLEET_BROKER_URL=NOWHERE)

    assert done.returncode == 3, done.stderr
    assert "127.0.0.1" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_needs_a_broker(tmp_path: Path) -> None:
    done = trialfleet(["worker", "--objective-path", tmp_path], tmp_path / "home")

    assert done.returncode == 2
    assert "a worker needs a broker: give --broker" in done.stderr
