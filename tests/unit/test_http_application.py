"""The HTTP side in process, without a server: what is logged, what is refused before a study is touched."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope
from support.http_service import TOKEN, HttpService

from trialfleet_coordinator.adapters.http import guards
from trialfleet_coordinator.adapters.http.guards import Guarded
from trialfleet_coordinator.serving import Submission
from trialfleet_shared.errors import FleetError


@pytest.fixture
def service() -> HttpService:
    return HttpService()


def ask(service: HttpService, method: str, path: str, **more: Any) -> httpx.Response:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(service.application, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://coordinator", headers=headers) as client:
            return await client.request(method, path, **more)

    return asyncio.run(answer())


def test_a_failure_whose_log_is_referred_to_is_in_the_log(
    service: HttpService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_study: str) -> None:
        raise FleetError("the fleet is gone")

    monkeypatch.setattr(service.daemon, "status", fail)
    with caplog.at_level(logging.ERROR, "trialfleet.http"):
        answer = ask(service, "GET", "/api/v1/studies/a")
    assert answer.status_code == 500
    assert "fleet" not in answer.json()["detail"]
    assert caplog.messages == ["GET /api/v1/studies/a failed: the fleet is gone"]


def test_what_a_caller_did_wrong_is_not_logged(service: HttpService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "trialfleet.http"):
        assert ask(service, "GET", "/api/v1/studies/nobody").status_code == 404
    assert caplog.messages == []


@pytest.mark.parametrize("verb", [("GET", ""), ("DELETE", ""), ("POST", "/cancel")])
def test_a_name_that_is_not_utf8_stands_for_no_study(service: HttpService, verb: tuple[str, str]) -> None:
    """Decoded leniently it would be that of another study."""
    service.daemon.submit(Submission(tables={}, base="/", name="\ufffd"))
    method, action = verb
    assert ask(service, method, f"/api/v1/studies/%FF{action}").status_code == 400
    assert [study.state for study in service.daemon.studies()] == ["queued"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/studies", b'{"tables": {}, "base": "/", "priority": 101}'),
        ("GET", "/api/v1/studies/a/trials?limit=0", b""),
    ],
)
def test_what_does_not_fit_is_a_configuration_error(service: HttpService, method: str, path: str, body: bytes) -> None:
    answer = ask(service, method, path, content=body)
    assert (answer.status_code, answer.json()["type"]) == (422, "ConfigurationError")


def test_only_http_passes_the_guards(service: HttpService) -> None:
    reached: list[str] = []

    async def guarded(scope: Scope, _receive: object, _send: object) -> None:
        reached.append(scope["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    application = Guarded(guarded, token=TOKEN, open_paths=(), clock=service.clock)
    asyncio.run(application({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert reached == []
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_table_of_addresses_is_bounded(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has used up what is theirs is not forgotten for those who come once."""
    monkeypatch.setattr(guards, "MOST_ADDRESSES", 3)
    monkeypatch.setattr(guards, "BURST", 2)
    rates = guards._Rates(service.clock)
    assert [rates.wait("busy") for _ in range(3)] == [0.0, 0.0, 1 / guards.PER_SECOND]
    for number in range(10):
        assert rates.wait(f"once {number}") == 0.0
        assert rates.wait("busy") > 0.0
        assert len(rates._left) <= 3
    service.clock.now += 1.5 / guards.PER_SECOND
    assert rates.wait("busy") == 0.0
