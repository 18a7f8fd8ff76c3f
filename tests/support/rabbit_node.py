"""Private RabbitMQ nodes: one that rabbitmqctl speaks to; configured as ops/ says, but for ports and the places of secrets."""

import socket
import subprocess
import sys
from pathlib import Path

from support.deployed import OPS
from trialfleet.rabbitmq_node import RabbitNode, free_ports

VHOST = "trialfleet"


class ControlledNode(RabbitNode):
    """May be spoken to as operators do."""

    def control(self, *arguments: str) -> None:
        """Run rabbitmqctl."""
        command = [str(Path(self._program).with_name("rabbitmqctl")), *arguments]
        subprocess.run(command, env=self._environment(), check=True, capture_output=True, timeout=60)


class OpsNode(ControlledNode):
    """Imports the definitions that ops/make-secrets made for it.

    Args:
        folder: where it keeps everything; its secrets are in `folder/secrets`.
    """

    def __init__(self, folder: Path) -> None:
        self.secrets = folder / "secrets"
        self._management_port, self._prometheus_port = free_ports(2)
        super().__init__(folder)
        subprocess.run(self._make_secrets(), check=True, capture_output=True)

    def url_of(self, user: str) -> str:
        """How a user of the definitions connects."""
        return (self.secrets / f"{user}-broker-url").read_text()

    def password_of(self, user: str) -> str:
        return (self.secrets / f"{user}-password").read_text().strip()

    @property
    def management(self) -> str:
        """Base URL of the management API."""
        return f"http://127.0.0.1:{self._management_port}/api"

    @property
    def prometheus(self) -> str:
        """host:port of the figures for Prometheus."""
        return f"127.0.0.1:{self._prometheus_port}"

    def _make_secrets(self) -> list[str]:
        return [sys.executable, str(OPS / "make-secrets"), str(self.secrets), "--broker", self.address]

    def _configure(self) -> None:
        shipped = (OPS / "rabbitmq" / "rabbitmq.conf").read_text()
        (self.folder / "rabbitmq.conf").write_text(
            shipped.replace("/run/secrets", str(self.secrets))
            + f"listeners.tcp.1 = 127.0.0.1:{self._port}\n"
            + f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management_port}\n"
            + f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {self._prometheus_port}\n"
            + "disk_free_limit.absolute = 50MB\n"  # the machine of a test may have little
        )
        (self.folder / "enabled_plugins").write_text((OPS / "rabbitmq" / "enabled_plugins").read_text())


class TlsNode(OpsNode):
    """As `OpsNode`, with tls.conf as well.

    Args:
        folder: as of `OpsNode`; certificates are expected among its secrets, by the names of tls.conf.
    """

    def url_of(self, user: str, **replaced: str) -> str:
        """How a user connects, with other files than the own ones in place of some."""
        url = super().url_of(user)
        for name in ("rabbitmq-ca", "client-certificate", "client-key"):
            url = url.replace(f"/run/secrets/{name}", replaced.get(name.replace("-", "_"), str(self.secrets / name)))
        return url

    def _make_secrets(self) -> list[str]:
        return [*super()._make_secrets(), "--tls"]

    def _configure(self) -> None:
        super()._configure()
        file = self.folder / "rabbitmq.conf"
        shipped = (OPS / "rabbitmq" / "tls.conf").read_text()
        plain = [line for line in file.read_text().splitlines() if not line.startswith(("listeners.tcp", "management"))]
        file.write_text(
            "\n".join(plain)
            + "\n"
            + shipped.replace("/run/secrets", str(self.secrets))
            .replace("listeners.ssl.default = 5671", f"listeners.ssl.default = 127.0.0.1:{self._port}")
            .replace("management.ssl.port = 15671", f"management.ssl.port = {self._management_port}")
        )

    def _environment(self) -> dict[str, str]:
        # These would add a listener that speaks in the clear.
        mine = ("RABBITMQ_NODE_IP_ADDRESS", "RABBITMQ_NODE_PORT")
        return {name: value for name, value in super()._environment().items() if name not in mine}

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True
