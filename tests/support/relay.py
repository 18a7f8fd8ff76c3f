"""A server's side of a connection, kept open when the other side is gone: as a router, or a host without power, would."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

#: Bytes that are passed on at once.
_CHUNK = 2**16


class Relay:
    """Passes bytes between a server and those who connect here; a context manager.

    A client that is gone, however it went, is not told to the server: its connection ends when the server ends it, or the
    relay is closed. What the server goes on to send there is dropped.

    Args:
        url: the server.
    """

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The server's URL, through here."""
        here = f"127.0.0.1:{self._listener.getsockname()[1]}"
        credentials = self._server.netloc.rpartition("@")[0]
        return self._server._replace(netloc=f"{credentials}@{here}").geturl()

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._server.hostname, self._server.port))
            self._sockets += [client, server]
            self._start(self._upstream, client, server)
            self._start(self._downstream, client, server)

    def _start(self, pump: Callable[[socket.socket, socket.socket], None], *ends: socket.socket) -> None:
        thread = threading.Thread(target=pump, args=ends, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _upstream(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                server.sendall(data)

    @staticmethod
    def _downstream(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK):
                with contextlib.suppress(OSError):
                    client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
