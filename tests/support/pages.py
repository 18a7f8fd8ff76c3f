"""Pages of documentation that are run: their files are written, their commands and their Python run, in order.

What a page may hold, each as a fenced block:

    ```toml title="study.toml"      a file of the page's folder, whatever its language
    ```python                       run, in one namespace for the whole page; `await` works outside of functions
    ```toml, ```json                must be readable
    ```console                      commands after "$ ", run by a shell in the page's folder, with what they print
    ```text                         neither

What a command prints is compared if the page shows it; "..." stands for any text, or for any lines. A command ends with
status 0, or with the one that "# status 2" at its end says. One that ends with " &" runs beside the others until the page
ends; the next one waits until it has printed what the page shows of it. `export` and `cd` hold for the commands that follow.

Comments that a reader does not see:

    <!-- not run: REASON -->        the next block is not run
    <!-- files of: first.md -->     the files of that page are here as well
    <!-- run: CODE -->              Python that is run, but not shown
"""

import ast
import asyncio
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from support.waiting import wait_until

#: Seconds that a command may take on a busy machine.
PATIENCE = 120.0
_TITLE = re.compile(r'title="([^"]+)"')
_COMMENT = re.compile(r"<!-- (not run|files of|run):\s+(.*?)\s*-->", re.DOTALL)
_STATUS = re.compile(r"\s+# status (\d+)$")
#: What reads languages that are not run.
_READERS: Mapping[str, Callable[[str], object]] = {"toml": tomllib.loads, "json": json.loads}
LANGUAGES = ("console", "python", "toml", "json", "text")


class Block(NamedTuple):
    """A piece of a page."""

    #: Language of a fenced block, "run" or "files of" for a comment that is one.
    kind: str
    content: str
    #: Line of the page, from 1.
    line: int
    #: The file that it is; empty when it is none.
    file: str = ""
    #: Why it is not run; empty when it is.
    not_run: str = ""


class Command(NamedTuple):
    """A command and what the page shows of its output."""

    text: str
    shown: list[str]
    status: int = 0


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page. Raises AssertionError for what is not one of the kinds that can be run."""
    not_run = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        assert token.type != "code_block", f"{page}:{line}: indented code; use a fence with a language"
        if token.type == "html_block":
            for kind, content in _COMMENT.findall(token.content):
                if kind == "not run":
                    not_run = content
                else:
                    yield Block(kind, content, line)
        elif token.type == "fence":
            language = token.info.split()[0] if token.info else ""
            title = _TITLE.search(token.info)
            assert title or language in LANGUAGES, f"{page}:{line}: ```{language} is not among {LANGUAGES}"
            yield Block(language, token.content, line, title[1] if title else "", not_run)
            not_run = ""


def commands(console: str) -> Iterator[Command]:
    """The commands of a console block."""
    text: str | None = None
    shown: list[str] = []
    for line in console.splitlines():
        if text is not None and text.endswith("\\"):
            text = f"{text[:-1]}{line.strip()}"
        elif line.startswith("$ "):
            if text is not None:
                yield _command(text, shown)
            text, shown = line[2:], []
        else:
            assert text is not None, f"a console block starts with '$ ', not with {line!r}"
            shown.append(line)
    if text is not None:
        yield _command(text, shown)


def _command(text: str, shown: list[str]) -> Command:
    status = _STATUS.search(text)
    return Command(_STATUS.sub("", text), shown, int(status[1]) if status else 0)


def pattern(shown: list[str]) -> str:
    """A regular expression for what a page shows of an output."""
    lines = []
    for line in shown:
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(r".*?".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ ]*\n")
    return "".join(lines)


@dataclass
class PageRun:
    """Runs a page.

    Args:
        folder: where its files are, and its commands run.
        replaced: what stands for what in files and commands: addresses that a test can not use.
        variables: the environment of its commands.
    """

    folder: Path
    replaced: Mapping[str, str]
    variables: dict[str, str]
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    _beside: list[subprocess.Popen[bytes]] = field(default_factory=list)
    #: What the names of the page's own modules stood for before it.
    _modules: dict[str, ModuleType | None] = field(default_factory=dict)

    def run(self, page: Path) -> None:
        """Run the whole page. Raises AssertionError, with the line of the page, where something else happens."""
        try:
            for block in blocks(page):
                try:
                    self._run(page, block)
                except Exception as error:
                    raise AssertionError(f"{page}:{block.line}: {type(error).__name__}: {error}") from error
        finally:
            self.end()

    def end(self) -> None:
        """End what runs beside, and forget the page's modules."""
        for name, known in self._modules.items():
            sys.modules.pop(name, None)
            if known is not None:
                sys.modules[name] = known
        self._modules.clear()
        for process in reversed(self._beside):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(PATIENCE)
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
        self._beside.clear()

    def _run(self, page: Path, block: Block) -> None:
        content = self._with_replaced(block.content)
        if block.not_run:
            return
        if block.kind == "files of":
            for other in blocks(page.parent / content):
                if other.file:
                    self._write(other.file, self._with_replaced(other.content))
        elif block.file:
            self._write(block.file, content)
        elif block.kind in ("python", "run"):
            self._python(content, page, block.line)
        elif block.kind == "console":
            for command in commands(content):
                self._command(command)
        else:
            _READERS.get(block.kind, str)(content)

    def _with_replaced(self, text: str) -> str:
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def _write(self, name: str, content: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        # A test before this one may have imported another module of that name.
        if file.suffix == ".py" and file.stem not in self._modules:
            self._modules[file.stem] = sys.modules.pop(file.stem, None)
            importlib.invalidate_caches()

    def _python(self, code: str, page: Path, line: int) -> None:
        # A file of its own, for what reads the source of a function.
        file = self.folder / f".{page.stem}-{line}.py"
        file.write_text(code, encoding="utf-8")
        compiled = compile(code, str(file), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if compiled.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(compiled, self.namespace))  # the page's own code
        else:
            exec(compiled, self.namespace)

    def _command(self, command: Command) -> None:
        words = shlex.split(command.text)
        if words[0] == "export":
            self.variables |= dict(word.split("=", 1) for word in words[1:])
        elif words[0] == "cd":
            self.folder = self.folder / words[1]
            self.folder.mkdir(parents=True, exist_ok=True)
        elif words[-1] == "&":
            self._start(command)
        else:
            self._finish(command)

    def _finish(self, command: Command) -> None:
        process = subprocess.Popen(
            ["bash", "-c", command.text],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output = process.communicate(timeout=PATIENCE)[0].decode()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert process.returncode == command.status, f"$ {command.text}: status {process.returncode}\n{output}"
        if command.shown:
            told = "\n".join(line.rstrip() for line in output.splitlines()) + "\n"
            shown = "\n".join(command.shown)
            assert re.fullmatch(pattern(command.shown), told), (
                f"$ {command.text}\n{shown}\nis shown, but it printed\n{told}"
            )

    def _start(self, command: Command) -> None:
        log = self.folder / f".beside-{len(self._beside)}.log"
        with log.open("wb") as file:
            text = command.text.rstrip("& ")
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.folder,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._beside.append(process)
        expected = re.compile(pattern(command.shown))

        def printed() -> bool:
            told = log.read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, f"$ {command.text} ended with status {process.returncode}\n{told}"
            return expected.search(told) is not None

        wait_until(printed, f"$ {command.text} prints what the page shows", PATIENCE)


def page_variables(home: Path) -> dict[str, str]:
    """The environment of a page's commands: this one without settings of trialfleet, its programs first in the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIALFLEET_")}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": programs, "TRIALFLEET_HOME": str(home), "COLUMNS": "120", "NO_COLOR": "1"}
