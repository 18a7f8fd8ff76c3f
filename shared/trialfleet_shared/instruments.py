"""Metric names, labels and help as data; adapters turn them into Prometheus series.

Names follow Prometheus: base units, `_total` on counters. Labels are bounded: a study's name, a state, an outcome;
never a trial's number or params. A worker carries no label for itself, because Prometheus adds `instance`.
"""

from typing import Literal, NamedTuple


class Instrument(NamedTuple):
    """One metric."""

    #: Name without the `_total` that Prometheus clients add to counters.
    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


TRIALS = Instrument("trialfleet_trials", "counter", "Trials decided.", ("study", "state"))
EVALUATIONS = Instrument("trialfleet_evaluations", "counter", "Evaluations answered, by whom.", ("study", "source"))
IN_FLIGHT = Instrument("trialfleet_evaluations_in_flight", "gauge", "Evaluations published, not answered.", ("study",))
TRIALS_TARGET = Instrument("trialfleet_study_trials_target", "gauge", "Trials of the study's budget.", ("study",))
BEST_VALUE = Instrument("trialfleet_study_best_value", "gauge", "Best value so far.", ("study",))
ELAPSED = Instrument("trialfleet_study_elapsed_seconds", "gauge", "Seconds that the study has run.", ("study",))
SLOTS = Instrument("trialfleet_slots", "gauge", "Slots of the fleet.", ("study",))

WORKER_SLOTS = Instrument("trialfleet_worker_slots", "gauge", "Slots of this worker.")
WORKER_BUSY = Instrument("trialfleet_worker_slots_busy", "gauge", "Slots that are evaluating.")
WORKER_BUSY_SECONDS = Instrument(
    "trialfleet_worker_busy_slot_seconds", "counter", "Seconds that slots spent evaluating."
)
WORKER_AVAILABLE_SECONDS = Instrument(
    "trialfleet_worker_available_slot_seconds", "counter", "Seconds that slots were there."
)
WORKER_PSS = Instrument("trialfleet_worker_pss_bytes", "gauge", "Proportional set size of the worker and its slots.")
