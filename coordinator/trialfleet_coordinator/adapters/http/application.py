"""The ASGI application: `application(service, …)`.

    /api/v1/…                        the API; see `routes`
    /openapi.json                    its description
    /healthz, /readyz                whether the process lives, and whether it can do its work
    /metrics, /sd                    for Prometheus: the coordinator's own figures, and where workers serve theirs
    /                                a page that lists studies and workers

All but the last three lines need the token: figures tell no params, and the page asks for the token itself.
"""

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import unquote

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp

from trialfleet_coordinator.adapters.http.guards import Guarded
from trialfleet_coordinator.adapters.http.openapi import document
from trialfleet_coordinator.adapters.http.page import PAGE, policy
from trialfleet_coordinator.adapters.http.problems import ProblemError, problem, problem_response
from trialfleet_coordinator.adapters.http.routes import PREFIX, ROUTES, Asked, Paging, Route
from trialfleet_coordinator.serving import StudyService, Submission, WorkerState
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import ConfigurationError, TrialfleetError

#: Seconds within which a request's body has to be there.
BODY_SECONDS = 30.0
#: Paths that need no token.
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/sd"})

_LOG = logging.getLogger("trialfleet.http")
_Answer = Callable[[Request], Awaitable[Response]]
_Kind = TypeVar("_Kind")


def application(service: StudyService, *, token: str, registry: CollectorRegistry, clock: Clock) -> ASGIApp:
    """The coordinator's HTTP side.

    Args:
        service: what carries the requests out.
        token: what they have to show.
        registry: the metrics that are served.
        clock: bounds how many requests one address may make.
    """
    described = msgspec.json.encode(document())
    page_headers = {"content-security-policy": policy(PAGE)}

    async def openapi(_request: Request) -> Response:
        return _json(described)

    async def index(_request: Request) -> Response:
        return HTMLResponse(PAGE, headers=page_headers)

    async def healthz(_request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(_request: Request) -> Response:
        readiness = await run_in_threadpool(service.readiness)
        status = http.HTTPStatus.OK if readiness.ready else http.HTTPStatus.SERVICE_UNAVAILABLE
        return _json(msgspec.json.encode(readiness), status)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await run_in_threadpool(encode, registry), headers={"content-type": content_type})

    async def discovery(_request: Request) -> Response:
        workers = await run_in_threadpool(service.workers)
        targets = [w.metrics_address for w in workers if w.metrics_address and w.state is not WorkerState.LOST]
        return _json(msgspec.json.encode([{"targets": [target], "labels": {}} for target in targets]))

    routes = [
        StarletteRoute(PREFIX + path, _endpoint(verbs, service), methods=list(verbs))
        for path, verbs in _paths().items()
    ]
    for path, answer in (
        ("/openapi.json", openapi),
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/metrics", metrics),
        ("/sd", discovery),
        ("/", index),
    ):
        routes.append(StarletteRoute(path, answer, methods=["GET"]))
    handlers = {TrialfleetError: _on_error, HTTPException: _on_http_error, Exception: _on_error}
    starlette = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]  # it wants wider ones
    starlette.router.redirect_slashes = False
    return Guarded(starlette, token=token, open_paths=OPEN_PATHS, clock=clock)


def _paths() -> dict[str, dict[str, Route]]:
    """The routes by path and method: one for each path, so that it can tell which methods there are."""
    paths: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = route
    return paths


def _endpoint(verbs: Mapping[str, Route], service: StudyService) -> _Answer:
    async def answer(request: Request) -> Response:
        route = verbs["GET" if request.method == "HEAD" else request.method]
        asked = Asked(
            study=_name(request.path_params.get("study", "")),
            body=_read(await _body(request), Submission) if route.takes_body else None,
            query=_query(request) if route.takes_query else Paging(),
        )
        found = await run_in_threadpool(route.carry_out, service, asked)
        if route.answer is None:
            return Response(status_code=route.status)
        return _json(msgspec.json.encode(found), route.status)

    return answer


async def _body(request: Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError as error:
        raise ProblemError(
            http.HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {BODY_SECONDS:.0f} seconds"
        ) from error
    except ClientDisconnect as error:  # nobody is there to read it
        raise ProblemError(http.HTTPStatus.BAD_REQUEST, "the connection ended before the body did") from error


def _name(segment: str) -> str:
    """What a segment of a path says. Strictly: read leniently it could be another study's name."""
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError as error:
        raise ProblemError(http.HTTPStatus.BAD_REQUEST, f"the path: {segment} is not UTF-8") from error


def _read(body: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"the body: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(http.HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from error


def _query(request: Request) -> Paging:
    try:
        return msgspec.convert(dict(request.query_params), Paging, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"the query: {error}") from error


def _json(body: bytes, status: http.HTTPStatus = http.HTTPStatus.OK) -> Response:
    return Response(body, status.value, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    answer = problem_response(error)
    # Whatever is no error of ours goes on to the server, which logs it with its trace.
    if answer.status_code >= http.HTTPStatus.INTERNAL_SERVER_ERROR and isinstance(error, TrialfleetError):
        _LOG.error("%s %s failed: %s", request.method, request.url.path, error)
    return answer


async def _on_http_error(_request: Request, error: HTTPException) -> Response:
    """Starlette found no route, or no such method on it."""
    return problem(http.HTTPStatus(error.status_code), error.detail, headers=error.headers)
