"""Studies that a coordinator has, and that have no record yet."""

from pathlib import Path

from support.commands import document, trialfleet
from support.http_service import TOKEN, http_service

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet_coordinator.serving import Submission


def test_one_that_came_to_nothing_is_deleted(tmp_path: Path) -> None:
    files = CoordinatorFiles(tmp_path)
    with files.locked(), http_service() as service, files.announced(service.url):
        service.daemon.submit(Submission(tables={}, base="/", name="a"))
        told = trialfleet(["report", "a"], tmp_path, TRIALFLEET_TOKEN=TOKEN)
        assert (told.returncode, "study 'a' has no record yet" in told.stderr) == (1, True)
        early = trialfleet(["delete", "a", "--yes"], tmp_path, TRIALFLEET_TOKEN=TOKEN)
        assert (early.returncode, "cancel it first" in early.stderr) == (1, True)
        service.daemon.cancel("a")
        deleted = trialfleet(["delete", "a", "--yes", "--json"], tmp_path, TRIALFLEET_TOKEN=TOKEN)
        assert document(deleted.stdout) == {"study": "a", "deleted_trials": 0}
        assert not service.daemon.studies()
