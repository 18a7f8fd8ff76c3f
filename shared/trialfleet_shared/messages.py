"""What travels between coordinator and workers, as frozen values.

The wire form is JSON (`codec.py`). `SCHEMA_VERSION` goes up with every change that an older reader would refuse or
misunderstand, a new field included. What is new has a default, so that messages of earlier versions stay readable, and a
worker answers in the version that it was asked in: coordinators are updated first.
"""

from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from trialfleet_shared.space import MOST_PARAMETERS, NAME_CHARACTERS, TEXT_CHARACTERS, WHOLE_MAX, WHOLE_MIN
from trialfleet_shared.tables import check_fields
from trialfleet_shared.visible import NO_CONTROLS

#: 2: results tell when and in which slot an evaluation ran.
SCHEMA_VERSION = 2

#: The fold of the test part: trained on every row the search saw, scored on the rows it never saw.
TEST_FOLD = -1
#: Longest text that a message carries from an objective's exception, in characters.
ERROR_CHARACTERS = 4000
#: Most metrics that an objective may return beside its value.
MOST_METRICS = 1000
#: Most evaluations, and most results, in one message; `EfficiencyConfig.batch_size` goes no higher.
MOST_IN_BATCH = 10_000
#: Most slots that a worker may claim to have: coordinators keep that much work ready for it.
MOST_SLOTS = 65_536
#: Most evaluations that a heartbeat may list.
MOST_HELD = 250_000

Name = Annotated[str, Meta(min_length=1, max_length=200)]
#: Name that a study may be given: it stands on terminals, in logs, in queries of metrics.
StudyName = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_CONTROLS)]
Digest = Annotated[str, Meta(max_length=64, pattern="^[0-9a-f]*$")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
#: Seconds, of many slots over years at most: sums of them stay finite.
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Fold = Annotated[int, Meta(ge=-1, le=2**53)]
Slots = Annotated[int, Meta(ge=0, le=MOST_SLOTS)]
Column = Annotated[str, Meta(max_length=4096)]
Label = Annotated[str, Meta(max_length=NAME_CHARACTERS)]
Whole = Annotated[int, Meta(ge=WHOLE_MIN, le=WHOLE_MAX)]
Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS)]
#: `space.Params` within the bounds that spaces keep to.
BoundedParams = Annotated[dict[Label, bool | Whole | float | Text | None], Meta(max_length=MOST_PARAMETERS)]
BoundedMetrics = Annotated[dict[Label, float], Meta(max_length=MOST_METRICS)]
#: Address (`StudySpec.reply_to`) and key of an evaluation that a worker holds.
HeldKey = tuple[Name, Count, Count, Fold]


class Resampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rows become train/validation splits. Defaults: one random holdout of a fifth.

    `kind`: `holdout` (one split), `kfold`, `stratified` (folds keep the classes' shares), `grouped` (a group is never
    on both sides), `forward` (forward chaining: validation lies after training in time).

    Raises:
        ConfigurationError: a field has another type, or is out of its range.
        ValueError: kind and folds do not go together.
    """

    kind: Literal["holdout", "kfold", "stratified", "grouped", "forward"] = "holdout"
    folds: Annotated[int, Meta(ge=1, le=100)] = 1
    #: Share of the rows that a holdout validates on.
    valid_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    #: Share of the rows set apart before anything else, scored once with the best params at the study's end.
    test_fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError outside the ranges, and when kind and folds do not go together."""
        check_fields(self)
        if self.kind == "holdout" and self.folds != 1:
            raise ValueError(f"folds = {self.folds} does not go with kind = 'holdout'; allowed is 1")
        if self.kind in ("kfold", "stratified", "grouped") and self.folds < 2:
            raise ValueError(f"folds = {self.folds} does not go with kind = '{self.kind}'; at least 2 are needed")


class DataSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data set and how it is laid out in the cache."""

    #: Path or fsspec URI of a parquet, CSV, feather or npz file; or "file.py:function" / "package.module:function",
    #: called without arguments for a frame, an (X, y) pair, or a mapping of arrays.
    source: Annotated[str, Meta(min_length=1, max_length=4096)]
    #: Target column; None when the source is (X, y).
    target: Column | None = None
    #: Order in which rows enter a subsample. None: temporal with a time column or forward chaining, else grouped with a
    #: group column or grouped folds, else stratified for a target of classes, else random.
    order: Literal["random", "stratified", "temporal", "grouped"] | None = None
    #: Column that orders the rows in time; None with order "temporal": the rows stand in time order.
    time_column: Column | None = None
    #: Column of the group, for grouped order and resampling.
    group_column: Column | None = None
    resampling: Resampling = Resampling()
    #: Seed of the rows' order and of the folds.
    seed: Count = 0


class StudySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is the same for every evaluation of a study: all that a worker needs beside the evaluation itself."""

    study: Name
    #: "package.module:function" or "file.py:function"; "memory:<name>" for a function handed to an embedded fleet.
    objective: Annotated[str, Meta(min_length=1, max_length=4096)]
    #: Digest of the objective's name and code; a worker whose code differs refuses the evaluation.
    objective_digest: Digest
    data: DataSpec | None = None
    #: Content digest of the laid-out data set (`DataInfo.digest`); empty without data.
    data_digest: Digest = ""
    #: Seed handed to the objective as `data.seed`.
    seed: Count = 0
    #: Wall seconds after which an evaluation is ended; None: no deadline.
    deadline_seconds: Seconds | None = None
    #: Bytes of private memory an evaluation may use; None: nine tenths of the machine's over its slots.
    memory_limit_bytes: Count | None = None
    #: Whether slots read the data from the shared map (see `EfficiencyConfig.enable_memory_optimization`).
    share_memory: bool = True
    #: Evaluations between two garbage collections of a slot.
    collect_interval: Annotated[int, Meta(ge=1)] = 50
    #: Whether a worker may answer from its result cache.
    use_cache: bool = True
    #: Where the study's coordinator hears results, part of a queue's name; empty for an embedded fleet.
    reply_to: Annotated[str, Meta(pattern="^[0-9a-zA-Z_-]{0,64}$")] = ""


class EvaluationKey(NamedTuple):
    """What identifies an evaluation within its study; a result is counted once per key."""

    trial: int
    rung: int
    fold: int


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The unit of work: one trial at one rung and fold; the objective is called once."""

    trial: Count
    rung: Count
    #: Index of the fold, or `TEST_FOLD`.
    fold: Fold
    #: Share of the training rows, 0 < f <= 1.
    fraction: Annotated[float, Meta(gt=0, le=1)]
    params: BoundedParams
    #: 0 for the first time it is published, one more each time it is published again.
    attempt: Count = 0

    @property
    def key(self) -> EvaluationKey:
        """What identifies it within its study."""
        return EvaluationKey(self.trial, self.rung, self.fold)


class Outcome(StrEnum):
    """How an evaluation ended."""

    #: The objective returned a number.
    OK = "ok"
    #: The objective pruned the trial itself (raised `optuna.TrialPruned` or `trialfleet.TrialPruned`).
    PRUNED = "pruned"
    #: The objective raised, or returned something else than a finite number.
    ERROR = "error"
    #: It ran into its deadline and was ended.
    TIMEOUT = "timeout"
    #: It ran into its memory limit.
    MEMORY = "memory"
    #: Its process died: a signal, `os._exit`.
    CRASH = "crash"
    #: The worker refused it: objective not allowed, code or data differ.
    REFUSED = "refused"

    @property
    def may_be_of_the_place(self) -> bool:
        """Whether another attempt may end otherwise elsewhere: where one is in flight, this is not the evaluation's answer."""
        return self in (Outcome.TIMEOUT, Outcome.MEMORY, Outcome.CRASH, Outcome.REFUSED)


class EvaluationResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """What became of one evaluation."""

    trial: Count
    rung: Count
    fold: Fold
    attempt: Count
    outcome: Outcome
    #: The objective's value; None unless the outcome is OK.
    value: float | None = None
    #: Further metrics the objective returned beside `value`.
    metrics: BoundedMetrics = {}
    #: What went wrong, for people; None when the outcome is OK.
    error: Annotated[str, Meta(max_length=ERROR_CHARACTERS)] | None = None
    #: Seconds from the call of the objective to its end, measured where it ran; for a cached answer, of the run that
    #: filled the cache.
    wall_seconds: Seconds = 0.0
    #: CPU seconds of the same.
    cpu_seconds: Seconds = 0.0
    #: Whether the answer came from a result cache.
    cached: bool = False
    #: Who evaluated it; empty when the coordinator's cache answered.
    worker: Annotated[str, Meta(max_length=200)] = ""
    #: Which of the worker's slots ran it, counted from 0; None when none did, or the worker is of version 1.
    slot: Count | None = None
    #: When the objective was called, in seconds since 1970 by the clock of the machine it ran on; None as for `slot`.
    started_at: Seconds | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when the outcome is OK and there is no value."""
        if self.outcome is Outcome.OK and self.value is None:
            raise ValueError(f"value = {self.value} does not go with outcome = '{self.outcome}'")

    @property
    def key(self) -> EvaluationKey:
        """What identifies the evaluation within its study."""
        return EvaluationKey(self.trial, self.rung, self.fold)


class EvaluationBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="evaluations"):
    """Evaluations of one study that travel in one message."""

    spec: StudySpec
    evaluations: Annotated[tuple[Evaluation, ...], Meta(max_length=MOST_IN_BATCH)]
    version: int = SCHEMA_VERSION


class ResultBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="results"):
    """Results of one study that travel in one message."""

    study: Name
    results: Annotated[tuple[EvaluationResult, ...], Meta(max_length=MOST_IN_BATCH)]
    version: int = SCHEMA_VERSION

    def as_of(self, version: int) -> "ResultBatch":
        """The same for who reads up to `version`: what came later is left out."""
        if version >= SCHEMA_VERSION:
            return self
        known = tuple(msgspec.structs.replace(result, slot=None, started_at=None) for result in self.results)
        return ResultBatch(self.study, known, version)


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="heartbeat"):
    """A worker says that it lives, what it can do, and what it holds."""

    worker: Name
    slots: Slots
    busy: Slots
    #: Seconds after which the next one is due.
    interval_seconds: Annotated[float, Meta(ge=0, le=3600)]
    #: Every evaluation it holds unanswered.
    held: Annotated[tuple[HeldKey, ...], Meta(max_length=MOST_HELD)] = ()
    #: Those of them that RabbitMQ knows nothing of any more, because they outlived what it grants a delivery.
    leased: Annotated[tuple[HeldKey, ...], Meta(max_length=MOST_HELD)] = ()
    #: Whether it takes no new work because it is about to leave; the last heartbeat has slots = 0.
    draining: bool = False
    #: Busy and available slot-seconds since the worker started.
    busy_slot_seconds: Seconds = 0.0
    available_slot_seconds: Seconds = 0.0
    #: Proportional set size of the worker and its slots, in bytes.
    pss_bytes: Count = 0
    #: host:port where the worker serves metrics; empty when it does not.
    metrics_address: Annotated[str, Meta(max_length=300)] = ""
    #: That of its form, which is the same in 2: a coordinator of version 1 hears newer workers.
    version: int = 1


Message = EvaluationBatch | ResultBatch | Heartbeat
