"""docs/reference/configuration.md names every key of fleet.toml and every variable."""

import re
from pathlib import Path

import msgspec

from trialfleet import environment
from trialfleet.fleet_file import CoordinatorSection

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by their first cell."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if line[:2] == "| "
    ]
    return {name.strip("` "): rest for first, *rest in cells[2:] for name in first.split(",")}


def test_every_key_is_named_with_its_default() -> None:
    fields = {field.name: field for field in msgspec.structs.fields(CoordinatorSection)}
    table = rows("fleet.toml")
    assert table.keys() == fields.keys()
    for name in ("host", "port", "most_running"):
        assert table[name][1] == f"`{msgspec.json.encode(fields[name].default).decode()}`"


def test_every_variable_is_named() -> None:
    own = {value for name, value in vars(environment).items() if name.isupper() and isinstance(value, str)}
    assert rows("The environment").keys() == (own - {environment.PREFIX}) | {"TRIALFLEET_<KEY>"}


def test_no_variable_is_made_up() -> None:
    known = {*environment.VARIABLES, *rows("The environment")}
    pages = [*(Path(__file__).parents[2] / "docs").rglob("*.md"), Path(__file__).parents[2] / "README.md"]
    named = {name for page in pages for name in re.findall(r"\bTRIALFLEET_[A-Z_]+\b", page.read_text(encoding="utf-8"))}
    assert named <= known | {"TRIALFLEET_"}
