"""A coordinator's HTTP side on a daemon whose studies do nothing, served on a real port."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge

from support.fake_workshop import FakeWatch, FakeWorkshop, MemoryRoster
from support.simulated import SimulatedClock
from trialfleet_coordinator.adapters.http.application import application
from trialfleet_coordinator.adapters.http.server import ServerTls, served
from trialfleet_coordinator.daemon import Daemon, Workshop

TOKEN = "a token that nobody guesses".replace(" ", "-")


class HttpService:
    """What is served, and where.

    Args:
        workshop: in place of a fake one.
    """

    def __init__(self, workshop: Workshop | None = None) -> None:
        self.clock = SimulatedClock()
        self.workshop, self.watch = FakeWorkshop(), FakeWatch(4)
        self.daemon = Daemon(workshop or self.workshop, self.watch, MemoryRoster(), self.clock, most_running=4)
        registry = CollectorRegistry()
        Gauge("trialfleet_test", "For tests.", registry=registry).set(7)
        self.application = application(self.daemon, token=TOKEN, registry=registry, clock=self.clock)
        self.url = ""


@contextmanager
def http_service(workshop: Workshop | None = None, tls: ServerTls | None = None) -> Iterator[HttpService]:
    """Serve it while entered."""
    service = HttpService(workshop)
    with served(service.application, "127.0.0.1", 0, tls) as service.url:
        try:
            yield service
        finally:
            service.daemon.close()
