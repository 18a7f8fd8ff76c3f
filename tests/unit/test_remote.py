"""A study that a coordinator runs for the Python API."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from support.fake_workshop import a_status

from trialfleet.client import AsyncClient, NoCoordinatorError
from trialfleet.remote import run_by, submission_of
from trialfleet.study_file import StudyRequest, read_study
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.sampling.points import point_of
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission
from trialfleet_shared.errors import StudyFailedError, TrialfleetError
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Float, SearchSpace

SUBMISSION = Submission(tables={}, base="/")


def bowl(params: dict[str, float]) -> float:
    return params["x"] ** 2


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (EfficiencyConfig(), "balanced"),  # of settings of its own, for want of a name
        (EfficiencyConfig.fast(), "fast"),
        (EfficiencyConfig.balanced(), "balanced"),
        (EfficiencyConfig.thorough(), "thorough"),
    ],
)
def test_a_coordinator_is_told_every_setting_and_the_mode(config: EfficiencyConfig, mode: str) -> None:
    request = StudyRequest(
        name="bowl",
        direction="minimize",
        space=SearchSpace({"x": Float(0.0, 1.0)}),
        objective="memory:bowl",
        base=Path(),
        config=config,
        budget=Budget(trials=10),
    )
    told = msgspec.json.decode(msgspec.json.encode(submission_of(request, bowl, None)), type=Submission)
    study = read_study(told.tables, "the submission", Path(told.base))
    assert (study.config, study.mode) == (config, mode)


def test_a_coordinator_is_told_the_points_to_evaluate() -> None:
    space = SearchSpace({"x": Float(0.0, 1.0)})
    request = StudyRequest(
        name="bowl",
        direction="minimize",
        space=space,
        objective="memory:bowl",
        base=Path(),
        config=EfficiencyConfig(),
        budget=Budget(trials=10),
        points_to_evaluate=[point_of(space, {"x": 0.25}, "point")],
    )
    told = submission_of(request, bowl, None)
    assert read_study(told.tables, "the submission", Path(told.base)).points_to_evaluate == request.points_to_evaluate


class SlowClient:
    """A coordinator's client whose submission takes as long as the test wants."""

    def __init__(self, refusal: TrialfleetError | None = None) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self.cancelled: list[str] = []
        self._refusal = refusal

    async def submit(self, submission: Submission) -> StudyStatus:
        self.asked.set()
        await self.answer.wait()
        if self._refusal is not None:
            raise self._refusal
        return a_status("a", ServiceState.RUNNING)

    async def watch(self, study: str) -> AsyncIterator[StudyStatus]:
        await asyncio.Event().wait()
        yield cast("Any", None)

    async def cancel(self, study: str) -> None:
        self.cancelled.append(study)


async def _cancelled_on_the_way(client: SlowClient) -> None:
    task = asyncio.create_task(run_by(cast("AsyncClient", client), SUBMISSION, keep=True))
    await client.asked.wait()
    task.cancel()
    await asyncio.sleep(0)
    client.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_study_whose_submission_is_on_its_way_is_cancelled_too() -> None:
    async def scenario() -> list[str]:
        client = SlowClient()
        await _cancelled_on_the_way(client)
        return client.cancelled

    assert asyncio.run(scenario()) == ["a"]


def test_one_that_is_refused_meanwhile_needs_no_cancelling() -> None:
    async def scenario() -> list[str]:
        client = SlowClient(TrialfleetError("it has that name already"))
        await _cancelled_on_the_way(client)
        return client.cancelled

    assert asyncio.run(scenario()) == []


class RefusingClient(SlowClient):
    """A coordinator's client of a study that is done, and can not be opened as it is submitted again."""

    async def watch(self, study: str) -> AsyncIterator[StudyStatus]:
        yield msgspec.structs.replace(a_status(study, ServiceState.DONE), refused="another data set")


def test_one_that_can_not_be_opened_is_not_taken_for_the_one_that_there_is() -> None:
    async def scenario() -> None:
        client = RefusingClient()
        client.answer.set()
        await run_by(cast("AsyncClient", client), SUBMISSION, keep=True)

    with pytest.raises(StudyFailedError, match="can not be run as submitted: another data set"):
        asyncio.run(scenario())


class LosingClient(SlowClient):
    """A coordinator's client that does not find it any more."""

    async def watch(self, study: str) -> AsyncIterator[StudyStatus]:
        yield a_status(study, ServiceState.RUNNING)
        raise NoCoordinatorError("nobody answers")


def test_a_study_whose_coordinator_is_lost_is_not_cancelled() -> None:
    async def scenario() -> list[str]:
        client = LosingClient()
        client.answer.set()
        with pytest.raises(NoCoordinatorError):
            await run_by(cast("AsyncClient", client), SUBMISSION, keep=True)
        return client.cancelled

    assert asyncio.run(scenario()) == []
