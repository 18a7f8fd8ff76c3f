"""The API under requests made from its own description: it never fails inside, and answers as it says it does."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.http_service import TOKEN, HttpService, http_service

from trialfleet.home import Home
from trialfleet.watching import Watching
from trialfleet.workshop import HomeWorkshop
from trialfleet_coordinator.adapters.http import guards
from trialfleet_coordinator.adapters.http.openapi import document
from trialfleet_workers.allowance import Allowance

schema = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpService]:
    """One that checks submissions as the real one does; none of them is ever started."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "objective.py").write_text("def evaluate(params):\n    return params['x']\n")
    workshop = HomeWorkshop(Home(folder / "home"), "amqp://nowhere", Allowance((folder,)), Watching())
    with http_service(workshop) as service, pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "PER_SECOND", 1e9)
        yield service


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_description_says(service: HttpService, case: schemathesis.Case) -> None:
    service.clock.now += 1.0
    case.call_and_validate(
        base_url=service.url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        # A schema can not say what makes a study: most submissions that are shaped like one are refused.
        excluded_checks=[positive_data_acceptance],
    )
