"""What is logged: one line per event, with fields, without secrets, and not a thousand times."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.commands import trialfleet
from support.exposition import a_result, an_evaluation
from support.simulated import SimulatedClock

from trialfleet.logs import (
    MOST_KINDS,
    RATE,
    RATE_SECONDS,
    JsonFormatter,
    LogFormat,
    TextFormatter,
    start_logging,
)
from trialfleet_coordinator.adapters.study_log import StudyLog
from trialfleet_coordinator.commands import RecordDecision, RecordEvaluation, TrialState
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import Outcome
from trialfleet_workers.adapters.worker_log import WorkerLog


class Terminal(io.StringIO):
    """Standard error as a person has it."""

    def isatty(self) -> bool:
        return True


class Logged:
    """Logging as a command sets it up, and what came of it."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.stream = io.StringIO()

    def start(
        self,
        *,
        daemon: bool = True,
        verbose: bool = False,
        log_format: LogFormat | None = None,
        stream: io.StringIO | None = None,
    ) -> LogFormat:
        self.stream = stream or self.stream
        return start_logging(self.stream, self.clock, daemon=daemon, verbose=verbose, log_format=log_format)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def logged() -> Iterator[Logged]:
    root, own = logging.getLogger(), logging.getLogger("trialfleet")
    level = own.level
    yield Logged()
    own.setLevel(level)
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, JsonFormatter | TextFormatter):
            root.removeHandler(handler)


LOG = logging.getLogger("trialfleet.test")


def test_a_daemon_writes_json_unless_a_person_reads(logged: Logged) -> None:
    assert logged.start(daemon=True) == "json"
    assert logged.start(daemon=True, stream=Terminal()) == "text"
    assert logged.start(daemon=False) == "text"
    assert logged.start(daemon=True, stream=Terminal(), log_format="json") == "json"


def test_an_event_is_one_line_with_its_fields(logged: Logged) -> None:
    logged.start()
    LOG.warning("trial %d failed:\nbadly", 3, extra={"study": "s", "trial": 3, "cause": "a\nb", "value": None})
    assert logged.text.count("\n") == 1
    (line,) = logged.lines
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "trialfleet.test",
        "message": "trial 3 failed:\nbadly",
        "study": "s",
        "trial": 3,
        "cause": "a\nb",
        "value": None,
    }


def test_what_json_does_not_know_is_text(logged: Logged) -> None:
    logged.start()
    LOG.warning("x", extra={"value": float("nan"), "place": {1}, "share": 0.5})
    (line,) = logged.lines
    assert (line["value"], line["place"], line["share"]) == ("nan", "{1}", 0.5)


@pytest.mark.parametrize(("log_format", "escaped"), [("text", r"\x1b\x9b"), ("json", r"\u001b\u009b")])
def test_a_terminal_is_shown_nothing_that_it_would_obey(logged: Logged, log_format: LogFormat, escaped: str) -> None:
    logged.start(log_format=log_format)
    LOG.warning("study \x1b\x9b failed", exc_info=ValueError("\x1b\x9b"))
    assert logged.text.count(escaped) == 2
    assert not {"\x1b", "\x9b"} & set(logged.text)


def test_an_exception_is_a_field(logged: Logged) -> None:
    logged.start()
    LOG.error("a study failed", exc_info=ValueError("at amqp://u:secret@h"))
    (line,) = logged.lines
    assert line["exception"] == "ValueError: at amqp://u:***@h"
    assert "secret" not in logged.text


@pytest.mark.parametrize(
    ("daemon", "verbose", "seen"),
    [
        (False, False, ["warning"]),
        (False, True, ["info", "warning"]),
        (True, False, ["info", "warning"]),
        (True, True, ["debug", "info", "warning"]),
    ],
)
def test_daemons_say_more_than_commands(logged: Logged, daemon: bool, verbose: bool, seen: list[str]) -> None:
    logged.start(daemon=daemon, verbose=verbose, log_format="json")
    for level in ("debug", "info", "warning"):
        getattr(LOG, level)("x")
        if level != "warning":
            getattr(logging.getLogger("some.library"), level)("never shown")
    assert [line["level"] for line in logged.lines] == seen


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_part_of_a_line_shows_a_secret(logged: Logged, log_format: LogFormat) -> None:
    logged.start(log_format=log_format)
    url = "amqp://user:secret@host"
    LOG.warning("lost %s", url, extra={"cause": url, "broker": [url]})
    LOG.error(url)
    assert "secret" not in logged.text
    assert "host" in logged.text


def test_a_thousand_warnings_of_a_kind_are_a_few_lines(logged: Logged) -> None:
    logged.start()
    for trial in range(1000):
        LOG.warning("trial %d failed", trial)
    LOG.warning("something else")
    LOG.info("trial %d failed", 1)
    assert len(logged.lines) == RATE + 2
    logged.clock.now += RATE_SECONDS
    for trial in range(1000):
        LOG.warning("trial %d failed", trial)
    later = logged.lines[RATE + 2 :]
    assert [line.get("suppressed") for line in later] == [1000 - RATE, *[None] * (RATE - 1)]


def test_people_are_told_what_is_not_shown(logged: Logged) -> None:
    logged.start(log_format="text")
    for _ in range(RATE + 3):
        LOG.warning("it failed")
    logged.clock.now += RATE_SECONDS
    LOG.warning("it failed")
    assert logged.text.splitlines()[-1].endswith("it failed (3 more like this were not shown)")


def test_kinds_of_warnings_do_not_add_up(logged: Logged) -> None:
    logged.start()
    for number in range(MOST_KINDS + 100):
        LOG.warning(f"a message made up as one goes, {number}")  # noqa: G004  # what is tried
    assert len(logged.lines) == MOST_KINDS + RATE


def test_a_study_logs_failures_and_what_was_lost(logged: Logged) -> None:
    logged.start()
    study = StudyLog("s")
    study.committed(
        [
            RecordEvaluation(a_result(0)),
            RecordEvaluation(a_result(1, 2, 1, outcome=Outcome.TIMEOUT)),
            RecordDecision(1, TrialState.FAIL, None, "timeout"),
        ],
        0.001,
    )
    study.received([], [LostEvaluation(an_evaluation(4).key, 1, "worker w is gone")])
    timeout, lost = logged.lines
    assert (timeout["study"], timeout["trial"], timeout["rung"], timeout["fold"]) == ("s", 1, 2, 1)
    assert timeout["outcome"] == "timeout"
    assert (lost["trial"], lost["cause"]) == (4, "worker w is gone")


def test_a_study_logs_once_who_refuses_it(logged: Logged) -> None:
    logged.start()
    study = StudyLog("s")
    for number, worker in enumerate(["v", "w", "v"]):
        refusal = msgspec.structs.replace(
            a_result(number, outcome=Outcome.REFUSED), worker=worker, error="its code\nhere"
        )
        study.received([a_result(9), refusal], [])
    assert [(line["study"], line["worker"], line["message"]) for line in logged.lines] == [
        ("s", worker, f"study s: worker {worker} refuses it: its code") for worker in "vw"
    ]


def test_evaluations_and_decisions_are_for_debugging(logged: Logged) -> None:
    logged.start(verbose=True)
    decision = RecordDecision(0, TrialState.PRUNED, 1.0, "halving")
    StudyLog("s").committed([RecordEvaluation(a_result(0)), decision], 0.001)
    WorkerLog().answered("s", [a_result(0)])
    evaluation, decided, committed, answered = logged.lines
    assert {line["level"] for line in logged.lines} == {"debug"}
    assert (evaluation["trial"], evaluation["value"]) == (0, 1.0)
    assert (decided["state"], decided["cause"]) == ("pruned", "halving")
    assert committed["records"] == 2
    assert answered["logger"] == "trialfleet.worker"


def test_a_worker_logs_failures(logged: Logged) -> None:
    logged.start()
    WorkerLog().answered("s", [a_result(0), a_result(1, outcome=Outcome.MEMORY)])
    (line,) = logged.lines
    assert (line["level"], line["study"], line["trial"], line["outcome"]) == ("warning", "s", 1, "memory")


def test_a_daemon_tells_even_its_end_in_json(tmp_path: Path) -> None:
    done = trialfleet(["worker", "--objective-path", tmp_path], tmp_path / "home")
    assert done.returncode == 2
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"], line["logger"]) == ("error", "trialfleet")
    assert "a worker needs a broker" in line["message"]
    plain = trialfleet(["worker", "--objective-path", tmp_path, "--log-format", "text"], tmp_path / "home")
    assert plain.stderr.startswith("error: a worker needs a broker")
