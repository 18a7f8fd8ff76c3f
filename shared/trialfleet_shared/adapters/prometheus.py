"""Instruments and their figures as Prometheus metric families."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from platform import python_version
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from trialfleet_shared import instruments
from trialfleet_shared.instruments import Instrument

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Distribution(NamedTuple):
    """A histogram at one moment."""

    #: Values in each bucket alone, +Inf last.
    counts: tuple[int, ...]
    sum: float


class Histogram:
    """Counts values by bucket; not safe among threads."""

    __slots__ = ("_counts", "_limits", "_sum")

    def __init__(self, instrument: Instrument) -> None:
        self._limits = instrument.buckets
        self._counts = [0] * (len(self._limits) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; a bucket's limit belongs to it."""
        self._counts[bisect_left(self._limits, value)] += 1
        self._sum += value

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(tuple(self._counts), self._sum)


class Sample(NamedTuple):
    """One figure."""

    instrument: Instrument
    #: A value for each of the instrument's labels.
    labels: tuple[str, ...]
    value: float | Distribution


def families(samples: Iterable[Sample]) -> Iterator[Family]:
    """The samples as families, one for each instrument, in the order in which the instruments come first."""
    made: dict[Instrument, Family] = {}
    for instrument, labels, value in samples:
        family = made.get(instrument)
        if family is None:
            family = made[instrument] = _family(instrument)
        if isinstance(family, HistogramMetricFamily):
            assert isinstance(value, Distribution)
            limits = [*map(floatToGoString, instrument.buckets), "+Inf"]
            buckets = list(zip(limits, map(float, accumulate(value.counts)), strict=True))
            family.add_metric(labels, buckets, value.sum)
        else:
            assert not isinstance(value, Distribution)
            family.add_metric(labels, value)
    yield from made.values()


def _family(instrument: Instrument) -> Family:
    match instrument.kind:
        case "counter":
            return CounterMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
        case "gauge":
            return GaugeMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
        case "histogram":
            return HistogramMetricFamily(instrument.name, instrument.help, labels=instrument.labels)


def build_info(version: str) -> Sample:
    """Which trialfleet runs, on which Python."""
    return Sample(instruments.BUILD_INFO, (version, python_version()), 1)
