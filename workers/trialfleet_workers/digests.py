"""Digests of objectives' files, so that a result cache, a resumed study and a worker notice when their code changed.

What counts is the function's name and the source of its file and of the local modules that file imports, found without
running anything. What does not count: installed packages, modules imported by computed names or from folders that the code
itself puts on `sys.path`, and files that the code reads. Of functions in memory `function_digests` tells more.
"""

import ast
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from trialfleet_shared.errors import ObjectiveError
from trialfleet_shared.fingerprint import digest_bytes
from trialfleet_workers.objective import find_file, parse_reference
from trialfleet_workers.user_modules import find_module, is_file

#: Held while source is parsed: CPython 3.11 counts the depth of its parser's recursion for all threads together, and
#: raises SystemError when two parse at once.
PARSING = threading.Lock()


def code_digest(reference: str, base: Path) -> str:
    """Digest of the objective's name, its file, and the local modules it imports.

    Local are modules in the file's folder or below `base`; for an installed module, its own top-level package. A module's
    packages count with it: importing it runs them. The same files give the same digest on every machine, wherever the
    folders are.

    Args:
        reference: "package.module:function" or "file.py:function".
        base: folder that a file's path is relative to.

    Raises:
        ObjectiveError: there is no such file or module, it can not be read, or it has a syntax error.
    """
    try:
        return _code_digest(reference, base)
    except OSError as error:
        raise ObjectiveError(f"{reference!r} can not be read: {error}") from error


def _code_digest(reference: str, base: Path) -> str:
    place, attribute = parse_reference(reference)
    base = base.resolve()
    if place.endswith(".py"):
        path = find_file(reference, base / place)
        name, sources = path.stem, Sources([path.parent, base])
    else:
        name = place
        found = find_module(place, [str(base)])
        if found is None:
            raise ObjectiveError(f"{reference!r}: there is no module {place!r}")
        path = found
        top = place.partition(".")[0]
        root = root_of(place, path)
        sources = Sources([base]) if root == base else Sources([base, root], only=top)
    try:
        sources.add(name, path)
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else f"{path}"
        raise ObjectiveError(f"{reference!r}: syntax error in {where}: {error.msg}") from error
    sources.add_imported(name.rpartition(".")[0])
    return digest_bytes(f"{name}:{attribute}".encode(), *sources.parts())


class Sources:
    """Sources of modules, followed through their imports.

    Args:
        roots: folders whose modules are local.
        only: of the last root, only this top-level package is local.
    """

    def __init__(self, roots: list[Path], only: str | None = None) -> None:
        self._roots = roots
        self._only = only
        self._sources: dict[str, bytes] = {}

    def parts(self) -> Iterator[bytes]:
        """Names and sources, in an order that depends on nothing else."""
        for name, source in sorted(self._sources.items()):
            yield name.encode()
            yield source

    def add(self, name: str, path: Path) -> None:
        """Add a module and those that it imports. Raises SyntaxError."""
        # Line ends differ between checkouts of one commit.
        source = path.read_bytes().replace(b"\r\n", b"\n")
        self._sources[name] = source
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(_parsed(source), package):
            self.add_imported(imported)

    def add_used(self, name: str, attributes: Collection[str]) -> None:
        """Add a module as `add_imported` does, and those within it that these names, used of it, may stand for."""
        self.add_imported(name)
        for attribute in attributes:
            within = f"{name}.{attribute}"
            if self._find(within.split(".")) is not None:
                self.add_used(within, attributes)

    def add_imported(self, name: str) -> None:
        """Add a module that may be imported by this name, the packages it is in, and those that they import."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            path = self._find(parts[:end])
            if path is not None and module not in self._sources:
                try:
                    self.add(module, path)
                except SyntaxError:  # its bytes count; importing it will tell
                    continue

    def _find(self, parts: list[str]) -> Path | None:
        for root in self._roots:
            if self._only is not None and root == self._roots[-1] and parts[0] != self._only:
                continue
            file = root.joinpath(*parts)
            for path in (file / "__init__.py", file.with_name(f"{file.name}.py")):
                if is_file(path):
                    return path
        return None


def _parsed(source: bytes) -> ast.Module:
    """The syntax tree. Raises SyntaxError for all that Python can not compile."""
    try:
        with PARSING:
            return ast.parse(source)
    except (RecursionError, MemoryError) as error:  # the parser's stack; neither says anything of this process
        raise SyntaxError("it is nested too deeply") from error
    except ValueError as error:  # a null byte, as some versions of Python tell it
        raise SyntaxError(str(error)) from error


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of everything a module may import; of `from a import b`, both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            module = absolute_name(node.module or "", node.level, package)
            for alias in node.names:
                yield f"{module}.{alias.name}" if module else alias.name


def absolute_name(module: str, level: int, package: str) -> str:
    """The dotted name of what a module of `package` imports from, with so many dots before its name."""
    if not level:
        return module
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])])


def root_of(name: str, path: Path) -> Path:
    """The folder that the top-level package of a module is in."""
    return path.parents[name.count(".") + (path.name == "__init__.py")]
