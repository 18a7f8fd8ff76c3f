"""Serves metrics to Prometheus: on this machine only, unless told otherwise."""

import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, ProcessCollector, make_asgi_app
from prometheus_client.registry import Collector

from trialfleet_coordinator.adapters.http.server import served
from trialfleet_coordinator.adapters.prometheus import FleetMetrics
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError
from trialfleet_workers import linux
from trialfleet_workers.adapters.data_format import cache_bytes
from trialfleet_workers.adapters.prometheus import WorkerMetrics

#: Where metrics are served that are for this machine only.
THIS_MACHINE = "127.0.0.1"


def metrics_registry(collectors: Sequence[Collector]) -> CollectorRegistry:
    """What the collectors give, and the figures of this process (CPU seconds, resident memory, open files)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry


def coordinator_metrics(data: Path) -> FleetMetrics:
    """Metrics of a coordinator whose data cache is at `data`."""
    metrics = FleetMetrics(SystemClock(), memory=partial(linux.pss_bytes, os.getpid()))
    metrics.watch_data(partial(cache_bytes, data))
    return metrics


def worker_metrics(data: Path, *, alone: bool) -> WorkerMetrics:
    """Metrics of slots whose data cache is at `data`; `alone` as of `WorkerMetrics`."""
    return WorkerMetrics(SystemClock(), data_bytes=partial(cache_bytes, data), alone=alone)


@contextmanager
def metrics_served(collectors: Sequence[Collector], port: int | None, *, host: str = THIS_MACHINE) -> Iterator[None]:
    """Serve what the collectors give at http://`host`:`port`/metrics; without a port, nothing.

    Raises:
        ConfigurationError: the address can not be listened on.
    """
    if port is None:
        yield
        return
    with ExitStack() as stack:
        try:
            # As the coordinator's own, it bears those who say nothing: the slots need the process's files.
            stack.enter_context(served(make_asgi_app(metrics_registry(collectors)), host, port))
        except ConfigurationError as error:
            where = "" if host == THIS_MACHINE else f" at {host}"
            reason = getattr(error.__cause__, "strerror", None) or error.__cause__
            raise ConfigurationError(f"--metrics-port {port}{where}: {reason}") from error
        yield


def metrics_address(host: str, port: int, broker_url: str) -> str:
    """host:port at which Prometheus reaches what is served at `host`.

    What listens on every address of this machine is best reached at the one from which the broker is. Empty when no way leads
    to the broker.
    """
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False  # a name
    if everywhere:
        host = _address_towards(broker_url)
    if not host:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address_towards(broker_url: str) -> str:
    """This machine's address as the broker sees it, as far as nobody between them translates it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            urlsplit(broker_url).hostname,
            9,
            type=socket.SOCK_DGRAM,  # any port: nothing is sent
        )[0]
        with socket.socket(family, kind) as way:
            way.connect(address)
            return str(way.getsockname()[0])
    except (OSError, ValueError):
        return ""
