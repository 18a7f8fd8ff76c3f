"""Python's garbage collector: it has nothing to find where a whole study is read or rebuilt, and little while one runs.

What a study has one of for each trial or evaluation, and what refers to nothing but data, is declared `gc=False`: the
collector does not look at it.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Objects made meanwhile from which on they are taken for old.
MANY = 100_000
#: New objects after which the collector looks while studies run. By default it is 700, less than one tick makes: they were
#: taken for old while they were in use, and the really old ones looked through the more often, in a fifth of the time of a
#: study of no-ops.
SELDOM = 50_000


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


class SeldomCollection:
    """The collector looks seldom while anybody wants it so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._before = gc.get_threshold()

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """From several threads too; the last to leave has it as it was."""
        with self._lock:
            if self._wanted == 0:
                youngest, *older = self._before = gc.get_threshold()
                if youngest:  # 0: it is switched off
                    gc.set_threshold(max(SELDOM, youngest), *older)
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if self._wanted == 0:
                    gc.set_threshold(*self._before)


#: Of this process.
seldom_collected = SeldomCollection().wanted
