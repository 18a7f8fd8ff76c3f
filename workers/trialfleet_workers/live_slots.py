"""The slot processes of a slot pool: which there are, how one is started, chosen, told of a study, heard and given up."""

import contextlib
import itertools
import math
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from trialfleet_shared.clock import Clock
from trialfleet_shared.messages import StudySpec
from trialfleet_workers.frames import Begin, Fork, FromSlot, Kill, frame
from trialfleet_workers.handles import Slot, SlotState, Zygote
from trialfleet_workers.jobs import Job

#: Seconds that a slot may take from its fork until it is ready (data opened; a cold slot imports the objective).
START_SECONDS = 300.0


class LiveSlots:
    """The slots that are not buried.

    Args:
        most: slots that there may be, those apart that are being killed.
        memory_limit: of a slot whose study sets none, in bytes.
        selector: listens to them.
        clock: measures how long a start takes.
        heed: called with what a slot says.
    """

    def __init__(
        self,
        *,
        most: int,
        memory_limit: int,
        selector: selectors.BaseSelector,
        clock: Clock,
        heed: Callable[[Slot, FromSlot], None],
    ) -> None:
        self._most = most
        self._memory_limit = memory_limit
        self._selector = selector
        self._clock = clock
        self._heed = heed
        self._by_number: dict[int, Slot] = {}
        self._next_number = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_number)

    def __iter__(self) -> Iterator[Slot]:
        """All of them; they may be forgotten meanwhile."""
        return iter(list(self._by_number.values()))

    def get(self, number: int) -> Slot | None:
        """The slot of this number, unless it is buried."""
        return self._by_number.get(number)

    def of(self, zygote: Zygote) -> list[Slot]:
        """Those forked from it."""
        return [slot for slot in self if slot.zygote is zygote]

    @property
    def full(self) -> bool:
        """Whether there are as many as there may be."""
        return len(self._by_number) >= self._most

    @property
    def busy(self) -> int:
        """Slots that have an evaluation."""
        return sum(slot.job is not None for slot in self._by_number.values())

    @property
    def offered(self) -> int:
        """Evaluations that busy slots were offered."""
        return sum(len(slot.offers) for slot in self._by_number.values())

    def serve(self, spec: StudySpec) -> bool:
        """Whether one is, or will be, ready for the study."""
        return any(slot.spec == spec and not slot.ending for slot in self)

    def choose(self, spec: StudySpec, zygote: Zygote) -> Slot:
        """A slot that has nothing to do and is, or soon will be, ready for the study; one more may have work."""
        free = [slot for slot in self if slot.job is None and not slot.ending]
        fitting = [slot for slot in free if slot.spec == spec]
        for slot in fitting:
            if slot.state is SlotState.IDLE:
                return slot
        if fitting:
            return fitting[0]
        for slot in free:
            if slot.zygote is zygote and slot.state is SlotState.IDLE:
                self._begin(slot, spec)
                return slot
        if self.full and free:
            self.kill(free[0])
        return self.spawn(zygote, spec)

    def offer(self, job: Job) -> bool:
        """Have a slot that is busy with the same study begin it by itself, with the next `send_offers`; whether one can.

        It is that which has the fewest offers, and of those the one that began first.
        """
        able = [
            (len(slot.offers), slot.since, slot.number)
            for slot in self._by_number.values()
            if slot.state is SlotState.BUSY and slot.offers.open and not slot.ending and slot.spec == job.spec
        ]
        return any(self._by_number[number].offers.make(job) for _, _, number in sorted(able))

    def send_offers(self) -> None:
        """Send what was offered since the last time."""
        for slot in self:
            slot.offers.send(slot.sock)

    def withdraw(self, most: int) -> list[Job]:
        """Take back so many offers at most, in their order: of those whose slots will have no time for longest."""
        withdrawn: deque[Job] = deque()
        able = list(self)
        while able and len(withdrawn) < most:
            slot = max(able, key=lambda slot: (len(slot.offers), slot.since))
            job = slot.offers.withdraw()
            if job is None:
                able.remove(slot)
            else:
                withdrawn.appendleft(job)
        return list(withdrawn)

    def relieve(self, began_before: float) -> list[Job]:
        """Take back all but the next of what slots were offered that have been evaluating since before then."""
        relieved: list[Job] = []
        for slot in self:
            if len(slot.offers) > 1 and slot.since < began_before:
                relieved += slot.offers.withdraw_all(but=1)
        return relieved

    def spawn(self, zygote: Zygote, spec: StudySpec) -> Slot:
        """Have a slot forked and told of the study."""
        mine, theirs = socket.socketpair()
        slot = Slot(self._next_number, self._free_place(), zygote, mine, spec)
        self._next_number += 1
        self._by_number[slot.number] = slot
        self._selector.register(mine, selectors.EVENT_READ, lambda: self._hear(slot))
        with theirs:
            zygote.tell(Fork(slot.number), theirs.fileno(), slot.offers.descriptor)
        self._begin(slot, spec)
        return slot

    def kill(self, slot: Slot) -> None:
        """Have the slot and all that it started killed, for a reason that is dealt with."""
        if not slot.ending:
            slot.ending = True
            slot.limit = math.inf
            slot.zygote.tell(Kill(slot.number))

    def drain(self, slot: Slot) -> bool:
        """Take everything the slot has said. Returns whether it may say more."""
        if not slot.connected:
            return False
        try:
            while received := slot.reader.receive():
                for message in slot.reader.messages():
                    self._heed(slot, message)
        except (msgspec.DecodeError, UnicodeDecodeError):  # the objective wrote into the socket
            received = 0
        if received == 0:
            self._hang_up(slot)
        return slot.connected

    def forget(self, slot: Slot) -> None:
        """It is dead, and whoever dealt with it needs it no longer."""
        del self._by_number[slot.number]
        if slot.connected:
            self._hang_up(slot)
        slot.sock.close()
        slot.offers.close()

    def _free_place(self) -> int:
        taken = {slot.place for slot in self if not slot.ending}
        return next(place for place in itertools.count() if place not in taken)

    def _begin(self, slot: Slot, spec: StudySpec) -> None:
        slot.spec = spec
        slot.offers.pace(math.inf)
        slot.state = SlotState.STARTING
        slot.since = self._clock.monotonic()
        slot.limit = slot.since + START_SECONDS
        limit = spec.memory_limit_bytes
        message = Begin(spec, self._memory_limit if limit is None else limit)
        with contextlib.suppress(OSError):  # one that is dead hears nothing: its zygote tells
            slot.sock.sendall(frame(message))

    def _hear(self, slot: Slot) -> None:
        if slot.number in self._by_number and not self.drain(slot):
            # Nearly always it is dead, and its status will say how. One that closed its descriptors is of no use.
            slot.zygote.tell(Kill(slot.number))

    def _hang_up(self, slot: Slot) -> None:
        self._selector.unregister(slot.sock)
        slot.connected = False
