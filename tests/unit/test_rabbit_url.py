import logging
import socket
import traceback

import pytest

from trialfleet_shared.adapters.rabbit import connect, redact, results_queue
from trialfleet_shared.errors import BrokerError, ConfigurationError

SECRET = "s3cr%40t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://localhost", "amqp://localhost"),
        ("amqp://user@host/vhost", "amqp://user:***@host/vhost"),
        (f"amqp://user:{SECRET}@host:5672/%2F", "amqp://user:***@host:5672/%2F"),
        (f"amqps://user:{SECRET}@host:5671", "amqps://user:***@host:5671"),
        (f"amqp://user:a@b{SECRET}@host/", "amqp://user:***@host/"),
        (f"amqps://user:{SECRET}@host/v?ssl_options=%7B%22password%22%3A%22x%22%7D", "amqps://user:***@host/v"),
        (f"amqps://host/v?password={SECRET}", "amqps://host/v"),
        (f"//user:{SECRET}@host", "//user:***@host"),
        (f"user:{SECRET}@host", "user:***@host"),
        (f"amqp://user:a//{SECRET}@[::1/", "amqp://user:***@[::1/"),
        (f"amqp://user:{SECRET}?x@host/", "amqp://user:***@"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert SECRET not in redact(url)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@host/",
        f"redis://user:{SECRET}@host/",
        f"amqp://user:{SECRET}@",
        f"user:{SECRET}@host",
        f"amqp://user:{SECRET}@host:port/",
        f"amqp://user:{SECRET}@[::1/",
        f"amqp://user:{SECRET}@host/?heartbeat=soon",
        f"amqps://user:{SECRET}@host/?ssl_options={{{SECRET}",
        "",
    ],
)
def test_what_is_no_broker_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"broker URL .* (allowed is amqp|can not be read)") as caught:
        connect(url, patience=0.0)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_nobody_there_is_told_after_the_patience(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    now = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    with pytest.raises(BrokerError, match=r"not reachable after 20 seconds") as caught:
        connect(f"amqp://user:{SECRET}@127.0.0.1:{port}/", patience=20.0, sleep=sleep, monotonic=lambda: now[0])
    assert f"amqp://user:***@127.0.0.1:{port}/" in str(caught.value)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_queues_carry_the_version_of_their_arguments() -> None:
    assert results_queue("abc") == "trialfleet.v1.results.abc"
