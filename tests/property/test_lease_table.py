from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trialfleet_coordinator.leases import LeaseTable
from trialfleet_shared.messages import EvaluationKey

GRACE = 10.0
KEYS = st.integers(0, 4).map(lambda trial: EvaluationKey(trial, 0, 0))


class Leases(RuleBasedStateMachine):
    """Whatever happens in whatever order: nothing that was heard of lately is lost, and nothing stays for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(grace=GRACE)
        self.now = 0.0
        #: When each outstanding evaluation was published or heard of.
        self.heard: dict[EvaluationKey, float] = {}

    @rule(seconds=st.floats(0, 2 * GRACE))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=KEYS, attempt=st.integers(0, 3))
    def publish(self, key: EvaluationKey, attempt: int) -> None:
        self.table.publish(key, attempt, self.now)
        self.heard[key] = self.now

    @rule(key=KEYS)
    def answer(self, key: EvaluationKey) -> None:
        self.table.answer(key)
        self.heard.pop(key, None)

    @rule(
        held=st.sets(KEYS), leased=st.sets(KEYS), worker=st.sampled_from(["a", "b"]), slots=st.sampled_from([0, 1, 4])
    )
    def heartbeat(self, held: set[EvaluationKey], leased: set[EvaluationKey], worker: str, slots: int) -> None:
        self.table.heartbeat(worker, slots, 1.0, held=held, leased=leased & held, now=self.now)
        for key in held & self.heard.keys():
            self.heard[key] = self.now
        assert (worker in self.table.workers(self.now)) == (slots > 0)

    @rule(ready=st.sampled_from([0, 0, 3, None]))
    def look(self, ready: int | None) -> None:
        lost = self.table.lost(ready, self.now)
        assert not (ready is None and lost)
        for entry in lost:
            assert self.now - self.heard.pop(entry.key) >= GRACE
        if ready is None:
            self.heard = dict.fromkeys(self.heard, self.now)

    @precondition(lambda self: self.heard)
    @rule()
    def fall_silent(self) -> None:
        """Looks at an empty queue, and nothing but silence for two times the grace, and nothing is left."""
        lost = set()
        for _ in range(int(2 * GRACE) + 2):
            lost |= {entry.key for entry in self.table.lost(0, self.now)}
            self.now += 1.0
        assert lost <= self.heard.keys()
        self.heard = {}
        assert self.table.outstanding == 0

    @invariant()
    def counts_what_is_outstanding(self) -> None:
        assert self.table.outstanding == len(self.heard)


TestLeases = Leases.TestCase
