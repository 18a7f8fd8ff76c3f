"""A discrete-event world: one clock, one source of randomness, and a heap of what happens next."""

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from support.simulated import SimulatedClock

#: Things that happen while the coordinator waits once; more of them go round in circles.
_MOST_EVENTS = 20_000


class Violation(AssertionError):  # noqa: N818  # what a simulation looks for
    """Something was promised, and did not hold."""


class Killed(BaseException):  # as a signal would, it passes every `except Exception`
    """The coordinator's process ends here, at once: nothing may be done any more but what the kernel does."""


class World(SimulatedClock):
    """Everything that happens, in the order of time; equal times in the order in which they were arranged.

    Args:
        seed: decides everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        #: How often something happened that is drawn by `chance`.
        self.mishaps = 0
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def after(self, delay: float, action: Callable[..., object], *args: Any) -> None:
        """Have `action(*args)` happen `delay` seconds from now."""
        heapq.heappush(self._events, (self.now + delay, next(self._order), action, args))

    def run(self, until: float, enough: Callable[[], object] = lambda: False) -> None:
        """Let things happen until that time, or until there is enough."""
        events = self._events
        for _ in range(_MOST_EVENTS):
            if enough():
                return
            if not events or events[0][0] > until:
                self.now = max(self.now, until)
                return
            self.now, _, action, args = heapq.heappop(events)
            action(*args)
        raise Violation(f"{_MOST_EVENTS} things happen within {until - self.now:g} s")

    def chance(self, probability: float) -> bool:
        """Whether something happens that has this probability."""
        happens = probability > 0 and self.random.random() < probability
        self.mishaps += happens
        return happens
