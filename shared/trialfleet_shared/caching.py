"""The result cache port, which coordinator and workers share."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from trialfleet_shared.fingerprint import result_key
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_shared.space import Params


class CachedResult(msgspec.Struct, frozen=True, array_like=True):
    """What the result cache keeps of an evaluation."""

    value: float
    metrics: dict[str, float]
    wall_seconds: float
    cpu_seconds: float

    @classmethod
    def of(cls, result: EvaluationResult) -> "CachedResult | None":
        """What there is to keep of a result; None where it is no value."""
        if result.outcome is not Outcome.OK or result.value is None:
            return None
        return cls(result.value, result.metrics, result.wall_seconds, result.cpu_seconds)

    def answer(self, evaluation: Evaluation, *, worker: str = "") -> EvaluationResult:
        """The result of an equal evaluation; `worker` is whose cache answers, empty for the coordinator's."""
        return EvaluationResult(
            trial=evaluation.trial,
            rung=evaluation.rung,
            fold=evaluation.fold,
            attempt=evaluation.attempt,
            outcome=Outcome.OK,
            value=self.value,
            metrics=self.metrics,
            wall_seconds=self.wall_seconds,
            cpu_seconds=self.cpu_seconds,
            cached=True,
            worker=worker,
        )


def key_of(spec: StudySpec, *, fraction: float, fold: int, params: Params) -> bytes:
    """The `result_key` of an evaluation of this study."""
    return result_key(
        objective=spec.objective_digest,
        data=spec.data_digest,
        fraction=fraction,
        fold=fold,
        seed=spec.seed,
        params=params,
    )


class ResultCache(Protocol):
    """Results of earlier evaluations by `key_of`; loses nothing that can not be computed again."""

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key, None where there is none or it expired."""
        ...

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries; a full disk or a broken entry is no error."""
        ...

    def close(self) -> None:
        """Release everything. May be called twice."""
        ...
