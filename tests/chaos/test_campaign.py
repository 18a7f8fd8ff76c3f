"""A handful of faults over real studies; `make chaos` brings hundreds."""

from collections.abc import Sequence

import pytest
from support.chaos_attack import attack

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize(
    ("fleet", "faults"),
    [
        pytest.param(
            False, ["killed coordinator", "killed slot", "full disk", "killed zygote", "stepped clock"], id="embedded"
        ),
        pytest.param(
            True,
            ["killed coordinator", "killed worker", "killed slot"],
            id="fleet",
            marks=pytest.mark.rabbitmq,
        ),
    ],
)
def test_nothing_is_lost_and_nothing_counted_twice(
    fleet: bool, faults: Sequence[str], request: pytest.FixtureRequest
) -> None:
    if fleet:
        request.getfixturevalue("rabbitmq_node")  # to skip, or fail, as all do where there is no server
    study = attack(250 + fleet, fleet=fleet, seed=0, faults=faults, trials=40, seconds=0.15, say=print)
    assert study["violations"] == []
    assert study["faults"], "it was attacked"
    assert study["sessions"] > 1
