"""The broker with ops/rabbitmq/tls.conf: nothing in the clear, nobody without a certificate of the authority."""

import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.rabbit_node import TlsNode

from trialfleet_shared.adapters.rabbit import EVALUATIONS, connect
from trialfleet_shared.errors import BrokerError

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An authority that is not the broker's, and a certificate and key of it."""
    authority = Authority(tmp_path_factory.mktemp("other"))
    return (authority.certificate, *authority.sign("other"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, rabbitmq: str) -> Iterator[TlsNode]:  # as that: fails or skips alike
    folder = tmp_path_factory.mktemp("tls-node")
    authority = Authority(tmp_path_factory.mktemp("authority"))
    node = TlsNode(folder)
    shutil.copy(authority.certificate, node.secrets / "rabbitmq-ca")
    for name in ("rabbitmq", "client"):
        certificate, key = authority.sign(name)
        shutil.copy(certificate, node.secrets / f"{name}-certificate")
        shutil.copy(key, node.secrets / f"{name}-key")
    with node:
        yield node


@pytest.mark.parametrize("user", ["coordinator", "worker"])
def test_each_role_connects(user: str, node: TlsNode) -> None:
    broker = connect(node.url_of(user), patience=10.0)
    try:
        assert broker.ready_messages(EVALUATIONS) == 0
    finally:
        broker.close()


def test_a_broker_of_another_authority_is_not_trusted(node: TlsNode, other: tuple[Path, Path, Path]) -> None:
    with pytest.raises(BrokerError, match="not reachable"):
        connect(node.url_of("worker", rabbitmq_ca=str(other[0])), patience=1.0)


def test_a_password_alone_does_not_do(node: TlsNode, other: tuple[Path, Path, Path]) -> None:
    _, certificate, key = other
    url = node.url_of("worker", client_certificate=str(certificate), client_key=str(key))
    with pytest.raises(BrokerError) as refused:
        connect(url, patience=1.0)
    assert node.password_of("worker") not in str(refused.value)


def test_nothing_is_spoken_in_the_clear(node: TlsNode) -> None:
    with pytest.raises(BrokerError):
        connect(f"amqp://worker:{node.password_of('worker')}@{node.address}/trialfleet", patience=1.0)


def test_the_management_api_shows_the_certificate(node: TlsNode) -> None:
    url = node.management.replace("http:", "https:") + "/overview"
    context = ssl.create_default_context(cafile=node.secrets / "rabbitmq-ca")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, context=context, timeout=10)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(url, timeout=10)
