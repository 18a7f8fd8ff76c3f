"""study.toml: what it may hold, and how it becomes a `StudyRequest`.

Layers, later ones winning: defaults < mode < study file < environment < flags. Everything is checked before anything
runs; an error is one line that names the place, the key, the value and what is allowed.
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from trialfleet.paths import named_path
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.sampling.points import point_of
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.messages import BoundedParams, Count, DataSpec, Resampling, StudyName
from trialfleet_shared.settings import EfficiencyConfig, Mode, layered
from trialfleet_shared.space import (
    Categorical,
    Distribution,
    Float,
    FunctionSpace,
    Int,
    Params,
    SearchSpace,
    Space,
    check_choices,
)
from trialfleet_shared.tables import Setting, field_types, nearest, read_table, read_value, show
from trialfleet_workers.digests import code_digest
from trialfleet_workers.objective import load_function

Direction = Literal["maximize", "minimize"]

#: Sections of a study file.
SECTIONS = ("study", "data", "resampling", "efficiency", "space")
#: Points that a study may be given: more are a sampler of their own.
MOST_POINTS = 10_000
#: Fields of `DataSpec` that a study file gives elsewhere: as [resampling] and as study.seed.
_ELSEWHERE = ("resampling", "seed")
_DISTRIBUTIONS: Mapping[str, type[Float] | type[Int] | type[Categorical]] = {
    "float": Float,
    "int": Int,
    "categorical": Categorical,
}


class StudySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[study]."""

    #: Name of the study in the store; None: the name of the study file's folder.
    name: StudyName | None = None
    #: "package.module:function" or "file.py:function".
    objective: Annotated[str, Meta(min_length=1, max_length=4096)]
    direction: Direction = "maximize"
    #: Preset of settings.
    mode: Mode = "balanced"
    #: Trials to start.
    trials: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    #: Seconds to run, over all sessions.
    seconds: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    #: CPU seconds that evaluations may take, over all sessions.
    cpu_seconds: Annotated[float, Meta(gt=0, le=1e12)] | None = None
    #: Trials in a row without a better one after which no new ones are started; 0: start all. None: the mode says.
    patience: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    #: Value at which a complete trial ends the study.
    target: float | None = None
    #: Seed of the sampler, of the rows' order, of the folds, and of `data.seed`.
    seed: Count = 0
    #: "tpe", "random", or the name of one of Optuna's samplers.
    sampler: Annotated[str, Meta(min_length=1)] = "tpe"
    #: Params that are evaluated before the sampler draws its own.
    points_to_evaluate: Annotated[list[BoundedParams], Meta(max_length=MOST_POINTS)] | None = None
    #: Wall seconds after which an evaluation is ended.
    evaluation_seconds: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    #: Private memory that an evaluation may use, in MB of 2^20 bytes.
    memory_mb: Annotated[float, Meta(ge=1, le=1e9)] | None = None
    #: A define-by-run space, "file.py:function" or "package.module:function"; in place of the tables [space.NAME].
    space: Annotated[str, Meta(min_length=1)] | None = None


#: By section whose keys can be set outside the file: the types of their values.
_TYPES: Mapping[str, Mapping[str, Any]] = {
    "study": field_types(StudySection),
    "data": {name: kind for name, kind in field_types(DataSpec).items() if name not in _ELSEWHERE},
    "resampling": field_types(Resampling),
    "efficiency": field_types(EfficiencyConfig),
}


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """A study as somebody asks for it, by a study file or through the API."""

    name: str
    direction: Direction
    space: Space
    #: Reference of the objective; "memory:<name>" for one of `functions`.
    objective: str
    #: Folder that relative paths and references are relative to.
    base: Path
    config: EfficiencyConfig
    budget: Budget
    data: DataSpec | None = None
    seed: int = 0
    sampler: str = "tpe"
    #: Points that are evaluated before the sampler draws its own.
    points_to_evaluate: Sequence[Draw] = ()
    #: Wall seconds after which an evaluation is ended.
    evaluation_seconds: float | None = None
    #: Private memory that an evaluation may use, in MB of 2^20 bytes.
    memory_mb: float | None = None
    #: Functions handed over in memory, by reference.
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    #: The data set itself where it is handed over in memory: a frame, an (X, y) pair or a mapping of arrays.
    data_object: object = None
    #: The study file, for messages; empty for a study of the API.
    origin: str = ""
    #: The mode it names; "custom" for a study of the API, whose settings are given one by one.
    mode: Mode | Literal["custom"] = "custom"


def load_study(path: Path, settings: Mapping[str, Sequence[Setting]] | None = None) -> StudyRequest:
    """The study that the file at `path` describes.

    Args:
        path: a study.toml; paths in it are relative to its folder.
        settings: what the environment and flags say, by section; later ones win over earlier ones and over the file.

    Raises:
        ConfigurationError: see the module's docstring.
    """
    return read_study(read_toml(path), str(path), path.resolve().parent, settings)


def read_study(
    tables: Mapping[str, Any],
    where: str,
    base: Path,
    settings: Mapping[str, Sequence[Setting]] | None = None,
    *,
    own: bool = False,
) -> StudyRequest:
    """The study that the tables of a study file describe.

    Args:
        tables: what the file holds.
        where: what messages start with.
        base: folder that paths in it are relative to.
        settings: as of `load_study`.
        own: as of `load_function`, for a space that is a function.

    Raises:
        ConfigurationError: see the module's docstring.
    """
    for section in tables:
        if section not in SECTIONS:
            raise ConfigurationError(f"{where}: {section}: unknown table or key{nearest(section, SECTIONS)}")
    beside = settings or {}
    study = read_table(StudySection, _merged(tables, "study", where, beside), where, prefix="study.")
    if study.trials is None and study.seconds is None and study.cpu_seconds is None:
        raise ConfigurationError(
            f"{where}: study.trials, study.seconds and study.cpu_seconds are missing; give at least one of them"
        )
    check_finite(study.target, f"{where}: study.target")
    space = _space(tables, study.space, where, base, own=own)
    return StudyRequest(
        name=study.name or read_value(StudyName, base.name or "study", f"{where}: study.name (the folder's)"),
        direction=study.direction,
        space=space,
        objective=study.objective,
        base=base,
        config=_efficiency(tables, study.mode, where, beside),
        budget=Budget(
            trials=study.trials,
            seconds=study.seconds,
            cpu_seconds=study.cpu_seconds,
            patience=study.patience,
            target=study.target,
        ),
        data=_data(tables, study.seed, where, beside),
        seed=study.seed,
        sampler=study.sampler,
        points_to_evaluate=read_points(study.points_to_evaluate, space, f"{where}: study.points_to_evaluate"),
        evaluation_seconds=study.evaluation_seconds,
        memory_mb=study.memory_mb,
        origin=where,
        mode=study.mode,
    )


def with_settings(tables: Mapping[str, Any], settings: Mapping[str, Sequence[Setting]]) -> dict[str, Any]:
    """The tables of a study file with other settings laid over them, as JSON can hold them.

    Args:
        tables: what the file holds.
        settings: as of `load_study`.

    Raises:
        ConfigurationError: a setting has an unknown key, or a value of the wrong type.
    """
    merged = {section: dict(table) if isinstance(table, Mapping) else table for section, table in tables.items()}
    for section, values in settings.items():
        types = _TYPES[section]
        for setting in values:
            if setting.key not in types:
                raise ConfigurationError(f"{setting.origin}: unknown key{nearest(setting.key, types)}")
            value = read_value(types[setting.key], setting.value, setting.origin, is_text=setting.is_text)
            table = merged.setdefault(section, {})
            if isinstance(table, dict):  # what is none is for `read_study` to refuse
                table[setting.key] = msgspec.to_builtins(value)
    return merged


def read_space(values: object, where: str, *, prefix: str = "space.") -> SearchSpace:
    """A search space written as the guide's mapping; the distributions may also be `Distribution` objects.

    Args:
        values: by parameter: `{"type": "float", "min": 0, "max": 1, "step": 0.01}`, say.
        where: what the messages start with.
        prefix: put before the parameters' names in messages.

    Raises:
        ConfigurationError: the message names the key, its value and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where}: space = {show(values)}: expected a table of parameters")
    for name in values:
        if not isinstance(name, str):
            raise ConfigurationError(f"{where}: {name!r} is no parameter's name: that is a text")
    parameters = {name: _distribution(value, where, f"{prefix}{name}") for name, value in values.items()}
    try:
        return SearchSpace(parameters)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def read_points(points: Sequence[Params] | None, space: Space, key: str) -> list[Draw]:
    """The points of the space that are given at `key`. Raises ConfigurationError, see `point_of`."""
    return [point_of(space, values, f"{key}[{place}]") for place, values in enumerate(points or ())]


def _distribution(values: object, where: str, key: str) -> Distribution:
    if isinstance(values, Float | Int | Categorical):
        return values
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where}: {key} = {show(values)}: expected a table with type and range")
    rest = dict(values)
    if "type" not in rest:
        raise ConfigurationError(f"{where}: {key}.type is missing; allowed are {', '.join(_DISTRIBUTIONS)}")
    kind = rest.pop("type")
    if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
        raise ConfigurationError(f"{where}: {key}.type = {show(kind)}: allowed are {', '.join(_DISTRIBUTIONS)}")
    if kind == "categorical" and isinstance(rest.get("choices"), list | tuple):
        try:
            check_choices(rest["choices"])
        except ValueError as error:
            raise ConfigurationError(f"{where}: {key}: {error}") from error
    return read_table(_DISTRIBUTIONS[kind], rest, where, prefix=f"{key}.")


def read_toml(path: Path) -> dict[str, Any]:
    """What the file at `path` holds. Raises ConfigurationError, which names the file."""
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # some editors begin a file with a byte order mark
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start} is not UTF-8, which TOML needs") from error
    except IsADirectoryError as error:
        raise ConfigurationError(f"{path}: is a folder; name the study file in it") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error


def _merged(
    tables: Mapping[str, Any],
    section: str,
    where: str,
    beside: Mapping[str, Sequence[Setting]],
) -> Any:
    """The file's table of that name with the other settings laid over it, each checked where it comes from."""
    values = tables.get(section, {})
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where}: {section} = {show(values)}: expected a table")
    types = _TYPES[section]
    merged = dict(values)
    for key in merged:
        if key not in types:
            raise ConfigurationError(f"{where}: {section}.{key}: unknown key{nearest(key, types)}")
    for setting in beside.get(section, ()):
        if setting.key not in types:
            raise ConfigurationError(f"{setting.origin}: unknown key{nearest(setting.key, types)}")
        merged[setting.key] = read_value(types[setting.key], setting.value, setting.origin, is_text=setting.is_text)
    return merged


def _efficiency(
    tables: Mapping[str, Any], mode: Mode, where: str, beside: Mapping[str, Sequence[Setting]]
) -> EfficiencyConfig:
    values = tables.get("efficiency", {})
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where}: efficiency = {show(values)}: expected a table")
    own = [Setting(key, value, f"{where}: efficiency.{key}") for key, value in values.items()]
    return layered(mode, [*own, *beside.get("efficiency", ())])


def _data(tables: Mapping[str, Any], seed: int, where: str, beside: Mapping[str, Sequence[Setting]]) -> DataSpec | None:
    data = _merged(tables, "data", where, beside)
    resampling = _merged(tables, "resampling", where, beside)
    if not data:
        if resampling:
            raise ConfigurationError(f"{where}: resampling needs a data set; give data.source")
        return None
    read = read_table(Resampling, resampling, where, prefix="resampling.")
    return at_home(read_table(DataSpec, {**data, "resampling": read, "seed": seed}, where, prefix="data."), where)


def at_home(data: DataSpec, where: str) -> DataSpec:
    """With a home folder in place of a ~ that the source begins with. Raises ConfigurationError when there is none."""
    if not data.source.startswith("~"):
        return data
    return msgspec.structs.replace(data, source=str(named_path(f"{where}: data.source", data.source)))


def _space(tables: Mapping[str, Any], reference: str | None, where: str, base: Path, *, own: bool) -> Space:
    if reference is None:
        if "space" not in tables:
            raise ConfigurationError(
                f"{where}: the search space is missing; give tables [space.NAME], or study.space as a function"
            )
        return read_space(tables["space"], where)
    if "space" in tables:
        raise ConfigurationError(f"{where}: study.space = {show(reference)}: [space.NAME] stands there too; keep one")
    try:
        function, digest = load_function(reference, base, own=own), code_digest(reference, base)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: study.space: {error}") from error
    space = FunctionSpace(function, digest=digest, name=f"{where}: study.space = {show(reference)}")
    space.check()
    return space


def check_finite(value: float | None, key: str) -> None:
    """Raise ConfigurationError when a number is given that is not finite."""
    if value is not None and not math.isfinite(value):
        raise ConfigurationError(f"{key} = {value}: a finite number is needed")
