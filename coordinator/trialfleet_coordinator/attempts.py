"""The evaluations in flight: since when each is, how often it was tried in vain, and which of them straggle.

A pure table; all times are seconds that the study ran. Three rules live here:

- An evaluation that kills its slot, or is lost with its worker, is tried again, elsewhere if there is an elsewhere: the
  cause may be of the place. Crashes and losses are kept as its history, for the day that it is given up.
- One that is refused is tried again for as long as a worker is there that has not refused the study: what is refused is
  the study's code or data, and whoever refuses at once is free again at once, and would use up any number of tries. Where
  all workers that are there refuse, the refusals are counted.
- Once a study takes up nothing new and slots idle, what is in flight for much longer than its like took may be run a
  second time, on one of these slots; never a third time. The first answer wins, so no value depends on it.
"""

from collections import defaultdict, deque
from enum import Enum
from typing import NamedTuple

from trialfleet_shared.messages import TEST_FOLD, EvaluationKey, EvaluationResult, Outcome

#: Times that an evaluation may be refused while all workers refuse the study; one with the right code may yet come.
REFUSALS = 5
#: Times that an evaluation may be lost with its worker before the trial fails.
LOSSES = 10
#: Times that an evaluation may kill its slot before the trial fails: a crash may be of the place, three are of the params.
CRASHES = 3
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


class Retry(Enum):
    """What follows an attempt that brought no answer."""

    #: Nothing: a later attempt is in flight, or nobody waits any more.
    LATE = "late"
    #: Another attempt.
    AGAIN = "again"
    #: The evaluation had its chances.
    NEVER = "never"


class Attempts:
    """The table. See the module's docstring."""

    def __init__(self) -> None:
        #: Evaluations in flight and the attempt that is.
        self.pending: dict[EvaluationKey, int] = {}
        #: Names of the workers that are there.
        self.workers: frozenset[str] = frozenset()
        #: Names of those that refused the study, and evaluated nothing of it since.
        self._refusing: set[str] = set()
        #: How often an evaluation was refused in a row while nobody was there who might not.
        self._refused: dict[EvaluationKey, int] = {}
        self._began: dict[EvaluationKey, float] = {}
        self._failed: dict[EvaluationKey, list[FailedAttempt]] = {}
        self._copied: set[EvaluationKey] = set()
        #: Seconds from publishing to the answer, by rung.
        self._turnarounds: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    def begin(self, key: EvaluationKey, attempt: int, elapsed: float) -> None:
        """The evaluation is published, perhaps again."""
        self.pending[key] = attempt
        self._began[key] = elapsed

    def adopt(self, result: EvaluationResult) -> None:
        """The evaluation was published by an earlier session, and has its answer already."""
        self.pending[result.key] = result.attempt

    def answer(self, result: EvaluationResult, elapsed: float) -> None:
        """The evaluation has its answer."""
        if result.outcome is not Outcome.REFUSED and not result.cached:
            self._refusing.discard(result.worker)
        key = result.key
        began = self._began.get(key)
        if began is not None and result.outcome is Outcome.OK and not result.cached and result.fold != TEST_FOLD:
            self._turnarounds[result.rung].append(elapsed - began)
        self.forget(key)

    def forget(self, key: EvaluationKey) -> None:
        """Nobody waits for the evaluation any more."""
        del self.pending[key]
        self._began.pop(key, None)
        self._failed.pop(key, None)
        self._refused.pop(key, None)
        self._copied.discard(key)

    def refuse(self, result: EvaluationResult) -> Retry:
        """A worker refused the evaluation."""
        key = result.key
        self._refusing.add(result.worker)
        if result.attempt < self.pending[key]:
            return Retry.LATE
        if self.workers - self._refusing:
            self._refused.pop(key, None)
            return Retry.AGAIN
        self._refused[key] = self._refused.get(key, 0) + 1
        return Retry.AGAIN if self._refused[key] < REFUSALS else Retry.NEVER

    def crash(self, result: EvaluationResult, elapsed: float) -> Retry:
        """The evaluation killed its slot."""
        key, attempt = result.key, self.pending[result.key]
        if result.attempt < attempt:
            return Retry.LATE
        self._fail(key, FailedAttempt(attempt, elapsed, result.worker, reason_of(result), crashed=True))
        crashes = sum(failed.crashed for failed in self._failed[key])
        return Retry.AGAIN if crashes < CRASHES else Retry.NEVER

    def lose(self, key: EvaluationKey, attempt: int, reason: str, elapsed: float) -> Retry:
        """Whoever held the evaluation is gone."""
        if self.pending.get(key) != attempt:
            return Retry.LATE
        self._fail(key, FailedAttempt(attempt, elapsed, "", f"lost: {reason}", crashed=False))
        losses = sum(not failed.crashed for failed in self._failed[key])
        return Retry.AGAIN if losses < LOSSES else Retry.NEVER

    def _fail(self, key: EvaluationKey, failed: FailedAttempt) -> None:
        self._failed.setdefault(key, []).append(failed)

    def history(self, key: EvaluationKey) -> tuple[FailedAttempt, ...]:
        """The attempts that brought no answer, oldest first."""
        return tuple(self._failed.get(key, ()))

    def stragglers(self, elapsed: float, *, idle: int) -> list[EvaluationKey]:
        """Evaluations to run a second time now, the longest in flight first; each is named once.

        Args:
            elapsed: the time.
            idle: slots that have nothing to do, but for the copies of those in flight that were named earlier.
        """
        idle -= len(self._copied)
        if idle <= 0:
            return []
        late = [key for key in self.pending if self._is_late(key, elapsed)]
        chosen = sorted(late, key=lambda key: self._began[key])[:idle]
        self._copied.update(chosen)
        return chosen

    def _is_late(self, key: EvaluationKey, elapsed: float) -> bool:
        began = self._began.get(key)
        turnarounds = self._turnarounds[key.rung]
        if began is None or key in self._copied or key.fold == TEST_FOLD or len(turnarounds) < _KNOWN:
            return False
        slow_end = sorted(turnarounds)[int(_SLOW_END * (len(turnarounds) - 1))]
        return elapsed - began > max(_MUCH_LONGER * slow_end, _WORTH_SECONDS)


def reason_of(result: EvaluationResult) -> str:
    """Why there is no value, for people."""
    return result.error or "no reason given"
