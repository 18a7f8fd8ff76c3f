"""A running study as Prometheus metrics: a collector that reads the latest progress; the core counts for itself."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.report import Progress
from trialfleet_shared import instruments
from trialfleet_shared.instruments import Instrument


class ProgressCollector(Collector):
    """Serves the last `Progress` it was given; `update` may be called from any thread."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Serve `progress` from now on."""
        # One reference is replaced by another, and Progress is frozen: a scrape sees the one or the other, whole.
        self._progress = progress

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Every series of the study, from its first scrape on, so that rates miss no first increment."""
        progress = self._progress
        if progress is None:
            return
        study = progress.study
        trials = _counter(instruments.TRIALS)
        for state, count in (
            (TrialState.COMPLETE, progress.complete),
            (TrialState.PRUNED, progress.pruned),
            (TrialState.FAIL, progress.failed),
        ):
            trials.add_metric([study, state.value], count)
        yield trials
        for instrument, value in (
            (instruments.IN_FLIGHT, progress.in_flight),
            (instruments.TRIALS_TARGET, progress.trials_budget),
            (instruments.BEST_VALUE, progress.best_value),
            (instruments.ELAPSED, progress.elapsed_seconds),
            (instruments.SLOTS, progress.slots),
        ):
            if value is not None:
                gauge = GaugeMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
                gauge.add_metric([study], value)
                yield gauge


def _counter(instrument: Instrument) -> CounterMetricFamily:
    return CounterMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
