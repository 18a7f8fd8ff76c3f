"""What is counted of a study, for its progress, its report, and the ends of its budget."""

from collections import Counter, deque

from trialfleet_coordinator.commands import TrialState
from trialfleet_shared.messages import EvaluationResult, Outcome

#: Failures whose reasons are kept: the latest.
FAILURES_LENGTH = 5


class Tally:
    """The numbers of all sessions, but for `discarded`, which are this one's; kept by `StudyState`, read by everybody."""

    def __init__(self) -> None:
        #: Decided trials by state.
        self.decided: Counter[TrialState] = Counter()
        #: Answered evaluations, and those of them that a cache answered, and that brought a value.
        self.evaluations = 0
        self.cached = 0
        self.valued = 0
        #: CPU seconds of the evaluations that ran.
        self.cpu_seconds = 0.0
        #: Results that changed nothing, by reason.
        self.discarded: Counter[str] = Counter()
        #: Reasons of the latest failures.
        self.failures: deque[str] = deque(maxlen=FAILURES_LENGTH)

    def count(self, result: EvaluationResult) -> None:
        """An evaluation has its answer."""
        self.evaluations += 1
        self.valued += result.outcome is Outcome.OK
        if result.cached:
            self.cached += 1
        else:
            self.cpu_seconds += result.cpu_seconds

    @property
    def all_failed(self) -> bool:
        """Whether trials failed, and no evaluation ever brought a value."""
        return self.valued == 0 and self.decided[TrialState.FAIL] > 0
