"""How the slots of a fleet are shared among studies: `FairShare.allot`, a pure table of who is entitled to what.

Studies of one priority share by weight; what one can not use goes to the others (weighted max-min fairness; Demers,
Keshav, Shenker 1989). A higher priority comes first, but for `LOWER_SHARE` of the slots, which the lower ones keep
together: they are slow then, never starved. Entitlements are fractions of slots; whole slots are handed out in turns, so
that over time each study has had what it is entitled to, however many studies share however few slots.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

#: Share of the slots that studies of lower priorities keep while higher ones could use all.
LOWER_SHARE = 0.1
#: Shortest turn, in seconds.
TURN_SECONDS = 2.0
#: Slot-seconds that a study can be owed, or owe, at most: what it could not use long ago is forgotten.
MOST_OWED = 600.0


class Claim(NamedTuple):
    """What a study wants."""

    study: str
    weight: float
    priority: int
    #: Slots that it could use now.
    wanted: int
    #: Seconds that an evaluation of it takes, about: a turn is at least twice as long.
    evaluation_seconds: float


class FairShare:
    """Remembers what each study is owed, in slot-seconds."""

    def __init__(self) -> None:
        self._owed: dict[str, float] = {}
        self._allotted: dict[str, int] = {}
        self._entitled: dict[str, float] = {}
        self._now: float | None = None
        self._turn_ends = 0.0

    def allot(self, claims: Sequence[Claim], slots: int, now: float) -> Mapping[str, int]:
        """Slots for each study; never more than there are, or than it wants.

        Args:
            claims: the studies that run.
            slots: slots of the fleet.
            now: monotonic seconds.
        """
        self._settle(claims, now)
        entitled = entitlements(claims, slots)
        if entitled != self._entitled or now >= self._turn_ends:
            self._entitled = entitled
            self._allotted = self._whole(claims, slots)
            longest = max((claim.evaluation_seconds for claim in claims), default=0.0)
            self._turn_ends = now + max(TURN_SECONDS, 2 * longest)
        return dict(self._allotted)

    def _settle(self, claims: Sequence[Claim], now: float) -> None:
        """Count what the studies had since the last call."""
        passed = 0.0 if self._now is None else now - self._now
        self._now = now
        owed = {}
        for claim in claims:
            had = self._allotted.get(claim.study, 0)
            debt = self._owed.get(claim.study, 0.0) + passed * (self._entitled.get(claim.study, 0.0) - had)
            owed[claim.study] = min(max(debt, -MOST_OWED), MOST_OWED)
        self._owed = owed

    def _whole(self, claims: Sequence[Claim], slots: int) -> dict[str, int]:
        """The entitlements in whole slots: rounded down, and the rest to those that are owed most."""
        allotted = {study: int(share) for study, share in self._entitled.items()}
        wanted = {claim.study: claim.wanted for claim in claims}
        rest = min(slots, sum(wanted.values())) - sum(allotted.values())
        order = {claim.study: (-claim.priority, place) for place, claim in enumerate(claims)}
        fractions = [study for study, share in self._entitled.items() if share > allotted[study]]
        fractions.sort(key=lambda study: (-self._owed[study], order[study]))
        for study in fractions[:rest]:
            allotted[study] += 1
        return allotted


def entitlements(claims: Sequence[Claim], slots: int) -> dict[str, float]:
    """Slots that each study is entitled to, as fractions, by name."""
    entitled: dict[str, float] = {}
    left = float(slots)
    ranked = sorted(claims, key=lambda claim: -claim.priority)
    lower = sum(claim.wanted for claim in claims)
    for _, group in groupby(ranked, key=lambda claim: claim.priority):
        equals = list(group)
        wanted = sum(claim.wanted for claim in equals)
        lower -= wanted
        kept = min(LOWER_SHARE * left, lower)
        mine = min(wanted, left - kept)
        entitled |= _by_weight(equals, mine)
        left -= mine
    return entitled


def _by_weight(claims: Sequence[Claim], slots: float) -> dict[str, float]:
    """Share so many slots by weight; what one does not want goes to the others."""
    shares: dict[str, float] = {}
    weight = sum(claim.weight for claim in claims)
    # Whoever wants least for its weight is served first: what it leaves is there for the rest.
    for claim in sorted(claims, key=lambda claim: claim.wanted / claim.weight):
        share = min(float(claim.wanted), slots * claim.weight / weight) if weight > 0 else 0.0
        shares[claim.study] = share
        slots -= share
        weight -= claim.weight
    return shares
