"""HTTPS of the coordinator with real certificates: who trusts whom, and who is let in."""

import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.commands import document, start_trialfleet, trialfleet
from support.http_service import TOKEN, HttpService, http_service
from support.waiting import wait_until

from trialfleet.client import Client, CoordinatorError
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.fleet_file import load_fleet
from trialfleet.tls import client_tls
from trialfleet_coordinator.adapters.http import server as http_server
from trialfleet_coordinator.adapters.http.server import ServerTls
from trialfleet_shared.errors import ConfigurationError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> tuple[Path, Path]:
    return authority.sign("coordinator")


@pytest.fixture(scope="module")
def client(authority: Authority) -> dict[str, str]:
    """The environment of somebody with a certificate."""
    certificate, key = authority.sign("client")
    return {
        "TRIALFLEET_CA_FILE": str(authority.certificate),
        "TRIALFLEET_CERTIFICATE_FILE": str(certificate),
        "TRIALFLEET_KEY_FILE": str(key),
    }


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> dict[str, str]:
    """One with a certificate of another authority."""
    certificate, key = Authority(tmp_path_factory.mktemp("other")).sign("stranger")
    return {
        "TRIALFLEET_CA_FILE": str(authority.certificate),
        "TRIALFLEET_CERTIFICATE_FILE": str(certificate),
        "TRIALFLEET_KEY_FILE": str(key),
    }


@pytest.fixture(scope="module")
def service(authority: Authority, server: tuple[Path, Path]) -> Iterator[HttpService]:
    """One that wants a certificate."""
    certificate, key = map(str, server)
    with http_service(tls=ServerTls(certificate, key, str(authority.certificate))) as service:
        yield service


def studies(url: str, variables: dict[str, str]) -> list[object]:
    with Client(url, token=TOKEN, tls=client_tls(variables)) as client:
        return list(client.studies())


def test_whoever_has_certificate_and_token_is_served(service: HttpService, client: dict[str, str]) -> None:
    assert service.url.startswith("https://")
    assert studies(service.url, client) == []


def test_a_server_of_an_unknown_authority_is_not_spoken_to(service: HttpService) -> None:
    """The token is not sent to it: the handshake comes first."""
    with pytest.raises(CoordinatorError, match="certificate verify failed"):
        studies(service.url, {})


def test_a_server_of_another_name_is_not_spoken_to(authority: Authority, client: dict[str, str]) -> None:
    certificate, key = authority.sign("elsewhere", names="DNS:elsewhere")
    tls = ServerTls(str(certificate), str(key))
    with http_service(tls=tls) as service, pytest.raises(CoordinatorError, match="certificate verify failed"):
        studies(service.url, client)


def test_a_token_without_a_certificate_does_not_do(
    service: HttpService, authority: Authority, stranger: dict[str, str]
) -> None:
    for variables in ({"TRIALFLEET_CA_FILE": str(authority.certificate)}, stranger):
        with pytest.raises(CoordinatorError) as refused:
            studies(service.url, variables)
        assert TOKEN not in str(refused.value)


def test_whose_handshake_stalls_is_hung_up_on(server: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    certificate, key = map(str, server)
    with http_service(tls=ServerTls(certificate, key)) as service:
        host, _, port = service.url.removeprefix("https://").partition(":")
        begun = ssl.MemoryBIO()
        handshake = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), begun, server_hostname=host)
        with pytest.raises(ssl.SSLWantReadError):
            handshake.do_handshake()
        hello = begun.read()
        for said in (b"", hello[:-1]):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(said)
                assert connection.recv(1000) == b""


def test_nothing_is_spoken_in_the_clear_or_in_old_versions(service: HttpService, client: dict[str, str]) -> None:
    with pytest.raises(CoordinatorError):
        studies(service.url.replace("https:", "http:"), client)
    context = client_tls(client)
    assert context is not None
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    host, _, port = service.url.removeprefix("https://").partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        pytest.raises(OSError, match=r"TLS|SSL|reset"),
    ):
        context.wrap_socket(plain, server_hostname=host)


def test_the_installed_coordinator_and_commands_speak_it(
    tmp_path: Path, authority: Authority, server: tuple[Path, Path], client: dict[str, str]
) -> None:
    (tmp_path / "fleet.toml").write_text(
        f'[coordinator]\nport = 0\ntls_certificate = "{server[0]}"\ntls_key = "{server[1]}"\n'
        f'tls_client_ca = "{authority.certificate}"\n'
    )
    home = tmp_path / "home"
    nowhere = "amqp://nobody:nothing@127.0.0.1:1/"
    coordinator = start_trialfleet(
        ["coordinator", "--config", tmp_path / "fleet.toml"], home, TRIALFLEET_BROKER_URL=nowhere
    )
    try:
        wait_until(lambda: CoordinatorFiles(home).url() is not None, "a coordinator", 60)
        listed = trialfleet(["list", "--json"], home, **client)
        assert listed.returncode == 0, listed.stderr
        assert document(listed.stdout) == []
        unknown = trialfleet(["list"], home)
        assert unknown.returncode == 2
        assert "can not be reached" in unknown.stderr
        url = CoordinatorFiles(home).url()
        assert url is not None
        health = trialfleet(["health", "--url", url], home, **client)
        assert "answered 503" in health.stdout  # no broker; but it was understood
    finally:
        coordinator.terminate()
        coordinator.communicate(timeout=60)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('tls_certificate = "none.pem"', "coordinator.tls_key is missing beside coordinator.tls_certificate"),
        ('tls_client_ca = "none.pem"', "coordinator.tls_certificate is missing beside coordinator.tls_client_ca"),
        ('tls_certificate = "none.pem"\ntls_key = "none.key"', "none.pem with the key .*none.key: No such file"),
        ('tls_certificate = "fleet.toml"\ntls_key = "fleet.toml"', "no such thing in PEM form"),
    ],
)
def test_files_that_can_not_be_used_are_told_by_name(tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "fleet.toml").write_text(f"[coordinator]\n{lines}\n")
    with pytest.raises(ConfigurationError, match=words):
        load_fleet(tmp_path / "fleet.toml")


def test_a_clients_files_that_can_not_be_used_are_told_by_name(tmp_path: Path, client: dict[str, str]) -> None:
    nothing = str(tmp_path / "nothing")
    for change, words in (
        ({"TRIALFLEET_CA_FILE": nothing}, f"TRIALFLEET_CA_FILE = {nothing}: No such file"),
        ({"TRIALFLEET_CERTIFICATE_FILE": nothing}, f"TRIALFLEET_CERTIFICATE_FILE = {nothing}: No such file"),
        ({"TRIALFLEET_CERTIFICATE_FILE": ""}, "TRIALFLEET_KEY_FILE is set without TRIALFLEET_CERTIFICATE_FILE"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            client_tls(client | change)


def test_the_metrics_and_the_page_are_behind_it_too(service: HttpService, client: dict[str, str]) -> None:
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=client_tls(client)))
    with opener.open(f"{service.url}/metrics", timeout=10) as answer:
        assert answer.status == 200
    with pytest.raises(OSError, match="certificate"):
        urllib.request.urlopen(f"{service.url}/metrics", timeout=10)
