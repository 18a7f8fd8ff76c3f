"""The search space as data: distributions, the conditions under which they are active, and how one is drawn.

A space never draws random numbers. `Space.draw(suggest)` walks the parameters in order and asks `suggest(name,
distribution)` for each active one, so that a static mapping and a define-by-run function serve every sampler alike.
Distributions are written as in the guide: `{"type": "float", "min": 0, "max": 1, "step": 0.01, "log": false}`.
"""

import math
import reprlib
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol

import msgspec

from trialfleet_shared.errors import ConfigurationError, message_of
from trialfleet_shared.tables import check_fields, plain
from trialfleet_shared.visible import is_unicode

#: Most parameters of a space, longest name and longest text among the values, in characters: what messages may carry.
MOST_PARAMETERS = 1000
NAME_CHARACTERS = 500
TEXT_CHARACTERS = 10_000
#: Whole numbers that every reader of JSON here takes: those of 64 bits.
WHOLE_MIN, WHOLE_MAX = -(2**63), 2**63 - 1
#: Whole numbers that a range reaches at most. What was drawn is stored as Optuna stores it, as a real number: they hold
#: these exactly.
EXACT_MIN, EXACT_MAX = -(2**53), 2**53
#: A parameter's value, as it travels in JSON.
Scalar = None | bool | int | float | str
#: One trial's parameter values by name, inactive parameters left out.
Params = dict[str, Scalar]


class Float(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="float", tag_field="type"):
    """A real number in [min, max], on a grid from `min` when `step` is given, uniform in its logarithm when `log`.

    As in Optuna, a `step` that does not divide the range ends the grid at its last point below `max`.

    Raises:
        ConfigurationError: a field has another type.
        ValueError: no value lies in the range.
    """

    min: float
    max: float
    step: float | None = None
    log: bool = False
    when: dict[str, list[Scalar]] = {}

    def __post_init__(self) -> None:
        """Take whole numbers for real ones. Raise ValueError when no value lies in the range."""
        check_fields(self)
        if not (math.isfinite(self.min) and math.isfinite(self.max)):
            raise ValueError(f"min = {self.min} and max = {self.max} must be finite")
        if self.step is not None and not math.isfinite(self.step):
            raise ValueError(f"step = {self.step} must be finite")
        _check_range(self.min, self.max, self.step, log=self.log)
        width = self.max - self.min
        if not math.isfinite(width):
            raise ValueError(f"the range from min = {self.min} to max = {self.max} is wider than any number")
        # Rounded to floats, points are different ones where a step is two of the floats' own, and not itself so small that it
        # is written with fewer digits than others.
        finest = max(2 * math.ulp(max(abs(self.min), abs(self.max))), sys.float_info.min)
        if self.step is not None and not self.step >= finest:
            raise ValueError(
                f"step = {self.step} is too small for the range from min = {self.min} to max = {self.max}: real numbers "
                "of that size do not tell its points apart"
            )

    @property
    def high(self) -> float:
        """The largest value that can be drawn: `max`, or the last grid point not above it."""
        if self.step is None:
            return self.max
        return self.at(self.cardinality() - 1)  # type: ignore[operator]  # a grid is finite

    def cardinality(self) -> int | None:
        """How many values there are; None for a continuum."""
        if self.step is None:
            return 1 if self.min == self.max else None
        return math.floor((self.max - self.min) / self.step + 1e-8) + 1

    def at(self, index: int) -> float:
        """Grid point `index`, computed as it is written: equal points are equal floats (0.58, not 0.5800000000000001)."""
        assert self.step is not None
        # The last one may lie beyond the end by a rounding error of `cardinality`.
        return min(float(_as_written(self.min) + index * _as_written(self.step)), self.max)

    def contains(self, value: Scalar) -> bool:
        """Whether `value` can be drawn."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.min <= value <= self.max:
            return False
        if self.step is None:
            return True
        index = (value - self.min) / self.step
        return abs(index - round(index)) < 1e-6 or value == self.at(round(index))


class Int(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="int", tag_field="type"):
    """A whole number in [min, max], every `step`-th of them, uniform in its logarithm when `log`.

    Raises:
        ConfigurationError: a field has another type.
        ValueError: no value lies in the range, or one is too large to be stored.
    """

    min: int
    max: int
    step: int = 1
    log: bool = False
    when: dict[str, list[Scalar]] = {}

    def __post_init__(self) -> None:
        """Raise ValueError when no value lies in the range, or one is too large to be stored."""
        check_fields(self)
        for name, end in (("min", self.min), ("max", self.max)):
            if not EXACT_MIN <= end <= EXACT_MAX:
                raise ValueError(
                    f"{name} = {end}; allowed are whole numbers from -2**53 to 2**53, which studies hold exactly"
                )
        _check_range(self.min, self.max, self.step, log=self.log and self.step != 1)
        if self.log and self.min < 1:
            raise ValueError(f"log needs min >= 1, got min = {self.min}")

    @property
    def high(self) -> int:
        """The largest value that can be drawn."""
        return self.min + (self.max - self.min) // self.step * self.step

    def cardinality(self) -> int:
        """How many values there are."""
        return (self.max - self.min) // self.step + 1

    def contains(self, value: Scalar) -> bool:
        """Whether `value` can be drawn."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not value.is_integer():
            return False
        return self.min <= value <= self.max and (int(value) - self.min) % self.step == 0


class Categorical(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="categorical", tag_field="type"):
    """One of `choices`, which have no order.

    Raises:
        ConfigurationError: a field has another type.
        ValueError: there is nothing to choose, a choice stands twice, or one can not travel.
    """

    choices: list[Scalar]
    when: dict[str, list[Scalar]] = {}

    def __post_init__(self) -> None:
        """Raise ValueError when there is nothing to choose, a choice stands twice, or one can not travel."""
        msgspec.structs.force_setattr(self, "choices", plain(self.choices))
        if isinstance(self.choices, list | tuple):
            check_choices(self.choices)
        check_fields(self)
        if not self.choices:
            raise ValueError("choices must not be empty")
        seen: set[tuple[bool, Scalar]] = set()
        for choice in self.choices:
            if isinstance(choice, int):
                _check_whole(choice)
            if isinstance(choice, str) and len(choice) > TEXT_CHARACTERS:
                raise ValueError(f"a choice has {len(choice)} characters; allowed are {TEXT_CHARACTERS}")
            if isinstance(choice, str) and not is_unicode(choice):
                raise ValueError(f"the choice {choice!a} is not Unicode")
            if isinstance(choice, float) and not math.isfinite(choice):
                raise ValueError(f"choices must be finite, got {choice!r}")
            if (key := (isinstance(choice, bool), choice)) in seen:  # as `same_scalar` has it
                raise ValueError(f"choices must be different, {choice!r} stands twice")
            seen.add(key)

    def cardinality(self) -> int:
        """How many values there are."""
        return len(self.choices)

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is one of the choices (True is not 1; 1.0 is)."""
        return any(same_scalar(value, choice) for choice in self.choices)

    def index(self, value: Scalar) -> int:
        """The position of `value` among the choices. Raises ValueError when it is none of them."""
        for index, choice in enumerate(self.choices):
            if same_scalar(value, choice):
                return index
        raise ValueError(f"{value!r} is not one of {self.choices!r}")


Distribution = Float | Int | Categorical
#: What a sampler offers a space: the value of one parameter of the trial being drawn.
Suggest = Callable[[str, Distribution], Scalar]


class Space(Protocol):
    """Anything that can be drawn from: `SearchSpace` (data) or `FunctionSpace` (define-by-run)."""

    def draw(self, suggest: Suggest) -> Params:
        """Ask `suggest` for each active parameter, in order, and return their values."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the space, as JSON types; equal descriptions mean the same space."""
        ...

    def cardinality(self) -> int | None:
        """An upper bound on the number of different draws; None when not known or infinite."""
        ...


class SearchSpace:
    """A fixed set of parameters; one with `when` is active only while its parents have the listed values."""

    def __init__(self, parameters: Mapping[str, Distribution]) -> None:
        if not parameters:
            raise ConfigurationError("the search space is empty; give at least one parameter")
        _check_names(parameters)
        self.parameters = dict(parameters)
        seen: dict[str, Distribution] = {}
        for name, distribution in self.parameters.items():
            for parent, values in distribution.when.items():
                if parent not in seen:
                    raise ConfigurationError(
                        f"space.{name}.when names {parent!r}; allowed are the parameters above it: "
                        f"{', '.join(map(repr, seen)) or 'none'}"
                    )
                if not values:
                    raise ConfigurationError(
                        f"space.{name}.when.{parent} lists no value: {name!r} would never be there"
                    )
                for value in values:
                    if not seen[parent].contains(value):
                        raise ConfigurationError(
                            f"space.{name}.when.{parent} lists {value!r}, which {parent!r} never has"
                        )
            seen[name] = distribution

    def draw(self, suggest: Suggest) -> Params:
        """Ask `suggest` for each active parameter, in order, and return their values."""
        params: Params = {}
        for name, distribution in self.parameters.items():
            if self._active(distribution, params):
                params[name] = suggest(name, distribution)
        return params

    @staticmethod
    def _active(distribution: Distribution, params: Params) -> bool:
        return all(
            parent in params and any(same_scalar(params[parent], value) for value in values)
            for parent, values in distribution.when.items()
        )

    def describe(self) -> dict[str, Any]:
        """The parameters as the guide's mapping."""
        described: dict[str, Any] = msgspec.to_builtins(self.parameters)
        return described

    def cardinality(self) -> int | None:
        """The number of different draws; exact without conditions, an upper bound with them."""
        total = 1
        for distribution in self.parameters.values():
            size = distribution.cardinality()
            if size is None:
                return None
            total *= size
        return total


class SpaceTrial:
    """The trial that a define-by-run space function is called with: Optuna's `suggest_*` methods."""

    def __init__(self, suggest: Suggest) -> None:
        self._suggest = suggest
        self.params: Params = {}
        #: What `suggest` raised, which is no error of the function that was given this trial.
        self.raised: Exception | None = None

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A real number in [low, high]; see `Float`."""
        return self._value(name, _float(low, high, step, log))  # type: ignore[return-value]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in [low, high]; see `Int`."""
        return self._value(name, _int(low, high, step, log))  # type: ignore[return-value]

    def suggest_categorical(self, name: str, choices: Any) -> Scalar:
        """One of `choices`."""
        given = list(choices)
        try:
            distribution = _categorical(*given)
        except TypeError:  # one has no hash: the constructor says what is allowed
            distribution = Categorical(given)
        return self._value(name, distribution)

    def _value(self, name: str, distribution: Distribution) -> Scalar:
        if name not in self.params:
            try:
                self.params[name] = self._suggest(name, distribution)
            except Exception as error:
                self.raised = error
                raise
        return self.params[name]


# A space function asks for the same ones for each candidate of each trial; to check one takes microseconds.


@lru_cache(maxsize=1024, typed=True)
def _float(low: float, high: float, step: float | None, log: bool) -> Float:
    return Float(float(low), float(high), step, log)


@lru_cache(maxsize=1024, typed=True)
def _int(low: int, high: int, step: int, log: bool) -> Int:
    return Int(low, high, step, log)


@lru_cache(maxsize=1024, typed=True)
def _categorical(*choices: Scalar) -> Categorical:
    return Categorical(list(choices))


class FunctionSpace:
    """A space written as `space(trial)` with `trial.suggest_*`; branches make parameters conditional.

    Args:
        function: called in the coordinator for each candidate, and by `check`; it must depend on the suggested values only.
        digest: identifies the function's code, so that a changed space is noticed when a study is resumed.
        name: what errors call it.
    """

    def __init__(
        self, function: Callable[[SpaceTrial], object], *, digest: str, name: str = "the space function"
    ) -> None:
        self._function = function
        self._digest = digest
        self._name = name

    def check(self) -> None:
        """Draw the first value of everything. Raises ConfigurationError, as `draw`."""
        self.draw(lambda _, one: one.choices[0] if isinstance(one, Categorical) else one.min)

    def draw(self, suggest: Suggest) -> Params:
        """Run the function on a trial whose suggestions come from `suggest`.

        Raises:
            ConfigurationError: the function raised, or suggested nothing, or too much to travel.
        """
        trial = SpaceTrial(suggest)
        try:
            self._function(trial)
        except (Exception, SystemExit) as error:
            if error is trial.raised:
                raise
            raise ConfigurationError(
                f"{self._name} raised {type(error).__name__}: {message_of(error)}{_place(error.__traceback__)}"
            ) from error
        if not trial.params:
            raise ConfigurationError(f"{self._name} suggested no parameter")
        _check_names(trial.params)
        return trial.params

    def describe(self) -> dict[str, Any]:
        """The digest of the function's code."""
        return {"function": self._digest}

    def cardinality(self) -> int | None:
        """Not known without running every branch."""
        return None


def _place(trace: TracebackType | None) -> str:
    """Where the function was that raised: in its own file, whatever it called there."""
    frames = [frame for frame in traceback.extract_tb(trace) if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f", in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def check_choices(choices: Iterable[object]) -> None:
    """Raise ValueError for a choice that is no scalar; the message says what to do instead."""
    for choice in choices:
        if not isinstance(choice, Scalar):
            raise ValueError(  # noqa: TRY004  # as of all that a distribution is not
                f"the choice {reprlib.repr(choice)} is of type {type(choice).__name__}; allowed are texts, numbers, "
                "booleans and None: choose among texts, and let the objective look up what each stands for"
            )


def same_scalar(left: Scalar, right: Scalar) -> bool:
    """Equality that keeps True apart from 1 and lets 1 equal 1.0, as JSON numbers do."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _as_written(number: float) -> Decimal:
    return Decimal(repr(number))


def _check_names(names: Collection[str]) -> None:
    """Raise ConfigurationError when parameters of these names can not travel."""
    if len(names) > MOST_PARAMETERS:
        raise ConfigurationError(f"the search space has {len(names)} parameters; allowed are {MOST_PARAMETERS}")
    for name in names:
        if not is_unicode(name):
            raise ConfigurationError(f"a parameter's name, {name!a}, is not Unicode")
        if len(name) > NAME_CHARACTERS:
            raise ConfigurationError(
                f"a parameter's name has {len(name)} characters, {name[:20]!r}…; allowed are {NAME_CHARACTERS}"
            )


def _check_whole(number: int) -> None:
    if not WHOLE_MIN <= number <= WHOLE_MAX:
        raise ValueError(f"a whole number of {number.bit_length()} bits; allowed are those of 64, with their sign")


def _check_range(low: float, high: float, step: float | None, *, log: bool) -> None:
    if low > high:
        raise ValueError(f"min = {low} is above max = {high}; min <= max is needed")
    if log and step is not None:
        raise ValueError(f"log and step = {step} exclude each other")
    if log and low <= 0:
        raise ValueError(f"log needs min > 0, got min = {low}")
    if step is not None:
        if step <= 0:
            raise ValueError(f"step = {step} must be positive")
        if low < high and step > high - low:
            raise ValueError(f"step = {step} is wider than the range from min = {low} to max = {high}")
