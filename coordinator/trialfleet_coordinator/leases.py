"""Which evaluations are lost: a pure table of who was last heard to hold what.

An evaluation that was published is either waiting in the broker's queue, or a worker holds it and says so in every
heartbeat, or it is answered. RabbitMQ itself delivers again what a dead worker held unacknowledged. What it can not
know of are evaluations that outlive its delivery timeout, which workers acknowledge early and go on with under a *lease*
that their heartbeats renew; and messages that vanish (a purged queue, a lost disk). Both show the same way: nobody
has said for a while that they hold the evaluation, and it is not waiting either, because the queue is empty.

A false alarm costs a second evaluation, never a wrong record: the first answer wins.
"""

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationKey

#: Heartbeats that a worker may miss before it counts as gone.
MISSED_HEARTBEATS = 3
#: Heartbeats after which it is forgotten: workers come and go for weeks.
_FORGOTTEN_HEARTBEATS = 10
#: Share of the grace that may pass between two looks at the queue; after more, who looks was kept from it.
_MOST_BETWEEN_LOOKS = 2 / 3


class _Lease:
    """One published evaluation."""

    __slots__ = ("attempt", "holder", "leased", "seen")

    def __init__(self, attempt: int, seen: float) -> None:
        self.attempt = attempt
        #: When it was published, or last heard of.
        self.seen = seen
        self.holder: str | None = None
        #: Whether only its holder knows of it.
        self.leased = False


class Worker(NamedTuple):
    """A worker that was heard of."""

    slots: int
    heard: float
    interval: float


class LeaseTable:
    """Published evaluations and live workers of one study. All times are monotonic seconds.

    Args:
        grace: seconds that an evaluation may be heard of from nobody, with the queue empty, before it is lost; several
            heartbeats long.
    """

    def __init__(self, *, grace: float) -> None:
        self._grace = grace
        self._leases: dict[EvaluationKey, _Lease] = {}
        self._workers: dict[str, Worker] = {}
        #: Since when the queue has been found empty at every look; None: it was not at the last one.
        self._empty_since: float | None = None
        #: When it was looked at last; before the first look nothing is missed.
        self._looked_at = math.inf

    def publish(self, key: EvaluationKey, attempt: int, now: float) -> None:
        """The evaluation was published."""
        self._leases[key] = _Lease(attempt, now)

    def answer(self, key: EvaluationKey, *, in_vain: int | None = None) -> None:
        """A result arrived, whoever it came from.

        Args:
            key: what it answers.
            in_vain: the attempt, if its end may be of the place; a later one, published since, is not answered by it.
        """
        lease = self._leases.get(key)
        if lease is not None and (in_vain is None or in_vain >= lease.attempt):
            del self._leases[key]

    def heartbeat(
        self,
        worker: str,
        slots: int,
        interval: float,
        *,
        held: Iterable[EvaluationKey],
        leased: Collection[EvaluationKey],
        now: float,
    ) -> None:
        """A worker says that it lives, how many slots it has (0: it leaves), and what it holds of this study.

        Args:
            worker: its name.
            slots: its slots.
            interval: seconds until its next heartbeat.
            held: what it holds.
            leased: which of these it has acknowledged.
            now: the time.
        """
        if slots:
            if worker not in self._workers:
                self._workers = self._heard_within(_FORGOTTEN_HEARTBEATS, now)
            self._workers[worker] = Worker(slots, now, interval)
        else:
            self._workers.pop(worker, None)
        for key in held:
            lease = self._leases.get(key)
            if lease is not None:
                lease.holder, lease.seen, lease.leased = worker, now, key in leased

    @property
    def outstanding(self) -> int:
        """Evaluations published, not answered and not lost."""
        return len(self._leases)

    def workers(self, now: float) -> dict[str, Worker]:
        """The workers that are alive."""
        return self._heard_within(MISSED_HEARTBEATS, now)

    def _heard_within(self, heartbeats: int, now: float) -> dict[str, Worker]:
        return {
            name: worker for name, worker in self._workers.items() if now - worker.heard <= heartbeats * worker.interval
        }

    def lost(self, ready: int | None, now: float) -> list[LostEvaluation]:
        """The evaluations to give up on; each is named once. To be asked every second or so.

        Args:
            ready: messages that wait in the queue; None when the broker is out of reach.
            now: the time.
        """
        pause, self._looked_at = now - self._looked_at, now
        if ready is None or pause > self._grace * _MOST_BETWEEN_LOOKS:
            self._excuse(now)
            return []
        if ready:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        vanished = self._empty_since is not None and now - self._empty_since >= self._grace
        gone = [
            key for key, lease in self._leases.items() if (vanished or lease.leased) and now - lease.seen >= self._grace
        ]
        lost = []
        for key in gone:
            lease = self._leases.pop(key)
            cause = f"worker {lease.holder} is gone" if lease.holder else "no worker has it and the queue is empty"
            lost.append(LostEvaluation(key, lease.attempt, cause))
        return lost

    def _excuse(self, now: float) -> None:
        """Nobody could be heard, or nobody listened, and what was said meanwhile is still on its way: silence says nothing."""
        self._empty_since = None
        for lease in self._leases.values():
            lease.seen = now
