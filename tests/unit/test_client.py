"""What the client refuses before it speaks to anybody, and how long it waits for a coordinator that is away."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from support.fake_workshop import a_status

from trialfleet.client import MISSED_LOOKS, AsyncClient, Client, NoCoordinatorError
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


def looks(*times: tuple[int, StudyStatus | None]) -> Iterator[StudyStatus | None]:
    """What looks find, so many times each; None: the coordinator is away."""
    for count, status in times:
        yield from [status] * count


def found(look: Iterator[StudyStatus | None]) -> StudyStatus:
    status = next(look)
    if status is None:
        raise NoCoordinatorError("nobody answers")
    return status


class Watching(Client):
    """Finds what it was told to."""

    def __init__(self, look: Iterator[StudyStatus | None]) -> None:
        super().__init__("http://127.0.0.1:1", token=None)
        self._look = look

    def status(self, study: str) -> StudyStatus:
        return found(self._look)


class WatchingAsync(AsyncClient):
    """As `Watching`."""

    def __init__(self, look: Iterator[StudyStatus | None]) -> None:
        super().__init__("http://127.0.0.1:1", token=None)
        self._look = look

    async def status(self, study: str) -> StudyStatus:
        return found(self._look)


def watched(look: Iterator[StudyStatus | None]) -> Iterator[StudyStatus]:
    with Watching(look) as client:
        yield from client.watch("a", sleep=lambda _: None)


def watched_async(look: Iterator[StudyStatus | None]) -> Iterator[StudyStatus]:
    async def watch() -> list[StudyStatus]:
        async with WatchingAsync(look) as client:
            return [status async for status in client.watch("a")]

    yield from asyncio.run(watch())


@pytest.mark.parametrize("watch", [watched, watched_async])
def test_a_coordinator_that_goes_away_is_waited_for(
    watch: Callable[[Iterator[StudyStatus | None]], Iterator[StudyStatus]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trialfleet.client.WATCH_SECONDS", 0.0)
    away = MISSED_LOOKS, None
    assert [*watch(looks((1, RUNNING), away, (1, RUNNING), away, (1, DONE)))] == [RUNNING, RUNNING, DONE]
    for lost in (looks((1, None), (1, DONE)), looks((1, RUNNING), (MISSED_LOOKS + 1, None), (1, DONE))):
        with pytest.raises(NoCoordinatorError):
            list(watch(lost))
