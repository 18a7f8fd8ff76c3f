"""A fleet that evaluates on data while they are compared with their checksums: `CheckedFleet`.

Reading a gigabyte takes half a second or more, in which evaluations can run. What they answer is kept back until the data are
known to be whole. Where they are not, nothing of it is ever seen: the data are imported again, and what was submitted is
evaluated once more.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.fleet import Fleet, ForwardingFleet, LostEvaluation
from trialfleet_shared.messages import Evaluation, EvaluationResult, StudySpec


class WakingFleet(Fleet, Protocol):
    """A fleet whose `poll` can be ended."""

    def wake(self) -> None:
        """Have a `poll` that is waiting, or else the next one, return early. May be called from any thread."""
        ...


class DataCheck:
    """A comparison of data with their checksums, in a thread of its own.

    Args:
        damage: reads the data; what is wrong with them, empty when nothing is.
        on_end: called in the thread once the answer is there.
    """

    def __init__(self, damage: Callable[[], str], on_end: Callable[[], None]) -> None:
        self._damage = damage
        self._on_end = on_end
        self._answer: str | Exception | None = None
        # Where nobody waits for the answer any more, the program may end.
        self._thread = threading.Thread(target=self._run, name="trialfleet-check", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the answer is there."""
        return self._answer is not None

    def whole(self) -> bool:
        """Whether the data are whole; waits for the answer. Raises what `damage` raised."""
        self._thread.join()
        if isinstance(self._answer, Exception):
            raise self._answer
        return not self._answer

    def _run(self) -> None:
        try:
            self._answer = self._damage()
        except Exception as error:  # noqa: BLE001  # for who asks
            self._answer = error
        self._on_end()


class CheckedFleet(ForwardingFleet):
    """Evaluates on a fleet, and gives no answer before the data are known to be whole.

    Args:
        fleet: evaluates; one that loses nothing.
        damage: as of `DataCheck`; asked from now on, beside everything else.
        again: called where the data are damaged: imports them again, and gives another fleet, which is not started.
    """

    def __init__(self, fleet: WakingFleet, damage: Callable[[], str], again: Callable[[], Fleet]) -> None:
        super().__init__(fleet)
        self._again = again
        #: None once the data are known to be whole.
        self._check: DataCheck | None = DataCheck(damage, fleet.wake)
        self._spec: StudySpec | None = None
        self._submitted: list[Evaluation] = []
        self._kept_back: list[EvaluationResult] = []

    def start(self, spec: StudySpec) -> None:
        """See `Fleet.start`."""
        self._spec = spec
        try:
            super().start(spec)
        except TrialfleetError:
            if self._check is None or self._check.whole():
                raise
            self._start_over()

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """See `Fleet.submit`."""
        super().submit(evaluations)
        if self._check is not None:
            self._submitted += evaluations

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """See `Fleet.poll`; nothing comes in while the data are being compared."""
        results, lost = super().poll(timeout)
        if self._check is None:
            return results, lost
        self._kept_back += results
        if not self._check.ended:
            return [], []
        if not self._check.whole():
            self._start_over()
            return [], []
        self._check = None
        results, self._kept_back, self._submitted = self._kept_back, [], []
        return results, []

    def _start_over(self) -> None:
        """On data that are whole, with another fleet: the one there was has the damaged ones open."""
        assert self._spec is not None
        self._fleet.close()
        self._fleet = self._again()
        self._fleet.start(self._spec)
        self._fleet.submit(self._submitted)
        self._check = None
        self._submitted, self._kept_back = [], []
