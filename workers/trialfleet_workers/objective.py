"""The user's function: how it is named, loaded and called.

A reference is `package.module:function` or `file.py:function`, where the function may be a dotted attribute
(`Class.method`). A file's folder, and the base folder, are put on `sys.path` as Python does for a script, so that the
imports beside the file work; the module is loaded once per process, but anew each time where somebody else names the
functions: a coordinator outlives many versions of them.
"""

import functools
import importlib
import importlib.util
import inspect
import math
import sys
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from trialfleet_shared.errors import ObjectiveError, message_of
from trialfleet_shared.fingerprint import digest_bytes
from trialfleet_shared.messages import MOST_METRICS, Evaluation
from trialfleet_shared.space import NAME_CHARACTERS, Categorical, Distribution, Float, Int, Params, Scalar
from trialfleet_shared.tables import nearest
from trialfleet_workers.user_modules import INSTALLED, SourceLoader, imported_anew, is_file, prefer_sources

#: How a reference to a function handed over in memory starts.
MEMORY_PREFIX = "memory:"

#: Modules whose import has led here, to notice a file that starts a study when it is imported.
_loading: ContextVar[frozenset[str]] = ContextVar("_loading", default=frozenset())
#: By a module's name: held while it is executed. What Python imports by itself has such locks.
_executing: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
#: Folders that were put on `sys.path` here.
_on_path: list[Path] = []


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
    if not colon or not place or "\0" in place or not all(part.isidentifier() for part in parts):
        raise ObjectiveError(
            f"{reference!r} names no function; allowed is 'package.module:function' or 'file.py:function'"
        )
    if not place.endswith(".py") and not all(part.isidentifier() for part in place.split(".")):
        raise ObjectiveError(f"{reference!r}: {place!r} is neither a module's name nor the path of a .py file")
    return Reference(place, attribute)


def find_file(reference: str, path: Path) -> Path:
    """A reference's file, links followed. Raises ObjectiveError if it is not there, or can not be looked at."""
    try:
        found = path.resolve()
        is_there = found.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise ObjectiveError(f"{reference!r} can not be read: {error}") from error
    if not is_there:
        raise ObjectiveError(f"{reference!r}: there is no file {found}")
    return found


def load_function(reference: str, base: Path, *, own: bool = False) -> Callable[..., Any]:
    """The function that `reference` names.

    Args:
        reference: "package.module:function" or "file.py:function".
        base: folder that a file's path is relative to, and where modules are looked for first.
        own: accept only what the module's own package or folder defines, not what it imported from elsewhere: whoever
            may choose among a file's functions must not reach `subprocess.Popen` through it. The module is imported anew.

    Raises:
        ObjectiveError: there is no such file, module or attribute, it can not be imported, or it is not callable.
    """
    prefer_sources()
    with imported_anew(_on_path) if own else nullcontext():
        return _load(reference, base, own=own)


def _load(reference: str, base: Path, *, own: bool) -> Callable[..., Any]:
    place, attribute = parse_reference(reference)
    if place.endswith(".py"):
        module = _load_file(reference, find_file(reference, base / place), base.resolve())
    else:
        _put_on_path(base.resolve())
        module = _guarded(reference, place, lambda: importlib.import_module(place))
        if own:
            _check_place(reference, module, base.resolve().joinpath(*place.split(".")))
    found: Any = module
    for depth, part in enumerate(attribute.split(".")):
        if depth > 0 and isinstance(found, ModuleType):
            raise ObjectiveError(f"{reference!r}: {found.__name__} is another module; name its function directly")
        try:
            found = getattr(found, part)
        except AttributeError as error:
            owner = ".".join([place, *attribute.split(".")[:depth]])
            names = [name for name in vars(found) if not name.startswith("_") and callable(getattr(found, name, None))]
            hint = nearest(part, names) if names else ""
            raise ObjectiveError(f"{reference!r}: {owner} has no {part!r}{hint}") from error
    if not callable(found):
        raise ObjectiveError(f"{reference!r} is a {type(found).__name__}; a function is needed")
    if own and not _is_own(found, module):
        raise ObjectiveError(
            f"{reference!r} is defined elsewhere, in {found.__module__!r}; allowed are functions of its own"
        )
    return found  # type: ignore[no-any-return]  # callable() narrows Any to nothing better


def _check_place(reference: str, module: ModuleType, place: Path) -> None:
    """See that the module is the one at `place`, whose code was looked at, if there is one, and no other of its name."""
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if is_file(file):
            if Path(module.__file__ or "/").resolve() != file.resolve():
                raise ObjectiveError(f"{reference!r} is {file}, but its import gives {module.__file__}; rename either")
            return


def _is_own(function: Any, module: ModuleType) -> bool:
    """Whether a function comes from the module, its top-level package, or its folder."""
    if isinstance(function, functools.partial):
        return _is_own(function.func, module)
    name = getattr(function, "__module__", None)
    if not isinstance(name, str):
        return False
    if name.partition(".")[0] == module.__name__.partition(".")[0]:
        return True
    file, here = getattr(sys.modules.get(name), "__file__", None), module.__file__
    if file is None or here is None:
        return False
    folder, path = Path(here).resolve().parent, Path(file).resolve()
    if not path.is_relative_to(folder):
        return False
    return not any(part in INSTALLED for part in (folder.name, *path.relative_to(folder).parts))


def _load_file(reference: str, path: Path, base: Path) -> ModuleType:
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
    return _guarded(reference, name, lambda: _execute(name, path))


def _execute(name: str, path: Path) -> ModuleType:
    with _executing[name]:
        return sys.modules.get(name) or _executed(name, path)


def _executed(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceLoader(name, str(path)))
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
    if name in _loading.get():
        raise ObjectiveError(
            f"{reference!r} starts a study while it is being imported; "
            "put what starts it below `if __name__ == '__main__':`"
        )
    token = _loading.set(_loading.get() | {name})
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
        raise ObjectiveError(f"{reference!r}: its import failed: {message_of(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a script may call sys.exit() at its end
        raise ObjectiveError(f"{reference!r}: its import raised {type(error).__name__}: {message_of(error)}") from error
    finally:
        _loading.reset(token)


def _put_on_path(folder: Path) -> None:
    """Have it be looked at first, unless the user has it on the path already."""
    if str(folder) in sys.path:
        if folder not in _on_path:
            return
        sys.path.remove(str(folder))
    elif folder not in _on_path:
        _on_path.append(folder)
    sys.path.insert(0, str(folder))


class ParamsTrial:
    """What an objective written as `objective(trial)` is called with: `suggest_*` answered from the trial's params.

    It has the methods of `optuna.Trial` that such objectives use. The params were drawn from the study's space before;
    a suggestion that names another parameter or does not contain the drawn value raises ObjectiveError.
    """

    def __init__(self, number: int, params: Params) -> None:
        #: The trial's number in its study.
        self.number = number
        #: All params of the trial.
        self.params = dict(params)
        #: What the objective noted with `set_user_attr`; it ends with the evaluation.
        self.user_attrs: dict[str, Any] = {}
        #: What the objective reported, by step; the study prunes by rungs, not by steps.
        self.intermediate_values: dict[int, float] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The trial's value of `name`, a real number in [low, high]."""
        return float(self._value(name, Float(float(low), float(high), step, log)))  # type: ignore[arg-type]  # a number

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The trial's value of `name`, a whole number in [low, high]."""
        return int(self._value(name, Int(low, high, step, log)))  # type: ignore[arg-type]  # Int.contains it

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The trial's value of `name`, one of `choices`."""
        return self._value(name, Categorical(list(choices)))

    def report(self, value: float, step: int) -> None:
        """Note an intermediate value."""
        self.intermediate_values[step] = float(value)

    def should_prune(self) -> bool:
        """False: the study decides between evaluations, not within them."""
        return False

    def set_user_attr(self, key: str, value: Any) -> None:
        """Note something for the rest of this evaluation."""
        self.user_attrs[key] = value

    def _value(self, name: str, distribution: Distribution) -> Scalar:
        if name not in self.params:
            raise ObjectiveError(
                f"trial.suggest_*({name!r}): the study's space gave no such parameter{self._known(name)}"
            )
        value = self.params[name]
        if not distribution.contains(value):
            raise ObjectiveError(
                f"trial.suggest_*({name!r}): the study's space gave {value!r}, outside of {distribution}"
            )
        return value

    def _known(self, name: str) -> str:
        return nearest(name, self.params) if self.params else ""


#: The calling styles, for error messages.
_STYLES = (
    "objective(params), (params, data), (params, budget), (params, data, budget) or the same with trial for params"
)


class Objective:
    """The user's function with its calling style, found by its signature.

    The first parameter takes the trial's params as a dict; called `trial`, or annotated as a `Trial`, it takes a
    `ParamsTrial`. Parameters called `data` (the fold's data) and `budget` (share of the full budget, 0 < b <= 1) are
    given by name. Further parameters need defaults, which are left alone. Coroutine functions are run to their end.

    Raises:
        ObjectiveError: the signature is another one.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        #: How messages call it.
        self.name = name
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (ValueError, TypeError):  # a builtin without a signature: called with the params alone
            parameters = [inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)]
        positional = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        if not parameters or parameters[0].kind not in positional or parameters[0].name in ("data", "budget"):
            raise ObjectiveError(f"objective {name!r} takes no params first; allowed is {_STYLES}")
        first, rest = parameters[0], parameters[1:]
        for parameter in rest:
            named = parameter.name in ("data", "budget") and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
            variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if not named and not variadic and parameter.default is inspect.Parameter.empty:
                raise ObjectiveError(f"objective {name!r} needs {parameter.name!r}; allowed is {_STYLES}")
        taken = {parameter.name: parameter for parameter in rest}
        #: Whether it is called with a trial instead of params.
        self.takes_trial = first.name == "trial" or _last_name(first.annotation) == "Trial"
        #: Whether it is given the fold's data.
        self.takes_data = "data" in taken
        #: Whether it is given the share of the full budget.
        self.takes_budget = "budget" in taken
        #: Whether it can not be called without data.
        self.needs_data = self.takes_data and taken["data"].default is inspect.Parameter.empty

    def has_fidelity(self, *, has_data: bool) -> bool:
        """Whether a cheaper evaluation than a full one exists, in a study with or without a data set."""
        return self.takes_budget or (self.takes_data and has_data)

    def check(self, *, has_data: bool) -> None:
        """Raise ObjectiveError when it can not be called in a study with or without a data set."""
        if self.needs_data and not has_data:
            raise ObjectiveError(f"objective {self.name!r} takes data, but the study has no data set; give it one")

    def __call__(self, evaluation: Evaluation, data: Any) -> Any:
        """Call the function for `evaluation`; whatever it returns or raises.

        Args:
            evaluation: what to evaluate.
            data: the fold's data at the evaluation's fraction; None in a study without a data set.
        """
        first = ParamsTrial(evaluation.trial, evaluation.params) if self.takes_trial else dict(evaluation.params)
        named: dict[str, Any] = {}
        if self.takes_data and data is not None:
            named["data"] = data
        if self.takes_budget:
            named["budget"] = evaluation.fraction
        returned = self.function(first, **named)
        if inspect.isawaitable(returned):
            import asyncio  # noqa: PLC0415  # few objectives need it

            return asyncio.run(_wait_for(returned))
        return returned


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _last_name(annotation: Any) -> str:
    """The last part of `optuna.Trial`, be it a class or its name."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2].strip("'\"")


def read_returned(returned: Any) -> tuple[float, dict[str, float]]:
    """What an objective returned, as its value and further metrics. Metrics that are not finite are left out.

    Raises:
        ObjectiveError: it is not a finite number, nor a mapping of numbers with a finite `value`.
    """
    if not isinstance(returned, Mapping):
        return _number(returned, "objective returned"), {}
    if "value" not in returned:
        raise ObjectiveError(f"objective returned a mapping without 'value'; its keys are {sorted(map(str, returned))}")
    if len(returned) > MOST_METRICS:
        raise ObjectiveError(f"objective returned {len(returned)} numbers; allowed are {MOST_METRICS}")
    metrics = {}
    for name, metric in returned.items():
        if name != "value":
            number = _cast(metric, f"objective returned for {name!r}")
            if math.isfinite(number):
                metrics[_label(name)] = number
    return _number(returned["value"], "objective returned for 'value'"), metrics


def _label(name: Any) -> str:
    """A metric's name as it can travel: a lone surrogate (part of a file's name) can not."""
    label = str(name).encode(errors="replace").decode()
    if len(label) > NAME_CHARACTERS:
        raise ObjectiveError(
            f"objective returned a metric whose name has {len(label)} characters; allowed are {NAME_CHARACTERS}"
        )
    return label


def _number(value: Any, what: str) -> float:
    number = _cast(value, what)
    if not math.isfinite(number):
        raise ObjectiveError(f"{what} {number}; a finite number is needed")
    return number


def _cast(value: Any, what: str) -> float:
    """`float(value)`, as Optuna accepts it, except that text is no number."""
    if not isinstance(value, str | bytes | bytearray):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    shown = repr(value)
    raise ObjectiveError(f"{what} {shown if len(shown) <= 100 else shown[:100] + '…'}; a finite number is needed")
