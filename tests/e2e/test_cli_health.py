"""`trialfleet health`, asked of real servers."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import trialfleet


class _Readiness(http.server.BaseHTTPRequestHandler):
    """Answers as its server's `status` and `body` say."""

    server: "_Server"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its own."""


class _Server(http.server.HTTPServer):
    status = 200
    body = b"{}"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Readiness)
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_a_ready_coordinator_is_healthy(server: _Server, tmp_path: Path) -> None:
    done = trialfleet(["health", "--url", f"{server.url}/"], tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"ready: {server.url}/readyz\n", "")
    assert server.paths == ["/readyz"]


def test_one_that_is_not_says_why(server: _Server, tmp_path: Path) -> None:
    server.status, server.body = 503, b'{"broker": "not\n reachable"}'

    done = trialfleet(["health", "--url", server.url], tmp_path)

    assert done.returncode == 1
    assert done.stdout == f'not ready: {server.url}/readyz: answered 503: {{"broker": "not reachable"}}\n'


def test_another_success_is_not_readiness(server: _Server, tmp_path: Path) -> None:
    server.status = 204

    assert trialfleet(["health", "--url", server.url], tmp_path).returncode == 1


def test_nobody_there_is_not_ready(tmp_path: Path) -> None:
    with socket.socket() as held:  # and not listened at: nobody else can, meanwhile
        held.bind(("127.0.0.1", 0))
        done = trialfleet(["health", "--url", f"http://127.0.0.1:{held.getsockname()[1]}"], tmp_path)

    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "refused" in done.stdout


def test_who_answers_with_something_else_is_not_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_greet, args=(listener,))
        thread.start()
        done = trialfleet(["health", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}"], tmp_path)
        thread.join()

    assert done.returncode == 1
    assert done.stdout.startswith("not ready: ")


def _greet(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"220 mail.example.org\r\n")


def test_a_url_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    done = trialfleet(["health", "--url", "localhost:8765"], tmp_path)

    assert done.returncode == 2
    assert "allowed is http://" in done.stderr


@pytest.mark.parametrize("url", ["http://user:hunter2@127.0.0.1:1", "https://hunter2@localhost"])
def test_an_address_with_a_name_in_it_is_refused_and_not_shown(url: str, tmp_path: Path) -> None:
    done = trialfleet(["health", "--url", url], tmp_path)
    assert (done.returncode, "allowed is http://host:port" in done.stderr) == (2, True)
    assert "hunter2" not in done.stdout + done.stderr
