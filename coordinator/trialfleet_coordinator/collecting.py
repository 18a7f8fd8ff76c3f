"""Python's garbage collector, which has nothing to find where a whole study is read or rebuilt."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Without the collector, which would look through all that is made again and again: half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # What was made is there to stay: in the oldest generation at once, without being looked through for each younger one.
        gc.freeze()
        gc.unfreeze()
        if was_on:
            gc.enable()
