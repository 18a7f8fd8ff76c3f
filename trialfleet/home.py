"""Where a user's studies, results and data are kept."""

from pathlib import Path
from typing import NamedTuple


class Home(NamedTuple):
    """Where a user's studies, results and data are kept."""

    path: Path

    @property
    def store(self) -> Path:
        """The studies."""
        return self.path / "store"

    @property
    def results(self) -> Path:
        """The result cache."""
        return self.path / "results"

    @property
    def data(self) -> Path:
        """Imported data sets."""
        return self.path / "data"
