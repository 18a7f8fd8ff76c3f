"""When a study ends, and why."""

from enum import Enum

import msgspec


class Ended(Enum):
    """Why a study takes up no new trials. Later ones overrule earlier ones."""

    #: The budget of trials is used up; those under way still climb.
    TRIALS = "trials"
    #: The sampler has no point left; those under way still climb.
    EXHAUSTED = "exhausted"
    #: Trial after trial was no better than the best one; those under way still climb.
    PATIENCE = "patience"
    #: The budget of seconds is used up; what is in flight is finished.
    SECONDS = "seconds"
    #: The budget of CPU seconds is used up; what is in flight is finished.
    CPU_SECONDS = "cpu_seconds"
    #: A complete trial reached the target value; what is in flight is finished.
    TARGET = "target"
    #: Somebody asked for it; the study can be resumed.
    STOPPED = "stopped"
    #: The first trials all failed.
    FAILED = "failed"

    @property
    def rank(self) -> int:
        """Its place in the order of overruling."""
        return list(Ended).index(self)


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a study ends; at least one of `trials`, `seconds` and `cpu_seconds` is given."""

    #: Trials to start.
    trials: int | None = None
    #: Seconds to run, over all sessions.
    seconds: float | None = None
    #: CPU seconds that evaluations may take, over all sessions.
    cpu_seconds: float | None = None
    #: Trials after the best one, by number, that are known to be no better, after which no new ones are started; best is who
    #: leads the highest rung reached. Of a study that is only asked for, 0 says never, and None that its mode decides.
    patience: int | None = None
    #: Value at which a complete trial ends the study.
    target: float | None = None

    @property
    def time_runs_out(self) -> bool:
        """Whether time may end the study before all its trials are started."""
        return self.seconds is not None or self.cpu_seconds is not None
