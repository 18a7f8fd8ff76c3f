"""Messages survive the wire, and what is not a message is refused with its payload kept."""

import math

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from trialfleet_shared.codec import MAX_PAYLOAD_BYTES, decode, encode
from trialfleet_shared.errors import DecodeError, NewerSchemaError
from trialfleet_shared.messages import (
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

finite = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(min_value=0, max_value=1e12)
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
results = st.builds(
    EvaluationResult,
    trial=counts,
    rung=counts,
    fold=st.integers(-1, 99),
    attempt=counts,
    outcome=st.sampled_from(Outcome),
    value=st.none() | finite,
    metrics=st.dictionaries(st.text(max_size=9), finite, max_size=3),
    error=st.none() | st.text(max_size=100),
    wall_seconds=seconds,
    cpu_seconds=seconds,
    worker=st.text(max_size=200),
)
messages: st.SearchStrategy[Message] = (
    st.builds(
        EvaluationBatch,
        spec=specs,
        evaluations=st.lists(evaluations, max_size=4).map(tuple),
    )
    | st.builds(ResultBatch, study=st.text(min_size=1, max_size=200), results=st.lists(results, max_size=4).map(tuple))
    | st.builds(
        Heartbeat, worker=st.text(min_size=1, max_size=200), slots=counts, busy=counts, interval_seconds=seconds
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
        with pytest.raises(NewerSchemaError, match="schema version 99; this trialfleet reads up to 1") as caught:
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
