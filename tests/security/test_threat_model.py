"""docs/security.md names a test for every threat, and each is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
SECTION = TEXT.split("## Threats")[1].split("\n## ")[0]
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ")][2:]


def test_every_threat_has_a_defence_and_a_test() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        threat, defence, test = (cell.strip() for cell in row.strip("|").split("|"))
        assert threat, row
        assert defence, row
        found = re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", test)
        assert found is not None, row
        file = ROOT / found.group(1)
        assert file.is_file(), row
        assert re.search(rf"^(async )?def {found.group(2)}\(", file.read_text(), re.MULTILINE), row
