"""Work that a busy slot begins by itself: the pool offers it ahead of time, and may take it back until it has begun.

Without it a slot would wait, after each evaluation, until the pool's process has its turn on a core that others compute on.
What was offered must still be there for another slot that is free first. Who has it is settled by a counter that both
processes hold, an eventfd: an offer raises it by one, and whoever lowers it, the slot to begin or the pool to withdraw, has
the evaluation. The slot takes offers in order and the pool withdraws only the last, so the two never mean different ones;
but after a withdrawal there is no further offer until the slot has said that it missed that one.

Of evaluations that take next to nothing a slot is offered many: then it need not wait for the pool's owner either, who goes
about other things between two polls, and a write and a read are for many.
"""

import contextlib
import os
import socket
from collections import deque

from trialfleet_workers.frames import Offer, frame
from trialfleet_workers.jobs import Job

#: Bytes of all offers together: they lie in the socket while the slot evaluates, and sending them must not wait.
_MOST_BYTES = 2**14
#: Work that a slot is offered, in seconds, unless a single evaluation takes longer; and the most evaluations.
_AHEAD_SECONDS, _MOST_AHEAD = 0.005, 64


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
        #: In order, each with the bytes of its message.
        self._offers: deque[tuple[Job, int]] = deque()
        self._bytes = 0
        #: Messages that `send` will send.
        self._unsent: list[bytes] = []
        #: Offers that were withdrawn and that the slot has not missed yet.
        self._missing = 0
        self._most = 1

    def __len__(self) -> int:
        """How many there are."""
        return len(self._offers)

    @property
    def jobs(self) -> list[Job]:
        """What the slot is to evaluate next, in order."""
        return [job for job, _ in self._offers]

    @property
    def open(self) -> bool:
        """Whether the slot can be offered something."""
        return len(self._offers) < self._most and not self._missing

    def pace(self, wall_seconds: float) -> None:
        """The slot's latest evaluation took so long: says how many are offered from now on."""
        self._most = max(1, min(_MOST_AHEAD, int(_AHEAD_SECONDS / max(wall_seconds, 1e-9))))

    def make(self, job: Job) -> bool:
        """Offer it, with the next `send`; whether that can be."""
        message = frame(Offer(job.evaluation))
        if self._bytes + len(message) > _MOST_BYTES:
            return False
        self._unsent.append(message)
        self._offers.append((job, len(message)))
        self._bytes += len(message)
        return True

    def send(self, sock: socket.socket) -> None:
        """Send what was offered, over the slot's socket."""
        if self._unsent:
            with contextlib.suppress(OSError):  # one that is dead begins nothing: its zygote tells
                os.eventfd_write(self.descriptor, len(self._unsent))
                sock.sendall(b"".join(self._unsent))
            self._unsent = []

    def withdraw(self) -> Job | None:
        """Take back the last one, which was sent; None: there is none, or the slot has begun it."""
        if not self._offers or not claim(self.descriptor):
            return None
        job, size = self._offers.pop()
        self._bytes -= size
        self._missing += 1
        return job

    def withdraw_all(self, *, but: int = 0) -> list[Job]:
        """Take back what the slot has not begun, except so many that it is to begin next; in their order."""
        withdrawn: deque[Job] = deque()
        while len(self._offers) > but and (job := self.withdraw()) is not None:
            withdrawn.appendleft(job)
        return list(withdrawn)

    def accepted(self) -> Job | None:
        """The slot has ended what it was at: the first offer, if there is one, is what it is at now."""
        if not self._offers:
            return None
        job, size = self._offers.popleft()
        self._bytes -= size
        return job

    def declined(self) -> None:
        """The slot has missed an offer that was withdrawn."""
        self._missing -= 1

    def begun(self) -> bool:
        """Whether the slot, which is dead, had begun its present evaluation: not an offer that is unclaimed still."""
        unclaimed = 0
        while claim(self.descriptor):
            unclaimed += 1
        return unclaimed <= len(self._offers)

    def close(self) -> None:
        """The slot is gone."""
        os.close(self.descriptor)
