"""Python's garbage collector: it has nothing to find where a whole study is read or rebuilt, and comes late afterwards."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

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
