"""Keeping the memory of what runs for weeks where it is: `RegularCollection`."""

import gc
from collections.abc import Callable

from trialfleet_shared.clock import Clock
from trialfleet_workers import linux

#: Arenas of malloc. Each study of a coordinator has a thread, and with an arena for each of them it grew from 44 to 63 MiB over
#: 160 studies that were deleted again, with two from 44 to 53, most of that over the first 40.
ARENAS = 2
#: Seconds between two collections, at least.
SECONDS = 10.0
#: Share of the time that they may take. One takes a hundredth of a second in a worker, half of one where many studies are open.
SHARE = 0.005


class RegularCollection:
    """Collects all that is garbage now and then, and gives what is free then back to the system.

    A connection to the broker leaves cycles behind, so each study that ended does. By itself Python's collector looks for old
    ones only when a quarter as many objects as there are have grown old, which took a coordinator 280 studies; and what
    `trialfleet_coordinator.collecting` made old does not count.

    Args:
        clock: tells when it is time.
        give_back: gives memory that is free back to the system.
    """

    def __init__(self, clock: Clock, give_back: Callable[[], None] = linux.return_freed_memory) -> None:
        self._clock = clock
        self._give_back = give_back
        self._due_at = clock.monotonic() + SECONDS

    def tick(self) -> None:
        """Collect, if it is time; to be called more often than that."""
        begun = self._clock.monotonic()
        if begun >= self._due_at:
            gc.collect()
            self._give_back()
            ended = self._clock.monotonic()
            self._due_at = ended + max(SECONDS, (ended - begun) / SHARE)
