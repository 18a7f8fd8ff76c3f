"""What a slot is offered ahead: how much, and that it finds room in the socket."""

import socket
from collections.abc import Iterator

import pytest
from support.pools import evaluation, memory_spec

from trialfleet_workers.jobs import Job
from trialfleet_workers.offers import Offers


@pytest.fixture
def offers() -> Iterator[Offers]:
    made = Offers()
    yield made
    made.close()


def job(trial: int, length: int = 1) -> Job:
    return Job(memory_spec(), evaluation(trial, text="x" * length))


@pytest.mark.parametrize(("seconds", "ahead"), [(10.0, 1), (0.005, 1), (0.001, 5), (1e-5, 64), (0.0, 64)])
def test_the_quicker_evaluations_are_the_more_are_offered(offers: Offers, seconds: float, ahead: int) -> None:
    offers.pace(seconds)
    made = 0
    while offers.open and offers.make(job(made)):
        made += 1
    assert made == ahead


def test_all_that_is_offered_finds_room_in_a_socket_that_nobody_reads(offers: Offers) -> None:
    offers.pace(0.0)
    made = 0
    while made < 100 and offers.make(job(made, 5000)):
        made += 1
    assert made == 3
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        offers.send(ours)
        assert len(theirs.recv(2**20)) > 15_000
    assert offers.accepted() is not None
    assert offers.make(job(made, 5000)), "there is room again"
