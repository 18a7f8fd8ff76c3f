"""Who watches a study of a coordinator and is told to end, ends with a status that says so."""

import signal
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet
from support.http_service import TOKEN, http_service

from trialfleet_coordinator.serving import Submission


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_watching_and_the_status_tells(tmp_path: Path, number: signal.Signals) -> None:
    with http_service() as service:
        service.daemon.submit(Submission(tables={}, base="/", name="a"))
        there = {"TRIALFLEET_URL": service.url, "TRIALFLEET_TOKEN": TOKEN}
        with start_trialfleet(["watch", "a", "--json"], tmp_path, **there) as watching:
            assert watching.stderr is not None
            assert "a is queued" in watching.stderr.readline()
            watching.send_signal(number)
            output, errors = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 128 + number
    assert f"{number.name}: a goes on without being watched" in errors
    assert document(output)["state"] == "queued"
