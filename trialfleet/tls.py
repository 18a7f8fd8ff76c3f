"""TLS between the coordinator's HTTP side and those who speak to it; the broker's is part of its URL."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from trialfleet.paths import named_path
from trialfleet_shared.errors import ConfigurationError

#: Certificates of the authority that the coordinator's is signed by, in place of the system's.
CA_FILE = "TRIALFLEET_CA_FILE"
#: What is shown to a coordinator that wants a certificate, and its key.
CERTIFICATE_FILE = "TRIALFLEET_CERTIFICATE_FILE"
KEY_FILE = "TRIALFLEET_KEY_FILE"


def client_tls(variables: Mapping[str, str]) -> ssl.SSLContext | None:
    """How to check whoever answers at https://, and what to show; None: by the system's authorities, and nothing.

    Raises:
        ConfigurationError: a file that the environment names can not be used, or a key stands there alone.
    """
    authority, certificate, key = (_file(variables, name) for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE))
    if key is not None and certificate is None:
        raise ConfigurationError(f"environment: {KEY_FILE} is set without {CERTIFICATE_FILE}")
    if authority is None and certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"environment: {CA_FILE} = {authority}: {_words(error)}") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"environment: {CERTIFICATE_FILE} = {certificate}: {_words(error)}") from error
    return context


def check_server_files(certificate: Path, key: Path, authority: Path | None) -> None:
    """See that a server can use the files. Raises ConfigurationError, which names them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the certificate {certificate} with the key {key}: {_words(error)}") from error
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"the certificates {authority}: {_words(error)}") from error


def _file(variables: Mapping[str, str], name: str) -> str | None:
    value = variables.get(name)
    return str(named_path(f"environment: {name}", value)) if value else None


def _no_password() -> str:
    """OpenSSL would ask the terminal for one."""
    raise OSError("the key is encrypted; a key without a password is needed, in a file for its user alone")


def _words(error: OSError) -> str:
    # OpenSSL's own words, "[SSL] PEM lib (_ssl.c:3900)" say, name no cause.
    if isinstance(error, ssl.SSLError):
        return "no such thing in PEM form, or they do not belong together"
    return error.strerror or str(error)
