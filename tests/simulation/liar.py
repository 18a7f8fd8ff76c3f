"""What a broken or hostile worker may send in place of results."""

from collections.abc import Callable

import msgspec

from simulation.world import World
from trialfleet_shared.codec import encode
from trialfleet_shared.messages import (
    SCHEMA_VERSION,
    EvaluationBatch,
    EvaluationResult,
    Heartbeat,
    Outcome,
    ResultBatch,
    StudySpec,
)

_OUTCOMES = [outcome for outcome in Outcome if outcome is not Outcome.OK]
_replace = msgspec.structs.replace


def _wrong_trial(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return _one(spec, _replace(result, trial=world.random.choice((0, 1, 2, 10**6, 2**53))))


def _wrong_rung(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return _one(spec, _replace(result, rung=world.random.choice((0, 1, 2, 3, 10**6))))


def _wrong_fold(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return _one(spec, _replace(result, fold=world.random.choice((-1, 0, 1, 2, 10**6))))


def _wrong_attempt(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return _one(spec, _replace(result, attempt=world.random.choice((0, 1, 2**53))))


def _wrong_value(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    value = world.random.choice((0.0, -1.0, 1e9, 1e150, -1e150, 1.7e308, -1.7e308, 5e-324))
    return _one(spec, _replace(result, outcome=Outcome.OK, value=value, error=None))


def _wrong_outcome(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return _one(spec, _replace(result, outcome=world.random.choice(_OUTCOMES), value=None, error=None))


def _wrong_seconds(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    seconds = world.random.choice((0.0, 1e9, 1e12, 1e300))
    return _one(spec, _replace(result, wall_seconds=seconds, cpu_seconds=seconds, cached=world.chance(0.5)))


def _no_number(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    word = world.random.choice((b"NaN", b"Infinity", b"1e999", b'"1"', b"null", b"true"))
    return _one(spec, _replace(result, outcome=Outcome.OK, value=0.125, error=None)).replace(b"0.125", word)


def _other_study(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return encode(ResultBatch(world.random.choice(("another", spec.study + "2", "S")), (result,)))


def _other_version(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    version = world.random.choice((0, -1, SCHEMA_VERSION + 1, 99))
    return encode(ResultBatch(spec.study, (result,), version=version))


def _other_kind(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    return world.random.choice(
        (encode(EvaluationBatch(spec, ())), encode(Heartbeat("liar", 1, 0, 1.0)), encode(ResultBatch(spec.study, ())))
    )


def _garbage(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    whole = _one(spec, result)
    return world.random.choice((b"", b"{}", b"[" * 2000, b"\xff\xfe", whole[: len(whole) // 2], whole + whole))


def _one(spec: StudySpec, result: EvaluationResult) -> bytes:
    return encode(ResultBatch(spec.study, (result,)))


_LIES: tuple[Callable[[World, StudySpec, EvaluationResult], bytes], ...] = (
    _wrong_trial,
    _wrong_rung,
    _wrong_fold,
    _wrong_attempt,
    _wrong_value,
    _wrong_outcome,
    _wrong_seconds,
    _no_number,
    _other_study,
    _other_version,
    _other_kind,
    _garbage,
)


def lie(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    """A message for the study's queue of results, made from an honest result."""
    return world.random.choice(_LIES)(world, spec, result)


def false_heartbeat(world: World, spec: StudySpec, result: EvaluationResult) -> bytes:
    """A worker that is none says that it holds work, and has many slots."""
    keys = ((spec.reply_to, *result.key), (spec.reply_to, 10**6, 10**6, 10**6))
    leased = keys if world.chance(0.5) else ()
    return encode(Heartbeat("ghost", world.random.choice((0, 1, 50)), 0, 1.0, held=keys, leased=leased))
