"""Python's garbage collector: it has nothing to find where a whole study is read or rebuilt, and comes late afterwards."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trialfleet_shared.clock import Clock

#: Objects made meanwhile from which on they are taken for old.
MANY = 100_000


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Without the collector, which would look through all that is made again and again: half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > MANY:
            # They are there to stay: in the oldest generation at once, without being looked through for each younger one. Of
            # fewer it is not worth it, as the collector does not count what gets there so when it decides whether to look.
            gc.freeze()
            gc.unfreeze()
        if was_on:
            gc.enable()


class RegularCollection:
    """Collects all that is garbage now and then.

    A connection to the broker leaves cycles behind, so each study that ended does. By itself the collector looks for old ones
    only when a quarter as many objects as there are have grown old, which took a coordinator 280 studies; and what
    `nothing_collected` made old does not count.

    Args:
        clock: tells when it is time.
        give_back: gives memory that is free after a collection back to the system.
        seconds: between two collections.
    """

    def __init__(self, clock: Clock, give_back: Callable[[], None], seconds: float) -> None:
        self._clock = clock
        self._give_back = give_back
        self._seconds = seconds
        self._due_at = clock.monotonic() + seconds

    def tick(self) -> None:
        """Collect, if it is time; to be called more often than that."""
        now = self._clock.monotonic()
        if now >= self._due_at:
            self._due_at = now + self._seconds
            gc.collect()
            self._give_back()
