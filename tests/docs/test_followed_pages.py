"""Every command and snippet of the tutorial and the how-tos does what the page says (`support.pages`)."""

from pathlib import Path

import pytest
from support.run_pages import FOLLOWED, PAGES, name, run_page


@pytest.mark.timeout(600)  # of a whole page
@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name in FOLLOWED], ids=name)
def test_a_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    run_page(page, tmp_path, monkeypatch, request)
