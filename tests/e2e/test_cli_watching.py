"""Who watches a study of a coordinator and is told to end, ends with a status that says so."""

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.commands import PATIENCE, document, start_trialfleet
from support.http_service import TOKEN, HttpService, http_service

from trialfleet_coordinator.adapters.http.server import served
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


def test_a_coordinator_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    service = HttpService()
    service.daemon.submit(Submission(tables={}, base="/", name="a"))
    with ExitStack() as stack:
        stack.callback(service.daemon.close)
        with served(service.application, "127.0.0.1", 0) as url:
            there = {"TRIALFLEET_URL": url, "TRIALFLEET_TOKEN": TOKEN}
            watching = stack.enter_context(start_trialfleet(["watch", "a"], tmp_path, **there))
            assert watching.stderr is not None
            assert "a is queued" in watching.stderr.readline()
        told = watching.stderr.readline()
        assert told.startswith("waiting for the coordinator: ")
        assert url in told
        service.daemon.cancel("a")
        with served(service.application, "127.0.0.1", int(url.rpartition(":")[2])):
            _, errors = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 1
    assert "a is cancelled" in errors
