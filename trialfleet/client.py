"""Speaks to a coordinator over HTTP: `Client`, and `AsyncClient` for asyncio.

Their methods are the verbs of `StudyService`; they take and return the same values and raise the same errors.
"""

import asyncio
import http
import math
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx
import msgspec

from trialfleet.coordinator_files import check_token
from trialfleet_coordinator.adapters.http.problems import STATUSES, Problem
from trialfleet_coordinator.adapters.http.routes import PREFIX, RunPage, TrialPage
from trialfleet_coordinator.report import BestTrial, StudyReport, TrialSummary
from trialfleet_coordinator.runs import Run
from trialfleet_coordinator.serving import StudyStatus, Submission, WorkerStatus
from trialfleet_shared.clock import Clock, SystemClock
from trialfleet_shared.errors import ConfigurationError, TrialfleetError

#: Seconds that an answer may take.
_PATIENCE = 30.0
#: How often a request is made for which the coordinator has no time: with dozens of watchers on one host that happens.
_TRIES = 8
#: Seconds between two looks at a study that is watched.
WATCH_SECONDS = 0.5
#: Seconds that a coordinator may be away, from the first look in vain on: one that is started again is there within a minute.
AWAY_SECONDS = 60.0
#: Where no proxy is gone through: it would be shown the token, and would find another machine.
_THIS_MACHINE = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_SYSTEM_CLOCK = SystemClock()
_ERRORS: Mapping[str, type[TrialfleetError]] = {kind.__name__: kind for kind in STATUSES}


class CoordinatorError(TrialfleetError):
    """The coordinator does not do what it was asked."""


class NoCoordinatorError(CoordinatorError):
    """The coordinator can not be reached, or does not answer as one."""

    exit_status = 2


class Looks:
    """How long a coordinator was not found by who watches a study.

    Args:
        clock: measures it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: When it is no longer waited for. One that was never found is not waited for at all.
        self._limit: float | None = -math.inf

    def succeeded(self) -> None:
        """It was found."""
        self._limit = None

    def missed(self, error: NoCoordinatorError) -> None:
        """It was not. Raises the error when that is enough."""
        now = self._clock.monotonic()
        if self._limit is None:
            self._limit = now + AWAY_SECONDS
        if now > self._limit:
            raise error


class _Call(NamedTuple):
    """One request and the kind of its answer."""

    method: str
    path: str
    answer: Any
    body: bytes | None = None


def _submit(submission: Submission) -> _Call:
    try:
        body = msgspec.json.encode(submission)
    except UnicodeEncodeError as error:
        raise _no_text("what is submitted", error) from error
    return _Call("POST", "/studies", StudyStatus, body)


def _one(study: str, verb: str = "", answer: Any = StudyStatus, method: str = "GET") -> _Call:
    # Dots are encoded as well: a segment of nothing else would be taken for a step up the path.
    try:
        name = quote(study, safe="").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise _no_text("the study's name", error) from error
    return _Call(method, f"/studies/{name}{verb}", answer)


def _page(study: str, verb: str, answer: Any, have: int) -> _Call:
    call = _one(study, verb, answer)
    return call._replace(path=f"{call.path}?offset={have}")


def _no_text(what: str, error: UnicodeEncodeError) -> ConfigurationError:
    return ConfigurationError(f"{what} is not Unicode: {error.object!a}")


_STUDIES = _Call("GET", "/studies", list[StudyStatus])
_WORKERS = _Call("GET", "/workers", list[WorkerStatus])


class Client:
    """A coordinator; a context manager.

    Args:
        url: http://host:port, or https://.
        token: what the coordinator wants to be shown; None: nothing.
        tls: checks the certificate behind https://, and may show one; None: the system's authorities check it.
        clock: measures how long a coordinator is away that is watched.

    Raises:
        ConfigurationError: the URL or the token is none.
    """

    def __init__(
        self, url: str, *, token: str | None, tls: ssl.SSLContext | None = None, clock: Clock = _SYSTEM_CLOCK
    ) -> None:
        self._url = _checked(url)
        self._clock = clock
        self._http = httpx.Client(
            base_url=self._url + PREFIX,
            headers=_headers(token),
            timeout=_PATIENCE,
            verify=tls or True,
            mounts=dict.fromkeys(_THIS_MACHINE),
        )

    def __repr__(self) -> str:
        """Without the token."""
        return f"Client({self._url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections. May be called twice."""
        self._http.close()

    def submit(self, submission: Submission) -> StudyStatus:
        """See `StudyService.submit`."""
        return self._ask(_submit(submission))  # type: ignore[no-any-return]  # as are those below: the call says which

    def studies(self) -> list[StudyStatus]:
        """See `StudyService.studies`."""
        return self._ask(_STUDIES)  # type: ignore[no-any-return]

    def status(self, study: str) -> StudyStatus:
        """See `StudyService.status`."""
        return self._ask(_one(study))  # type: ignore[no-any-return]

    def watch(self, study: str, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[StudyStatus]:
        """Its status every half second, the last one after it has ended; a coordinator that goes away is waited for."""
        looks = Looks(self._clock)
        while True:
            try:
                status = self.status(study)
            except NoCoordinatorError as error:
                looks.missed(error)
            else:
                looks.succeeded()
                yield status
                if status.state.ended:
                    return
            sleep(WATCH_SECONDS)

    def pause(self, study: str) -> StudyStatus:
        """See `StudyService.pause`."""
        return self._ask(_one(study, "/pause", method="POST"))  # type: ignore[no-any-return]

    def resume(self, study: str) -> StudyStatus:
        """See `StudyService.resume`."""
        return self._ask(_one(study, "/resume", method="POST"))  # type: ignore[no-any-return]

    def cancel(self, study: str) -> StudyStatus:
        """See `StudyService.cancel`."""
        return self._ask(_one(study, "/cancel", method="POST"))  # type: ignore[no-any-return]

    def delete(self, study: str) -> None:
        """See `StudyService.delete`."""
        self._ask(_one(study, answer=None, method="DELETE"))

    def report(self, study: str) -> StudyReport:
        """See `StudyService.report`."""
        return self._ask(_one(study, "/report", StudyReport))  # type: ignore[no-any-return]

    def best(self, study: str) -> BestTrial:
        """The best trial of a study so far."""
        return self._ask(_one(study, "/best", BestTrial))  # type: ignore[no-any-return]

    def trials(self, study: str) -> list[TrialSummary]:
        """A study's trials, by number."""
        trials: list[TrialSummary] = []
        while True:
            page: TrialPage = self._ask(_page(study, "/trials", TrialPage, len(trials)))
            trials += page.trials
            if len(trials) >= page.total or not page.trials:
                return trials

    def runs(self, study: str) -> list[Run]:
        """See `StudyService.runs`."""
        runs: list[Run] = []
        while True:
            page: RunPage = self._ask(_page(study, "/runs", RunPage, len(runs)))
            runs += page.runs
            if len(runs) >= page.total or not page.runs:
                return runs

    def workers(self) -> list[WorkerStatus]:
        """See `StudyService.workers`."""
        return self._ask(_WORKERS)  # type: ignore[no-any-return]

    def _ask(self, call: _Call) -> Any:
        for tries_left in reversed(range(_TRIES)):
            try:
                answer = self._http.request(call.method, call.path, content=call.body)
            except httpx.HTTPError as error:
                raise _unreachable(self._url, error) from None
            if not (tries_left and _is_too_soon(answer)):
                break
            time.sleep(_wait(answer))
        return _understood(call, answer, self._url)


class AsyncClient:
    """As `Client`, for asyncio; an asynchronous context manager."""

    def __init__(
        self, url: str, *, token: str | None, tls: ssl.SSLContext | None = None, clock: Clock = _SYSTEM_CLOCK
    ) -> None:
        self._url = _checked(url)
        self._clock = clock
        self._http = httpx.AsyncClient(
            base_url=self._url + PREFIX,
            headers=_headers(token),
            timeout=_PATIENCE,
            verify=tls or True,
            mounts=dict.fromkeys(_THIS_MACHINE),
        )

    def __repr__(self) -> str:
        """Without the token."""
        return f"AsyncClient({self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the connections. May be called twice."""
        await self._http.aclose()

    async def submit(self, submission: Submission) -> StudyStatus:
        """See `StudyService.submit`."""
        return await self._ask(_submit(submission))  # type: ignore[no-any-return]

    async def studies(self) -> list[StudyStatus]:
        """See `StudyService.studies`."""
        return await self._ask(_STUDIES)  # type: ignore[no-any-return]

    async def status(self, study: str) -> StudyStatus:
        """See `StudyService.status`."""
        return await self._ask(_one(study))  # type: ignore[no-any-return]

    async def watch(self, study: str) -> AsyncIterator[StudyStatus]:
        """As `Client.watch`."""
        looks = Looks(self._clock)
        while True:
            try:
                status = await self.status(study)
            except NoCoordinatorError as error:
                looks.missed(error)
            else:
                looks.succeeded()
                yield status
                if status.state.ended:
                    return
            await asyncio.sleep(WATCH_SECONDS)

    async def pause(self, study: str) -> StudyStatus:
        """See `StudyService.pause`."""
        return await self._ask(_one(study, "/pause", method="POST"))  # type: ignore[no-any-return]

    async def resume(self, study: str) -> StudyStatus:
        """See `StudyService.resume`."""
        return await self._ask(_one(study, "/resume", method="POST"))  # type: ignore[no-any-return]

    async def cancel(self, study: str) -> StudyStatus:
        """See `StudyService.cancel`."""
        return await self._ask(_one(study, "/cancel", method="POST"))  # type: ignore[no-any-return]

    async def delete(self, study: str) -> None:
        """See `StudyService.delete`."""
        await self._ask(_one(study, answer=None, method="DELETE"))

    async def report(self, study: str) -> StudyReport:
        """See `StudyService.report`."""
        return await self._ask(_one(study, "/report", StudyReport))  # type: ignore[no-any-return]

    async def best(self, study: str) -> BestTrial:
        """The best trial of a study so far."""
        return await self._ask(_one(study, "/best", BestTrial))  # type: ignore[no-any-return]

    async def trials(self, study: str) -> list[TrialSummary]:
        """A study's trials, by number."""
        trials: list[TrialSummary] = []
        while True:
            page: TrialPage = await self._ask(_page(study, "/trials", TrialPage, len(trials)))
            trials += page.trials
            if len(trials) >= page.total or not page.trials:
                return trials

    async def runs(self, study: str) -> list[Run]:
        """See `StudyService.runs`."""
        runs: list[Run] = []
        while True:
            page: RunPage = await self._ask(_page(study, "/runs", RunPage, len(runs)))
            runs += page.runs
            if len(runs) >= page.total or not page.runs:
                return runs

    async def workers(self) -> list[WorkerStatus]:
        """See `StudyService.workers`."""
        return await self._ask(_WORKERS)  # type: ignore[no-any-return]

    async def _ask(self, call: _Call) -> Any:
        for tries_left in reversed(range(_TRIES)):
            try:
                answer = await self._http.request(call.method, call.path, content=call.body)
            except httpx.HTTPError as error:
                raise _unreachable(self._url, error) from None
            if not (tries_left and _is_too_soon(answer)):
                break
            await asyncio.sleep(_wait(answer))
        return _understood(call, answer, self._url)


def _is_too_soon(answer: httpx.Response) -> bool:
    return answer.status_code == httpx.codes.TOO_MANY_REQUESTS


def _wait(answer: httpx.Response) -> float:
    """Seconds that the coordinator asks to wait, and up to as many more by chance: others were told the same."""
    try:
        asked = float(answer.headers.get("Retry-After", "1"))
    except ValueError:
        asked = 1.0
    return min(max(asked, 1.0), _PATIENCE) * random.uniform(1.0, 2.0)  # noqa: S311  # nobody gains by guessing it


def _checked(url: str) -> str:
    try:
        parts = httpx.URL(url)
        more = parts.userinfo or parts.query or parts.fragment
        is_one = parts.scheme in ("http", "https") and bool(parts.host) and not more
        is_one = is_one and (parts.port is None or 0 < parts.port < 2**16)
    except httpx.InvalidURL:
        is_one = False
    if not is_one:
        # Not shown: what is no URL may hold a password.
        raise ConfigurationError("the coordinator's URL can not be used; allowed is http://host:port, or https://")
    return url.rstrip("/")


def _headers(token: str | None) -> dict[str, str]:
    # Checked first: what is refused as a header would be shown in the error.
    return {} if token is None else {"Authorization": f"Bearer {check_token(token, 'the token')}"}


def _unreachable(url: str, error: httpx.HTTPError) -> NoCoordinatorError:
    words = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    words = re.sub(r"^\[Errno -?\d+\] ", "", words)
    return NoCoordinatorError(f"the coordinator at {url} can not be reached: {words}")


def _understood(call: _Call, answer: httpx.Response, url: str) -> Any:
    """What was answered. Raises the error that it says."""
    try:
        if answer.is_success:
            return None if call.answer is None else msgspec.json.decode(answer.content, type=call.answer)
        problem = msgspec.json.decode(answer.content, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise NoCoordinatorError(f"what answers at {url} is no coordinator of this version") from None
    if answer.status_code == http.HTTPStatus.UNAUTHORIZED:
        raise ConfigurationError(f"the coordinator at {url} wants another token")
    raise _ERRORS.get(problem.type, CoordinatorError)(problem.detail)
