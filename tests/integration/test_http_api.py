"""The coordinator over HTTP, on a real port: verbs, problems, guards, and both clients."""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_workshop import A_RUN
from support.http_service import TOKEN, HttpService, http_service
from support.waiting import wait_until

import trialfleet.client
from trialfleet.client import AsyncClient, Client, CoordinatorError
from trialfleet_coordinator.adapters.http import application as http_application
from trialfleet_coordinator.adapters.http import server
from trialfleet_coordinator.adapters.http.guards import BURST, MOST_BYTES
from trialfleet_coordinator.adapters.http.routes import PREFIX
from trialfleet_coordinator.adapters.http.server import served
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission
from trialfleet_shared.errors import ConfigurationError, StoreError, StudyBusyError, UnknownStudyError

NAMES = ("a", "a/b", "..", "../../etc/passwd", "ünïcode", "a b?c#d&e=f%2F", "<script>")


@pytest.fixture
def service() -> Iterator[HttpService]:
    with http_service() as service:
        yield service


@pytest.fixture
def client(service: HttpService) -> Iterator[Client]:
    with Client(service.url, token=TOKEN) as client:
        yield client


def submission(name: str | None = "a") -> Submission:
    return Submission(tables={"study": {}}, base="/", name=name)


def ask(service: HttpService, method: str, path: str, *, token: str | None = TOKEN, **more: Any) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.request(method, service.url + path, headers=headers, **more)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_goes_through_its_life_whatever_it_is_called(service: HttpService, client: Client, name: str) -> None:
    assert client.submit(submission(name)).state is ServiceState.QUEUED
    service.daemon.tick()
    wait_until(lambda: client.status(name).progress is not None, "it runs")
    assert client.pause(name).state is ServiceState.PAUSED
    assert client.resume(name).state is ServiceState.QUEUED
    assert [status.study for status in client.studies()] == [name]
    assert client.report(name).study == client.best(name).study == name
    assert (client.trials(name), client.runs(name)) == ([], [A_RUN])
    assert client.cancel(name).state is ServiceState.CANCELLED

    def gone() -> bool:
        service.daemon.tick()
        try:
            client.delete(name)
        except StudyBusyError:
            return False
        return True

    wait_until(gone, "it can be deleted")
    assert client.studies() == []
    assert service.workshop.deleted == [name]


def test_errors_come_back_as_what_they_were(client: Client) -> None:
    with pytest.raises(UnknownStudyError, match="no study 'nobody'"):
        client.status("nobody")
    with pytest.raises(ConfigurationError, match=r"study.name is missing"):
        client.submit(submission(None))
    client.submit(submission())
    with pytest.raises(StudyBusyError, match="has not ended"):
        client.submit(submission())
    with pytest.raises(StudyBusyError, match="no record"):
        client.report("a")


def test_what_went_wrong_inside_stays_inside(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_study: str) -> None:
        raise ZeroDivisionError("amqp://user:secret@host")

    monkeypatch.setattr(service.daemon, "status", fail)
    answer = ask(service, "GET", "/api/v1/studies/a")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text

    def full(_study: str) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(service.daemon, "status", full)
    assert ask(service, "GET", "/api/v1/studies/a").json()["detail"] == "the disk is full"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff", 400),
        (b"{}", 422),
        (b'{"tables": {}, "base": "", "name": "a"}', 422),
        (b'{"tables": {}, "base": "/", "priority": 101}', 422),
        (b'{"tables": {}, "base": "/", "weight": 0}', 422),
        (b'{"tables": {}, "base": "/", "colour": "red"}', 422),
        (b'{"tables": {"a": ' + b"[" * 100_000, 400),
    ],
)
def test_a_body_that_is_no_submission_is_refused_with_a_problem(service: HttpService, body: bytes, status: int) -> None:
    answer = ask(service, "POST", "/api/v1/studies", content=body)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.daemon.studies() == []


@pytest.mark.parametrize("query", ["offset=-1", "limit=0", "limit=1001", "limit=x", "colour=red"])
def test_a_query_out_of_range_is_refused(service: HttpService, query: str) -> None:
    assert ask(service, "GET", f"/api/v1/studies/a/trials?{query}").status_code == 422


def test_without_the_token_there_is_nothing_but_health_figures_and_the_page(service: HttpService) -> None:
    for token in (None, "x", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper()):
        answer = ask(service, "GET", "/api/v1/studies", token=token)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert ask(service, "POST", "/api/v1/studies", token=token, content=b"{").status_code == 401
        assert ask(service, "GET", "/openapi.json", token=token).status_code == 401
    for path in ("/", "/healthz", "/metrics", "/sd"):
        assert ask(service, "GET", path, token=None).status_code == 200
    with Client(service.url, token="wrong" * 5) as client, pytest.raises(ConfigurationError, match="another token"):
        client.studies()


def test_the_token_is_in_no_text(service: HttpService) -> None:
    with Client(service.url, token=TOKEN) as client:
        assert TOKEN not in repr(client)
    with Client("http://127.0.0.1:1", token=TOKEN) as client, pytest.raises(CoordinatorError) as caught:
        client.studies()
    assert TOKEN not in str(caught.value)


def test_a_body_that_is_too_long_is_refused_also_when_it_does_not_say_so(service: HttpService) -> None:
    long = b'"' + b"a" * MOST_BYTES + b'"'
    assert ask(service, "POST", "/api/v1/studies", content=long).status_code == 413
    chunks = (long[start : start + 2**16] for start in range(0, len(long), 2**16))
    assert ask(service, "POST", "/api/v1/studies", content=chunks).status_code == 413


def test_who_asks_too_often_has_to_wait(service: HttpService) -> None:
    with httpx.Client() as http:
        for _ in range(BURST):
            assert http.get(service.url + "/healthz").status_code == 200
        answer = http.get(service.url + "/healthz")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        service.clock.now += 1.0
        assert http.get(service.url + "/healthz").status_code == 200


def test_it_is_ready_when_broker_and_store_are(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask(service, "GET", "/readyz", token=None)
    assert (answer.status_code, answer.json()) == (503, {"broker": "the broker is away", "store": ""})
    monkeypatch.setattr(service.watch, "trouble", lambda: "")
    assert ask(service, "GET", "/readyz", token=None).status_code == 200


def test_prometheus_finds_figures_and_workers(service: HttpService) -> None:
    assert "trialfleet_test 7.0" in ask(service, "GET", "/metrics", token=None).text
    assert ask(service, "GET", "/sd", token=None).json() == []
    service.watch.metrics_address = "host:9401"
    answer = ask(service, "GET", "/sd", token=None)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == [{"targets": ["host:9401"], "labels": {}}]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/studies/", 404),
        ("GET", "/api/v2/studies", 404),
        ("PUT", "/api/v1/studies", 405),
        ("DELETE", "/", 405),
    ],
)
def test_what_is_not_there_is_a_problem_too(service: HttpService, method: str, path: str, status: int) -> None:
    answer = ask(service, method, path)
    assert answer.status_code == answer.json()["status"] == status


def test_pages_are_not_for_other_sites(service: HttpService) -> None:
    headers = ask(service, "GET", "/", token=None).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_asynchronous_client_does_the_same(service: HttpService) -> None:
    async def live() -> list[ServiceState]:
        async with AsyncClient(service.url, token=TOKEN) as client:
            await client.submit(submission())
            assert [worker.slots for worker in await client.workers()] == [4]
            with pytest.raises(UnknownStudyError):
                await client.status("nobody")
            service.daemon.tick()
            await asyncio.to_thread(wait_until, lambda: service.workshop.opened, "it runs")
            assert (await client.trials("a"), await client.runs("a")) == ([], [A_RUN])
            await client.cancel("a")
            return [status.state async for status in client.watch("a")]

    assert asyncio.run(live()) == [ServiceState.CANCELLED]


@pytest.mark.parametrize(
    "token", ["", "short", "two words that are long enough", "line\nbreak-in-a-long-token", "ünïcode-is-no-header"]
)
def test_a_token_that_is_none_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="at least 16 printable") as caught:
        Client("http://127.0.0.1:1", token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://host", "http://", "http://user:secret@host"])
def test_an_address_that_is_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(url, token=None)
    assert "secret" not in str(caught.value)


def test_no_proxy_is_gone_through_to_this_machine(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be shown the token, and look for the coordinator on its own machine."""
    with http_service() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        proxy.daemon.submit(Submission(tables={}, base="/", name="of the proxy"))
        with Client(service.url, token=TOKEN) as client:
            assert client.studies() == []

        async def ask() -> list[StudyStatus]:
            async with AsyncClient(service.url, token=TOKEN) as client:
                return await client.studies()

        assert asyncio.run(ask()) == []


def test_a_port_that_is_taken_is_named(service: HttpService) -> None:
    port = int(service.url.rpartition(":")[2])
    with (
        pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}"),
        served(service.application, "127.0.0.1", port),
    ):
        pass


def test_something_else_that_answers_is_no_coordinator(service: HttpService) -> None:
    with Client(service.url + "/elsewhere", token=TOKEN) as client, pytest.raises(CoordinatorError):
        client.studies()


def test_the_document_describes_every_route(service: HttpService) -> None:
    document = ask(service, "GET", "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == 12
    assert "Submission" in json.dumps(document["components"]["schemas"])


def talk(service: HttpService, said: bytes) -> socket.socket:
    """A connection on which that was said, and nothing more."""
    url = httpx.URL(service.url)
    connection = socket.create_connection((url.host, url.port), timeout=30.0)
    connection.sendall(said)
    return connection


def hung_up_on(connection: socket.socket) -> bool:
    """Whether it ends; waits for that, through what is left of an answer."""
    with connection, suppress(ConnectionResetError):
        while said := connection.recv(1000):
            if said.startswith(b"HTTP/1.1"):
                return False
    return True


HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


def test_who_is_one_too_many_is_hung_up_on(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 600.0)
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    connections = [talk(service, HALF) for _ in range(5)]
    assert all(hung_up_on(connection) for connection in connections[3:])
    for connection in connections[:3]:
        connection.sendall(b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.close()


def test_who_says_nothing_is_hung_up_on(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    assert hung_up_on(talk(service, HALF))
    answered = talk(service, HALF + b"\r\n")
    assert answered.recv(1000).startswith(b"HTTP/1.1 200")
    answered.sendall(HALF)
    assert hung_up_on(answered)


def test_who_asks_and_does_not_read_is_hung_up_on(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed waits for its last byte to be taken, and counts as one until then."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    for number in range(2000):
        service.daemon.submit(Submission(tables={}, base="/", name=f"study-{number}"))

    def sockets() -> int:
        return sum("socket:" in str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink())

    before = sockets()
    request = f"GET {PREFIX}/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    url = httpx.URL(service.url)
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect((url.host, url.port))
        greedy.sendall(request * 30)
        wait_until(lambda: sockets() == before + 2, "it is connected")
        wait_until(lambda: sockets() == before + 1, "the coordinator has hung up")


def test_a_body_that_does_not_come_is_not_waited_for(
    service: HttpService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = (
        f"POST {PREFIX}/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
    )
    talk(service, head.encode()).close()
    monkeypatch.setattr(http_application, "BODY_SECONDS", 0.2)
    with talk(service, head.encode()) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], "it is the client's affair"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_clients_wait_where_the_coordinator_asks_them_to(
    service: HttpService, monkeypatch: pytest.MonkeyPatch, *, asynchronous: bool
) -> None:
    def wait(answer: httpx.Response) -> float:
        assert answer.headers["Retry-After"] == "1"
        service.clock.now += 1.0
        return 0.0

    monkeypatch.setattr(trialfleet.client, "_wait", wait)
    for _ in range(BURST):
        ask(service, "GET", "/healthz", token=None)

    async def listed() -> list[StudyStatus]:
        async with AsyncClient(service.url, token=TOKEN) as client:
            return await client.studies()

    if asynchronous:
        assert asyncio.run(listed()) == []
    else:
        with Client(service.url, token=TOKEN) as client:
            assert client.studies() == []
