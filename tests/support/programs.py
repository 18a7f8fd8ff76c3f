"""Programs that some tests need, beside those that pip installs."""

import os
import shutil

import pytest


def need(program: str) -> str:
    """Where the program is. Without it: the test is skipped on a laptop, failed where CI is set."""
    path = shutil.which(program)
    if path is None:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain(f"the program {program} is not installed; make setup does")
    return path
