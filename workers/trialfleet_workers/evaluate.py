"""One call of the objective, and what became of it."""

import traceback
from pathlib import Path
from typing import Any, Protocol

from trialfleet_shared.errors import ObjectiveError, message_of
from trialfleet_shared.messages import ERROR_CHARACTERS, Evaluation, EvaluationResult, Outcome
from trialfleet_workers.objective import Objective, read_returned
from trialfleet_workers.user_modules import is_library

#: Frames of the user's code that an error tells, innermost last.
_FRAMES = 6
#: Characters of an exception's own message that an error tells.
_MESSAGE_CHARACTERS = 1000
#: Frames of files in this folder are trialfleet's own.
_OWN_FOLDER = str(Path(__file__).parent)


class EvaluationClock(Protocol):
    """Time as one evaluation sees it, in seconds; `wall` and `cpu` since some point in the past."""

    def wall(self) -> float:
        """Seconds that passed."""
        ...

    def cpu(self) -> float:
        """CPU seconds that whoever runs the objective used, its finished child processes counted in."""
        ...

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...


def evaluate(
    evaluation: Evaluation, data: Any, objective: Objective, clock: EvaluationClock, *, worker: str = ""
) -> EvaluationResult:
    """Call the objective once and say how it ended. Raises nothing.

    Args:
        evaluation: what to evaluate.
        data: the fold's data at the evaluation's fraction; None without a data set.
        objective: the user's function.
        clock: measures the call.
        worker: who evaluates.
    """
    value: float | None = None
    metrics: dict[str, float] = {}
    message: str | None = None
    started_at, wall, cpu = clock.time(), clock.wall(), clock.cpu()
    try:
        value, metrics = read_returned(objective(evaluation, data))
        outcome = Outcome.OK
    except MemoryError as error:
        # The traceback holds on to what filled the memory: let go of it before anything else is done.
        error.__traceback__ = None
        outcome, message = Outcome.MEMORY, _summary(error)
    except ObjectiveError as error:
        outcome, message = Outcome.ERROR, _bounded(str(error), ERROR_CHARACTERS)
    except BaseException as error:  # noqa: BLE001  # sys.exit() and whatever else a user's function raises
        if _is_pruned(error):
            outcome = Outcome.PRUNED
            message = _bounded(message_of(error) or "pruned by the objective", ERROR_CHARACTERS)
        else:
            outcome, message = Outcome.ERROR, describe_error(error)
    return EvaluationResult(
        trial=evaluation.trial,
        rung=evaluation.rung,
        fold=evaluation.fold,
        attempt=evaluation.attempt,
        outcome=outcome,
        value=value,
        metrics=metrics,
        error=message,
        wall_seconds=max(0.0, clock.wall() - wall),
        cpu_seconds=max(0.0, clock.cpu() - cpu),
        worker=worker,
        started_at=started_at,
    )


def failed(
    evaluation: Evaluation,
    outcome: Outcome,
    message: str,
    *,
    wall_seconds: float = 0.0,
    cpu_seconds: float = 0.0,
    worker: str = "",
    slot: int | None = None,
    started_at: float | None = None,
) -> EvaluationResult:
    """The result of an evaluation that came to no end of its own."""
    return EvaluationResult(
        trial=evaluation.trial,
        rung=evaluation.rung,
        fold=evaluation.fold,
        attempt=evaluation.attempt,
        outcome=outcome,
        error=_bounded(message, ERROR_CHARACTERS),
        wall_seconds=max(0.0, wall_seconds),
        cpu_seconds=max(0.0, cpu_seconds),
        worker=worker,
        slot=slot,
        started_at=started_at,
    )


def describe_error(error: BaseException) -> str:
    """`Type: message`, then the innermost frames, the innermost of the user's own code among them; at most ERROR_CHARACTERS."""
    lines = [_summary(error)]
    try:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_own(frame)]
        users = [place for place, frame in enumerate(frames) if not is_library(frame.filename)]
        if users and users[-1] < len(frames) - _FRAMES:
            frames = [frames[users[-1]], *frames[1 - _FRAMES :]]
        lines += [
            f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
            + (f"\n    {frame.line}" * bool(frame.line))
            for frame in frames[-_FRAMES:]
        ]
    except Exception:  # noqa: BLE001, S110  # the summary alone is an answer: a broken __repr__ must not cost a slot
        pass
    return _bounded("\n".join(lines), ERROR_CHARACTERS)


def _summary(error: BaseException) -> str:
    message = message_of(error)
    name = type(error).__name__
    return f"{name}: {_bounded(message, _MESSAGE_CHARACTERS)}" if message else name


def _is_own(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_OWN_FOLDER)


def _is_pruned(error: BaseException) -> bool:
    """By name, so that Optuna is not imported for it; trialfleet's own class has the same name."""
    return any(kind.__name__ == "TrialPruned" for kind in type(error).__mro__)


def _bounded(text: str, characters: int) -> str:
    """At most so many characters, all of which UTF-8 has: a lone surrogate (part of a file's name) can not travel."""
    text = text if len(text) <= characters else text[: characters - 1] + "…"
    return text.encode(errors="replace").decode()
