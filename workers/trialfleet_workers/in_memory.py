"""Functions that have no reference: lambdas, closures, bound methods, whatever a notebook or script defines.

They reach the evaluator processes pickled. That is safe here and nowhere else: the bytes are made by this process and
read by its own child over a socket pair that nobody else holds. They never travel on the wire or enter a store.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from trialfleet_shared.errors import ObjectiveError, message_of
from trialfleet_workers.function_digests import used_settings
from trialfleet_workers.user_modules import find_module

_ADVICE = "name it as 'file.py:function', or evaluate in threads with use_process_pool=False"


def pickle_function(function: Callable[..., Any], name: str) -> bytes:
    """The function as bytes for `unpickle_function` in a child process that has the same `sys.path`.

    Code of modules which the child could not import (the running script, a notebook, a test) travels by value. Of the user's
    other modules the settings do, plain data that the function uses: they may be others by now than an import gives.

    Raises:
        ObjectiveError: it holds something that can not be pickled.
    """
    with contextlib.ExitStack() as stack:
        for module in _modules(function):
            if module.__name__ != "__main__" and not _is_importable(module):
                stack.enter_context(_by_value(module))
        try:
            return bytes(cloudpickle.dumps((_settings(function), cloudpickle.dumps(function))))
        except Exception as error:
            raise ObjectiveError(
                f"objective {name!r} can not be sent to evaluator processes ({_told(error)}); {_ADVICE}"
            ) from error


def unpickle_function(content: bytes, name: str) -> Callable[..., Any]:
    """The function that `pickle_function` made `content` of. Raises ObjectiveError when it can not be rebuilt here."""
    try:
        settings, pickled = cloudpickle.loads(content)
        for module, values in settings.items():
            vars(importlib.import_module(module)).update(values)
        function: Callable[..., Any] = cloudpickle.loads(pickled)
    except Exception as error:
        raise ObjectiveError(
            f"objective {name!r} can not be rebuilt in an evaluator process ({_told(error)}); {_ADVICE}"
        ) from error
    return function


def _settings(function: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """By module, the settings that a child imports otherwise; of modules that travel by value they are part of the function."""
    return {name: values for name, values in used_settings(function).items() if _is_imported_elsewhere(name)}


def _is_imported_elsewhere(name: str) -> bool:
    module = sys.modules.get(name)
    return (
        module is not None and name != "__main__" and bool(getattr(module, "__file__", None)) and _is_importable(module)
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {message_of(error)}"


def _modules(function: Callable[..., Any]) -> list[ModuleType]:
    """The modules whose code the function is: its own, its object's class's, the one it is a partial call of."""
    parts = [function, type(function), type(getattr(function, "__self__", None)), getattr(function, "func", None)]
    names = {getattr(part, "__module__", None) for part in parts}
    return [
        sys.modules[name] for name in sorted(name for name in names if isinstance(name, str)) if name in sys.modules
    ]


def _is_importable(module: ModuleType) -> bool:
    """Whether a fresh process with this `sys.path` would import this module under this name."""
    file = getattr(module, "__file__", None)
    return file is None or find_module(module.__name__, []) == Path(file).resolve()  # without a file: built in


@contextlib.contextmanager
def _by_value(module: ModuleType) -> Iterator[None]:
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
