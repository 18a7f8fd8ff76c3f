"""What stands before every request: a token, a bound on its size, a bound on how many come."""

import hmac
import http
from collections import OrderedDict
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trialfleet_coordinator.adapters.http.problems import ProblemError, problem_response
from trialfleet_shared.clock import Clock

#: Longest body that is read, in bytes.
MOST_BYTES = 2**20
#: Requests that one address may make at once, and each second in the long run.
BURST, PER_SECOND = 200, 50.0
#: Addresses whose requests are counted; the one heard longest ago goes first.
MOST_ADDRESSES = 10_000
#: What no answer may do without, unless it says something else.
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Guarded:
    """An ASGI application behind the guards.

    Args:
        application: what is guarded.
        token: what requests have to show as "Authorization: Bearer …".
        open_paths: paths that need no token.
        clock: measures rates.
    """

    def __init__(self, application: ASGIApp, *, token: str, open_paths: Collection[str], clock: Clock) -> None:
        self._application = application
        self._token = token.encode()
        self._open_paths = open_paths
        self._rates = _Rates(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":  # there are none, with a token or without
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        # Names of studies hold what they like: a path is taken apart before it is decoded.
        scope = {**scope, "path": scope["raw_path"].split(b"?")[0].decode("latin-1")}
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = list(message.get("headers", ()))
                said = {name for name, _ in headers}
                message["headers"] = [*headers, *(header for header in _HEADERS if header[0] not in said)]
            await send(message)

        try:
            self._check(scope)
            await self._application(scope, _Bounded(scope, receive), answer)
        except ProblemError as error:
            if started:
                raise
            await problem_response(error)(scope, receive, answer)

    def _check(self, scope: Scope) -> None:
        client = scope.get("client")
        wait = self._rates.wait(client[0] if client else "")
        if wait > 0:
            raise ProblemError(
                http.HTTPStatus.TOO_MANY_REQUESTS,
                f"more than {PER_SECOND:g} requests a second from one address",
                {"Retry-After": str(max(1, round(wait)))},
            )
        if scope["path"] in self._open_paths:
            return
        shown = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        scheme, _, token = shown.partition(b" ")
        # The comparison takes as long whatever is wrong: nobody guesses a token letter by letter.
        if not hmac.compare_digest(token.strip(), self._token) or scheme.lower() != b"bearer":
            raise ProblemError(
                http.HTTPStatus.UNAUTHORIZED, "a token is needed", {"WWW-Authenticate": 'Bearer realm="trialfleet"'}
            )


class _Bounded:
    """Receives a request's body, as far as it is not too long."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._left = MOST_BYTES
        stated = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or int(value) > MOST_BYTES for value in stated):
            raise _too_long()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _too_long()
        return message


def _too_long() -> ProblemError:
    return ProblemError(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MOST_BYTES} bytes")


class _Rates:
    """A token bucket for each address."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: By address: what is left of the burst, and when that was so.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Count a request; the seconds to wait with it, 0 if it is welcome."""
        now = self._clock.monotonic()
        left, then = self._left.pop(address, (float(BURST), now))
        left = min(left + (now - then) * PER_SECOND, BURST)
        welcome = left >= 1
        self._left[address] = (left - 1 if welcome else left, now)
        if len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if welcome else (1 - left) / PER_SECOND
