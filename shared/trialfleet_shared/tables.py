"""Tables of settings, as TOML or the environment give them, checked key by key.

msgspec checks types and ranges; what this module adds is the message: where the value stands, the key, the value, and
what is allowed, in one line, with the nearest known key for one that is not known.
"""

import difflib
import functools
import json
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.visible import NO_CONTROLS, is_unicode, visible_in_json

Table = TypeVar("Table", bound=msgspec.Struct)


class Setting(NamedTuple):
    """One value given somewhere else than in a file's table: by the environment or a flag, say."""

    key: str
    value: Any
    #: The whole name of the place, for messages: "TRIALFLEET_TRIALS" or "--trials", say.
    origin: str
    #: Whether numbers and booleans come as text.
    is_text: bool = False


def nearest(key: str, known: Iterable[str], *, all_of_them: str = "allowed are") -> str:
    """A hint naming the known key closest to `key`; when none is close all of them, behind the words `all_of_them`."""
    names = list(known)
    close = [name for name in names if name.lower() == key.lower()] or difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; {all_of_them} {', '.join(sorted(names))}"


@functools.cache
def field_types(table: type[msgspec.Struct]) -> Mapping[str, Any]:
    """The type of each field of `table`, constraints included."""
    hints = get_type_hints(table, include_extras=True)
    return MappingProxyType({name: hints[name] for name in table.__struct_fields__})


def read_value(kind: Any, value: object, key: str, *, is_text: bool = False) -> Any:
    """`value` as a `kind`.

    Args:
        kind: any type that msgspec understands.
        value: what was given.
        key: where it was given, for the message.
        is_text: whether numbers and booleans come as text, as in the environment, and lists as TOML writes them.

    Raises:
        ConfigurationError: it is not one; the message names the key, the value and what is allowed.
    """
    if isinstance(value, str) and not is_unicode(value):
        raise ConfigurationError(f"{key} = {value!a} is not Unicode")
    try:
        return msgspec.convert(plain(value), kind, strict=not is_text)
    except (msgspec.ValidationError, OverflowError) as error:
        if is_text and isinstance(value, str) and value.startswith("["):
            with suppress(tomllib.TOMLDecodeError):  # else what is wrong is the text itself
                return read_value(kind, tomllib.loads(f"list = {value}")["list"], key)
        raise ConfigurationError(f"{key} = {show(value)}: {_allowed(kind, error)}") from error


def plain(value: Any) -> Any:
    """`value` with Python's own numbers, booleans and lists in the place of numpy's and their like."""
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def check_fields(struct: msgspec.Struct) -> None:
    """Have each field hold a value of its type, for a `__post_init__`: Python itself lets everything pass.

    Raises:
        ConfigurationError: see `read_value`.
    """
    for name, kind in field_types(type(struct)).items():
        msgspec.structs.force_setattr(struct, name, read_value(kind, getattr(struct, name), name))


def read_table(table: type[Table], values: object, where: str, *, prefix: str = "") -> Table:
    """`values` as a `table`, every key known and of its type.

    Args:
        table: the struct; fields without a default are required.
        values: a mapping; an error says so when it is something else.
        where: what the messages start with: a file, say.
        prefix: the table's own name with a dot, "space.C." say, put before its keys in messages.

    Raises:
        ConfigurationError: see `read_value`; also for an unknown key, a missing one, or values that do not go together.
    """
    name = prefix.removesuffix(".")
    if not isinstance(values, Mapping):
        what = f"{where}: {name}" if name else where
        raise ConfigurationError(f"{what} = {show(values)}: expected a table, which in Python is a mapping")
    types = field_types(table)
    for key in values:
        if key not in types:
            raise ConfigurationError(f"{where}: {prefix}{key}: unknown key{nearest(str(key), types)}")
    read = {key: read_value(types[key], value, f"{where}: {prefix}{key}") for key, value in values.items()}
    for field in msgspec.structs.fields(table):
        if field.required and field.name not in values:
            raise ConfigurationError(f"{where}: {prefix}{field.name} is missing")
    try:
        return table(**read)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {name}: {error}" if name else f"{where}: {error}") from error


def show(value: object) -> str:
    """`value` as TOML writes it, shortened."""
    if isinstance(value, bool | str) or value is None:
        text = visible_in_json(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key} = {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _allowed(kind: Any, error: Exception) -> str:
    """What msgspec says is wrong, with the choices where it leaves them out."""
    choices = _choices(kind)
    if choices:
        return f"allowed are {', '.join(choices)}"
    told = str(error).replace(f"matching regex {NO_CONTROLS!r}", "without control characters")
    message, _, path = told.replace("`", "").replace(" | null", "").partition(" - at $")
    return message[:1].lower() + message[1:] + (f" at {path}" if path else "")


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]
