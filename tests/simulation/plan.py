"""What a seed decides before anything happens: the study, the fleet, and which faults there are.

Each kind of fault is switched on or off for a whole schedule ("swarm testing", Groce et al. 2012): a schedule with all
of them at once hides what only two of them show.
"""

import random
from typing import NamedTuple

from trialfleet_coordinator.budget import Budget
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.settings import EfficiencyConfig

LADDERS = (
    Ladder((Rung(1.0, 1),)),
    Ladder((Rung(1.0, 3),)),
    Ladder((Rung(0.3, 1), Rung(1.0, 1))),
    Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1), Rung(1.0, 3))),
    Ladder((Rung(0.3, 2), Rung(1.0, 2), Rung(1.0, 3))),
)
#: Seconds after which no new fault begins and all that is broken is mended, at the earliest and at the latest.
HORIZON = (0.5, 5.0)
#: Seconds from then on within which a study must end: several evaluations may be lost several times before.
ENDLESS = 300.0
#: How often a schedule has a kind of fault.
SHARE = 0.3


class Rates(NamedTuple):
    """How often something goes wrong, where it may: probabilities."""

    #: A message comes much later than it could.
    late: float = 0.0
    #: A message that the broker confirmed is gone.
    vanished: float = 0.0
    #: A message comes twice.
    twice: float = 0.0
    #: A message was taken, but its sender does not learn of it and sends it again.
    unconfirmed: float = 0.0
    #: A heartbeat is lost.
    unheard: float = 0.0
    #: An evaluation takes many times as long as others.
    slow: float = 0.0
    #: An evaluation fails for reasons of the place: it raises, crashes, or hits a limit.
    fails: float = 0.0
    #: The objective raises, or prunes the trial itself, for this share of all params.
    bad_params: float = 0.0
    #: A worker's own cache answers.
    remembered: float = 0.0
    #: A worker refuses a batch: its code is another.
    refuses: float = 0.0
    #: A worker forges something beside an honest answer, or instead of it.
    lies: float = 0.0


class Fleet(NamedTuple):
    """The workers at the start; those that leave come back under another name."""

    #: Slots of each.
    slots: tuple[int, ...]
    #: Mean seconds of an evaluation on all rows.
    seconds: float
    #: Seconds after which a worker acknowledges what still runs.
    hold: float
    #: As of `LeaseTable`.
    grace: float
    #: Seconds that the coordinator bears the broker's absence.
    outage: float


class Plan(NamedTuple):
    """All that a seed decides beforehand."""

    seed: int
    ladder: Ladder
    maximize: bool
    config: EfficiencyConfig
    budget: Budget
    has_test: bool
    #: Points of the search space.
    points: int
    #: Whether the sampler draws a point once only, and so may run out of them.
    distinct: bool
    caching: bool
    #: Most records of a tick; `driver.TICK_RECORDS` is far above what so short a study makes.
    tick_records: int
    fleet: Fleet
    rates: Rates
    #: Seconds after which nothing new goes wrong.
    horizon: float
    #: Calls of a port after which the coordinator is killed, one for each of its first sessions.
    kills: tuple[int, ...]
    #: When what happens: (seconds, kind of fault).
    faults: tuple[tuple[float, str], ...]


#: Faults that happen at a moment, and how many of them at most.
_MOMENTS = {
    "kill coordinator": 2,
    "stop study": 1,
    "kill worker": 2,
    "pause worker": 2,
    "cut off worker": 2,
    "drain worker": 2,
    "cut off coordinator": 2,
    "restart broker": 2,
    "lose queues": 1,
    "fill disk": 2,
}


def draw_plan(seed: int) -> Plan:
    """The plan of a seed."""
    draw = random.Random(seed)
    horizon = draw.uniform(*HORIZON)
    trials = draw.randint(1, 6)
    points = draw.choice((2, 5, 30))
    caching = draw.random() < 0.5

    def budget() -> Budget:
        kind = draw.random()
        return Budget(
            trials=trials,
            seconds=draw.uniform(1.0, horizon) if kind < 0.1 else None,
            cpu_seconds=draw.uniform(0.1, 3.0) if 0.1 < kind < 0.2 else None,
            patience=(draw.randint(1, 4) + 1) // 2 if 0.2 < kind < 0.3 else None,
            target=draw.uniform(0.2, 1.0) if 0.3 < kind < 0.4 else None,
        )

    def rate(highest: float) -> float:
        return draw.uniform(0.0, highest) if draw.random() < SHARE else 0.0

    return Plan(
        seed=seed,
        ladder=draw.choice(LADDERS),
        maximize=draw.random() < 0.5,
        config=EfficiencyConfig(
            fold_racing=draw.random() < 0.5,
            adaptive_trial_allocation=draw.random() < 0.8,
            enable_aggressive_pruning=draw.random() < 0.5,
            pruning_threshold=0.5,
            min_trials_before_pruning=draw.randint(1, 3),
            reduction_factor=draw.choice((2.0, 3.0)),
            batch_size=draw.choice((1, 3, 100)),
        ),
        budget=budget(),
        has_test=draw.random() < 0.3,
        points=points,
        distinct=draw.random() < 0.3,
        caching=caching,
        tick_records=draw.choice((1, 3, 2000)),
        fleet=Fleet(
            slots=tuple(draw.randint(1, 3) for _ in range(draw.randint(1, 3))),
            seconds=draw.choice((0.01, 0.1, 0.5)),
            hold=draw.choice((0.3, 600.0)),
            grace=draw.choice((2.5, 4.0)),
            outage=draw.choice((1.0, 600.0)),
        ),
        rates=Rates(
            late=rate(0.3),
            vanished=rate(0.15),
            twice=rate(0.3),
            unconfirmed=rate(0.3),
            unheard=rate(0.7),
            slow=rate(0.2),
            fails=rate(0.2),
            bad_params=rate(0.4),
            remembered=rate(0.5),
            refuses=rate(0.5),
            lies=rate(0.5),
        ),
        horizon=horizon,
        kills=tuple(draw.randint(1, 40) for _ in range(draw.randint(1, 3))) if draw.random() < SHARE else (),
        faults=tuple(
            sorted(
                (draw.uniform(0.0, horizon), kind)
                for kind, most in _MOMENTS.items()
                if draw.random() < SHARE
                for _ in range(draw.randint(1, most))
            )
        ),
    )
