import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fleet_suite import BASE, FleetSuite, make_evaluation
from support.workers import WorkerProcesses

from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import FleetError
from trialfleet_shared.fleet import Fleet

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def broker(rabbitmq: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with a worker of 2 slots."""
    with WorkerProcesses(rabbitmq, Path(tmp_path_factory.mktemp("worker")), BASE) as workers:
        workers.start(slots=2)
        yield rabbitmq


class TestRabbitFleet(FleetSuite):
    @pytest.fixture
    def fleet(self, broker: str) -> Iterator[Fleet]:
        fleet = RabbitFleet(broker, address=uuid.uuid4().hex, clock=SystemClock())
        yield fleet
        fleet.close()

    def test_it_has_to_be_started(self, fleet: Fleet) -> None:
        with pytest.raises(FleetError, match="not started"):
            fleet.submit([make_evaluation(0, x=1.0)])
