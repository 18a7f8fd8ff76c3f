from collections.abc import Iterator

import pytest
from support.fleet_suite import BASE, FleetSuite, answers, make_evaluation, make_spec

from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import FleetError, ObjectiveError
from trialfleet_shared.fleet import Fleet
from trialfleet_shared.messages import StudySpec
from trialfleet_workers.local import LocalFleet


class TestLocalFleetOfProcesses(FleetSuite):
    use_processes = True

    @pytest.fixture
    def fleet(self) -> Iterator[Fleet]:
        fleet = LocalFleet(
            slots=2,
            base=BASE,
            data_path=None,
            functions={"local": lambda params: params["x"] + self.offset()},
            use_processes=self.use_processes,
            clock=SystemClock(),
        )
        yield fleet
        fleet.close()

    @staticmethod
    def offset() -> int:
        return 5

    def test_a_function_in_memory_is_evaluated(self, fleet: Fleet) -> None:
        fleet.start(StudySpec(study="suite", objective="memory:local", objective_digest=""))
        assert answers(fleet, [make_evaluation(0, x=1.0)])[0].value == 6.0

    def test_an_objective_that_is_not_there_is_told_at_the_start(self, fleet: Fleet) -> None:
        with pytest.raises(ObjectiveError, match="did you mean 'double'"):
            fleet.start(make_spec("objectives.py:doubel"))

    def test_an_objective_that_changed_is_told_at_the_start(self, fleet: Fleet) -> None:
        with pytest.raises(ObjectiveError, match="abcdef01 in the study"):
            fleet.start(StudySpec(study="suite", objective="objectives.py:double", objective_digest="abcdef0123"))

    def test_it_has_to_be_started(self, fleet: Fleet) -> None:
        with pytest.raises(FleetError, match="not started"):
            fleet.submit([make_evaluation(0, x=1.0)])

    def test_it_reports_memory_and_can_report_when_closed(self, fleet: Fleet) -> None:
        fleet.start(make_spec("objectives.py:double"))
        answers(fleet, [make_evaluation(0, x=1.0)])
        fleet.close()
        report = fleet.report()
        assert report.pss_bytes > 10 * 2**20
        again = fleet.report()
        assert again.pss_bytes >= report.pss_bytes, "the highest so far"
        assert again._replace(pss_bytes=report.pss_bytes) == report


class TestLocalFleetOfThreads(TestLocalFleetOfProcesses):
    use_processes = False
    isolates = False
