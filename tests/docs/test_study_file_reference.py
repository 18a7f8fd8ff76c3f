"""docs/reference/study-file.md and docs/reference/api.md name every key with its default and modes."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trialfleet.api import StudyOptions
from trialfleet.study_file import StudySection
from trialfleet_shared.messages import DataSpec, Resampling
from trialfleet_shared.settings import MODES, PRESETS, EfficiencyConfig
from trialfleet_shared.tables import show

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
STUDY_FILE = (REFERENCE / "study-file.md").read_text()


def rows(section: str) -> dict[str, list[str]]:
    """The cells of the tables below a heading, by the key in the first one."""
    text = STUDY_FILE.partition(f"\n## [{section}]\n")[2].partition("\n## ")[0]
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for key in re.findall(r"`(\w+)`", cells[0]) if line.startswith("| `") else []:
            found[key] = cells[1:]
    return found


@pytest.mark.parametrize(
    ("section", "table", "hidden"),
    [
        ("study", StudySection, set()),
        ("data", DataSpec, {"resampling", "seed"}),
        ("resampling", Resampling, set()),
        ("efficiency", EfficiencyConfig, set()),
    ],
)
def test_every_key_is_documented_with_its_default(section: str, table: type[msgspec.Struct], hidden: set[str]) -> None:
    documented = rows(section)

    assert set(documented) == set(table.__struct_fields__) - hidden
    for field in msgspec.structs.fields(table):
        if field.name in hidden:
            continue
        default = documented[field.name][1]
        if field.required:
            assert default == "required"
        elif field.default is not None:
            assert default == f"`{show(field.default)}`"
        else:
            assert not default.startswith("`"), field.name


def test_every_mode_is_documented() -> None:
    documented = rows("efficiency")

    for column, mode in enumerate(MODES, start=2):
        for key, cells in documented.items():
            told = cells[column].strip("`")
            expected: Any = PRESETS[mode].get(key)
            default = getattr(EfficiencyConfig(), key)
            assert told == ("" if expected is None or (expected == default and not told) else show(expected)), (
                mode,
                key,
            )


def test_every_option_of_the_api_is_documented() -> None:
    text = (REFERENCE / "api.md").read_text()

    for option in StudyOptions.__annotations__:
        assert f"`{option}`" in text
