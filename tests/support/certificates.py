"""An authority of certificates, and what it signed; made by openssl."""

import subprocess
from pathlib import Path

from support.programs import need


class Authority:
    """Signs certificates for an hour or so.

    Args:
        folder: where its files go: `ca.pem`, and `NAME.pem` and `NAME.key` for each that it signed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl("req", "-x509", *_NEW_KEY, "-subj", "/CN=tests", "-keyout", self._key, "-out", self.certificate)

    def sign(self, name: str, *, names: str = "IP:127.0.0.1, DNS:localhost") -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, or other names, and its key."""
        certificate, key, request = (self._folder / f"{name}.{suffix}" for suffix in ("pem", "key", "csr"))
        extensions = self._folder / "extensions"
        extensions.write_text(f"subjectAltName = {names}\n")
        _openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signer, "-days", "1", "-out", certificate)
        return certificate, key


_NEW_KEY = ("-newkey", "rsa:2048", "-nodes", "-sha256")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([need("openssl"), *map(str, arguments)], check=True, capture_output=True)
