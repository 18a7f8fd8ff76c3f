"""A private RabbitMQ node: own ports, own folder, own user, no root rights, nothing left behind.

For `trialfleet up` and for tests. The node listens on 127.0.0.1 only, and knows one user, whose random password stands
in a file that nobody else may read.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from trialfleet.children import ended_with_us
from trialfleet_shared.adapters.private_files import make_private_folder
from trialfleet_shared.errors import BrokerError

#: Where Debian keeps the program itself; `rabbitmq-server` on the PATH may be a wrapper that insists on its own user.
_PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
#: Seconds that a node may take to accept connections; 5 to 8 on an idle machine.
_START_SECONDS = 90.0
#: Seconds that a node may take to stop by itself.
_STOP_SECONDS = 30.0
_USER = "trialfleet"
#: Below those that Linux gives to connections.
_PORTS = range(20_000, 32_768)


class RabbitNode:
    """One node; a context manager that starts and stops it.

    Args:
        folder: where it keeps everything; messages survive as long as the folder does.

    Raises:
        BrokerError: the program is not installed, or the node does not come up.
    """

    def __init__(self, folder: Path) -> None:
        self._program = _find_program()
        #: As given, absolute.
        self.folder = folder.resolve()
        make_private_folder(self.folder)
        self._port, self._dist_port, self._epmd_port = free_ports(3)
        self._password = secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None
        self._port_mapper: subprocess.Popen[bytes] | None = None
        self._configure()

    @property
    def url(self) -> str:
        """How to connect; contains the password."""
        return f"amqp://{_USER}:{self._password}@127.0.0.1:{self._port}/%2F"

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of the node while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the node, and wait until it accepts connections. Raises BrokerError when it does not."""
        log = self.folder / "output.log"
        with log.open("ab") as output:
            if self._port_mapper is None:
                # Erlang would start one that outlives everything.
                self._port_mapper = self._spawn("epmd", output)
            self._process = self._spawn(self._program, output)
        end = time.monotonic() + _START_SECONDS
        while not self._accepts():
            status = self._process.poll()
            if status is not None or time.monotonic() > end:
                tail = log.read_text(errors="replace")[-1500:]
                self.stop()
                how = f" within {_START_SECONDS:g} s" if status is None else f", and ended with status {status}"
                said = f"the end of its output:\n{tail}" if tail else "it has said nothing"
                raise BrokerError(f"the private RabbitMQ node did not start{how}; {said}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise BrokerError when the node has ended by itself."""
        status = None if self._process is None else self._process.poll()
        if status is not None:
            tail = (self.folder / "output.log").read_text(errors="replace")[-1500:]
            said = f"; the end of its output:\n{tail}" if tail else ""
            raise BrokerError(f"the private RabbitMQ node has ended with status {status}{said}")

    def stop(self) -> None:
        """Stop the node and its port mapper. May be called twice."""
        if self._process is not None:
            self._end(signal.SIGTERM)
        if self._port_mapper is not None:
            self._port_mapper.terminate()
            self._port_mapper.wait()
            self._port_mapper = None

    def kill(self) -> None:
        """End the node as a crash would; `start` brings it back with what it had on disk."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        """Start the node."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the node."""
        self.stop()

    def _spawn(self, program: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [*ended_with_us(signal.SIGTERM), program],
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the node is stopped last
            )
        except OSError as error:
            raise BrokerError(f"{program} can not be started: {error.strerror}") from error

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        # The server is a shell that starts Erlang: the signal is for all of its session's processes.
        _signal_group(process.pid, number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        end = time.monotonic() + _STOP_SECONDS
        while _group_lives(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        _signal_group(process.pid, signal.SIGKILL)

    def _accepts(self) -> bool:
        """Whether an AMQP connection would be answered: the port is open and the server reacts to the header."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) != b""
        except OSError:
            return False

    def _configure(self) -> None:
        configuration = self.folder / "rabbitmq.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self._port}\n"
            f"default_user = {_USER}\n"
            f"default_pass = {self._password}\n"
            "loopback_users = none\n"
            "log.console = false\n"
            "log.file.level = warning\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        (self.folder / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"trialfleet{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(folder / "node.pid"),
        }


def _find_program() -> str:
    if _PROGRAM.exists():
        return str(_PROGRAM)
    found = shutil.which("rabbitmq-server")
    if found is None:
        raise BrokerError(
            "the program rabbitmq-server is not installed; on Debian or Ubuntu: sudo apt-get install rabbitmq-server"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different.

    The system gives none of them to a connection: a server that comes back finds its port free still.
    """
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            with contextlib.suppress(OSError):  # somebody listens there
                held.append(socket.create_server(("127.0.0.1", secrets.choice(_PORTS))))
        return [listener.getsockname()[1] for listener in held]
    finally:
        for listener in held:
            listener.close()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
