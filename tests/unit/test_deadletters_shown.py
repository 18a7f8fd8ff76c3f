"""What `trialfleet deadletters` shows of letters that anybody may have written."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from trialfleet.commands import deadletters
from trialfleet_shared.adapters.dead_letters import Letter


@pytest.mark.parametrize(
    ("at", "shown"), [(0.0, "1970-01-01 00:00:00 UTC"), (1e300, "1e+300 seconds after 1970"), (None, "unknown time")]
)
def test_a_time_that_no_calendar_has_is_shown_as_the_number_it_is(
    at: float | None, shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    letter = Letter(
        id="abc", at=at, reason="rejected", queue="q", size_bytes=3, problem="no message of ours", excerpt="abc",
        study=None, objective=None, evaluations=(), attempts=(),
    )  # fmt: skip
    dead = SimpleNamespace(letters=lambda: [letter])
    monkeypatch.setattr(deadletters, "_opened", lambda _url: nullcontext(dead))
    deadletters.list_command(None, as_json=False)
    deadletters.show_command("abc", None, as_json=False)
    assert shown in " ".join(capfd.readouterr().out.split())


def test_a_terminal_is_shown_nothing_that_it_would_obey(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    letter = Letter(
        id="abc", at=None, reason="\x1bc", queue="\x1bc", size_bytes=3, problem="\x1bc", excerpt="\x1bc",
        study="\x1bc", objective="\x1bc", evaluations=(), attempts=(),
    )  # fmt: skip
    dead = SimpleNamespace(letters=lambda: [letter])
    monkeypatch.setattr(deadletters, "_opened", lambda _url: nullcontext(dead))
    deadletters.list_command(None, as_json=False)
    deadletters.show_command("abc", None, as_json=False)
    out = capfd.readouterr().out
    assert out.count(r"\x1bc") == 8
    assert "\x1b" not in out
