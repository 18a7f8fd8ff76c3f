"""Messages survive the wire, and what is not a message is refused with its payload kept."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from trialfleet_shared import codec
from trialfleet_shared.codec import MAX_PAYLOAD_BYTES, decode, encode, parts
from trialfleet_shared.errors import DecodeError, NewerSchemaError
from trialfleet_shared.messages import (
    ERROR_CHARACTERS,
    MOST_METRICS,
    DataSpec,
    Evaluation,
    EvaluationBatch,
    EvaluationResult,
    Heartbeat,
    Message,
    Outcome,
    ResultBatch,
    StudySpec,
)
from trialfleet_shared.space import (
    MOST_PARAMETERS,
    NAME_CHARACTERS,
    TEXT_CHARACTERS,
    WHOLE_MAX,
    WHOLE_MIN,
    Categorical,
    FunctionSpace,
    Int,
    SearchSpace,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(min_value=0, max_value=1e12)
slots = st.integers(0, 65_536)
counts = st.integers(0, 2**53)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(max_size=20)
evaluations = st.builds(
    Evaluation,
    trial=counts,
    rung=counts,
    fold=st.integers(-1, 99),
    fraction=st.floats(min_value=0, max_value=1, exclude_min=True),
    params=st.dictionaries(st.text(max_size=20), scalars, max_size=5),
    attempt=counts,
)
specs = st.builds(
    StudySpec,
    study=st.text(min_size=1, max_size=200),
    objective=st.text(min_size=1, max_size=50),
    objective_digest=st.text("0123456789abcdef", max_size=64),
    data=st.none() | st.builds(DataSpec, source=st.text(min_size=1, max_size=50), seed=counts),
    data_digest=st.text("0123456789abcdef", max_size=64),
    seed=counts,
    deadline_seconds=st.none() | seconds,
    memory_limit_bytes=st.none() | counts,
    collect_interval=st.integers(1, 1000),
    reply_to=st.text("0123456789abcdef", max_size=64),
)
results = st.sampled_from(Outcome).flatmap(
    lambda outcome: st.builds(
        EvaluationResult,
        trial=counts,
        rung=counts,
        fold=st.integers(-1, 99),
        attempt=counts,
        outcome=st.just(outcome),
        value=finite if outcome is Outcome.OK else st.none(),
        metrics=st.dictionaries(st.text(max_size=9), finite, max_size=3),
        error=st.none() | st.text(max_size=100),
        wall_seconds=seconds,
        cpu_seconds=seconds,
        worker=st.text(max_size=200),
    )
)
messages: st.SearchStrategy[Message] = (
    st.builds(
        EvaluationBatch,
        spec=specs,
        evaluations=st.lists(evaluations, max_size=4).map(tuple),
    )
    | st.builds(ResultBatch, study=st.text(min_size=1, max_size=200), results=st.lists(results, max_size=4).map(tuple))
    | st.builds(
        Heartbeat,
        worker=st.text(min_size=1, max_size=200),
        slots=slots,
        busy=slots,
        interval_seconds=st.floats(0, 3600),
    )
)


@given(messages)
def test_what_is_sent_arrives(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_refused_and_kept(payload: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(payload)
    assert caught.value.payload == payload


@given(messages, st.data())
def test_a_damaged_message_never_crashes_the_reader(message: Message, data: st.DataObject) -> None:
    payload = bytearray(encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(payload))
    except DecodeError as error:
        assert error.payload == bytes(payload)


def test_unknown_fields_and_newer_versions_are_refused() -> None:
    beat = msgspec.to_builtins(Heartbeat("w", 1, 0, 5.0))
    with pytest.raises(DecodeError, match="unknown field `x`"):
        decode(msgspec.json.encode(beat | {"x": 1}))
    for newer in ({"version": 99}, {"version": 99, "x": 1}, {"version": 99, "slots": "many", "type": "farewell"}):
        with pytest.raises(NewerSchemaError, match="schema version 99; this trialfleet reads up to 2") as caught:
            decode(msgspec.json.encode(beat | newer))
        assert msgspec.json.decode(caught.value.payload)["version"] == 99


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_not_sent(number: float) -> None:
    result = EvaluationResult(0, 0, 0, 0, Outcome.OK, value=number)
    with pytest.raises(ValueError, match="can not be sent"):
        encode(ResultBatch("s", (result,)))


def test_an_endless_payload_is_not_even_parsed() -> None:
    with pytest.raises(DecodeError, match="allowed are"):
        decode(b" " * (MAX_PAYLOAD_BYTES + 1))


@given(st.lists(evaluations, max_size=20) | st.lists(results, max_size=20), st.integers(1, 5), st.integers(1, 2000))
def test_parts_hold_everything_in_order_and_as_much_as_they_may(items: list[Any], most: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "PART_BYTES", size)
        found = list(parts(items, most))
    assert [item for part in found for item in part] == items
    assert all(len(part) == 1 or len(msgspec.json.encode(part)) <= size + len(part) + 1 for part in found)
    assert all(0 < len(part) <= most for part in found)
    for part, (following, *_) in pairwise(found):
        grown = sum(len(msgspec.json.encode(item)) for item in (*part, following))
        assert len(part) == most or grown > size


def test_the_longest_results_can_be_read_one_by_one() -> None:
    metrics = {
        f"{number:03}" + "\0" * (NAME_CHARACTERS - 3): -1.2345678901234567e-300 for number in range(MOST_METRICS)
    }
    longest = EvaluationResult(0, 0, 0, 0, Outcome.ERROR, metrics=metrics, error="\0" * ERROR_CHARACTERS)
    batches = [ResultBatch("s", part) for part in parts([longest] * 5)]
    assert [decode(encode(batch)) for batch in batches] == batches


_EVALUATION = {"trial": 0, "rung": 0, "fold": 0, "fraction": 1.0, "params": {}}
_WORK = {
    "type": "evaluations",
    "spec": {"study": "s", "objective": "o.py:f", "objective_digest": ""},
    "evaluations": [_EVALUATION],
}
_RESULT = {"trial": 0, "rung": 0, "fold": 0, "attempt": 0, "outcome": "ok", "value": 1.0}
_RESULTS = {"type": "results", "study": "s", "results": [_RESULT]}
_BEAT = {"type": "heartbeat", "worker": "w", "slots": 1, "busy": 0, "interval_seconds": 1.0}


def _with_params(params: object) -> dict[str, object]:
    return _WORK | {"evaluations": [_EVALUATION | {"params": params}]}


def _with_result(**fields: object) -> dict[str, object]:
    return _RESULTS | {"results": [_RESULT | fields]}


#: By what they break: messages that are ours but for one thing.
_BEYOND = {
    "params-too-many": _with_params({f"p{i}": 1 for i in range(1001)}),
    "param-name-too-long": _with_params({"p" * 501: 1}),
    "param-text-too-long": _with_params({"p": "x" * 10_001}),
    "param-whole-number-too-large": _with_params({"p": 2**63}),
    "param-nested": _with_params({"p": [1]}),
    "evaluations-too-many": _WORK | {"evaluations": [_EVALUATION] * 10_001},
    "fold-below": _WORK | {"evaluations": [_EVALUATION | {"fold": -2}]},
    "fraction-above": _WORK | {"evaluations": [_EVALUATION | {"fraction": 1.1}]},
    "trial-too-large": _WORK | {"evaluations": [_EVALUATION | {"trial": 2**53 + 1}]},
    "address-of-another-queue": _WORK | {"spec": _WORK["spec"] | {"reply_to": "a.b"}},  # type: ignore[operator]
    "results-too-many": _RESULTS | {"results": [_RESULT] * 10_001},
    "metrics-too-many": _with_result(metrics={f"m{i}": 1.0 for i in range(1001)}),
    "metric-name-too-long": _with_result(metrics={"m" * 501: 1.0}),
    "metric-no-number": _with_result(metrics={"m": "1"}),
    "error-too-long": _with_result(error="x" * 4001),
    "seconds-negative": _with_result(cpu_seconds=-1.0),
    "seconds-too-many": _with_result(wall_seconds=1e13),
    "slots-too-many": _BEAT | {"slots": 65_537},
    "interval-too-long": _BEAT | {"interval_seconds": 3601.0},
    "held-fold-below": _BEAT | {"held": [["a", 0, 0, -2]]},
}


@pytest.mark.parametrize("what", _BEYOND)
def test_every_field_is_bounded(what: str) -> None:
    for whole in (_WORK, _RESULTS, _BEAT):
        decode(msgspec.json.encode(whole))
    with pytest.raises(DecodeError, match="not a trialfleet message"):
        decode(msgspec.json.encode(_BEYOND[what]))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    for message, place in ((_with_params({"p": 12345}), b"12345"), (_with_result(value=12345.5), b"12345.5")):
        payload = msgspec.json.encode(message)
        assert place in payload
        with pytest.raises(DecodeError):
            decode(payload.replace(place, number.encode()))


@pytest.mark.parametrize("deep", [b"[" * 200_000, b'{"type":' * 200_000, b'{"version":1,"x":' + b"[" * 200_000])
def test_deep_nesting_is_refused(deep: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(deep)


def test_the_largest_space_travels() -> None:
    """What a space may hold, a message may: bounds of both are the same."""
    space = SearchSpace(
        {
            **{f"{i:0{NAME_CHARACTERS}}": Categorical([WHOLE_MIN, WHOLE_MAX]) for i in range(MOST_PARAMETERS - 1)},
            "text": Categorical(["x" * TEXT_CHARACTERS, "y"]),
        }
    )
    params = space.draw(lambda _, one: one.choices[0])  # type: ignore[union-attr]  # all have choices
    batch = EvaluationBatch(StudySpec("s", "o.py:f", ""), (Evaluation(0, 0, 0, 1.0, params),))
    assert decode(encode(batch)) == batch


@pytest.mark.parametrize(
    "build",
    [
        lambda: SearchSpace({f"p{i}": Int(0, 1) for i in range(MOST_PARAMETERS + 1)}),
        lambda: SearchSpace({"p" * (NAME_CHARACTERS + 1): Int(0, 1)}),
        lambda: Categorical(["x" * (TEXT_CHARACTERS + 1)]),
        lambda: Categorical([2**63]),
        lambda: Int(0, 2**63),
        lambda: FunctionSpace(lambda t: t.suggest_int("p" * 501, 0, 1), digest="").draw(lambda *_: 0),
    ],
)
def test_what_could_not_travel_is_refused_as_a_space(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        build()


def test_a_result_that_is_ok_has_a_value() -> None:
    with pytest.raises(DecodeError, match="value = None does not go with outcome = 'ok'"):
        decode(
            b'{"type":"results","study":"s","version":1,'
            b'"results":[{"trial":0,"rung":0,"fold":0,"attempt":0,"outcome":"ok"}]}'
        )
