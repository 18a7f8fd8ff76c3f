"""Where a thread's time goes, by part: exclusive CPU and waiting seconds of the methods that are watched."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Divides one thread's time among parts; a part's time does not count for the part that called it.

    Two readings of the thread's clock and two of the wall's are taken at each change of part, a microsecond in all, so watch
    what is called about once a trial, not what is called often.
    """

    def __init__(self) -> None:
        #: Nanoseconds by part: of the CPU, and of the wall.
        self.cpu: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()
        self._stack: list[str] = []
        self._cpu_mark = self._wall_mark = 0

    def watch(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, whose time is the part's from now on, in this thread."""

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._stack.append(part)
            try:
                return method(*args, **kwargs)
            finally:
                self._charge()
                self._stack.pop()

        return watched

    def clear(self) -> None:
        """Begin again."""
        self._charge()
        self.cpu.clear()
        self.wall.clear()

    def _charge(self) -> None:
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        if self._stack:
            self.cpu[self._stack[-1]] += cpu - self._cpu_mark
            self.wall[self._stack[-1]] += wall - self._wall_mark
        self._cpu_mark, self._wall_mark = cpu, wall


@contextmanager
def watching(watch: Stopwatch, parts: list[tuple[str, Any, str]]) -> Iterator[None]:
    """Watches methods, each given as (part, class or module, name), inside this."""
    before = [(owner, name, getattr(owner, name)) for _, owner, name in parts]
    for (part, owner, name), (_, _, method) in zip(parts, before, strict=True):
        setattr(owner, name, watch.watch(part, method))
    try:
        yield
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)
