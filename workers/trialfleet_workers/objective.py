"""The user's function: how it is named, loaded and called.

A reference is `package.module:function` or `file.py:function`, where the function may be a dotted attribute
(`Class.method`). A file's folder, and the base folder, are put on `sys.path` as Python does for a script, so that the
imports beside the file work; the module is loaded once per process.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from trialfleet_shared.errors import ObjectiveError
from trialfleet_shared.fingerprint import digest_bytes
from trialfleet_shared.settings import nearest

#: How a reference to a function handed over in memory starts.
MEMORY_PREFIX = "memory:"

#: Modules that `load_function` is importing at this moment, to notice a file that starts a study when it is imported.
_loading: set[str] = set()


class Reference(NamedTuple):
    """A reference, taken apart."""

    #: The module's dotted name, or the file's path as written.
    place: str
    #: The function's dotted name within it.
    attribute: str

    @property
    def is_file(self) -> bool:
        """Whether `place` is a file's path."""
        return self.place.endswith(".py")


def parse_reference(reference: str) -> Reference:
    """`reference` taken apart. Raises ObjectiveError unless it is "package.module:function" or "file.py:function"."""
    place, colon, attribute = reference.rpartition(":")
    parts = attribute.split(".")
    if not colon or not place or not all(part.isidentifier() for part in parts):
        raise ObjectiveError(
            f"{reference!r} names no function; allowed is 'package.module:function' or 'file.py:function'"
        )
    if not place.endswith(".py") and not all(part.isidentifier() for part in place.split(".")):
        raise ObjectiveError(f"{reference!r}: {place!r} is neither a module's name nor the path of a .py file")
    return Reference(place, attribute)


def load_function(reference: str, base: Path) -> Callable[..., Any]:
    """The function that `reference` names.

    Args:
        reference: "package.module:function" or "file.py:function".
        base: folder that a file's path is relative to, and where modules are looked for first.

    Raises:
        ObjectiveError: there is no such file, module or attribute, it can not be imported, or it is not callable.
    """
    place, attribute = parse_reference(reference)
    if place.endswith(".py"):
        module = _load_file(reference, (base / place).resolve(), base.resolve())
    else:
        _put_on_path(base.resolve())
        module = _guarded(reference, place, lambda: importlib.import_module(place))
    found: Any = module
    for depth, part in enumerate(attribute.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            owner = ".".join([place, *attribute.split(".")[:depth]])
            names = [name for name in vars(found) if not name.startswith("_") and callable(getattr(found, name, None))]
            hint = nearest(part, names) if names else ""
            raise ObjectiveError(f"{reference!r}: {owner} has no {part!r}{hint}") from error
    if not callable(found):
        raise ObjectiveError(f"{reference!r} is a {type(found).__name__}; a function is needed")
    return found  # type: ignore[no-any-return]  # callable() narrows Any to nothing better


def _load_file(reference: str, path: Path, base: Path) -> ModuleType:
    if not path.is_file():
        raise ObjectiveError(f"{reference!r}: there is no file {path}")
    _put_on_path(base)
    _put_on_path(path.parent)
    # Under its own name where that name means this file: then the user's classes can be pickled by reference, which
    # nested parallelism (joblib) does. A file called like an installed module (json.py) gets a name of its own.
    importlib.invalidate_caches()
    known = sys.modules.get(path.stem)
    if known is not None:
        mine = Path(getattr(known, "__file__", None) or "/").resolve() == path
    else:
        spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        mine = spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path
    if mine:
        return _guarded(reference, path.stem, lambda: importlib.import_module(path.stem))
    name = f"_trialfleet_{path.stem}_{digest_bytes(str(path).encode())[:8]}"
    return _guarded(reference, name, lambda: sys.modules.get(name) or _execute(name, path))


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _guarded(reference: str, name: str, load: Callable[[], ModuleType]) -> ModuleType:
    """`load()`, every way it can fail told as ObjectiveError."""
    if name in _loading:
        raise ObjectiveError(
            f"{reference!r} starts a study while it is being imported; "
            "put what starts it below `if __name__ == '__main__':`"
        )
    _loading.add(name)
    try:
        return load()
    except ObjectiveError:
        raise
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise ObjectiveError(f"{reference!r}: syntax error in {where}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ObjectiveError(f"{reference!r}: there is no module {error.name!r}") from error
        raise ObjectiveError(f"{reference!r}: its import failed: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a script may call sys.exit() at its end
        raise ObjectiveError(f"{reference!r}: its import raised {type(error).__name__}: {error}") from error
    finally:
        _loading.discard(name)


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
