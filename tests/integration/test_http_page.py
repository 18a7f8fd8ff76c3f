"""The page that lists studies and workers, in a real browser."""

from pathlib import Path

import pytest
from support.chromium import open_page
from support.http_service import http_service

from trialfleet_coordinator.adapters.http import application
from trialfleet_coordinator.serving import Submission

HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"


def test_the_page_lists_studies_and_workers_and_takes_no_name_for_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = application.OPEN_PATHS | {"/api/v1/studies", "/api/v1/workers"}
    monkeypatch.setattr(application, "OPEN_PATHS", paths)
    with http_service() as service:
        for number in range(50):
            service.daemon.submit(Submission(tables={}, base="/", name=f"{HOSTILE} {number}"))
        page = open_page(service.url, tmp_path)
    assert page.console == []
    assert "<title>trialfleet</title>" in page.document
    assert "<img" not in page.document
    assert page.document.count("waits to be started") == 50
    assert page.document.count("onerror=") == 50
    assert "1 worker, 0 of 4 slots busy" in page.document


def test_the_page_asks_for_the_token(tmp_path: Path) -> None:
    with http_service() as service:
        page = open_page(service.url, tmp_path)
    assert '<form id="ask" class="needed">' in page.document
