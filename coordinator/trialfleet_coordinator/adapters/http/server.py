"""Serves an ASGI application from a thread."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from trialfleet_shared.errors import ConfigurationError

#: Seconds that requests may take to end when the server does.
_END_SECONDS = 5
#: Connections at most: far fewer than the files that a process may have.
MOST_CONNECTIONS = 500
#: Seconds within which a connection's first request, or its next one, has to begin with a whole head, twice as many at most;
#: and within which TLS has to be agreed on before.
HEAD_SECONDS = 10.0
_UNANSWERED = object()


class ServerTls(NamedTuple):
    """How TLS is spoken: PEM files."""

    certificate: str
    key: str
    #: Certificates of the authority that clients have to show one of; None: they need none.
    client_authority: str | None = None


class _Connection(H11Protocol):
    """Those that say nothing, or are too many, may not use up the files that the studies need."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(HEAD_SECONDS, self._leave_if_silent, None)

    def _leave_if_silent(self, answered: object, unread: int = 0) -> None:
        """End it if no request has come since the last look, when the latest was `answered`; else look again later.

        Also one that has read nothing since, when so many bytes waited for it: closing it would wait for them to be taken.
        """
        left = self.transport.get_write_buffer_size()
        latest: RequestResponseCycle | None = self.cycle
        if left and left == unread:
            self.transport.abort()
        elif self.transport.is_closing():
            if left:
                self.loop.call_later(HEAD_SECONDS, self._leave_if_silent, _UNANSWERED, left)
        elif latest is answered:
            self.transport.abort()
        else:
            is_answered = latest is None or latest.response_complete
            self.loop.call_later(HEAD_SECONDS, self._leave_if_silent, latest if is_answered else _UNANSWERED, left)


@contextmanager
def served(application: ASGIApp, host: str, port: int, tls: ServerTls | None = None) -> Iterator[str]:
    """Serve it while entered; gives the URL.

    Args:
        application: what is served.
        host: address to listen on.
        port: port to listen on; 0: any that is free.
        tls: None: HTTP without it.

    Raises:
        ConfigurationError: it can not be listened on.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        application,
        http=_Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_END_SECONDS,
        ssl_certfile=tls and tls.certificate,
        ssl_keyfile=tls and tls.key,
        ssl_ca_certs=tls and tls.client_authority,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_authority else ssl.CERT_NONE,
    )
    server = uvicorn.Server(config)
    # The socket listens already: who connects from now on waits until the server has come up.
    thread = threading.Thread(target=_serve, args=(server, listener), name="trialfleet-http", daemon=True)
    thread.start()
    address, bound = listener.getsockname()[:2]
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://[{address}]:{bound}" if ":" in address else f"{scheme}://{address}:{bound}"
    finally:
        server.should_exit = True
        thread.join()


class _Loop(asyncio.SelectorEventLoop):
    """Those that begin with TLS and say no more are no `_Connection` yet, and uvicorn sets no limit for them."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        limit = None if options.get("ssl") is None else HEAD_SECONDS
        return await super().create_server(*args, ssl_handshake_timeout=limit, **options)


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(server.serve([listener]))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(f"can not listen on {host}:{port}: {reason}") from error
    return listener
