"""The user's own modules: which they are, and that they are what their source says, whatever bytecode of them lies about.

Python takes bytecode for that of a source by its size and the second it was written in. A file that is written, imported
and written again within a second would be taken for what it was, and its results for those of the new code.
"""

import importlib.util
import os.path
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from trialfleet_shared.errors import ObjectiveError

#: Folders of installed packages.
INSTALLED = ("site-packages", "dist-packages")
#: What files of Python's own and of installed packages have in their names, on whatever machine.
_LIBRARY = re.compile(rf"^<frozen |/({'|'.join(INSTALLED)}|lib/python3\.\d+)/")
#: Seconds between a source and its bytecode from which on it is theirs or evidently another's; file systems count in up to two.
_APART_SECONDS = 4.0


class SourceLoader(SourceFileLoader):
    """Neither reads nor writes bytecode that may be of another source."""

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code."""
        if self._can_tell():
            return super().get_code(fullname)
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code

    def _can_tell(self) -> bool:
        """Whether the bytecode that there is, or would be written now, was made well after the source, or well before."""
        try:
            source = Path(self.path).stat().st_mtime
            bytecode = Path(importlib.util.cache_from_source(self.path))
            made = bytecode.stat().st_mtime if bytecode.exists() else time.time()
        except (OSError, NotImplementedError):
            return False
        return abs(made - source) >= _APART_SECONDS


class _Finder(MetaPathFinder):
    """Finds what Python's own finder finds, and gives the user's modules the loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader and is_users(fullname, Path(spec.loader.path)):
            spec.loader = SourceLoader(spec.loader.name, spec.loader.path)
        return spec


_FINDER = _Finder()
_ANEW = threading.RLock()
#: Seconds to wait for another thread's imports: one that never ends must not keep all other studies from theirs in silence.
PATIENCE_SECONDS = 300.0
#: Packages that are not the user's, wherever they are installed, and the program.
_OURS = ("trialfleet", "trialfleet_coordinator", "trialfleet_shared", "trialfleet_workers", "__main__")


def prefer_sources() -> None:
    """Have the user's modules that this process imports from now on loaded so. May be called again."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _FINDER)


@contextmanager
def imported_anew(folders: Sequence[Path]) -> Iterator[None]:
    """Inside, for one thread at a time, the user's modules in these folders are imported from what their files are by now.

    For a process that outlives many versions of them. Functions that were loaded before keep the modules they had.

    Raises:
        ObjectiveError: another thread's modules take longer than `PATIENCE_SECONDS`.
    """
    if not _ANEW.acquire(timeout=PATIENCE_SECONDS):
        raise ObjectiveError(
            f"the modules of another study have been importing for {PATIENCE_SECONDS:g} seconds; try again once they are done"
        )
    try:
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is None or name.partition(".")[0] in _OURS or not is_users(name, Path(file)):
                continue
            if any(Path(file).is_relative_to(folder) for folder in folders):
                del sys.modules[name]
        importlib.invalidate_caches()
        yield
    finally:
        _ANEW.release()


def is_users(module: str, file: Path) -> bool:
    """Whether a module is the user's, by its name and its file: not installed, not the standard library's."""
    return module.partition(".")[0] not in sys.stdlib_module_names and not any(part in file.parts for part in INSTALLED)


def is_local(module: str | None) -> bool:
    """Whether a module is the user's: not installed, not the standard library's."""
    if module is None or module == "__main__":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module not in sys.builtin_module_names and module not in sys.stdlib_module_names
    return is_users(module, Path(file))


def find_module(name: str, folders: list[str]) -> Path | None:
    """The file that importing `name` would load, found without importing anything; None when there is none.

    Args:
        name: the module's dotted name.
        folders: where its top-level package is looked for first, before everywhere that Python looks.
    """
    top, *parts = name.split(".")
    found = PathFinder.find_spec(top, folders)
    for finder in sys.meta_path:  # beside the path: editable installs
        found = found or finder.find_spec(top, None)
    for part in parts:
        if found is None:
            return None
        found = PathFinder.find_spec(f"{found.name}.{part}", list(found.submodule_search_locations or []))
    return Path(found.origin).resolve() if found is not None and found.origin and found.has_location else None


def is_file(path: Path) -> bool:
    """Whether it is a file as far as this process may see: False where `Path.is_file` raises, for a name too long, say."""
    return os.path.isfile(path)  # noqa: PTH113


def is_library(filename: str) -> bool:
    """Whether the code of a traceback's file is Python's own or an installed package's, by its name alone."""
    return _LIBRARY.search(filename) is not None
