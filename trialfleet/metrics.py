"""Serves metrics to Prometheus, on this machine only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

from trialfleet_shared.errors import ConfigurationError


def metrics_registry(collectors: Sequence[Collector]) -> CollectorRegistry:
    """What the collectors give, and the figures of this process (CPU seconds, resident memory, open files)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry


@contextmanager
def metrics_served(collectors: Sequence[Collector], port: int | None) -> Iterator[None]:
    """Serve what the collectors give at http://127.0.0.1:`port`/metrics; without a port, nothing.

    Raises:
        ConfigurationError: the port can not be listened on.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=metrics_registry(collectors))
    except OSError as error:
        raise ConfigurationError(f"--metrics-port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
