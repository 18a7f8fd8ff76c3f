"""What is known of the evaluations in flight: since when each is, how often it was tried in vain, and which of them straggle.

A pure table; all times are seconds that the study ran. Two rules live here:

- An evaluation that kills its slot is tried again, elsewhere if there is an elsewhere: a crash may be of the place. Its
  failed attempts are kept as its history, for the day that it is given up.
- Once a study takes up nothing new and slots idle, what is in flight for much longer than its like took may be run a
  second time, on one of these slots; never a third time. The first answer wins, so no value depends on it.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from trialfleet_shared.messages import TEST_FOLD, EvaluationKey, EvaluationResult, Outcome

#: Turnarounds of a rung that are remembered: its latest.
_REMEMBERED = 100
#: Turnarounds of a rung that have to be known before any evaluation of it is called slow.
_KNOWN = 5
#: How many times the slow end of what its like took an evaluation has to be in flight.
_MUCH_LONGER = 2.0
#: The slow end: this share of its like took no longer.
_SLOW_END = 0.95
#: Seconds below which a second run saves nobody anything.
_WORTH_SECONDS = 1.0


class FailedAttempt(NamedTuple):
    """An attempt that brought no answer."""

    attempt: int
    #: Seconds that the study had run when this was heard.
    elapsed: float
    #: Who evaluated; empty when that is not known.
    worker: str
    #: What happened, for people.
    what: str
    #: Whether it killed its slot.
    crashed: bool


class Attempts:
    """The table. See the module's docstring."""

    def __init__(self) -> None:
        self._began: dict[EvaluationKey, float] = {}
        self._failed: dict[EvaluationKey, list[FailedAttempt]] = {}
        self._copied: set[EvaluationKey] = set()
        #: Seconds from publishing to the answer, by rung.
        self._turnarounds: dict[int, deque[float]] = {}

    def begin(self, key: EvaluationKey, elapsed: float) -> None:
        """The evaluation is published, perhaps again."""
        self._began[key] = elapsed

    def answer(self, result: EvaluationResult, elapsed: float) -> None:
        """The evaluation has its answer."""
        began = self._began.get(result.key)
        if began is not None and result.outcome is Outcome.OK and not result.cached and result.fold != TEST_FOLD:
            self._turnarounds.setdefault(result.rung, deque(maxlen=_REMEMBERED)).append(elapsed - began)
        self.forget(result.key)

    def forget(self, key: EvaluationKey) -> None:
        """Nobody waits for the evaluation any more."""
        self._began.pop(key, None)
        self._failed.pop(key, None)
        self._copied.discard(key)

    def fail(self, key: EvaluationKey, failed: FailedAttempt) -> None:
        """An attempt came to no answer."""
        self._failed.setdefault(key, []).append(failed)

    def history(self, key: EvaluationKey) -> tuple[FailedAttempt, ...]:
        """The attempts that brought no answer, oldest first."""
        return tuple(self._failed.get(key, ()))

    def crashes(self, key: EvaluationKey) -> int:
        """How many of them killed their slot."""
        return sum(failed.crashed for failed in self._failed.get(key, ()))

    def stragglers(self, keys: Iterable[EvaluationKey], elapsed: float, *, idle: int) -> list[EvaluationKey]:
        """Evaluations to run a second time now, the longest in flight first; each is named once.

        Args:
            keys: what is in flight.
            elapsed: the time.
            idle: slots that have nothing to do, but for the copies of those in flight that were named earlier.
        """
        idle -= len(self._copied)
        if idle <= 0:
            return []
        late = [key for key in keys if self._is_late(key, elapsed)]
        chosen = sorted(late, key=lambda key: self._began[key])[:idle]
        self._copied.update(chosen)
        return chosen

    def _is_late(self, key: EvaluationKey, elapsed: float) -> bool:
        began = self._began.get(key)
        turnarounds = self._turnarounds.get(key.rung, ())
        if began is None or key in self._copied or key.fold == TEST_FOLD or len(turnarounds) < _KNOWN:
            return False
        slow_end = sorted(turnarounds)[int(_SLOW_END * (len(turnarounds) - 1))]
        return elapsed - began > max(_MUCH_LONGER * slow_end, _WORTH_SECONDS)
