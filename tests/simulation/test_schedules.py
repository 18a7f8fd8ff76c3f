"""Studies in a world where everything fails, from many seeds."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.campaign import Failure, Tally, main, run_seed, run_seeds
from simulation.plan import draw_plan

#: Schedules of each run of the tests; `make simulate` runs more.
SCHEDULES = 6_000
#: Seeds in which a bug showed that was in trialfleet, or that is planted in test_planted_bugs.py.
REGRESSIONS = (0, 3, 5, 14, 62, 508_044)
#: Schedules that are run on stores of both kinds.
ON_DISK = 12
TESTS = Path(__file__).parents[1]


@pytest.mark.timeout(1200)
def test_every_promise_is_kept_in_many_schedules() -> None:
    tally = Tally()
    for outcomes in run_seeds(range(10_000, 10_000 + SCHEDULES), jobs=2):
        tally.add(outcomes)
    assert tally.failures == []
    assert tally.schedules == SCHEDULES
    assert tally.sessions > 1.5 * SCHEDULES, "coordinators are killed and started again"
    assert tally.faults > 3 * SCHEDULES
    assert {"trials", "exhausted", "patience", "seconds", "cpu_seconds", "target", "failed"} == set(tally.ended)


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_found_is_not_found_again(seed: int) -> None:
    assert not isinstance(run_seed(seed), Failure)


def test_a_seed_is_the_same_every_time_and_on_every_store() -> None:
    for seed in range(ON_DISK):
        ending = run_seed(seed)
        assert run_seed(seed) == ending
        assert run_seed(seed, on_disk=True) == ending


def test_seeds_differ() -> None:
    assert len({draw_plan(seed)._replace(seed=0) for seed in range(100)}) == 100


def test_one_seed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "62"]) == 0
    shown = capsys.readouterr().out
    assert "Plan(seed=62" in shown
    assert "a coordinator starts: 0 trials are recorded" in shown


def test_a_failing_seed_tells_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trialfleet_coordinator.leases.LeaseTable.lost", lambda self, ready, now: [])
    assert main(["--schedules", "50"]) == 1
    shown = capsys.readouterr().out
    assert "make simulate SEED=" in shown
    assert "does not end within" in shown


def test_a_campaign_ends_at_sigint_with_what_it_has() -> None:
    command = [sys.executable, "-m", "simulation", "--schedules", "1000000"]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # a line of progress: it is under way
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert "interrupted" in rest
    assert "schedules/s" in rest
    assert process.returncode == 0
