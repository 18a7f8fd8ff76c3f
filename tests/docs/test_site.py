"""docs/ is a site: it is built without a complaint, every page is in it, and what is generated is up to date."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.chromium import open_page

from docs import build_cli_reference, hooks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_in_the_site_and_none_loads_from_elsewhere(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    made = {page.parent.relative_to(site) for page in site.rglob("index.html")}
    assert {page.parent if page.name in ("index", "README") else page for page in pages} <= made
    for page in site.rglob("index.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text
        assert 'rel="stylesheet" href="http' not in text


def test_every_page_can_be_navigated_to() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (\S+\.md)$", config[config.index("\nnav:") :], re.MULTILINE)
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(page for page in pages if not re.match(r"adr/\d", page))


def test_decisions_are_numbered_one_by_one() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [page.name[:5] for page in pages] == [f"{number:04}-" for number in range(1, len(pages) + 1)]
    for number, page in enumerate(pages, 1):
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. "), page


def test_a_browser_shows_it(site: Path, tmp_path: Path) -> None:
    shown = open_page((site / "index.html").as_uri(), tmp_path / "profile")
    assert "tutorial/first-study" in shown.document


def test_the_commands_page_is_what_the_commands_say() -> None:
    written = build_cli_reference.FILE.read_text(encoding="utf-8")
    assert written == build_cli_reference.document(), "python docs/build_cli_reference.py writes it anew"


@pytest.mark.parametrize(
    ("source", "link", "becomes"),
    [
        ("how-to/fleet.md", "[the runbook](../../ops/README.md)", "the runbook (`ops/README.md`)"),
        ("how-to/fleet.md", "[modes](../reference/study-file.md#study)", "[modes](../reference/study-file.md#study)"),
        ("reference/study-file.md", "[one](../../examples/digits/study.toml)", "one (`examples/digits/study.toml`)"),
    ],
)
def test_links_out_of_the_site_become_names(source: str, link: str, becomes: str) -> None:
    class Page:
        class file:  # noqa: N801  # as MkDocs has it
            src_uri = source

    assert hooks.on_page_markdown(link, page=Page) == becomes


def test_links_to_files_of_the_repository_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for path in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), f"{page}: {path}"
