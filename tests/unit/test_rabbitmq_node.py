"""What is said of a private RabbitMQ node that does not come up."""

import os
from pathlib import Path

import pytest

from trialfleet import rabbitmq_node
from trialfleet.rabbitmq_node import RabbitNode
from trialfleet_shared.errors import BrokerError


def node(folder: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> RabbitNode:
    """A node whose server is this shell script."""
    for name, script in (("rabbitmq-server", server), ("epmd", "exec sleep 600")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(rabbitmq_node, "_PROGRAM", folder / "rabbitmq-server")
    return RabbitNode(folder / "node")


def test_a_node_that_is_not_up_in_time_is_told_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_node, "_START_SECONDS", 0.0)
    slow = node(tmp_path, monkeypatch, "exec sleep 600")
    with pytest.raises(BrokerError) as refused:
        slow.start()
    assert str(refused.value) == "the private RabbitMQ node did not start within 0 s; it has said nothing"
    assert slow.pid is None


def test_a_node_that_ends_is_told_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = node(tmp_path, monkeypatch, "echo no cookie; exit 3")
    with pytest.raises(BrokerError) as refused:
        broken.start()
    assert str(refused.value) == (
        "the private RabbitMQ node did not start, and ended with status 3; the end of its output:\nno cookie\n"
    )


def test_no_connection_is_given_a_port_that_a_server_gets() -> None:
    ports = rabbitmq_node.free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < 32_768, "where Linux begins, unless it is told otherwise"
