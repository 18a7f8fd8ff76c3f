"""The metrics' names, kinds, labels and buckets, and what Prometheus' own checker says of a real exposition."""

import shutil
import subprocess

import pytest
from prometheus_client import generate_latest
from support.exposition import EVERYTHING, busy_coordinator, busy_worker

from trialfleet.metrics import metrics_registry
from trialfleet_shared import instruments
from trialfleet_shared.adapters.prometheus import Histogram
from trialfleet_shared.adapters.rabbit import DEAD, EVALUATIONS
from trialfleet_shared.instruments import Instrument, one_two_five
from trialfleet_shared.messages import Outcome


def test_every_instrument_is_listed_once() -> None:
    named = [value for value in vars(instruments).values() if isinstance(value, Instrument)]
    assert sorted(named) == sorted(EVERYTHING)
    assert len({instrument.name for instrument in EVERYTHING}) == len(EVERYTHING)


@pytest.mark.parametrize("instrument", EVERYTHING, ids=lambda instrument: instrument.name)
def test_an_instrument_is_whole(instrument: Instrument) -> None:
    assert instrument.name.startswith("trialfleet_")
    assert not instrument.name.endswith("_total")
    assert instrument.help.endswith(".")
    assert set(instrument.labels) <= set(instruments.LABELS)
    assert (instrument.kind == "histogram") == bool(instrument.buckets)
    assert sorted(instrument.buckets) == list(instrument.buckets)


def test_label_values_are_those_of_the_code() -> None:
    assert instruments.LABELS["outcome"][1] == tuple(Outcome)
    assert instruments.LABELS["queue"][1] == (EVALUATIONS, DEAD)


def test_buckets_go_by_one_two_five() -> None:
    assert one_two_five(-2, 1) == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def test_a_value_at_a_limit_belongs_to_its_bucket() -> None:
    histogram = Histogram(Instrument("h", "histogram", "H.", (), (1.0, 2.0)))
    for value in (0.5, 1.0, 1.5, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.read() == ((2, 2, 1), 7.1)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
def test_prometheus_finds_nothing_to_object_to() -> None:
    exposition = generate_latest(metrics_registry([busy_coordinator(), busy_worker(alone=False)])).decode()
    for instrument in EVERYTHING:
        assert f"# TYPE {instrument.series} {instrument.kind}" in exposition
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
