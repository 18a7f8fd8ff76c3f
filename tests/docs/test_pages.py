"""Every command and snippet of README and docs/ does what the page says (`support.pages`); see test_followed_pages as well."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.pages import PageRun, blocks, commands, page_variables, pattern
from support.run_pages import FOLLOWED, PAGES, name, run_page

#: What is not run, by its first line; the page says why. Nothing that could be run here belongs here.
NOT_RUN = {
    "$ sudo apt-get install -y git make python3-venv && make demo",
    "$ make test",
    "$ python3 -m venv .venv && . .venv/bin/activate",
    "$ sudo apt-get install -y --no-install-recommends rabbitmq-server",
}


@pytest.mark.timeout(600)  # of a whole page
@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name not in FOLLOWED], ids=name)
def test_a_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    run_page(page, tmp_path, monkeypatch, request)


def test_what_is_not_run_is_known_and_says_why() -> None:
    left_out = [block for page in PAGES for block in blocks(page) if block.not_run]
    assert all(len(block.not_run.split()) >= 3 for block in left_out), "a reason"
    assert {block.content.splitlines()[0] for block in left_out} == NOT_RUN


def test_a_page_is_read_as_it_is_meant(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('<!-- not run: no such thing -->\n```console\n$ a\n```\n\n```toml title="x/y.toml"\nb = 1\n```\n')
    assert [(block.kind, block.file, block.not_run) for block in blocks(page)] == [
        ("console", "", "no such thing"),
        ("toml", "x/y.toml", ""),
    ]
    assert [tuple(one) for one in commands("$ a \\\n    b # status 2\nout\n$ c\n")] == [
        ("a b", ["out"], 2),
        ("c", [], 0),
    ]


@pytest.mark.parametrize("bad", ["    indented = 1\n", "```\nx\n```\n", "```bash\nls\n```\n"])
def test_a_block_that_nobody_would_run_is_refused(bad: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(bad)
    with pytest.raises(AssertionError, match=r"page.md:1"):
        list(blocks(tmp_path / "page.md"))


@pytest.mark.parametrize(
    "block",
    [
        "```console\n$ false\n```\n",
        "```console\n$ true # status 1\n```\n",
        "```console\n$ echo one; echo two\none\n```\n",
        "```console\n$ echo one two three\none ... four\n```\n",
        "```python\nassert 1 == 2\n```\n",
        "```toml\nx = \n```\n",
        "```console\n$ sh -c 'echo up; exit 3' &\ndown\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(block: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(block)
    with pytest.raises(AssertionError, match=r"page.md:1"):
        PageRun(tmp_path, {}, page_variables(tmp_path)).run(page)


def test_a_page_that_is_right_passes(tmp_path: Path) -> None:
    import re

    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport asyncio\nx = 1\nawait asyncio.sleep(0)\n```\n<!-- run: assert x == 1 -->\n\n"
        "```console\n$ export A=b\n$ echo $A c d; echo e; echo f\nb ... d\n...\nf\n$ sleep 60 &\n$ exit 2 # status 2\n```\n"
    )
    PageRun(tmp_path, {}, page_variables(tmp_path)).run(page)
    assert re.fullmatch(pattern(["a", "...", "z"]), "a\nz\n")


def test_a_page_imports_its_own_modules_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ModuleType("objectives")
    monkeypatch.setitem(sys.modules, "objectives", known)
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="objectives.py"\na = 1\n```\n```python title="only_here.py"\nb = 2\n```\n'
        "```python\nfrom objectives import a\nfrom only_here import b\n```\n<!-- run: assert a + b == 3 -->\n"
    )
    PageRun(tmp_path, {}, page_variables(tmp_path)).run(page)
    assert sys.modules["objectives"] is known
    assert "only_here" not in sys.modules
