"""What the client refuses before it speaks to anybody."""

from collections.abc import Callable

import pytest

from trialfleet.client import Client
from trialfleet_coordinator.serving import Submission
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
