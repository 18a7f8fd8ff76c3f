"""Serves metrics to Prometheus, on this machine only."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from trialfleet_shared.errors import ConfigurationError


@contextmanager
def metrics_served(collector: Collector, port: int | None) -> Iterator[None]:
    """Serve what `collector` gives at http://127.0.0.1:`port`/metrics; without a port, nothing.

    Raises:
        ConfigurationError: the port can not be listened on.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigurationError(f"--metrics-port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
