"""docs/reference/metrics.md lists every metric and label, as `trialfleet_shared.instruments` has them."""

from pathlib import Path

import pytest

from trialfleet_shared import instruments
from trialfleet_shared.instruments import LABELS, Instrument

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
SECTIONS = {
    "Of each study": instruments.OF_STUDIES,
    "Of the coordinator": (instruments.BUILD_INFO, *instruments.OF_THE_COORDINATOR),
    "Of a worker": (instruments.BUILD_INFO, *instruments.OF_WORKERS),
}


def table(section: str) -> list[str]:
    """The rows of the table below a heading."""
    text = REFERENCE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| `")]


def row(instrument: Instrument) -> str:
    """How an instrument is to be documented."""
    labels = ", ".join(f"`{label}`" for label in instrument.labels)
    about = instrument.help
    if instrument.buckets:
        about += f" Buckets: {instrument.buckets[0]:g} to {instrument.buckets[-1]:g}."
    return f"| `{instrument.series}` | {instrument.kind} | {labels} | {about} |"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_metric_is_documented(section: str) -> None:
    assert table(section) == [row(instrument) for instrument in SECTIONS[section]]


def test_every_label_is_documented() -> None:
    expected = []
    for name, (about, values) in LABELS.items():
        shown = ", ".join(f"`{value}`" for value in values)
        expected.append(f"| `{name}` | {about} | {shown} |")
    assert table("Labels") == expected
