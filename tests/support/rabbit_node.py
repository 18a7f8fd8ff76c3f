"""A private RabbitMQ node that is configured as ops/ says, but for its ports and the places of its secrets."""

import subprocess
import sys
from pathlib import Path

from trialfleet.rabbitmq_node import RabbitNode, _free_ports

OPS = Path(__file__).parents[2] / "ops"
VHOST = "trialfleet"


class OpsNode(RabbitNode):
    """Imports the definitions that ops/make-secrets made for it.

    Args:
        folder: where it keeps everything; its secrets are in `folder/secrets`.
    """

    def __init__(self, folder: Path) -> None:
        self.secrets = folder / "secrets"
        self._management_port, self._prometheus_port = _free_ports(2)
        super().__init__(folder)
        subprocess.run(
            [sys.executable, str(OPS / "make-secrets"), str(self.secrets), "--broker", self.address],
            check=True,
            capture_output=True,
        )

    def url_of(self, user: str) -> str:
        """How a user of the definitions connects."""
        return (self.secrets / f"{user}-broker-url").read_text().strip()

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

    def _configure(self) -> None:
        shipped = (OPS / "rabbitmq" / "rabbitmq.conf").read_text()
        (self._folder / "rabbitmq.conf").write_text(
            shipped.replace("/run/secrets", str(self.secrets))
            + f"listeners.tcp.1 = 127.0.0.1:{self._port}\n"
            + f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management_port}\n"
            + f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {self._prometheus_port}\n"
            + "disk_free_limit.absolute = 50MB\n"  # the machine of a test may have little
        )
        (self._folder / "enabled_plugins").write_text((OPS / "rabbitmq" / "enabled_plugins").read_text())
