"""docs/reference/http-api.md says what the code does."""

import re
from pathlib import Path

from trialfleet_coordinator.adapters.http.application import OPEN_PATHS
from trialfleet_coordinator.adapters.http.guards import BURST, PER_SECOND
from trialfleet_coordinator.adapters.http.problems import STATUSES
from trialfleet_coordinator.adapters.http.routes import LONGEST_PAGE, ROUTES

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text()


def table(section: str) -> list[str]:
    """The rows of the table below a heading."""
    text = TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_every_verb_is_documented() -> None:
    expected = [f"| `{route.method} {route.path}` | {route.status.value} | {route.summary} |" for route in ROUTES]
    assert table("Verbs") == expected


def test_every_error_is_documented() -> None:
    rows = [re.match(r"\| (\d+) \| `(\w+Error)` \|", row) for row in table("Errors")]
    documented = {found[2]: int(found[1]) for found in rows if found}
    assert documented == {kind.__name__: status.value for kind, status in STATUSES.items()}


def test_every_open_path_is_documented() -> None:
    assert {row.split("`")[1] for row in table("For operators' tools")} == OPEN_PATHS


def test_every_bound_is_documented() -> None:
    assert f"{BURST} requests at once and {PER_SECOND:g} a second" in " ".join(TEXT.split())
    assert f"`limit` ({LONGEST_PAGE}, the most)" in TEXT
