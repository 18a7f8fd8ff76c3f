"""How much work to keep in flight, and how many evaluations travel in one message.

In flight are `slots x (1 + ahead)` evaluations: enough ahead that a slot never waits for the way to the coordinator
and back, no more, so that the sampler and the promotions decide on fresh results; and never more than a share of what has
been answered, so that a study of quick evaluations is not drawn before anything is known. A message carries so many evaluations
that their work outweighs what the message costs, and never so many that one worker sits on what another could do.
"""

import math

#: Work that each slot has ahead of it, in seconds: several times the way of a result to the coordinator and back.
AHEAD_SECONDS = 0.1
#: Each slot has at least so much work ahead, in seconds, also where that is more than one message carries, but no more than
#: `MOST_BATCHES`: where evaluations take next to nothing the way there and back is what they wait for. Of a no-op over RabbitMQ
#: it makes a quarter more a second (`benchmarks/throughput.py`).
QUICK_SECONDS = 0.01
MOST_BATCHES = 4
#: From this mean on, in seconds, the way back costs less than deciding on older results would: nothing is kept ahead.
SLOW_SECONDS = 5.0
#: Work that one message carries, in seconds: ten times and more what a confirmed message costs.
MESSAGE_SECONDS = 0.05
#: What is kept in flight beyond two for each slot, over the evaluations answered so far.
SHARE_IN_FLIGHT = 0.25
#: How long a tick waits for more results after its first, in seconds, where evaluations take less than that: longer than
#: the way of a message to a worker and back, or small ticks would make small messages for ever; well below `AHEAD_SECONDS`.
GATHERING_SECONDS = 0.02
#: Weight of the newest duration in the running mean.
WEIGHT = 0.1


class Pacing:
    """Learns how long evaluations take.

    Args:
        largest_batch: evaluations that a message may carry.
    """

    def __init__(self, largest_batch: int) -> None:
        self._largest = largest_batch
        self._mean: float | None = None
        self._answered = 0

    def observe(self, wall_seconds: float) -> None:
        """An evaluation ran for this long."""
        self._answered += 1
        if self._mean is None:
            self._mean = wall_seconds
        else:
            self._mean += WEIGHT * (wall_seconds - self._mean)

    @property
    def mean_seconds(self) -> float:
        """Mean seconds of the latest evaluations; 0 before the first."""
        return self._mean or 0.0

    @property
    def gathering_seconds(self) -> float:
        """How long to wait for more results after the first: not at all, unless evaluations are quick."""
        return GATHERING_SECONDS if self._mean is not None and self._mean < GATHERING_SECONDS else 0.0

    def in_flight(self, slots: int, *, seconds_left: float = math.inf) -> int:
        """Evaluations to keep in flight on `slots` slots, in a study that ends in so many seconds.

        None is ahead that would begin after the end, nor any that might while it is not known how long they take.
        """
        if self._mean is None:
            ahead = 1 if seconds_left == math.inf else 0
        elif self._mean >= SLOW_SECONDS:
            ahead = 0
        else:
            mean = max(self._mean, 1e-9)
            quick = min(math.ceil(QUICK_SECONDS / mean), MOST_BATCHES * self._largest)
            ahead = max(min(math.ceil(AHEAD_SECONDS / mean), self._largest), quick)
            ahead = int(min(ahead, max(seconds_left, 0.0) / mean))
        return min(slots * (1 + ahead), max(2 * slots, int(SHARE_IN_FLIGHT * self._answered)))

    def batch(self, evaluations: int, slots: int) -> int:
        """How many of so many evaluations, all to be published now, go into one message."""
        if self._mean is None:
            return 1
        worth = min(math.ceil(MESSAGE_SECONDS / max(self._mean, 1e-9)), self._largest)
        return max(1, min(worth, math.ceil(evaluations / max(slots, 1))))
