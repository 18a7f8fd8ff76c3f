"""What fuzzing calls: each takes bytes, and raises when something happens that must not, whatever the bytes are.

`run.py` searches for such bytes by coverage; `test_corpus.py` replays what it kept.
"""

import asyncio
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp
from support.fake_workshop import FakeWatch, MemoryRoster
from support.http_service import TOKEN
from support.simulated import SimulatedClock

from trialfleet.home import Home
from trialfleet.study_file import read_study
from trialfleet.watching import Watching
from trialfleet.workshop import HomeWorkshop
from trialfleet_coordinator.adapters.http.application import application
from trialfleet_coordinator.daemon import Daemon
from trialfleet_shared.adapters.rabbit import unpack, unpack_results
from trialfleet_shared.codec import decode, encode
from trialfleet_shared.errors import ConfigurationError, DecodeError
from trialfleet_shared.space import Categorical, Distribution, Scalar, SearchSpace
from trialfleet_workers.allowance import Allowance


def codec(data: bytes) -> None:
    """A message is refused, or it is one, and comes back the same."""
    try:
        message = decode(data)
    except DecodeError as error:
        assert error.payload == data
    else:
        assert decode(encode(message)) == message
    for read in (unpack_results, unpack):
        try:
            read(data)
        except DecodeError:
            continue


def study(data: bytes) -> None:
    """A study file is refused in one line, or its space can be drawn from."""
    try:
        tables = tomllib.loads(data.decode(errors="replace"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    read_tables(tables)


def read_tables(tables: dict[str, Any]) -> None:
    """As `study`, of a file's tables."""
    table = tables.get("study")
    if isinstance(table, dict):
        table.pop("space", None)  # would import what it names
    try:
        request = read_study(tables, "study.toml", Path("/nowhere"))
    except ConfigurationError:
        return
    assert isinstance(request.space, SearchSpace)
    for end in (_first, _last):
        for name, value in request.space.draw(end).items():
            assert request.space.parameters[name].contains(value), (name, value)
    request.space.cardinality()


def http(data: bytes) -> None:
    """A request is answered, never with a failure of ours. The first byte chooses the request, the others are its body."""
    if not data:
        return
    method, prefix = _REQUESTS[data[0] % len(_REQUESTS)]
    in_path = prefix.endswith("/")
    path = prefix.encode() + (data[1:].split(b"\r")[0].split(b"\n")[0] if in_path else b"")
    status = _loop().run_until_complete(
        _ask(_application(next(_calls) // _MOST_CALLS), method, path, b"" if in_path else data[1:])
    )
    assert status < 500, status


TARGETS: Mapping[str, Callable[[bytes], None]] = {"codec": codec, "study": study, "http": http}

#: Requests that one application answers: it keeps what is submitted.
_MOST_CALLS = 2000
_calls = count()
_REQUESTS = (
    ("POST", "/api/v1/studies"),
    ("GET", "/api/v1/studies/"),
    ("POST", "/api/v1/studies/"),
    ("DELETE", "/api/v1/studies/"),
    ("GET", "/"),
)


def _first(_name: str, one: Distribution) -> Scalar:
    return one.choices[0] if isinstance(one, Categorical) else one.min


def _last(_name: str, one: Distribution) -> Scalar:
    return one.choices[-1] if isinstance(one, Categorical) else one.high


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@lru_cache(maxsize=1)
def _application(_turn: int) -> ASGIApp:
    folder = Path(tempfile.mkdtemp(prefix="trialfleet-fuzz-"))
    (folder / "objective.py").write_text("def evaluate(params):\n    return params['x']\n")
    workshop = HomeWorkshop(Home(folder / "home"), "amqp://nowhere", Allowance((folder,)), Watching())
    daemon = Daemon(workshop, FakeWatch(4), MemoryRoster(), _Hurried(), most_running=1)
    return application(daemon, token=TOKEN, registry=CollectorRegistry(), clock=_Hurried())


class _Hurried(SimulatedClock):
    """A second passes between two looks: nobody asks too often."""

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


async def _ask(app: ASGIApp, method: str, path: bytes, body: bytes) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": method,
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": path.partition(b"?")[2],
        "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    return statuses[0]
