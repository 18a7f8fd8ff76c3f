"""`trialfleet dashboard`."""

import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from trialfleet.commands.output import error_console, say
from trialfleet.environment import Environment
from trialfleet.home import Home
from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage
from trialfleet_shared.errors import ConfigurationError

#: Requests that are answered at the same time.
_THREADS = 4
#: What a WSGI application is, as far as it matters here.
_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def dashboard_command(environment: Environment, *, host: str, port: int) -> None:
    """Serve optuna-dashboard on the home's store until a signal ends it.

    Raises:
        ConfigurationError: it is not installed, or the address can not be listened on.
    """
    try:
        import waitress  # noqa: PLC0415  # an extra
        from optuna_dashboard import wsgi  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed; `pip install 'trialfleet[dashboard]'` brings it"
        ) from None
    storage = LmdbStorage(Home(environment.home).store)
    try:
        server = waitress.create_server(
            read_only(wsgi(storage)),
            host=host,
            port=port,
            threads=_THREADS,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
    except OSError as error:
        storage.close()
        raise ConfigurationError(f"can not listen on {host}:{port}: {error.strerror or error}") from error

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)  # waitress closes its sockets, and returns

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    shown = f"[{server.effective_host}]" if ":" in server.effective_host else server.effective_host
    say(error_console(), f"the studies of {environment.home} are shown at http://{shown}:{server.effective_port}")
    try:
        server.run()
    finally:
        server.close()
        storage.close()


def read_only(application: _Application) -> _Application:
    """The WSGI application without the methods that change something: the dashboard can delete and rename studies."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            body = b"this dashboard only shows\n"
            headers = [("Allow", "GET, HEAD"), ("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
            start_response("405 Method Not Allowed", headers)
            return [body]
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # it fails on requests for files without one
        return application(environ, start_response)

    return guarded
