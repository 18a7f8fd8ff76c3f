"""What the client refuses before it speaks to anybody, and how long it waits for a coordinator that is away."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from support.fake_workshop import a_status
from support.simulated import SimulatedClock

from trialfleet.client import AWAY_SECONDS, AsyncClient, Client, NoCoordinatorError
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission
from trialfleet_shared.errors import ConfigurationError

NO_TEXT = "caf\udce9"


@pytest.mark.parametrize("url", ["http://host?x=1", "http://host/#part", "http://host:0", "http://host:65536"])
def test_an_address_with_more_than_host_port_and_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://host:port"):
        Client(url, token=None)


@pytest.mark.parametrize("url", ["http://host", "https://host:8443/behind/a/proxy/", "http://[::1]:65535"])
def test_an_address_is_taken(url: str) -> None:
    Client(url, token=None).close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.status(NO_TEXT),
        lambda client: client.delete(NO_TEXT),
        lambda client: client.submit(Submission(tables={}, base="/", name=NO_TEXT)),
        lambda client: client.submit(Submission(tables={"study": {"name": NO_TEXT}}, base="/")),
    ],
)
def test_what_is_no_unicode_is_refused_by_name(ask: Callable[[Client], object]) -> None:
    """As the shell hands on bytes that are not UTF-8."""
    with Client("http://127.0.0.1:1", token=None) as client, pytest.raises(ConfigurationError, match=r"caf\\udce9"):
        ask(client)


RUNNING, DONE = (a_status("a", state) for state in (ServiceState.RUNNING, ServiceState.DONE))


#: What a look finds, and the seconds that it takes; None: the coordinator is away.
Look = tuple[StudyStatus | None, float]


def found(looks: Iterator[Look], clock: SimulatedClock) -> StudyStatus:
    status, seconds = next(looks)
    clock.now += seconds
    if status is None:
        raise NoCoordinatorError("nobody answers")
    return status


class Watching(Client):
    """Finds what it was told to."""

    def __init__(self, looks: Iterator[Look]) -> None:
        self._looks, self._time = looks, SimulatedClock()
        super().__init__("http://127.0.0.1:1", token=None, clock=self._time)

    def status(self, study: str) -> StudyStatus:
        return found(self._looks, self._time)


class WatchingAsync(AsyncClient):
    """As `Watching`."""

    def __init__(self, looks: Iterator[Look]) -> None:
        self._looks, self._time = looks, SimulatedClock()
        super().__init__("http://127.0.0.1:1", token=None, clock=self._time)

    async def status(self, study: str) -> StudyStatus:
        return found(self._looks, self._time)


def watched(*looks: Look) -> list[StudyStatus]:
    with Watching(iter(looks)) as client:
        return list(client.watch("a", sleep=lambda _: None))


def watched_async(*looks: Look) -> list[StudyStatus]:
    async def watch() -> list[StudyStatus]:
        async with WatchingAsync(iter(looks)) as client:
            return [status async for status in client.watch("a")]

    return asyncio.run(watch())


@pytest.mark.parametrize("watch", [watched, watched_async])
def test_a_coordinator_that_goes_away_is_waited_for(
    watch: Callable[..., list[StudyStatus]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a minute from the first look in vain on, however long each takes."""
    monkeypatch.setattr("trialfleet.client.WATCH_SECONDS", 0.0)
    silent: Look = None, 30.0
    away = silent, (None, AWAY_SECONDS / 2), (None, AWAY_SECONDS / 2)
    running, done = (RUNNING, 1.0), (DONE, 1.0)
    assert watch(running, *away, running, *away, done) == [RUNNING, RUNNING, DONE]
    for lost in ((silent, done), (running, *away, (None, 0.1), done)):
        with pytest.raises(NoCoordinatorError):
            watch(*lost)
