"""Work that a busy slot begins by itself: the pool offers it ahead of time, and may take it back until it has begun.

Without it a slot would wait, after each evaluation, until the pool's process has its turn on a core that others compute on.
What was offered must still be there for another slot that is free first. Who has it is settled by a counter that both
processes hold, an eventfd: an offer raises it by one, and whoever lowers it, the slot to begin or the pool to withdraw, has
the evaluation. The slot takes offers in order and the pool withdraws only the last, so the two never mean different ones;
but after a withdrawal there is no further offer until the slot has said that it missed one.
"""

import contextlib
import os
import socket

from trialfleet_workers.frames import Offer, frame
from trialfleet_workers.jobs import Job

#: Longest offer, in bytes: it lies in the socket while the slot evaluates, and sending it must not wait.
_MOST_BYTES = 2**14


def claim(descriptor: int) -> bool:
    """Lower the counter by one; whether it was above zero."""
    try:
        os.eventfd_read(descriptor)
    except BlockingIOError:
        return False
    return True


class Offers:
    """The pool's side of one slot's offers."""

    def __init__(self) -> None:
        #: Shared with the slot.
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._job: Job | None = None
        self._missed = False

    @property
    def job(self) -> Job | None:
        """What the slot is to evaluate next."""
        return self._job

    @property
    def open(self) -> bool:
        """Whether the slot can be offered something."""
        return self._job is None and not self._missed

    def make(self, job: Job, sock: socket.socket) -> bool:
        """Offer it over the slot's socket; whether that could be."""
        message = frame(Offer(job.evaluation))
        if len(message) > _MOST_BYTES:
            return False
        with contextlib.suppress(OSError):  # one that is dead begins nothing: its zygote tells
            os.eventfd_write(self.descriptor, 1)
            sock.sendall(message)
        self._job = job
        return True

    def withdraw(self) -> Job | None:
        """Take the offer back; None: there is none, or the slot has begun it."""
        if self._job is None or not claim(self.descriptor):
            return None
        job, self._job = self._job, None
        self._missed = True
        return job

    def accepted(self) -> Job | None:
        """The slot has ended what it was at: what was offered is what it is at now."""
        job, self._job = self._job, None
        return job

    def declined(self) -> None:
        """The slot has missed an offer that was withdrawn."""
        self._missed = False

    def begun(self) -> bool:
        """Whether the slot, which is dead, had begun what it was at, be it that it had to claim that or not."""
        unclaimed = 0
        while claim(self.descriptor):
            unclaimed += 1
        return unclaimed <= (self._job is not None)

    def close(self) -> None:
        """The slot is gone."""
        os.close(self.descriptor)
