"""Pages of documentation, each run by a test in a folder and a home of its own."""

import socket
from pathlib import Path

import pytest

from support.pages import PageRun, page_variables

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: All but the decisions, which tell of a past.
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "adr")]
#: Folders of the pages that people follow step by step: a test file of their own, so that two processes share the pages.
FOLLOWED = ("tutorial", "how-to")
#: A broker that pages speak of, and the port of their coordinator.
BROKER, PORT = "amqp://user:password@broker.example:5672/", "8765"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Run a page. Raises AssertionError, with the line of the page, where something else happens."""
    text = page.read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        replaced = {PORT: str(free.getsockname()[1])}
    if BROKER in text:
        replaced[BROKER] = request.getfixturevalue("rabbitmq")
    variables = page_variables(folder / "home")
    folder = folder / "page"
    folder.mkdir()
    for variable in ("TRIALFLEET_HOME", "PATH"):
        monkeypatch.setenv(variable, variables[variable])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    PageRun(folder, replaced, variables).run(page)
