"""The clocks an evaluation is measured with."""

import resource
import time


class ProcessClock:
    """Measures an evaluation that has its process to itself."""

    def wall(self) -> float:
        """Seconds that passed."""
        return time.perf_counter()

    def cpu(self) -> float:
        """CPU seconds of all threads of this process and of its children that ended."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()


class ThreadClock:
    """Measures an evaluation that shares its process with others."""

    def wall(self) -> float:
        """Seconds that passed."""
        return time.perf_counter()

    def cpu(self) -> float:
        """CPU seconds of this thread alone."""
        return time.thread_time()

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()
