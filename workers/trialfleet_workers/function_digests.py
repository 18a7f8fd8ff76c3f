"""Digests of functions in memory, and the settings that they use.

As of a file, the source counts of a function and of the modules that it imports or uses; and, where the user made them, the
values that it closes over, and the functions, classes and settings of its modules. What does not count: what it keeps in
globals that it binds itself, and of objects that can not be pickled what no attribute of theirs tells.
"""

import dis
import hashlib
import inspect
import io
import types
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cloudpickle

from trialfleet_workers.digests import PARSING, Sources, absolute_name, root_of
from trialfleet_workers.user_modules import find_module, is_local, is_users

#: What `repr` tells alike in every process.
_PLAIN = bool | int | float | complex | str | bytes | None
#: Levels of containers in plain data.
_DEEPEST = 20
#: What a pickle tells otherwise in each process, or by name alone.
_NOT_PICKLED = (set, frozenset, type, types.FunctionType, types.ModuleType)


def function_digest(function: Callable[..., Any]) -> str:
    """Digest of a function in memory: its source, code, defaults, and what it closes over or uses of its module."""
    state = _Values()
    state.add(function)
    return state.digest()


def used_settings(function: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """By module and name: the plain data in the user's modules that a function in memory uses, as they are now.

    They are among what `function_digest` is of; plain are numbers, texts and bytes, and built-in containers of these.
    """
    settings = _Settings()
    settings.add(function)
    settings.digest()
    return settings.found


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """Pickles all but `_NOT_PICKLED`, which it hands to `add`."""

    def __init__(self, out: io.BytesIO, add: Callable[[Any], None]) -> None:
        super().__init__(out)
        self._add = add

    def persistent_id(self, value: Any) -> str | None:
        """See `pickle.Pickler`: what has an id is not pickled."""
        if isinstance(value, _NOT_PICKLED):
            self._add(value)
            return "added"
        return None


class _Values:
    """A digest over Python values, each visited once.

    Args:
        seen: values that were visited elsewhere, by their `id`, each with its number.
    """

    def __init__(self, seen: Mapping[int, tuple[int, Any]] = MappingProxyType({})) -> None:
        self._state = hashlib.blake2b(digest_size=16)
        self._seen = dict(seen)
        #: Functions and classes to visit yet: they use each other in chains that are longer than a stack is deep.
        self._waiting: deque[Callable[[], None]] = deque()
        self._kinds: dict[type | types.UnionType, Callable[[Any], None]] = {
            list | tuple: self._add_sequence,
            dict: self._add_dict,
            set | frozenset: self._add_set,
            types.FunctionType: self._add_function,
            types.MethodType: self._add_method,
            partial: self._add_partial,
            types.CodeType: self._add_code,
            type: self._add_class,
            types.ModuleType: self._add_module,
        }

    def digest(self) -> str:
        while self._waiting:
            self._waiting.popleft()()
        return self._state.hexdigest()

    def _put(self, *parts: str | bytes) -> None:
        for part in parts:
            content = part.encode(errors="surrogatepass") if isinstance(part, str) else part
            self._state.update(len(content).to_bytes(8, "little"))
            self._state.update(content)

    def add(self, value: Any) -> None:
        """Feed one value."""
        if isinstance(value, _PLAIN):
            self._put(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self._put("seen", str(self._seen[id(value)][0]))
            return
        self._seen[id(value)] = len(self._seen), value  # kept alive, so that its id stays its own
        for kind, add in self._kinds.items():
            if isinstance(value, kind):
                add(value)
                return
        self._add_object(value)

    def _add_sequence(self, value: list[Any] | tuple[Any, ...]) -> None:
        self._put(type(value).__name__, str(len(value)))
        for item in value:
            self.add(item)
        self._add_attributes(value)

    def _add_dict(self, value: dict[Any, Any]) -> None:
        self._put("dict", str(len(value)))
        for key, item in value.items():
            self.add(key)
            self.add(item)
        if isinstance(value, defaultdict):
            self._put("default")
            self.add(value.default_factory)
        self._add_attributes(value)

    def _add_attributes(self, value: Any) -> None:
        """What a function, or a container of a class of its own, was given beside what it is."""
        attributes = getattr(value, "__dict__", None)
        if attributes:
            self._put("attributes")
            self.add(attributes)

    def _add_set(self, value: set[Any] | frozenset[Any]) -> None:
        self._put("set", *sorted(map(self._apart, value)))

    def _apart(self, value: Any) -> str:
        """What tells an item of a set, whichever come before it."""
        if isinstance(value, _PLAIN):
            return repr(value)
        state = _Values(self._seen)
        state.add(value)
        return state.digest()

    def _add_method(self, value: types.MethodType) -> None:
        owner = value.__self__
        self._put("method")
        self.add(value.__func__)
        self.add(owner if isinstance(owner, type) else [type(owner), *_state(owner)])

    def _add_partial(self, value: partial[Any]) -> None:
        self._put("partial")
        self.add([value.func, value.args, value.keywords])

    def _add_class(self, value: type) -> None:
        self._put("class", value.__module__, value.__qualname__)
        if is_local(value.__module__):
            self._waiting.append(partial(self._visit_class, value))

    def _visit_class(self, value: type) -> None:
        self._put(_source(value))
        self.add(value.__bases__)
        if type(value) is not type:
            self.add(type(value))
        # Its source does not tell what its methods use of their module, nor what its attributes were computed from.
        for name, member in sorted(vars(value).items()):
            if isinstance(member, types.FunctionType) or not name.startswith("__"):
                self._put(name)
                self.add(member)

    def _add_function(self, function: types.FunctionType) -> None:
        self._put("function", str(function.__module__), function.__qualname__)
        if is_local(function.__module__):
            self._waiting.append(partial(self._visit_function, function))

    def _visit_function(self, function: types.FunctionType) -> None:
        self._put(_source(function))
        self._add_code(function.__code__)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        self._add_attributes(function)
        used: list[Any] = []
        for cell in function.__closure__ or ():
            try:
                used.append(cell.cell_contents)
            except ValueError:  # not filled yet
                used.append("empty")
            self.add(used[-1])
        names = sorted(_names(function.__code__))
        state = _rebound(function.__code__)
        for name in names:
            if name in function.__globals__ and name not in state:
                self._put(name)
                used.append(function.__globals__[name])
                self._add_setting(function.__module__, name, used[-1])
        modules = [value for value in used if isinstance(value, types.ModuleType)]
        for module in modules:
            self._add_settings(module, names)
        may_use = {module.__name__ for module in modules}
        may_use.update(_imported(function.__code__, function.__globals__.get("__package__") or ""))
        for name in sorted(may_use):
            self._add_used(name, names)

    def _add_settings(self, module: types.ModuleType, names: Collection[str]) -> None:
        """Feed what a module has under these names now: its source tells what they were at first."""
        if is_local(module.__name__):
            for name in names:
                setting = None if name.startswith("__") else vars(module).get(name)
                if isinstance(setting, types.FunctionType):
                    self._add_constants(setting)
                elif setting is not None and not isinstance(setting, types.ModuleType):
                    self._put(name)
                    self._add_setting(module.__name__, name, setting)

    def _add_constants(self, function: types.FunctionType) -> None:
        """Feed what a function of another module uses of it, and what those that it uses there do.

        Its code is in the module's source. What it keeps in containers is more often a memory of its calls than a setting.
        """
        waiting, met = [function], {function}
        while waiting:
            one = waiting.pop()
            if not is_local(one.__module__):
                continue
            for name in sorted(_names(one.__code__) - _rebound(one.__code__)):
                value = None if name.startswith("__") else one.__globals__.get(name)
                if isinstance(value, types.FunctionType) and value not in met:
                    waiting.append(value)
                    met.add(value)
                elif value is not None and _is_plain(value, containers=(tuple, frozenset)):
                    self._put(name)
                    self._add_setting(one.__module__, name, value)

    def _add_setting(self, module: str, name: str, value: Any) -> None:  # noqa: ARG002  # for those who want to know
        """Feed what a module has under a name."""
        self.add(value)

    def _add_used(self, module: str, names: Collection[str]) -> None:
        """Feed the source of a module, and of those within it that a function that uses these names may use of it.

        Found without importing anything: what is loaded by then differs from one call to the next.
        """
        path = find_module(module, [])
        if path is not None and is_users(module, path):
            sources = Sources([root_of(module, path)])
            sources.add_used(module, names)
            self._put(*sources.parts())

    def _add_code(self, code: types.CodeType) -> None:
        self._put("code", code.co_code, *code.co_names)
        for constant in code.co_consts:
            self.add(constant)

    def _add_module(self, module: types.ModuleType) -> None:
        self._put("module", module.__name__)
        file = getattr(module, "__file__", None)
        if file is not None and file.endswith(".py") and is_local(module.__name__):
            path = Path(file).resolve()
            sources = Sources([root_of(module.__name__, path)])
            sources.add(module.__name__, path)
            sources.add_imported(module.__name__.rpartition(".")[0])
            self._put(*sources.parts())

    def _add_object(self, value: Any) -> None:
        self._put("object", type(value).__module__, type(value).__qualname__)
        if is_local(type(value).__module__):
            self.add(type(value))
        # Of what wraps a function, as `functools.lru_cache` does, a pickle may hold the name alone.
        self.add(inspect.getattr_static(value, "__wrapped__", None))
        out = io.BytesIO()
        try:
            _Pickler(out, self.add).dump(value)
            self._put(out.getvalue())
        except Exception:  # noqa: BLE001  # a lock, a socket, a model with either
            self._put("not picklable")
            # Of others the type has to do: what they hold is no setting of the user's.
            if is_local(type(value).__module__):
                self._waiting.append(partial(self.add, list(_state(value))))


class _Settings(_Values):
    """Finds what `used_settings` tells, by the way that a digest takes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, Any]] = {}

    def _put(self, *parts: str | bytes) -> None:
        """No digest is asked for."""

    def _add_setting(self, module: str, name: str, value: Any) -> None:
        if is_local(module) and not name.startswith("__") and _is_plain(value):
            self.found.setdefault(module, {})[name] = value
        self.add(value)

    def _add_object(self, value: Any) -> None:
        if is_local(type(value).__module__):
            self.add(type(value))


def _is_plain(value: Any, containers: tuple[type, ...] = (list, tuple, set, frozenset, dict), depth: int = 0) -> bool:
    """Whether it is plain data: see `used_settings`."""
    kind = type(value)
    if kind in (bool, int, float, complex, str, bytes, types.NoneType):
        return True
    if kind not in containers or depth > _DEEPEST:  # it contains itself, perhaps
        return False
    items = (item for pair in value.items() for item in pair) if kind is dict else value
    return all(_is_plain(item, containers, depth + 1) for item in items)


def _state(owner: Any) -> Iterator[Any]:
    """What an object holds: in its attributes, its slots, and, where it is a container, as such."""
    yield getattr(owner, "__dict__", None)
    for kind in type(owner).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            yield getattr(owner, f"_{kind.__name__.lstrip('_')}{name}" if private else name, None)
    for container in (dict, list, tuple, set, frozenset):
        if isinstance(owner, container):
            yield container(owner)


def _names(code: types.CodeType) -> set[str]:
    """Global names that a code object and those nested in it use."""
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, nested))


def _rebound(code: types.CodeType) -> set[str]:
    """Global names that a code object and those nested in it bind anew: what it keeps there is no setting of it."""
    rebound = {one.argval for one in dis.get_instructions(code) if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return rebound.union(*map(_rebound, nested))


def _imported(code: types.CodeType, package: str) -> Iterator[str]:
    """Dotted names of all that a code object and those nested in it may import, as `_imports` tells them."""
    operands: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, names = operands[-2:]
            module = absolute_name(instruction.argval, level, package)
            yield from (f"{module}.{name}" if module else name for name in names or ())
            yield module
        if instruction.opname != "EXTENDED_ARG":
            operands.append(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imported(constant, package)


def _source(thing: Any) -> str:
    try:
        with PARSING:
            return inspect.getsource(thing)
    except (OSError, TypeError):  # typed in, or built by exec
        return ""
