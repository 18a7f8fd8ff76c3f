"""Every metric's name, kind, labels, buckets and help, as data; adapters turn them into Prometheus series.

Names follow Prometheus: base units, `_total` on counters (left out here, as clients add it). Labels are bounded: a
study's name, its mode, a rung, an outcome; never a trial's number, params, or a machine's name. Series of a study go some
minutes after its end. A worker carries no label for itself, because Prometheus adds `instance`.

The coordinator's figures are exact: each evaluation counts once. The workers' count work, which may be done twice. Only
parents count: a slot's process may be killed at any moment, so what it measures travels with its result.
"""

from typing import Literal, NamedTuple


class Instrument(NamedTuple):
    """One metric."""

    #: Name, of a counter without its `_total`.
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    #: Names of the labels; `LABELS` explains them.
    labels: tuple[str, ...] = ()
    #: Upper limits of a histogram's buckets, +Inf left out.
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> str:
        """The name as PromQL has it; of a histogram, what `_bucket`, `_sum` and `_count` are added to."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def one_two_five(lowest: int, highest: int) -> tuple[float, ...]:
    """1, 2 and 5 times each power of ten from 10**lowest on, ending with 10**highest."""
    steps = [step * 10.0**power for power in range(lowest, highest) for step in (1, 2, 5)]
    return (*steps, 10.0**highest)


#: An evaluation, or the wait for one: 10 milliseconds to nearly three hours.
EVALUATION_BUCKETS = one_two_five(-2, 4)
#: The coordinator's own work: a tenth of a millisecond to ten seconds.
WORK_BUCKETS = one_two_five(-4, 1)
#: An import of data: a tenth of a second to nearly three hours.
IMPORT_BUCKETS = one_two_five(-1, 4)
#: Evaluations of one message.
BATCH_BUCKETS = one_two_five(0, 3)

#: What a label says, and its values where they are always the same ones.
LABELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "study": ("The study's name.", ()),
    "mode": (
        "The study's mode; `custom` for one of the Python API that is run in its own process, `balanced` at a coordinator.",
        ("fast", "balanced", "thorough", "custom"),
    ),
    "direction": ("Which values are good.", ("minimize", "maximize")),
    "rung": ("Index of the rung; 0 is the lowest.", ()),
    "outcome": (
        "How an evaluation ended.",
        ("ok", "pruned", "error", "timeout", "memory", "crash", "refused"),
    ),
    "state": ("A state: of trials, of studies, or of workers.", ()),
    "result": ("Whether the cache had it.", ("hit", "miss")),
    "operation": ("What the sampler was asked.", ("ask", "tell")),
    "source": ("What saved the CPU seconds.", ("pruning", "subsampling", "caching")),
    "reason": ("Why.", ()),
    "queue": ("The queue, as RabbitMQ names it.", ("trialfleet.v1.evaluations", "trialfleet.v1.dead")),
    "version": ("Version of trialfleet.", ()),
    "python": ("Version of Python.", ()),
}

#: Values of labels that differ between metrics, by name of the label and of the metric.
DISCARD_REASONS = ("duplicate", "late", "unknown")
RESTART_REASONS = ("timeout", "memory", "crash", "zygote")

# Of both.

BUILD_INFO = Instrument("trialfleet_build_info", "gauge", "1; the labels tell what is running.", ("version", "python"))

# Of the coordinator, study by study.

STUDY_INFO = Instrument(
    "trialfleet_study_info", "gauge", "1 for each study that runs, or ended lately.", ("study", "mode", "direction")
)
TRIALS_STARTED = Instrument("trialfleet_trials_started", "counter", "Trials started.", ("study",))
TRIALS = Instrument("trialfleet_trials", "counter", "Trials decided, by the state they were given.", ("study", "state"))
STUDY_TRIALS = Instrument(
    "trialfleet_study_trials",
    "gauge",
    "Trials of the study over all its sessions, by state; undecided ones are evaluated, or wait for a promotion.",
    ("study", "state"),
)
TRIALS_TARGET = Instrument("trialfleet_study_trials_target", "gauge", "Trials of the study's budget.", ("study",))
BEST_VALUE = Instrument("trialfleet_study_best_value", "gauge", "Best value so far.", ("study",))
BEST_TIMESTAMP = Instrument(
    "trialfleet_study_best_timestamp_seconds",
    "gauge",
    "When the best value became what it is, or when the study was taken up with it, in Unix time.",
    ("study",),
)
ELAPSED = Instrument(
    "trialfleet_study_elapsed_seconds", "gauge", "Seconds that the study has run, over all its sessions.", ("study",)
)
SLOTS = Instrument("trialfleet_study_slots", "gauge", "Slots that the study may use.", ("study",))
EVALUATIONS = Instrument(
    "trialfleet_evaluations",
    "counter",
    "Evaluations answered, those by a result cache among them.",
    ("study", "rung", "outcome"),
)
CACHED_EVALUATIONS = Instrument(
    "trialfleet_cached_evaluations", "counter", "Evaluations answered by a result cache.", ("study", "rung")
)
EVALUATION_SECONDS = Instrument(
    "trialfleet_evaluation_seconds",
    "histogram",
    "Seconds that an evaluation ran, where it ran; cached ones left out.",
    ("study", "rung"),
    EVALUATION_BUCKETS,
)
QUEUE_WAIT = Instrument(
    "trialfleet_queue_wait_seconds",
    "histogram",
    "Seconds between an evaluation's start on its way and the arrival of its result in which it did not run.",
    ("study",),
    EVALUATION_BUCKETS,
)
BATCH_SIZE = Instrument(
    "trialfleet_batch_size", "histogram", "Evaluations handed to the fleet at once.", ("study",), BATCH_BUCKETS
)
IN_FLIGHT = Instrument(
    "trialfleet_evaluations_in_flight", "gauge", "Evaluations published and not answered.", ("study",)
)
RETRIES = Instrument("trialfleet_evaluation_retries", "counter", "Evaluations published again.", ("study",))
LOST = Instrument(
    "trialfleet_evaluations_lost", "counter", "Evaluations given up because whoever held them is gone.", ("study",)
)
DISCARDED = Instrument(
    "trialfleet_results_discarded",
    "counter",
    "Results that changed nothing: second copies, answers that came late, answers to nothing that was asked.",
    ("study", "reason"),
)
REDELIVERIES = Instrument(
    "trialfleet_messages_redelivered", "counter", "Messages with results delivered again.", ("study",)
)
RECONNECTS = Instrument("trialfleet_broker_reconnects", "counter", "Connections made after one was lost.", ("study",))
DEAD_LETTERS = Instrument(
    "trialfleet_dead_letters", "counter", "Messages that could not be read, sent to the dead letters.", ("study",)
)
SPENT_CPU = Instrument(
    "trialfleet_spent_cpu_seconds", "counter", "CPU seconds of the evaluations that ran.", ("study",)
)
BASELINE_CPU = Instrument(
    "trialfleet_baseline_cpu_seconds",
    "counter",
    "Estimate: CPU seconds of the same trials on all rows and all folds, without a cache.",
    ("study",),
)
SAVED_CPU = Instrument(
    "trialfleet_saved_cpu_seconds",
    "counter",
    "Estimate: CPU seconds saved; the baseline is what was spent and what was saved.",
    ("study", "source"),
)
SAMPLER_SECONDS = Instrument(
    "trialfleet_sampler_seconds",
    "histogram",
    "Seconds that the sampler took to draw trials (ask) or to learn (tell).",
    ("study", "operation"),
    WORK_BUCKETS,
)
COMMIT_SECONDS = Instrument(
    "trialfleet_commit_seconds",
    "histogram",
    "Seconds that one transaction of the study's store took.",
    ("study",),
    WORK_BUCKETS,
)
COMMITTED_RECORDS = Instrument(
    "trialfleet_committed_records", "counter", "Records written to the study's store.", ("study",)
)
RESULT_CACHE_REQUESTS = Instrument(
    "trialfleet_result_cache_requests", "counter", "Evaluations looked up in the result cache.", ("study", "result")
)

# Of the coordinator as a whole.

STUDIES = Instrument("trialfleet_studies", "gauge", "Studies of this coordinator.", ("state",))
WORKERS = Instrument("trialfleet_workers", "gauge", "Workers heard of within the last minutes.", ("state",))
FLEET_SLOTS = Instrument("trialfleet_fleet_slots", "gauge", "Slots of the live workers.")
FLEET_SLOTS_BUSY = Instrument("trialfleet_fleet_slots_busy", "gauge", "Slots of the live workers that are evaluating.")
QUEUE_MESSAGES = Instrument(
    "trialfleet_queue_messages",
    "gauge",
    "Messages that wait with the broker: work that no worker has taken, dead letters.",
    ("queue",),
)
RESULT_CACHE_EVICTIONS = Instrument(
    "trialfleet_result_cache_evictions", "counter", "Results removed from the cache to keep within its size."
)
RESULT_CACHE_FAILURES = Instrument(
    "trialfleet_result_cache_failures",
    "counter",
    "Results that the cache could not keep or read, because the disk was full or failed, or they were damaged.",
)
RESULT_CACHE_BYTES = Instrument("trialfleet_result_cache_bytes", "gauge", "Bytes of the result cache that are in use.")
RESULT_CACHE_ENTRIES = Instrument("trialfleet_result_cache_entries", "gauge", "Results in the cache.")
DATA_CACHE_REQUESTS = Instrument(
    "trialfleet_data_cache_requests", "counter", "Studies that asked the data cache for their data.", ("result",)
)
DATA_CACHE_BYTES = Instrument("trialfleet_data_cache_bytes", "gauge", "Bytes of the imported data sets.")
DATA_IMPORT_SECONDS = Instrument(
    "trialfleet_data_import_seconds", "histogram", "Seconds that an import of data took.", (), IMPORT_BUCKETS
)
DATA_IMPORTED_BYTES = Instrument("trialfleet_data_imported_bytes", "counter", "Bytes of data imported.")
COORDINATOR_PSS = Instrument(
    "trialfleet_coordinator_pss_bytes", "gauge", "Proportional set size of the coordinator's own process."
)

# Of a worker; a study evaluated on its coordinator's machine alone has one within that process.

WORKER_SLOTS = Instrument("trialfleet_worker_slots", "gauge", "Slots of this worker.")
WORKER_BUSY = Instrument("trialfleet_worker_slots_busy", "gauge", "Slots that are evaluating.")
WORKER_BUSY_SECONDS = Instrument(
    "trialfleet_worker_busy_slot_seconds", "counter", "Seconds that slots spent evaluating, up to the scrape."
)
WORKER_AVAILABLE_SECONDS = Instrument(
    "trialfleet_worker_available_slot_seconds", "counter", "Seconds that slots were there, up to the scrape."
)
WORKER_QUEUED = Instrument(
    "trialfleet_worker_evaluations_queued", "gauge", "Evaluations that this worker holds and that wait for a slot."
)
WORKER_EVALUATIONS = Instrument(
    "trialfleet_worker_evaluations",
    "counter",
    "Evaluations that this worker answered, those by its result cache among them.",
    ("rung", "outcome"),
)
WORKER_EVALUATION_SECONDS = Instrument(
    "trialfleet_worker_evaluation_seconds",
    "histogram",
    "Seconds that an evaluation ran; cached ones left out.",
    ("rung",),
    EVALUATION_BUCKETS,
)
WORKER_CPU = Instrument(
    "trialfleet_worker_evaluation_cpu_seconds", "counter", "CPU seconds of the evaluations that ran.", ("rung",)
)
WORKER_RESTARTS = Instrument(
    "trialfleet_worker_slot_restarts", "counter", "Slots that were ended early, or died.", ("reason",)
)
WORKER_DRAINING = Instrument("trialfleet_worker_draining", "gauge", "1 while the worker takes up nothing new.")
WORKER_RESULT_CACHE_REQUESTS = Instrument(
    "trialfleet_worker_result_cache_requests",
    "counter",
    "Evaluations looked up in this worker's result cache.",
    ("result",),
)
WORKER_RESULT_CACHE_EVICTIONS = Instrument(
    "trialfleet_worker_result_cache_evictions",
    "counter",
    "Results that this worker removed from the cache to keep within its size.",
)
WORKER_RESULT_CACHE_FAILURES = Instrument(
    "trialfleet_worker_result_cache_failures",
    "counter",
    "Results that this worker's cache could not keep or read, because the disk was full or failed, or they were damaged.",
)
WORKER_RESULT_CACHE_BYTES = Instrument(
    "trialfleet_worker_result_cache_bytes", "gauge", "Bytes of the result cache that are in use."
)
WORKER_RESULT_CACHE_ENTRIES = Instrument("trialfleet_worker_result_cache_entries", "gauge", "Results in the cache.")
WORKER_DATA_CACHE_REQUESTS = Instrument(
    "trialfleet_worker_data_cache_requests", "counter", "Batches that asked the data cache for their data.", ("result",)
)
WORKER_DATA_CACHE_BYTES = Instrument(
    "trialfleet_worker_data_cache_bytes", "gauge", "Bytes of the imported data sets on this host."
)
WORKER_DATA_IMPORT_SECONDS = Instrument(
    "trialfleet_worker_data_import_seconds", "histogram", "Seconds that an import of data took.", (), IMPORT_BUCKETS
)
WORKER_DATA_IMPORTED_BYTES = Instrument(
    "trialfleet_worker_data_imported_bytes", "counter", "Bytes of data that this worker imported."
)
WORKER_PSS = Instrument("trialfleet_worker_pss_bytes", "gauge", "Proportional set size of the worker and its slots.")
WORKER_RECONNECTS = Instrument(
    "trialfleet_worker_broker_reconnects", "counter", "Times that the broker was back after it had been away."
)
WORKER_REDELIVERIES = Instrument(
    "trialfleet_worker_messages_redelivered",
    "counter",
    "Batches that were delivered before, to this worker or another.",
)
WORKER_DEAD_LETTERS = Instrument(
    "trialfleet_worker_dead_letters", "counter", "Messages that could not be read, sent to the dead letters."
)

#: What is told of each study, by the coordinator.
OF_STUDIES = (
    STUDY_INFO,
    TRIALS_STARTED,
    TRIALS,
    STUDY_TRIALS,
    TRIALS_TARGET,
    BEST_VALUE,
    BEST_TIMESTAMP,
    ELAPSED,
    SLOTS,
    EVALUATIONS,
    CACHED_EVALUATIONS,
    EVALUATION_SECONDS,
    QUEUE_WAIT,
    BATCH_SIZE,
    IN_FLIGHT,
    RETRIES,
    LOST,
    DISCARDED,
    REDELIVERIES,
    RECONNECTS,
    DEAD_LETTERS,
    SPENT_CPU,
    BASELINE_CPU,
    SAVED_CPU,
    SAMPLER_SECONDS,
    COMMIT_SECONDS,
    COMMITTED_RECORDS,
    RESULT_CACHE_REQUESTS,
)
#: What a coordinator tells of itself, beside `BUILD_INFO`.
OF_THE_COORDINATOR = (
    STUDIES,
    WORKERS,
    FLEET_SLOTS,
    FLEET_SLOTS_BUSY,
    QUEUE_MESSAGES,
    RESULT_CACHE_EVICTIONS,
    RESULT_CACHE_FAILURES,
    RESULT_CACHE_BYTES,
    RESULT_CACHE_ENTRIES,
    DATA_CACHE_REQUESTS,
    DATA_CACHE_BYTES,
    DATA_IMPORT_SECONDS,
    DATA_IMPORTED_BYTES,
    COORDINATOR_PSS,
)
#: What a worker tells, beside `BUILD_INFO`.
OF_WORKERS = (
    WORKER_SLOTS,
    WORKER_BUSY,
    WORKER_BUSY_SECONDS,
    WORKER_AVAILABLE_SECONDS,
    WORKER_QUEUED,
    WORKER_EVALUATIONS,
    WORKER_EVALUATION_SECONDS,
    WORKER_CPU,
    WORKER_RESTARTS,
    WORKER_DRAINING,
    WORKER_RESULT_CACHE_REQUESTS,
    WORKER_RESULT_CACHE_EVICTIONS,
    WORKER_RESULT_CACHE_FAILURES,
    WORKER_RESULT_CACHE_BYTES,
    WORKER_RESULT_CACHE_ENTRIES,
    WORKER_DATA_CACHE_REQUESTS,
    WORKER_DATA_CACHE_BYTES,
    WORKER_DATA_IMPORT_SECONDS,
    WORKER_DATA_IMPORTED_BYTES,
    WORKER_PSS,
    WORKER_RECONNECTS,
    WORKER_REDELIVERIES,
    WORKER_DEAD_LETTERS,
)
