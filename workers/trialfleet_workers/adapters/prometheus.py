"""A worker as Prometheus metrics: a collector that serves what the last heartbeat said."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from trialfleet_shared import instruments
from trialfleet_shared.messages import Heartbeat


class HeartbeatCollector(Collector):
    """Serves the figures of the last heartbeat it was given; `update` may be called from any thread."""

    def __init__(self) -> None:
        self._heartbeat: Heartbeat | None = None

    def update(self, heartbeat: Heartbeat) -> None:
        """Serve `heartbeat` from now on."""
        # One frozen value is replaced by another: a scrape, on a thread of its own, sees the one or the other.
        self._heartbeat = heartbeat

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Every series of the worker."""
        heartbeat = self._heartbeat
        if heartbeat is None:
            return
        for instrument, value in (
            (instruments.WORKER_SLOTS, heartbeat.slots),
            (instruments.WORKER_BUSY, heartbeat.busy),
            (instruments.WORKER_PSS, heartbeat.pss_bytes),
        ):
            yield GaugeMetricFamily(instrument.name, instrument.help, value=value)
        for instrument, seconds in (
            (instruments.WORKER_BUSY_SECONDS, heartbeat.busy_slot_seconds),
            (instruments.WORKER_AVAILABLE_SECONDS, heartbeat.available_slot_seconds),
        ):
            yield CounterMetricFamily(instrument.name, instrument.help, value=seconds)
